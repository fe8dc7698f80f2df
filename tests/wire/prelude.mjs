// Put in front of the MaxiCore document's snippets. It supplies what the document leaves undefined, `getToken`, `token`
// and a `WebSocket` that leads the documented host to the node under test, and what the test needs to follow along:
//
//   out: a line `@{"what": value}` for `opened`, `sent`, `received`, `pinged` and `closed`, between the console's lines;
//   in:  a line `continue` resolves the next `told()`, `close` closes the socket, any other line is sent as it is.
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const Ws = createRequire(import.meta.url)('ws');

const report = (what, value) => process.stdout.write(`@${JSON.stringify({ [what]: value })}\n`);

globalThis.token = process.env.TOKEN;
globalThis.getToken = async () => process.env.TOKEN;

globalThis.WebSocket = class extends Ws {
  constructor(url) {
    super(url.replace('wss://api.maxicore.ch', process.env.NODE_UNDER_TEST), { autoPong: false });
    this.on('ping', () => report('pinged', null));
    this.on('message', (data) => report('received', JSON.parse(data)));
    this.on('close', (code, reason) => report('closed', [code, reason.toString()]));
  }

  send(text) {
    report('sent', JSON.parse(text));
    super.send(text);
  }

  // The document listens for ping frames as for any other event; `ws` knows them by `on` alone.
  addEventListener(type, listener) {
    if (type === 'ping') this.on('ping', (data) => listener({ data }));
    else super.addEventListener(type, listener);
  }

  // Releases of `ws` without `autoPong` answer pings by themselves, through this method but with more arguments than
  // the document's own call has. Here only the document may answer.
  pong(data, ...more) {
    if (more.length === 0) super.pong(data);
  }
};

let go = () => {};

// Until the test says `continue`.
globalThis.told = () => new Promise((resolve) => (go = resolve));

// Until the socket is open.
globalThis.opened = (ws) => new Promise((resolve) => ws.addEventListener('open', resolve));

// Obey the test from now on. Stands after the snippet: what that does on opening is done before.
globalThis.follow = (ws) => {
  const obey = () => {
    const lines = createInterface({ input: process.stdin });
    lines.on('line', (line) => {
      if (line === 'continue') go();
      else if (line === 'close') ws.close();
      else Ws.prototype.send.call(ws, line);
    });
    ws.addEventListener('close', () => lines.close());
    report('opened', null);
  };
  if (ws.readyState === Ws.OPEN) obey();
  else ws.addEventListener('open', obey);
};

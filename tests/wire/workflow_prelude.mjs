// Imported by the AGNT5 document's snippets, in Node and in a browser (tests/chromium.html) alike. It supplies what the
// document leaves undefined, a `WebSocket` that leads the documented host to the node under test and puts a key where the
// document has none, and what the test needs to follow along:
//
//   out: a line `@{"what": value}` for `opened` (the subprotocol that was answered), `sent`, `received`, `refused` (status
//        and body, which only Node shows), `ended` (what a socket went through: "error", then its close code), `put_off`
//        (milliseconds, as the script asks for them) and `thrown`, between the console's lines;
//   in:  a line `later` does what was put off: no test waits for the document's seconds; `close` closes the newest socket
//        and ends the script, any other line is sent as it is.

const inNode = async () => {
  const { createRequire } = await import('node:module');
  const { createInterface } = await import('node:readline');
  const lines = createInterface({ input: process.stdin });
  return {
    Socket: createRequire(import.meta.url)('ws'),
    write: (line) => process.stdout.write(`${line}\n`),
    obey: (act) => lines.on('line', act),
    leave: () => {
      lines.close();
      process.stdin.unref();
    },
  };
};

const inBrowser = () => ({
  Socket: globalThis.WebSocket,
  write: (line) => channel.send(line),
  obey: (act) => channel.addEventListener('message', ({ data }) => act(data)),
  leave: () => channel.close(),
});

const { Socket, write, obey, leave } = globalThis.process ? await inNode() : inBrowser();

export const report = (what, value) => write(`@${JSON.stringify({ [what]: value })}`);

// -- sockets

let address, apiKey, newest;
let leaving = false;

// Where `wss://run.agnt5.me` is, and a key that is good there.
export const lead = (node, key) => ([address, apiKey] = [node, key]);

export class WebSocket extends Socket {
  constructor(url, protocols) {
    super(
      url.replace('wss://run.agnt5.me', address),
      protocols.map((protocol) => protocol.replace('your-api-key-here', apiKey)),
    );
    newest = this;
    const ending = [];
    this.addEventListener('open', () => report('opened', this.protocol));
    this.addEventListener('message', ({ data }) => report('received', JSON.parse(data)));
    this.addEventListener('error', () => ending.push('error'));
    this.addEventListener('close', ({ code }) => {
      report('ended', [...ending, code]);
      if (leaving) leave();
    });
    this.on?.('unexpected-response', (_, response) => this.read(response));
  }

  send(text) {
    report('sent', JSON.parse(text));
    super.send(text);
  }

  // Whoever listens for the response of a refusal has to end the attempt.
  async read(response) {
    let body = '';
    for await (const part of response) body += part;
    report('refused', [response.statusCode, JSON.parse(body)]);
    this.terminate();
  }
}

// -- time: for scripts alone, which see this name and not the real one

const awaited = [];

export const setTimeout = (act, milliseconds) => {
  awaited.push(act);
  report('put_off', milliseconds);
};

const later = () => {
  try {
    awaited.splice(0).forEach((act) => act());
  } catch (error) {
    report('thrown', error.message);
  }
};

// -- the test

obey((line) => {
  if (line === 'later') later();
  else if (line === 'close') {
    leaving = true;
    if (newest.readyState === Socket.CLOSED) leave();
    else newest.close();
  } else Socket.prototype.send.call(newest, line);
});

// Imported by the FreeAgentics document's snippets. It supplies what the document leaves undefined, a `WebSocket` that
// leads the documented host to the node under test, and what the test needs to follow along:
//
//   out: a line `@{"what": value}` for `opened`, `sent`, `judged` (the document's verdict on the message that comes
//        next), `received`, `closed`, `shown` (on the page), `put_off` and `repeated` (milliseconds, as the document's
//        lines ask for them), between the console's lines;
//   in:  a line `later` does what was put off, and once more what is repeated: no test waits for the document's seconds;
//        `continue` resolves the next `told()`, `close` closes the newest socket and ends the script, any other line is
//        sent as it is.
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const Ws = createRequire(import.meta.url)('ws');
const { NODE_UNDER_TEST, TOKEN, FRESH_TOKEN } = process.env;

export const report = (what, value) => process.stdout.write(`@${JSON.stringify({ [what]: value })}\n`);

export const token = TOKEN;
export const refreshToken = async () => FRESH_TOKEN;

// -- sockets

let newest;
let validate = () => true;

// Each message is given to `validator`, before the document's own handlers see it.
export const judgeBy = (validator) => (validate = validator);

const judge = (message) => {
  try {
    return validate(message);
  } catch (error) {
    return error.message;
  }
};

export class WebSocket extends Ws {
  constructor(url) {
    super(url.replace('wss://api.freeagentics.com', NODE_UNDER_TEST).replace('your_access_token', TOKEN));
    newest = this;
    this.on('open', () => report('opened', null));
    this.on('message', (data) => {
      const message = JSON.parse(data);
      report('judged', judge(message));
      report('received', message);
    });
    this.on('close', (code, reason) => report('closed', [code, reason.toString()]));
  }

  send(text) {
    report('sent', JSON.parse(text));
    super.send(text);
  }
}

// Until the socket is open.
export const opened = (ws) =>
  ws.readyState === Ws.OPEN ? Promise.resolve() : new Promise((resolve) => ws.addEventListener('open', resolve));

// -- time: for the document's lines alone, which see these names and not the real ones

const awaited = [];
const repeated = new Set();

export const setTimeout = (act, milliseconds) => {
  awaited.push(act);
  report('put_off', milliseconds);
};

export const setInterval = (act, milliseconds) => {
  repeated.add(act);
  report('repeated', milliseconds);
  return act;
};

export const clearInterval = (act) => repeated.delete(act);

const later = () => [...awaited.splice(0), ...repeated].forEach((act) => act());

// -- the page

export const document = {
  getElementById: (id) => ({
    set textContent(value) {
      report('shown', [id, value]);
    },
  }),
};

// -- what the document's client leaves out

// Its users give `send` an object, right after `connect`, which waits for nothing.
export const complete = (Client) => {
  Client.prototype.send = async function (message) {
    await opened(this.ws);
    this.ws.send(JSON.stringify(message));
  };
};

const OTHERS = {
  inference_started: 'onInferenceStarted',
  inference_progress: 'onInferenceProgress',
  inference_completed: 'onInferenceCompleted',
};

// Let the client of `owner` call it: with the data alone, as the document's `handleMessage` does for the types it knows.
export const wire = (owner) => {
  const client = owner.ws;
  const handleMessage = client.handleMessage;
  client.onAgentStatus = (data) => owner.onAgentStatus(data);
  client.onMetricsUpdate = (data) => owner.onMetricsUpdate(data);
  client.handleMessage = (message) => {
    handleMessage.call(client, message);
    owner[OTHERS[message.type]]?.(message.data);
  };
};

// -- the test

let go = () => {};

// Until the test says `continue`.
export const told = () => new Promise((resolve) => (go = resolve));

const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
  if (line === 'continue') go();
  else if (line === 'later') later();
  else if (line === 'close') {
    lines.close();
    process.stdin.unref();
    newest.close();
  } else Ws.prototype.send.call(newest, line);
});

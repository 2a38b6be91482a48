// One session with npm `ws`: `node ws_session.mjs URL CONNECT_MESSAGE`. Each thing that happens is one JSON line.
import { createHash, randomBytes } from 'node:crypto';
import WebSocket from 'ws';

const [url, message] = process.argv.slice(2);
const say = (event, fields = {}) => console.log(JSON.stringify({ event, ...fields }));
const hash = (data) => createHash('sha256').update(data).digest('hex');

const sent = [Buffer.from('hello'), Buffer.alloc(0), ...[1, 125, 126, 65535, 65536, 1_000_000].map((size) => randomBytes(size))];
const socket = new WebSocket(url, { perMessageDeflate: true });
let connected = false;
let received = 0;

socket.on('open', () => { say('open', { extensions: socket.extensions, protocol: socket.protocol }); socket.send(message); });
socket.on('message', (data, binary) => {
  if (!connected) {
    const answer = JSON.parse(data);
    say('answer', { answer });
    connected = answer.type === 'connected';
    if (connected) sent.forEach((payload, index) => socket.send(payload, { binary: index > 0 }));
    return;
  }
  const expected = sent[received];
  if (binary !== received > 0 || hash(data) !== hash(expected)) { say('differs', { index: received }); process.exit(1); }
  received += 1;
  if (received === sent.length) { say('echoed', { messages: received }); socket.ping('are you there'); }
});
socket.on('pong', (data) => { say('pong', { data: data.toString() }); socket.close(4000, 'done'); });
socket.on('close', (code, reason) => say('close', { code, reason: reason.toString() }));
socket.on('error', (error) => say('error', { message: error.message }));

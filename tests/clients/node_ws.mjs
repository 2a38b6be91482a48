// `ws`: node node_ws.mjs '{"relay": …, "target": …, "key": …, "form": …}'.
import { once } from "node:events";
import { createRequire } from "node:module";
// docs: both
import WebSocket from "ws";
// docs: end

const { relay, target, key, form } = JSON.parse(process.argv[2]);
const passed = [];

function opened() {
  if (form === "message") {
    // docs: message
    const socket = new WebSocket(relay);
    socket.once("open", () => socket.send(JSON.stringify({ apiKey: key, url: target })));
    // docs: end
    return socket;
  }
  // docs: query
  const socket = new WebSocket(`${relay}?url=${encodeURIComponent(target)}`, { headers: { "X-API-Key": key } });
  // docs: end
  return socket;
}

async function open() {
  const socket = opened();
  const came = [];
  const waiting = [];
  socket.on("message", (data, isBinary) => {
    const message = isBinary ? data : data.toString();
    waiting.length ? waiting.shift()(message) : came.push(message);
  });
  const next = () => (came.length ? Promise.resolve(came.shift()) : new Promise((take) => waiting.push(take)));
  const closed = once(socket, "close").then(([code, reason]) => [code, reason.toString()]);
  await once(socket, "open");
  if (form === "message") {
    const answer = JSON.parse(await next());
    if (answer.type !== "connected") throw new Error(JSON.stringify(answer));
  }
  return { socket, next, closed };
}

const bytes = (length) => Buffer.from(Uint8Array.from({ length }, (_, at) => (at * 7) % 251));
const { socket, next, closed } = await open();
for (const [name, message] of [["text", "grüße \u{1F600}"], ["empty", ""], ["binary", bytes(256)], ["1 MiB", bytes(1 << 20)]]) {
  socket.send(message);
  const back = await next();
  if (typeof message === "string" ? back === message : message.equals(back)) passed.push(name);
}
socket.send("frag", { fin: false });
socket.send("men", { fin: false });
socket.send("ts", { fin: true });
if ((await next()) === "fragments") passed.push("fragments sent");
socket.send("fragment 5");
if ((await next()) === "0123456789".repeat(500)) passed.push("fragments received");
const compressed = socket.extensions.includes("permessage-deflate");
socket.close(3001, "bye");
const own = await closed;
const other = await open();
other.socket.send("close 4002 enough");
const version = createRequire(import.meta.url)("ws/package.json").version;
console.log(JSON.stringify({ version, passed, compressed, own, target: await other.closed }));
process.exit(0);

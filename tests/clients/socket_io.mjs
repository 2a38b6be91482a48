// Socket.IO, server and client: prints the server's port, reads where the relay is, and says what passed between them.
import { EventEmitter, on } from "node:events";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { Server } from "socket.io";
// docs: both
import { io } from "socket.io-client";
// docs: end
import { WebSocketServer } from "ws";
import { Fragmenting } from "./fragmenting.mjs";

class Sockets extends WebSocketServer {
  constructor(options) {
    super({ ...options, WebSocket: Fragmenting });
  }
}

const http = createServer();
const server = new Server(http, { wsEngine: Sockets, perMessageDeflate: true, maxHttpBufferSize: 1 << 22 });
const ends = new EventEmitter();
const left = on(ends, "left");
server.on("connection", (socket) => {
  // Below Socket.IO: how the WebSocket itself ends.
  const below = socket.conn.transport.socket;
  let reason;
  socket.on("disconnect", (why) => (reason = why));
  below.once("close", (code) => setImmediate(() => ends.emit("left", [reason, code])));
  socket.on("echo", (...args) => args.pop()(...args));
  socket.on("leave", () => socket.disconnect(true));
  socket.on("break", () => below.close(4002, "enough"));
});
http.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: http.address().port })));

for await (const line of createInterface({ input: process.stdin })) {
  const { relay, key } = JSON.parse(line);
  const target = `ws://127.0.0.1:${http.address().port}/socket.io/`;
  const connect = () => {
    // docs: query
    // target: wss://target.example.com/socket.io/
    const socket = io(new URL(relay).origin, {
      path: "/ws",
      addTrailingSlash: false,
      transports: ["websocket"],
      query: { url: `${target}?EIO=4&transport=websocket`, key },
    });
    // docs: end
    socket.io.reconnection(false);
    return socket;
  };
  const gone = (socket) => new Promise((tell) => socket.on("disconnect", (reason, details) => tell([reason, details?.context?.code ?? null])));
  const client = connect();
  const passed = [];
  const ask = (what) => client.timeout(20_000).emitWithAck("echo", what);
  const large = Buffer.from(Uint8Array.from({ length: 1 << 20 }, (_, at) => (at * 7) % 251));
  for (const [name, message] of [["text", "grüße \u{1F600}"], ["empty", ""], ["binary", Buffer.from([0, 1, 2])], ["1 MiB", large]]) {
    const back = await ask(message);
    if (typeof message === "string" ? back === message : message.equals(back)) passed.push(name);
  }
  if (Fragmenting.messages > 0) passed.push("fragments received");
  const compressed = client.io.engine.transport.ws.extensions.includes("permessage-deflate");
  // Each end: what the client is told, and what the server is.
  let told = gone(client);
  client.emit("leave");
  const leaves = [await told, (await left.next()).value[0]];
  const second = connect();
  told = gone(second);
  second.emit("break");
  const breaks = [await told, (await left.next()).value[0]];
  const third = connect();
  await new Promise((go) => third.on("connect", go));
  told = gone(third);
  third.disconnect();
  const own = [await told, (await left.next()).value[0]];
  const version = createRequire(import.meta.url)("socket.io-client/package.json").version;
  console.log(JSON.stringify({ version, passed, compressed, own, leaves, breaks }));
}
process.exit(0);

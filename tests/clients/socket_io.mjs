// Socket.IO, server and client: prints the server's port, reads the relay's address, and says what passed between them.
import { EventEmitter, on } from "node:events";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { Server } from "socket.io";
import { io } from "socket.io-client";

const http = createServer();
const server = new Server(http);
const ends = new EventEmitter();
const left = on(ends, "left");
server.on("connection", (socket) => {
  socket.on("echo", (...args) => args.pop()(...args));
  socket.on("leave", () => socket.disconnect(true));
  socket.on("disconnect", (reason) => ends.emit("left", [socket.conn.transport.name, reason]));
});
http.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: http.address().port })));

for await (const line of createInterface({ input: process.stdin })) {
  const { relay, key } = JSON.parse(line);
  const url = `ws://127.0.0.1:${http.address().port}/socket.io/?EIO=4&transport=websocket`;
  const connect = () =>
    io(relay, {
      path: "/ws",
      addTrailingSlash: false,
      transports: ["websocket"],
      query: { url, key },
      reconnection: false,
      forceNew: true,
    });
  const passed = [];
  const client = connect();
  const big = Buffer.from(Uint8Array.from({ length: 900_000 }, (_, at) => (at * 7) % 251));
  const text = await client.timeout(10_000).emitWithAck("echo", "grüße \u{1F600}");
  if (text === "grüße \u{1F600}") passed.push("text");
  const one = await client.timeout(10_000).emitWithAck("echo", "");
  if (one === "") passed.push("empty");
  const binary = await client.timeout(10_000).emitWithAck("echo", Buffer.from([0, 1, 2]));
  if (Buffer.from([0, 1, 2]).equals(Buffer.from(binary))) passed.push("binary");
  const much = await client.timeout(10_000).emitWithAck("echo", big);
  if (big.equals(Buffer.from(much))) passed.push("900 kB");
  const gone = new Promise((tell) => client.on("disconnect", tell));
  client.emit("leave");
  const target = [await gone, (await left.next()).value[0]];
  const other = connect();
  await new Promise((go) => other.on("connect", go));
  other.disconnect();
  const own = (await left.next()).value[0];
  const version = createRequire(import.meta.url)("socket.io-client/package.json").version;
  console.log(JSON.stringify({ version, passed, target, own }));
}
process.exit(0);

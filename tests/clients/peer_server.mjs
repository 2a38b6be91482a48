// A strict server on `ws`: echoes messages, and says on standard output what it saw of each connection, a JSON line each.
import { createHash } from "node:crypto";
import { WebSocketServer } from "ws";

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: true });
server.on("listening", () => console.log(JSON.stringify({ port: server.address().port })));
server.on("connection", (socket, request) => {
  const messages = [];
  socket.on("message", (data, isBinary) => {
    messages.push([isBinary ? "binary" : "text", data.length, createHash("sha256").update(data).digest("hex")]);
    socket.send(data, { binary: isBinary });
  });
  let failed = null;
  socket.on("error", (error) => { failed = error.code ?? error.message; });
  for (const kind of ["ping", "pong"]) socket.on(kind, (data) => messages.push([kind, data.toString("hex")]));
  socket.on("close", (code, reason) => {
    console.log(JSON.stringify({ path: request.url, messages, code, reason: reason.toString("latin1"), error: failed }));
  });
});
process.stdin.on("end", () => process.exit(0)).resume();

// A strict client on `ws`: for each JSON line on standard input it connects, sends `first` if there is one, which is
// answered with one message, and says what came on standard output, a JSON line each.
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import WebSocket from "ws";

createInterface({ input: process.stdin }).on("line", (line) => {
  const { id, url, headers, first } = JSON.parse(line);
  const socket = new WebSocket(url, { headers, perMessageDeflate: true });
  const messages = [];
  let connected = first === null;
  socket.on("open", () => first !== null && socket.send(first));
  socket.on("message", (data, isBinary) => {
    if (!connected) {
      connected = true;
      return;
    }
    messages.push([isBinary ? "binary" : "text", data.length, createHash("sha256").update(data).digest("hex")]);
  });
  let failed = null;
  socket.on("error", (error) => { failed = error.code ?? error.message; });
  for (const kind of ["ping", "pong"]) socket.on(kind, (data) => messages.push([kind, data.toString("hex")]));
  socket.on("close", (code, reason) => {
    console.log(JSON.stringify({ id, messages, code, reason: reason.toString("latin1"), error: failed }));
  });
}).on("close", () => process.exit(0));

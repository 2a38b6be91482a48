// SignalR: node signalr.mjs '{"url": …}', against a hub that speaks its JSON protocol.
import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { HttpTransportType, HubConnectionBuilder, LogLevel } from "@microsoft/signalr";

const { url } = JSON.parse(process.argv[2]);
const passed = [];

async function start() {
  const connection = new HubConnectionBuilder()
    .withUrl(url, { skipNegotiation: true, transport: HttpTransportType.WebSockets })
    .withKeepAliveInterval(100)
    .configureLogging(LogLevel.None)
    .build();
  const told = new Promise((tell) => connection.on("told", (...args) => tell(args)));
  const closed = new Promise((tell) => connection.onclose((error) => tell(error?.message ?? null)));
  await connection.start();
  return { connection, told, closed };
}

const { connection, told, closed } = await start();
if ((await connection.invoke("Echo", "grüße \u{1F600}")) === "grüße \u{1F600}") passed.push("text");
if ((await connection.invoke("Echo", "")) === "") passed.push("empty");
const large = randomBytes(500_000).toString("hex");
if ((await connection.invoke("Echo", large)) === large) passed.push("1 MB");
await connection.send("Tell", 1, "two");
if (JSON.stringify(await told) === '[1,"two"]') passed.push("called by the hub");
const numbers = [];
await new Promise((done, fail) => connection.stream("Count", 50).subscribe({ next: (number) => numbers.push(number), complete: done, error: fail }));
if (numbers.length === 50) passed.push("50 events");
if (await connection.invoke("Pinged")) passed.push("pings");
await connection.stop();
const ends = [await closed];
for (const method of ["Leave", "Break"]) {
  const other = await start();
  await other.connection.send(method);
  ends.push(await other.closed);
}
const version = createRequire(import.meta.url)("@microsoft/signalr/package.json").version;
console.log(JSON.stringify({ version, passed, ends }));
process.exit(0);

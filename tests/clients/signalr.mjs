// SignalR: node signalr.mjs '{"url": …}', against a hub that speaks its JSON protocol.
import { createRequire } from "node:module";
import { HttpTransportType, HubConnectionBuilder, LogLevel } from "@microsoft/signalr";

const { url } = JSON.parse(process.argv[2]);
const connection = new HubConnectionBuilder()
  .withUrl(url, { skipNegotiation: true, transport: HttpTransportType.WebSockets })
  .configureLogging(LogLevel.None)
  .build();
const passed = [];
const told = new Promise((tell) => connection.on("told", (...args) => tell(args)));
await connection.start();
if ((await connection.invoke("Echo", "grüße \u{1F600}")) === "grüße \u{1F600}") passed.push("text");
if ((await connection.invoke("Echo", "")) === "") passed.push("empty");
const large = "0123456789".repeat(100_000);
if ((await connection.invoke("Echo", large)) === large) passed.push("1 MB");
await connection.send("Tell", 1, "two");
if (JSON.stringify(await told) === '[1,"two"]') passed.push("called by the hub");
const numbers = [];
await new Promise((done, fail) => connection.stream("Count", 50).subscribe({ next: (number) => numbers.push(number), complete: done, error: fail }));
if (numbers.length === 50) passed.push("50 events");
await connection.stop();
const version = createRequire(import.meta.url)("@microsoft/signalr/package.json").version;
console.log(JSON.stringify({ version, passed }));
process.exit(0);

// graphql-ws, server and client: prints the server's port, reads the relay's address, and says what passed between them.
import { randomBytes } from "node:crypto";
import { EventEmitter, on } from "node:events";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { buildSchema } from "graphql";
import { createClient } from "graphql-ws";
import { useServer } from "graphql-ws/use/ws";
import WebSocket, { WebSocketServer } from "ws";

const schema = buildSchema("type Query { echo(text: String!): String! } type Subscription { count(to: Int!): Int! }");
const sockets = new WebSocketServer({ host: "127.0.0.1", port: 0, path: "/graphql", handleProtocols: (offered) => offered.has("graphql-transport-ws") && "graphql-transport-ws" });
const ends = new EventEmitter();
const left = on(ends, "left");
sockets.on("connection", (socket) => socket.on("close", (code) => ends.emit("left", code)));
useServer(
  {
    schema,
    onConnect: ({ connectionParams }) => connectionParams?.name !== "a stranger",
    roots: {
      query: { echo: ({ text }) => text },
      subscription: {
        async *count({ to }) {
          for (let at = 1; at <= to; at++) yield { count: at };
        },
      },
    },
  },
  sockets,
);
sockets.on("listening", () => console.log(JSON.stringify({ port: sockets.address().port })));

for await (const line of createInterface({ input: process.stdin })) {
  const { relay, key } = JSON.parse(line);
  const url = `${relay}?url=${encodeURIComponent(`ws://127.0.0.1:${sockets.address().port}/graphql`)}&key=${encodeURIComponent(key)}`;
  const client = createClient({ url, webSocketImpl: WebSocket, retryAttempts: 0 });
  const closed = new Promise((tell) => client.on("closed", (event) => tell(event.code)));
  const passed = [];
  const run = (query, variables) =>
    new Promise((done, fail) => {
      const got = [];
      client.subscribe({ query, variables }, { next: ({ data }) => got.push(data), error: fail, complete: () => done(got) });
    });
  const ask = async (text) => (await run("query ($text: String!) { echo(text: $text) }", { text }))[0].echo;
  if ((await ask("grüße \u{1F600}")) === "grüße \u{1F600}") passed.push("text");
  if ((await ask("")) === "") passed.push("empty");
  const large = randomBytes(500_000).toString("hex");
  if ((await ask(large)) === large) passed.push("1 MB");
  const counts = await run("subscription { count(to: 50) }");
  if (counts.map(({ count }) => count).join() === Array.from({ length: 50 }, (_, at) => at + 1).join()) passed.push("50 events");
  await client.dispose();
  const own = [await closed, (await left.next()).value[0]];
  const stranger = createClient({ url, webSocketImpl: WebSocket, retryAttempts: 0, lazy: false, connectionParams: { name: "a stranger" }, onNonLazyError: () => {} });
  const target = await new Promise((tell) => stranger.on("closed", ({ code, reason }) => tell([code, reason])));
  const version = createRequire(import.meta.url)("graphql-ws/package.json").version;
  console.log(JSON.stringify({ version, passed, own, target }));
}
process.exit(0);

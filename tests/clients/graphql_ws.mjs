// graphql-ws, server and client: prints the server's port, reads the relay's address, and says what passed between them.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { buildSchema } from "graphql";
import { createClient } from "graphql-ws";
import { useServer } from "graphql-ws/use/ws";
import WebSocket, { WebSocketServer } from "ws";

const schema = buildSchema("type Query { echo(text: String!): String! } type Subscription { count(to: Int!): Int! }");
const sockets = new WebSocketServer({ host: "127.0.0.1", port: 0, path: "/graphql", handleProtocols: (offered) => offered.has("graphql-transport-ws") && "graphql-transport-ws" });
const left = [];
sockets.on("connection", (socket) => socket.on("close", (code) => left.push(code)));
useServer(
  {
    schema,
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
  const target = `ws://127.0.0.1:${sockets.address().port}/graphql`;
  const client = createClient({
    url: `${relay}?url=${encodeURIComponent(target)}&key=${encodeURIComponent(key)}`,
    webSocketImpl: WebSocket,
    retryAttempts: 0,
  });
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
  const large = "0123456789".repeat(100_000);
  if ((await ask(large)) === large) passed.push("1 MB");
  const counts = await run("subscription { count(to: 50) }");
  if (counts.map(({ count }) => count).join() === Array.from({ length: 50 }, (_, at) => at + 1).join()) passed.push("50 events");
  await client.dispose();
  const own = await closed;
  while (left.length < 1) await new Promise((go) => setTimeout(go, 20));
  const version = createRequire(import.meta.url)("graphql-ws/package.json").version;
  console.log(JSON.stringify({ version, passed, own, target: left[0] }));
}
process.exit(0);

// Node's built-in WebSocket: node node_builtin.mjs '{"url": …, "first": …}'.
import { readFileSync } from "node:fs";

const { url, first } = JSON.parse(process.argv[2]);
const converse = (0, eval)(readFileSync(new URL("conversation.js", import.meta.url), "utf8"));
console.log(JSON.stringify({ version: process.version, ...(await converse(WebSocket, url, first)) }));
process.exit(0);

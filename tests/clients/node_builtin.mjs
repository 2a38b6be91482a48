// Node's built-in WebSocket: node node_builtin.mjs '{"relay": …, "target": …, "key": …, "form": …}'.
import { readFileSync } from "node:fs";

const asked = JSON.parse(process.argv[2]);
const converse = (0, eval)(readFileSync(new URL("conversation.js", import.meta.url), "utf8"));
console.log(JSON.stringify({ version: process.version, ...(await converse(WebSocket, asked)) }));
process.exit(0);

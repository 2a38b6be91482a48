// The conversation of a client with the standard WebSocket class: an expression, for Node and for a browser's page.
// Gives what was as it should be, by name, and the close codes that it saw.
(async (WebSocket, { relay, target, key, form }) => {
  const passed = [];
  const opened = () => {
    if (form === "message") {
      // docs: message
      const socket = new WebSocket(relay);
      socket.addEventListener("open", () => socket.send(JSON.stringify({ apiKey: key, url: target })));
      // docs: end
      return socket;
    }
    // docs: query
    const socket = new WebSocket(`${relay}?url=${encodeURIComponent(target)}&key=${encodeURIComponent(key)}`);
    // docs: end
    return socket;
  };
  const open = async () => {
    const socket = opened();
    socket.binaryType = "arraybuffer";
    const waiting = [];
    const came = [];
    socket.onmessage = ({ data }) => (waiting.length ? waiting.shift()(data) : came.push(data));
    const next = () => (came.length ? Promise.resolve(came.shift()) : new Promise((take) => waiting.push(take)));
    const closed = new Promise((tell) => (socket.onclose = ({ code, reason }) => tell([code, reason])));
    await new Promise((go, fail) => {
      socket.onopen = go;
      socket.onerror = () => fail(new Error("it did not open"));
    });
    if (form === "message") {
      const answer = JSON.parse(await next());
      if (answer.type !== "connected") throw new Error(JSON.stringify(answer));
    }
    return { socket, next, closed };
  };
  const bytes = (length) => Uint8Array.from({ length }, (_, at) => (at * 7) % 251);
  const same = (one, other) => one.length === other.length && one.every((byte, at) => byte === other[at]);
  const { socket, next, closed } = await open();
  for (const [name, message] of [["text", "grüße \u{1F600}"], ["empty", ""], ["binary", bytes(256)], ["1 MiB", bytes(1 << 20)]]) {
    socket.send(message);
    const back = await next();
    if (typeof message === "string" ? back === message : same(new Uint8Array(back), message)) passed.push(name);
  }
  socket.send("fragment 5");
  if ((await next()) === "0123456789".repeat(500)) passed.push("fragments received");
  const compressed = socket.extensions.includes("permessage-deflate");
  socket.close(3001, "bye");
  const own = await closed;
  const other = await open();
  other.socket.send("close 4002 enough");
  return { passed, compressed, own, target: await other.closed };
})

'use strict';
{
const $ = (id) => document.getElementById(id);
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};
const bytesOf = (text) => new TextEncoder().encode(text);

const MASK = '••••••••';
// What is kept of a session; older messages make room.
const MOST_MESSAGES = 50000;
const MOST_BYTES = 32 << 20;
const LARGEST_FILE = 64 << 20;
// What is shown of one message.
const PREVIEW = 300;
const DETAIL = 100000;
const DETAIL_BYTES = 4096;

// --- the addresses -----------------------------------------------------------------------------------------------------
const here = new URL('../ws', location.href);
here.protocol = here.protocol === 'https:' ? 'wss:' : 'ws:';
here.search = here.hash = '';
// What others would call: the gateway's public_url, where it has one.
let address = here.href;

// --- what the user typed -----------------------------------------------------------------------------------------------
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const CONTROL = /[\x00-\x08\x0a-\x1f\x7f]/;
const FIELDS = ['url', 'key', 'headers', 'cookies', 'geo', 'agent', 'idle', 'proxy'];

const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

/** The fields, and what is wrong with them: `problems` is a list of field and text. */
function read() {
  const problems = [];
  const text = (id) => $(id).value.trim().toWellFormed();
  const headers = [];
  for (const [index, line] of $('headers').value.toWellFormed().split('\n').entries()) {
    // Browsers' tools copy the pseudo-headers of HTTP/2 along.
    if (!line.trim() || line.startsWith(':')) continue;
    const colon = line.indexOf(':');
    const [name, value] = [line.slice(0, colon).trim(), line.slice(colon + 1).trim()];
    if (colon < 0) problems.push(['headers', `Line ${index + 1} has no colon: write Name: value.`]);
    else if (!TOKEN.test(name)) problems.push(['headers', `Line ${index + 1}: the name is not one that HTTP allows.`]);
    else if (CONTROL.test(value)) problems.push(['headers', `Line ${index + 1}: the value holds a control character.`]);
    else headers.push([name, value]);
  }
  const cookies = [];
  for (const item of $('cookies').value.toWellFormed().split(/[\n;]/)) {
    if (!item.trim()) continue;
    const equals = item.indexOf('=');
    const [name, value] = [item.slice(0, equals).trim(), item.slice(equals + 1).trim()];
    if (equals < 0 || !name) problems.push(['cookies', `“${item.trim().slice(0, 40)}” is not name=value.`]);
    else if (/[, \t]/.test(name) || CONTROL.test(name + value)) problems.push(['cookies', `“${name.slice(0, 40)}” holds what a cookie must not.`]);
    else cookies.push([name, value]);
  }
  const idle = text('idle');
  if (idle && !(/^\d*\.?\d+$/.test(idle) && Number.isFinite(Number(idle)))) problems.push(['idle', 'Not a number of seconds.']);
  const form = chosen('form');
  const url = text('url');
  if (!url) problems.push(['url', 'Say where to connect to.']);
  return { form, url, key: text('key'), headers, cookies, geo: text('geo'), agent: text('agent'), idle: idle && String(Number(idle)), proxy: text('proxy'), problems };
}

// --- writing it down ---------------------------------------------------------------------------------------------------
// Invisible characters, and those that turn the direction of text: whoever pastes this should see them.
const HIDDEN = /[\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** A string literal that JSON, Python and JavaScript read alike. */
const literal = (text) => JSON.stringify(text).replace(HIDDEN, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);

/** In a POSIX shell nothing but a single quote means anything between single quotes. */
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Pairs of name and value as an object, in their order, which an object of JavaScript would not keep. */
function object(pairs, indent, name = literal) {
  if (!pairs.length) return '{}';
  const [line, inner, end] = indent === null ? [' ', null, ''] : [`\n${indent}  `, `${indent}  `, `\n${indent}`];
  const members = pairs.map(([key, value]) => `${name(key)}: ${Array.isArray(value) ? object(value, inner, name) : value}`);
  return `{${indent === null ? '' : line}${members.join(`,${line}`)}${end}}`;
}

/** The members of the connect message. */
function members(call, key) {
  const pairs = [];
  if (key) pairs.push(['apiKey', literal(key)]);
  pairs.push(['url', literal(call.url)]);
  for (const name of ['headers', 'cookies']) {
    if (call[name].length) pairs.push([name, call[name].map(([n, v]) => [n, literal(v)])]);
  }
  for (const name of ['geo', 'agent']) if (call[name]) pairs.push([name, literal(call[name])]);
  if (call.idle) pairs.push(['idle_timeout', call.idle]);
  if (call.proxy) pairs.push(['proxy', literal(call.proxy)]);
  return pairs;
}

/** The address in the transparent form; `key` only where it cannot go in a header. */
function transparentUrl(base, call, key) {
  const value = (text) => (text === MASK ? text : encodeURIComponent(text));
  const query = [['url', call.url], ['key', key], ['geo', call.geo], ['agent', call.agent], ['idle_timeout', call.idle], ['proxy', call.proxy]];
  return `${base}?${query.filter(([, text]) => text).map(([name, text]) => `${name}=${value(text)}`).join('&')}`;
}

// What the handshake itself has, or does not pass.
const OWNED = /^(host|connection|upgrade|sec-websocket-(key|version|extensions|accept|protocol)|content-length|transfer-encoding|te|trailer|keep-alive|x-api-key|cookie|proxy-.*)$/i;

/** Headers of a handshake in the transparent form: the key, the user's own, one line of cookies. */
function handshakeHeaders(call, key) {
  const headers = [...(key ? [['X-API-Key', key]] : []), ...call.headers.filter(([name]) => !OWNED.test(name))];
  const given = call.headers.filter(([name]) => name.toLowerCase() === 'cookie').flatMap(([, value]) => value.split(';'));
  const cookies = new Map();
  for (const item of given) {
    const [name] = item.split('=', 1);
    if (item.trim()) cookies.set(name.trim(), item.trim());
  }
  for (const [name, value] of call.cookies) cookies.set(name, `${name}=${value}`);
  if (cookies.size) headers.push(['Cookie', [...cookies.values()].join('; ')]);
  return headers;
}

const subprotocols = (call) => call.headers.filter(([name]) => name.toLowerCase() === 'sec-websocket-protocol')
  .flatMap(([, value]) => value.split(',').map((item) => item.trim()).filter(Boolean));

const CALLS = {
  json(call, key) {
    return call.form === 'message'
      ? ['The one message that this page sends first.', object(members(call, key), '')]
      : ['The address that this page opens; there is no message in this form.', transparentUrl(here.href, call, key)];
  },
  wscat(call, key) {
    key ||= 'YOUR_KEY';
    if (call.form === 'message') {
      return ['For typing messages yourself, leave -w and -x out, and paste the JSON first.',
        `npx wscat -c ${shell(address)} -w -1 \\\n  -x ${shell(object(members(call, key), null))} \\\n  -x 'hello'`];
    }
    const options = [...handshakeHeaders(call, key).map(([name, value]) => `-H ${shell(`${name}: ${value}`)}`), ...subprotocols(call).map((one) => `-s ${shell(one)}`)];
    return ['', `npx wscat \\\n${options.map((option) => `  ${option} \\\n`).join('')}  -c ${shell(transparentUrl(address, call))}`];
  },
  curl(call, key) {
    const nonce = btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(16))));
    const headers = [['Connection', 'Upgrade'], ['Upgrade', 'websocket'], ['Sec-WebSocket-Version', '13'], ['Sec-WebSocket-Key', nonce], ...handshakeHeaders(call, key || 'YOUR_KEY')];
    if (subprotocols(call).length) headers.push(['Sec-WebSocket-Protocol', subprotocols(call).join(', ')]);
    // curl takes "Name:" for "without it".
    const options = headers.map(([name, value]) => `-H ${shell(value ? `${name}: ${value}` : `${name};`)}`);
    const url = transparentUrl(address.replace(/^ws/, 'http'), call);
    return ['curl sends no first message, so this is the transparent form. It shows the answer to the handshake, or the error, and then the frames as they come.',
      `curl -i -N -g --http1.1 \\\n${options.map((option) => `  ${option} \\\n`).join('')}  ${shell(url)}`];
  },
  python(call, key) {
    key ||= 'YOUR_KEY';
    const body = '        await ws.send("hello")\n        print(await ws.recv())\n';
    if (call.form === 'message') {
      return ['pip install websockets',
        `import asyncio\nimport json\n\nimport websockets\n\nMESSAGE = ${object(members(call, key), '')}\n\n\nasync def main():\n`
        + `    async with websockets.connect(${literal(address)}) as ws:\n        await ws.send(json.dumps(MESSAGE))\n        print(await ws.recv())\n${body}\n\nasyncio.run(main())`];
    }
    const headers = handshakeHeaders(call, key).map(([name, value]) => `    (${literal(name)}, ${literal(value)}),\n`).join('');
    const protocols = subprotocols(call).length ? `, subprotocols=[${subprotocols(call).map(literal).join(', ')}]` : '';
    return ['pip install websockets',
      `import asyncio\n\nimport websockets\n\nURL = ${literal(transparentUrl(address, call))}\nHEADERS = [\n${headers}]\n\n\nasync def main():\n`
      + `    async with websockets.connect(URL, additional_headers=HEADERS${protocols}) as ws:\n${body}\n\nasyncio.run(main())`];
  },
  javascript(call, key) {
    key ||= 'YOUR_KEY';
    const events = 'ws.onmessage = (event) => console.log(event.data);\nws.onclose = (event) => console.log(event.code, event.reason);';
    if (call.form === 'message') {
      // In a literal, "__proto__" would be the prototype.
      const name = (text) => (text === '__proto__' ? '["__proto__"]' : literal(text));
      return ['In a browser, or Node.js 22 and later.',
        `const ws = new WebSocket(${literal(address)});\nws.onopen = () => {\n  ws.send(JSON.stringify(${object(members(call, key), '  ', name)}));\n  ws.send("hello");\n};\n${events}`];
    }
    const protocols = subprotocols(call).length ? `, [${subprotocols(call).map(literal).join(', ')}]` : '';
    return ['A browser sets no headers, so the key stands in the address; headers and cookies are left out.',
      `const ws = new WebSocket(${literal(transparentUrl(address, call, key))}${protocols});\nws.onopen = () => ws.send("hello");\n${events}`];
  },
};

let shownCall = 'json';
let keyShown = false;

function callText(masked) {
  const call = read();
  return call.problems.length ? null : CALLS[shownCall](call, masked && call.key && !keyShown ? MASK : call.key);
}

function drawCall() {
  const written = callText(true);
  $('call-hint').textContent = written ? written[0] : 'This is shown once the fields above make a call.';
  $('call').textContent = written ? written[1] : '';
  $('call').hidden = !written;
  $('copy').disabled = !written;
  $('copied').textContent = '';
}

/** Marks what is wrong; with `all`, what is missing too. */
function mark(all = false) {
  const { problems } = read();
  for (const id of ['url', 'headers', 'cookies', 'idle']) {
    const problem = problems.find(([field]) => field === id && (all || id !== 'url'));
    $(`${id}-problem`).textContent = problem ? problem[1] : '';
    $(id).setAttribute('aria-invalid', String(Boolean(problem)));
  }
  const set = FIELDS.slice(2).filter((id) => $(id).value.trim()).length;
  $('more-count').textContent = set ? `· ${set} set` : '';
  drawCall();
  return problems;
}

function drawForm() {
  $('form-hint').textContent = chosen('form') === 'message'
    ? 'Opens /ws, and sends one JSON message that names the target.'
    : 'Opens /ws?url=…&key=…: the key then stands in the address, where logs on the way may keep it. A browser sets no headers, so headers (but Sec-WebSocket-Protocol) and cookies are in the calls to copy only.';
  mark();
}

const NOT_COPIED = 'The browser did not let it be copied.';
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Outside of https:// and localhost there is the old way only.
    const area = make('textarea', 'visually-hidden');
    area.value = text;
    area.readOnly = true;
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    focused?.focus();
    return done;
  }
}

// --- the list of messages ----------------------------------------------------------------------------------------------
const list = $('list');
const spacer = $('spacer');
let entries = [];
let shown = entries;
let kept = 0;
let dropped = 0;
let count = 0;
let selected = null;
let following = true;
let placed = 0;
// How many of those that were shown have made room since the list was drawn.
let lifted = 0;
let drawn = new Map();
let scheduled = false;
const figures = { out: [0, 0], in: [0, 0] };

function schedule() {
  if (!scheduled) {
    scheduled = true;
    requestAnimationFrame(draw);
  }
}

const DIGITS = bytesOf('0123456789abcdef');
/** Two digits for each byte, with spaces between them. Of many megabytes too, so without a string for each. */
function hex(bytes, most = bytes.length) {
  const count = Math.min(bytes.length, most);
  const text = new Uint8Array(Math.max(0, count * 3 - 1)).fill(0x20);
  for (let at = 0; at < count; at += 1) {
    text[at * 3] = DIGITS[bytes[at] >> 4];
    text[at * 3 + 1] = DIGITS[bytes[at] & 15];
  }
  return new TextDecoder().decode(text);
}
const preview = (entry) => (typeof entry.data === 'string' ? entry.data.slice(0, PREVIEW).replace(/\s*[\r\n]\s*/g, entry.kind === 'connect' ? ' ' : ' ↵ ') : hex(entry.data, 64));

function passes(entry) {
  const which = $('show').value;
  if (which !== 'all' && !which.split(' ').some((one) => one === entry.way || one === entry.kind)) return false;
  const wanted = $('filter').value.toLowerCase();
  if (!wanted) return true;
  return (typeof entry.data === 'string' ? entry.data : hex(entry.data, DETAIL_BYTES)).toLowerCase().includes(wanted);
}

function filter() {
  shown = $('filter').value || $('show').value !== 'all' ? entries.filter(passes) : entries;
  schedule();
}

function add(way, kind, data, size = 0) {
  const entry = { id: count += 1, at: Date.now(), way, kind, data, size, trip: null };
  entries.push(entry);
  kept += size;
  if (shown !== entries && passes(entry)) shown.push(entry);
  while (entries.length > MOST_MESSAGES || (kept > MOST_BYTES && entries.length > 1)) {
    const gone = entries.splice(0, Math.ceil(entries.length / 10));
    kept -= gone.reduce((sum, one) => sum + one.size, 0);
    dropped += gone.length;
    const before = shown.length;
    if (shown === entries) lifted += gone.length;
    else {
      filter();
      lifted += before - shown.length;
    }
  }
  schedule();
  return entry;
}

const SIZES = ['B', 'KiB', 'MiB', 'GiB'];
function sizeText(size) {
  let unit = 0;
  for (; size >= 1024 && unit < 3; unit += 1) size /= 1024;
  return `${unit && size < 100 ? size.toFixed(1) : Math.round(size)} ${SIZES[unit]}`;
}
const two = (number, width = 2) => String(number).padStart(width, '0');
function timeText(at) {
  const date = new Date(at);
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${two(date.getMilliseconds(), 3)}`;
}
const durationText = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);
const WAYS = { out: ['↑', 'Sent'], in: ['↓', 'Received'], event: ['·', 'Event'] };

function row(entry) {
  const element = make('div', `row ${entry.way} ${entry.kind}`);
  element.id = `message-${entry.id}`;
  element.setAttribute('role', 'option');
  const way = make('span', 'way');
  const arrow = make('span', '', WAYS[entry.way][0]);
  arrow.setAttribute('aria-hidden', 'true');
  way.append(arrow, make('span', 'visually-hidden', WAYS[entry.way][1]));
  element.append(
    make('span', 'time', timeText(entry.at)), way, make('span', 'kind', entry.kind),
    make('span', 'size', entry.way === 'event' ? '' : sizeText(entry.size)), make('span', 'body', preview(entry)),
    make('span', 'trip', entry.trip === null ? '' : durationText(entry.trip)),
  );
  return element;
}

function draw() {
  scheduled = false;
  const height = parseFloat(getComputedStyle(document.documentElement).getPropertyValue('--row'));
  const reading = list.scrollTop - lifted * height;
  spacer.style.height = `${shown.length * height}px`;
  if (following) {
    list.scrollTop = list.scrollHeight;
    placed = list.scrollTop;
  } else if (lifted) {
    // Somebody who reads further up goes on reading there.
    list.scrollTop = reading;
  }
  lifted = 0;
  const first = Math.max(0, Math.floor(list.scrollTop / height) - 4);
  const window = shown.slice(first, Math.ceil((list.scrollTop + list.clientHeight) / height) + 4);
  const next = new Map();
  for (const [index, entry] of window.entries()) {
    const element = drawn.get(entry) ?? row(entry);
    element.style.top = `${(first + index) * height}px`;
    element.setAttribute('aria-posinset', first + index + 1);
    element.setAttribute('aria-setsize', shown.length);
    element.setAttribute('aria-selected', entry === selected);
    next.set(entry, element);
  }
  for (const [entry, element] of drawn) if (!next.has(entry)) element.remove();
  let before = null;
  for (const element of next.values()) {
    if (before ? before.nextSibling !== element : spacer.firstChild !== element) spacer.insertBefore(element, before ? before.nextSibling : spacer.firstChild);
    before = element;
  }
  drawn = next;
  if (selected && drawn.has(selected)) list.setAttribute('aria-activedescendant', `message-${selected.id}`);
  else list.removeAttribute('aria-activedescendant');
  $('empty').hidden = shown.length > 0;
  $('empty').textContent = entries.length ? 'No message passes the filter.' : 'Messages appear here, newest last.';
  $('latest').hidden = following;
  $('shown').textContent = [shown !== entries ? `${shown.length.toLocaleString('en')} of ${entries.length.toLocaleString('en')} shown` : '', dropped ? `${dropped.toLocaleString('en')} older ones made room` : ''].filter(Boolean).join(' · ');
  for (const [id, way] of [['sent', 'out'], ['received', 'in']]) {
    const [messages, bytes] = figures[way];
    $(id).textContent = messages ? `${messages.toLocaleString('en')} · ${sizeText(bytes)}` : '0';
  }
}

list.addEventListener('scroll', () => {
  // Where the list has become lower meanwhile, its end is out of sight without anybody having scrolled.
  following = list.scrollTop + list.clientHeight >= list.scrollHeight - 8 || (following && list.scrollTop >= placed);
  schedule();
}, { passive: true });
new ResizeObserver(schedule).observe(list);

function hexdump(bytes) {
  const lines = [];
  for (let at = 0; at < Math.min(bytes.length, DETAIL_BYTES); at += 16) {
    const part = bytes.subarray(at, at + 16);
    lines.push(`${at.toString(16).padStart(6, '0')}  ${hex(part, 16).padEnd(47)}  ${Array.from(part, (byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : '.')).join('')}`);
  }
  return lines.join('\n');
}

function detail(entry) {
  selected = entry;
  $('detail').hidden = !entry;
  $('message-copied').textContent = '';
  if (entry) {
    const isText = typeof entry.data === 'string';
    const cut = isText ? entry.data.length - DETAIL : entry.data.length - DETAIL_BYTES;
    $('detail-title').textContent = [WAYS[entry.way][1], entry.kind, entry.way === 'event' ? '' : sizeText(entry.size), timeText(entry.at)].filter(Boolean).join(' · ');
    $('detail-text').textContent = (isText ? entry.data.slice(0, DETAIL) : hexdump(entry.data)) + (cut > 0 ? `\n… and ${cut.toLocaleString('en')} more ${isText ? 'characters' : 'bytes'}` : '');
  }
  schedule();
}

function select(index) {
  if (!shown.length) return;
  const height = parseFloat(getComputedStyle(document.documentElement).getPropertyValue('--row'));
  index = Math.max(0, Math.min(shown.length - 1, index));
  following = index === shown.length - 1;
  if (index * height < list.scrollTop) list.scrollTop = index * height;
  if ((index + 1) * height > list.scrollTop + list.clientHeight) list.scrollTop = (index + 1) * height - list.clientHeight;
  detail(shown[index]);
}

list.addEventListener('click', (event) => {
  const element = event.target.closest('.row');
  for (const [entry, its] of drawn) if (its === element) detail(entry === selected ? null : entry);
});
list.addEventListener('keydown', (event) => {
  const at = shown.lastIndexOf(selected);
  const page = Math.max(1, Math.floor(list.clientHeight / 40));
  const moves = { ArrowDown: at < 0 ? shown.length - 1 : at + 1, ArrowUp: at < 0 ? shown.length - 1 : at - 1, Home: 0, End: shown.length - 1, PageDown: at + page, PageUp: at - page };
  if (event.key in moves) select(moves[event.key]);
  else if (event.key === 'Escape' && selected) detail(null);
  else return;
  event.preventDefault();
});

// --- the session -------------------------------------------------------------------------------------------------------
let session = null;

function tell(state, text) {
  $('state').dataset.state = state;
  $('status').textContent = text;
}

function update() {
  const on = session?.stage === 'on';
  $('connect').disabled = Boolean(session);
  $('disconnect').disabled = !session || session.stage === 'closing';
  $('disconnect').textContent = session && session.stage !== 'on' && session.stage !== 'closing' ? 'Cancel' : 'Disconnect';
  $('send').disabled = !on;
}

function connected(text) {
  const ours = session;
  ours.stage = 'on';
  $('connected-in').textContent = durationText(performance.now() - ours.began);
  tell('on', text);
  update();
  if ([$('connect'), document.body].includes(document.activeElement)) $(chosen('kind') === 'file' ? 'file' : 'message').focus();
}

/** The gateway's one answer to the connect message. */
function answered(text, size) {
  let answer = null;
  try { answer = JSON.parse(text); } catch { /* said below */ }
  add('in', answer?.type === 'connected' ? 'answer' : 'error', text, size);
  if (answer?.type === 'connected') {
    connected(`Connected through ${answer.node_id}${answer.subprotocol ? `, ${answer.subprotocol}` : ''}`);
  } else {
    session.error = answer?.type === 'error' ? `${answer.message}${answer.code ? ` (${answer.code})` : ''}` : 'The gateway’s answer could not be read';
    tell('bad', session.error);
  }
}

function received(data) {
  const now = performance.now();
  const text = typeof data === 'string';
  const content = text ? data : new Uint8Array(data);
  const size = text ? bytesOf(data).length : content.length;
  if (session.stage === 'asking' && text) return answered(data, size);
  figures.in[0] += 1;
  figures.in[1] += size;
  const entry = add('in', text ? 'text' : 'binary', content, size);
  const last = session.last;
  if (last && last.text === text && last.size === size && (text ? last.content === content : content.every((byte, at) => byte === last.content[at]))) {
    entry.trip = now - last.at;
    $('round-trip').textContent = durationText(entry.trip);
    session.last = null;
  }
}

function connect() {
  if (session) return;
  const problems = mark(true);
  if (problems.length) {
    const [field] = problems[0];
    if (!['url', 'key'].includes(field)) $('more').open = true;
    $(field).focus();
    return;
  }
  const call = read();
  const transparent = call.form === 'transparent';
  let socket;
  try {
    socket = transparent ? new WebSocket(transparentUrl(here.href, call, call.key), subprotocols(call)) : new WebSocket(here.href);
  } catch (error) {
    tell('bad', `The browser refuses the call: ${error.message}`);
    return;
  }
  socket.binaryType = 'arraybuffer';
  const ours = session = { socket, stage: 'opening', began: performance.now(), last: null, error: null, opened: false };
  for (const id of ['round-trip', 'connected-in']) $(id).textContent = '–';
  add('event', 'open', `Connecting to ${call.url}`);
  tell('busy', 'Connecting…');
  update();
  socket.onopen = () => {
    ours.opened = true;
    if (transparent) {
      add('event', 'open', 'The target has accepted the opening handshake');
      return connected(`Connected${socket.protocol ? `, ${socket.protocol}` : ''}`);
    }
    const message = object(members(call, call.key), '');
    socket.send(message);
    // Shown without the key, for good: this list is what gets shared.
    add('out', 'connect', object(members(call, call.key && MASK), ''), bytesOf(message).length);
    ours.stage = ours.stage === 'closing' ? 'closing' : 'asking';
    tell('busy', 'Waiting for the target…');
  };
  socket.onmessage = (event) => received(event.data);
  socket.onclose = (event) => {
    session = null;
    const why = event.reason ? `${event.code} ${event.reason}` : String(event.code);
    if (!ours.opened) {
      const text = ours.stage === 'closing' ? 'Cancelled' : transparent
        ? 'Refused. A browser does not say why; the curl call below shows the answer.'
        : 'The gateway could not be reached';
      add('event', ours.stage === 'closing' ? 'close' : 'error', text);
      tell(ours.stage === 'closing' ? 'off' : 'bad', text);
    } else {
      const text = event.code === 1006 ? 'Connection lost (1006)' : `Closed: ${why}`;
      add('event', event.code === 1006 ? 'error' : 'close', text);
      tell(ours.error || event.code === 1006 ? 'bad' : 'off', ours.error ?? text);
    }
    update();
  };
}

function disconnect() {
  if (!session || session.stage === 'closing') return;
  const [codeText, reason] = [$('close-code').value.trim(), $('close-reason').value.toWellFormed()];
  const code = /^\d{4}$/.test(codeText) ? Number(codeText) : 0;
  let problem = '';
  if (codeText && code !== 1000 && !(code >= 3000 && code <= 4999)) problem = 'A browser may close with 1000, or 3000 to 4999.';
  else if (!codeText && reason) problem = 'A reason needs a code.';
  else if (bytesOf(reason).length > 123) problem = 'A reason has 123 bytes at most.';
  $('close-problem').textContent = problem;
  $('close-code').setAttribute('aria-invalid', String(problem !== '' && !problem.includes('bytes')));
  $('close-reason').setAttribute('aria-invalid', String(problem.includes('bytes')));
  if (problem) return;
  session.stage = 'closing';
  if (codeText) session.socket.close(code, reason);
  else session.socket.close();
  tell('busy', 'Closing…');
  update();
}

async function send() {
  const kind = chosen('kind');
  const complain = (text) => {
    $('message-problem').textContent = text;
    $('message').setAttribute('aria-invalid', String(Boolean(text) && kind !== 'file'));
  };
  complain('');
  if (session?.stage !== 'on') return complain('Connect first.');
  let content = $('message').value.toWellFormed();
  if (kind === 'hex') {
    const digits = content.replace(/0x|[\s,:]/gi, '');
    if (!/^([0-9a-f]{2})*$/i.test(digits)) return complain('Not hex: write two digits for each byte, such as 00 ff 10.');
    content = Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
  } else if (kind === 'file') {
    const [file] = $('file').files;
    if (!file) return complain('Choose a file first.');
    if (file.size > LARGEST_FILE) return complain(`The file has ${sizeText(file.size)}; this page sends at most ${sizeText(LARGEST_FILE)}.`);
    try {
      content = new Uint8Array(await file.arrayBuffer());
    } catch (error) {
      return complain(`The file could not be read: ${error.message}`);
    }
    if (session?.stage !== 'on') return complain('The session has ended meanwhile.');
  }
  const text = typeof content === 'string';
  const size = text ? bytesOf(content).length : content.length;
  add('out', text ? 'text' : 'binary', content, size);
  figures.out[0] += 1;
  figures.out[1] += size;
  session.last = { text, content, size, at: performance.now() };
  session.socket.send(content);
  if (kind !== 'file') $('message').value = '';
}

function drawComposer() {
  const kind = chosen('kind');
  const file = kind === 'file';
  $('message').hidden = file;
  $('file').hidden = !file;
  $('message-label').htmlFor = file ? 'file' : 'message';
  $('message').placeholder = kind === 'hex' ? '00 ff 10' : '';
  $('message-hint').textContent = file ? 'Sent as one binary message.' : `Enter sends${kind === 'hex' ? ' it as one binary message' : ''}, Shift+Enter starts a new line.`;
  $('message-problem').textContent = '';
  $('message').setAttribute('aria-invalid', 'false');
}

// --- the schema --------------------------------------------------------------------------------------------------------
function typeText(schema) {
  if ('const' in schema) return JSON.stringify(schema.const);
  const types = [schema.type ?? []].flat();
  const given = types.length > 1 ? types.filter((type) => type !== 'null') : types;
  return given.map((type) => (type === 'object' ? 'object of strings' : type)).join(' or ');
}

function member([name, schema], required) {
  const box = make('div');
  const term = make('dt');
  term.append(make('code', '', name), make('span', 'type', typeText(schema)));
  if (required.includes(name)) term.append(make('span', 'must', 'required'));
  box.append(term);
  const notes = [schema.description, 'default' in schema ? `Default: ${JSON.stringify(schema.default)}.` : '', schema.examples ? `For example ${schema.examples.map((one) => JSON.stringify(one)).join(', ')}.` : ''].filter(Boolean).join(' ');
  const description = make('dd', '', notes);
  if (schema.enum) {
    const words = make('ul', 'words');
    for (const word of schema.enum) {
      const item = make('li');
      item.append(make('code', '', word));
      words.append(item);
    }
    description.append(words);
  }
  if (notes || schema.enum) box.append(description);
  return box;
}

let schema = null;
let shownSchema = 'connect';
function drawSchema() {
  if (!schema) return;
  const part = schema.$defs?.[shownSchema] ?? {};
  const rows = make('dl', 'members');
  rows.append(...Object.entries(part.properties ?? {}).map((one) => member(one, part.required ?? [])));
  $('schema-panel').replaceChildren(make('p', '', part.description ?? ''), rows);
}

async function load(path) {
  const answer = await fetch(path, { headers: { Accept: 'application/json' }, credentials: 'omit' });
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  return answer.json();
}

load('schema').then((got) => { schema = got; drawSchema(); }, (error) => {
  $('schema-panel').replaceChildren(make('p', '', `The schema could not be loaded: ${error.message}`));
});
$('address').textContent = address;
load('docs').then((docs) => {
  const named = /wss?:\/\/\S+$/.exec(docs.message)?.[0];
  if (named && URL.canParse(named) && new URL(named).host !== here.host) address = named;
  $('address').textContent = address;
  $('node').textContent = `node ${docs.node_id}`;
  drawCall();
}, () => { /* the page works without */ });

// --- what is pressed ---------------------------------------------------------------------------------------------------
/** As ARIA has it: arrows move between tabs, and only the chosen one is in the tab order. */
function tabs(id, chosenTab) {
  const all = [...$(id).querySelectorAll('[role="tab"]')];
  const choose = (tab) => {
    for (const one of all) {
      one.setAttribute('aria-selected', String(one === tab));
      one.tabIndex = one === tab ? 0 : -1;
    }
    $(tab.getAttribute('aria-controls')).setAttribute('aria-labelledby', tab.id);
    chosenTab(tab);
  };
  $(id).addEventListener('click', (event) => { if (all.includes(event.target)) choose(event.target); });
  $(id).addEventListener('keydown', (event) => {
    const at = all.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + all.length, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const tab = all[to % all.length];
    choose(tab);
    tab.focus();
  });
  choose(all[0]);
}

/** The target that this page's address names, as `ringway dev` prints it. A key is never taken from there. */
function prefill() {
  const url = new URLSearchParams(location.hash.slice(1)).get('url');
  if (url) $('url').value = url;
  mark();
}

addEventListener('hashchange', prefill);
for (const id of FIELDS) $(id).addEventListener('input', () => mark());
for (const id of FIELDS) {
  if ($(id).tagName === 'INPUT') $(id).addEventListener('keydown', (event) => { if (event.key === 'Enter' && !event.isComposing) connect(); });
}
for (const input of document.querySelectorAll('input[name="form"]')) input.addEventListener('change', drawForm);
for (const input of document.querySelectorAll('input[name="kind"]')) input.addEventListener('change', drawComposer);
$('connect').addEventListener('click', connect);
$('disconnect').addEventListener('click', disconnect);
for (const id of ['close-code', 'close-reason']) $(id).addEventListener('keydown', (event) => { if (event.key === 'Enter' && !event.isComposing) disconnect(); });
$('send').addEventListener('click', send);
$('message').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
$('filter').addEventListener('input', filter);
$('show').addEventListener('change', filter);
$('clear').addEventListener('click', () => {
  entries = [];
  kept = dropped = lifted = 0;
  following = true;
  figures.in = [0, 0];
  figures.out = [0, 0];
  $('round-trip').textContent = '–';
  detail(null);
  filter();
});
$('latest').addEventListener('click', () => { following = true; list.focus(); schedule(); });
$('close-detail').addEventListener('click', () => { detail(null); list.focus(); });
$('copy-message').addEventListener('click', async () => {
  if (!selected) return;
  const done = await copy(typeof selected.data === 'string' ? selected.data : hex(selected.data));
  $('message-copied').textContent = done ? 'Copied.' : NOT_COPIED;
});
$('copy').addEventListener('click', async () => {
  const written = callText(false);
  if (!written) return;
  const done = await copy(written[1]);
  $('copied').textContent = !done ? NOT_COPIED : read().key ? 'Copied, with the key in it.' : 'Copied.';
});
$('show-key').addEventListener('click', () => {
  keyShown = !keyShown;
  $('key').type = keyShown ? 'text' : 'password';
  $('show-key').setAttribute('aria-pressed', String(keyShown));
  $('show-key').firstChild.textContent = keyShown ? 'Hide' : 'Show';
  drawCall();
});

const prefersDark = matchMedia('(prefers-color-scheme: dark)');
const isDark = () => (document.documentElement.dataset.theme ?? (prefersDark.matches ? 'dark' : 'light')) === 'dark';
const drawTheme = () => { $('theme').textContent = isDark() ? 'Light theme' : 'Dark theme'; };
$('theme').addEventListener('click', () => {
  document.documentElement.dataset.theme = isDark() ? 'light' : 'dark';
  drawTheme();
});
prefersDark.addEventListener('change', drawTheme);

tabs('call-tabs', (tab) => { shownCall = tab.dataset.call; drawCall(); });
tabs('schema-tabs', (tab) => { shownSchema = tab.dataset.schema; drawSchema(); });
if (matchMedia('(max-width: 599px)').matches) $('more').open = false;
drawTheme();
prefill();
drawForm();
drawComposer();
draw();
}

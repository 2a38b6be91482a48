"""Clients of other makes, unchanged, through ringway: what each exchanges and which close codes it sees. The table of
docs/clients.md is checked against what ran here; RINGWAY_WRITE_CLIENTS=1 writes it anew."""
from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import browser
from harness.client import KEY
from harness.matrix_target import Hub, MatrixTarget, told
from harness.process import ROOT, binary
from harness.programs import CLIENTS, Program, node
from harness.transparent import address

DOCUMENT = ROOT / "docs" / "clients.md"
WRITE = bool(os.environ.get("RINGWAY_WRITE_CLIENTS"))
PATTERN = bytes(at * 7 % 251 for at in range(1 << 20))
SENT = {"text": "grüße \U0001f600", "empty": "", "binary": PATTERN[:256], "1 MiB": PATTERN, "fragments sent": "fragments", "fragments received": "fragment 5"}
"""What the target gets from each client, in this order."""
TUNGSTENITE = Path(binary()).parent / "examples" / "tungstenite"


@dataclass(frozen=True)
class Who:
    """A client that has the whole conversation."""

    name: str
    words: list[str]
    options: dict[str, str]
    """What its user writes, in each form."""
    sends_fragments: bool = True
    sets_headers: bool = True
    compresses: bool = True
    reason: bool = True
    """It tells the reason of a Close that answers its own."""
    answers: int = 4002
    """With which code it answers the target's Close 4002."""
    missing: Callable[[], str | None] = lambda: None
    """Why it cannot run here."""


def script(name: str) -> list[str]:
    return [sys.executable, str(CLIENTS / name)]


def javascript(name: str, *flags: str) -> list[str]:
    return [node(), *flags, str(CLIENTS / name)]


NODE = int(re.match(r"v(\d+)", subprocess.run([node(), "--version"], capture_output=True, text=True, check=True).stdout)[1])
BUILTIN = ["--experimental-websocket", "--no-warnings"] if NODE < 22 else []


def no_builtin() -> str | None:
    return f"Node {NODE} has no built-in WebSocket, 20 and later have" if NODE < 20 else None


def no_tungstenite() -> str | None:
    return None if TUNGSTENITE.exists() else "tungstenite is not built: cargo build --example tungstenite"


FLAG = " // Node 20: node --experimental-websocket"
PYTHON = 'connect("wss://relay.example.com/ws")'
QUERY = "wss://relay.example.com/ws?url=wss%3A%2F%2Ftarget.example.com%2Fstream"
WHOLE = [
    Who("Python websockets", script("py_websockets.py"), {"message": PYTHON, "query": f'connect("{QUERY}", additional_headers={{"X-API-Key": key}})'}),
    Who("Python aiohttp", script("py_aiohttp.py"), {"message": 'session.ws_connect("wss://relay.example.com/ws")', "query": f'session.ws_connect("{QUERY}", headers={{"X-API-Key": key}}, compress=15)'}, sends_fragments=False, reason=False, answers=1000),
    Who("Python websocket-client", script("py_websocket_client.py"), {"message": 'create_connection("wss://relay.example.com/ws")', "query": f'create_connection("{QUERY}", header={{"X-API-Key": key}})'}, compresses=False, answers=1000),
    Who("Node ws", javascript("node_ws.mjs"), {"message": 'new WebSocket("wss://relay.example.com/ws")', "query": f'new WebSocket("{QUERY}", {{ headers: {{ "X-API-Key": key }} }})'}),
    Who("Node, built-in WebSocket", javascript("node_builtin.mjs", *BUILTIN), {"message": 'new WebSocket("wss://relay.example.com/ws")' + FLAG, "query": f'new WebSocket("{QUERY}&key=" + encodeURIComponent(key))' + FLAG}, sends_fragments=False, sets_headers=False, missing=no_builtin),
    Who("Rust tokio-tungstenite", [str(TUNGSTENITE)], {"message": 'connect_async("wss://relay.example.com/ws")', "query": f"connect_async(request), the request to {QUERY} with the header X-API-Key"}, compresses=False, missing=no_tungstenite),
]


async def last_line(world, *words: str) -> dict:
    program = await world.program(await Program.start(*words))
    assert await program.ends(40) == 0, program.text
    return json.loads(program.text.strip().splitlines()[-1])


async def target_of(world) -> MatrixTarget:
    target = await MatrixTarget().start()
    world.stack.push_async_callback(target.close)
    return target


def asked(gateway, target: MatrixTarget, form: str, sets_headers: bool) -> dict:
    url, base = f"ws://127.0.0.1:{target.port}/", f"ws://127.0.0.1:{gateway.port}"
    if form == "message":
        return {"url": f"{base}/ws", "headers": {}, "first": json.dumps({"apiKey": KEY, "url": url})}
    return {"url": base + address(url, None if sets_headers else KEY), "headers": {"X-API-Key": KEY} if sets_headers else {}, "first": None}


@pytest.mark.parametrize("form", ["message", "query"])
@pytest.mark.parametrize("who", WHOLE, ids=lambda who: who.name)
async def test_the_whole_conversation(world, who, form):
    """each client exchanges text, binary, empty, 1 MiB and fragmented messages and sees the right close code"""
    if why := who.missing():
        pytest.skip(why)
    gateway, target = await world.gateway(), await target_of(world)
    got = await last_line(world, *who.words, json.dumps(asked(gateway, target, form, who.sets_headers)))
    fixed = fixed_versions().get(who.name)
    assert got.get("version", fixed) == fixed or fixed is None, f"{got['version']} runs here, and not {fixed}"
    await judge(target, got, form, who.sends_fragments, who.compresses, who.reason, who.answers)


async def judge(target: MatrixTarget, got: dict, form: str, sends_fragments: bool, compresses: bool, reason: bool = True, answers: int = 4002) -> None:
    want = [name for name in SENT if sends_fragments or name != "fragments sent"]
    assert sorted(got["passed"]) == sorted(want), got
    # The Close that answers its own says the same; the target's own comes as it was sent.
    assert (got["own"] if reason else got["own"][:1]) == ([3001, "bye"] if reason else [3001]), got
    assert got["target"] == [4002, "enough"], got
    first, second = await target.until(2)
    assert first.messages == [told(SENT[name]) for name in want], first
    if sends_fragments:
        assert first.frames[want.index("fragments sent")] in (3, 4), f"{first}: three, and with some clients an empty one that ends them"
    assert first.close == (3001, "bye"), first
    assert second.messages == [told("close 4002 enough")] and second.close[0] == answers, second
    # In the connect-message form no extension is agreed on.
    compressed = compresses and form == "query"
    assert first.compressed == compressed and got["compressed"] == compressed, (first, got)


def tungstenite() -> str:
    return re.search(r'name = "tokio-tungstenite"\nversion = "([^"]+)"', (ROOT / "Cargo.lock").read_text())[1]


@pytest.fixture(scope="module")
def chromium():
    if browser.CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian package chromium)")
    started = browser.Browser()
    yield started
    started.close()


@pytest.mark.parametrize("form", ["message", "query"])
async def test_chromium(world, chromium, form):
    """Chromium: the same conversation, in a page"""
    gateway, target = await world.gateway(), await target_of(world)
    ask = asked(gateway, target, form, sets_headers=False)
    converse = (CLIENTS / "conversation.js").read_text().strip().rstrip(";")
    async with chromium.page() as page:
        got = await page.evaluate(f"{converse}(WebSocket, {json.dumps(ask['url'])}, {json.dumps(ask['first'])})")
    await judge(target, got, form, sends_fragments=False, compresses=True)


@pytest.mark.parametrize("form", ["message", "query"])
async def test_wscat(world, form):
    """wscat: what can be typed, what it prints, its own Close and the target's"""
    gateway, target = await world.gateway(), await target_of(world)
    ask = asked(gateway, target, form, sets_headers=True)
    headers = [word for name, value in ask["headers"].items() for word in ("-H", f"{name}: {value}")]

    async def begin() -> Program:
        program = await world.program(await Program.wscat("--slash", "-c", ask["url"], *headers))
        await program.says("Connected")
        if ask["first"]:
            await program.type(ask["first"])
            await program.says('"type":"connected"')
        return program

    program = await begin()
    lines = ["", "grüße", "fragment 5", "fragment 1049"]
    await program.type(lines[0])
    await program.type(lines[1])
    await program.says("< grüße")
    assert re.search(r"< (\x1b\[\d*m)?\r?\n", program.text), f"no empty message came back: {program.text!r}"
    for line in lines[2:]:
        await program.type(line)
        await program.says("< " + "0123456789" * 100 * int(line.split()[1]))
    await program.type("/close 3001 bye")
    await program.says('Disconnected (code: 3001, reason: "bye")')
    other = await begin()
    await other.type("close 4002 enough")
    await other.says('Disconnected (code: 4002, reason: "enough")')
    first, second = await target.until(2)
    assert first.messages == [told(line) for line in lines] and first.close == (3001, "bye"), first
    assert second.messages == [told("close 4002 enough")] and second.close[0] == 4002, second
    assert first.compressed == (form == "query"), first


async def curl(world, *words: str) -> str:
    program = await world.program(await Program.start("curl", "-sS", "--http1.1", *words))
    await program.ends(20)
    return program.text


async def test_curl(world):
    """curl: errors as HTTP answers, and the target's 101"""
    gateway, target = await world.gateway(), await target_of(world)
    base, url = f"http://127.0.0.1:{gateway.port}", f"ws://127.0.0.1:{target.port}/"
    upgrade = [word for name, value in (("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")) for word in ("-H", f"{name}: {value}")]
    refused = await curl(world, "-i", *upgrade, "-H", "X-API-Key: wrong", base + address(url))
    assert refused.startswith("HTTP/1.1 401 ") and '"code":"invalid_key"' in refused, refused
    opened = await curl(world, "-i", "-N", "--max-time", "1", *upgrade, "-H", f"X-API-Key: {KEY}", base + address(url))
    assert "HTTP/1.1 101 " in opened and "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in opened and "Ringway-Node-Id: scraping-de1" in opened, opened


async def test_curl_with_websockets(world):
    """curl over ws://: it prints what the target says"""
    if "ws" not in (await curl(world, "--version")).split("Protocols:")[1].splitlines()[0].split():
        pytest.skip("this curl knows no ws:// (8.11 and later do)")
    gateway, target = await world.gateway(), await target_of(world)
    url = f"ws://127.0.0.1:{gateway.port}" + address(f"ws://127.0.0.1:{target.port}/greeting")
    program = await world.program(await Program.start("curl", "-sSN", "-H", f"X-API-Key: {KEY}", url))
    # It prints a Close too, code (0x03e8) and reason, answers it not, and waits for the end of TCP.
    await program.says("that was all")
    assert program.text == "a greeting\x03\ufffdthat was all", program.text


# --- protocols on top, each with its own client and server ----------------------------------------------------------------
async def on_top(world, name: str, relay) -> dict:
    """A program that is server and client: it prints the server's port and is told where the relay is."""
    gateway = await world.gateway()
    program = await world.program(await Program.start(*javascript(name)))
    await program.says('{"port":')
    await program.type(json.dumps({"relay": relay(gateway), "key": KEY}))
    program.child.stdin.close()
    assert await program.ends(40) == 0, program.text
    return json.loads(program.text.strip().splitlines()[-1])


async def test_socket_io(world):
    """Socket.IO with its real client and server through the relay"""
    got = await on_top(world, "socket_io.mjs", lambda gateway: f"http://127.0.0.1:{gateway.port}")
    assert got["passed"] == ["text", "empty", "binary", "900 kB"], got
    assert got["target"] == ["io server disconnect", ["websocket", "server namespace disconnect"]], got
    assert got["own"] == ["websocket", "client namespace disconnect"], got


async def test_graphql_ws(world):
    """graphql-ws with its real client and server through the relay: subprotocol `graphql-transport-ws`"""
    got = await on_top(world, "graphql_ws.mjs", lambda gateway: f"ws://127.0.0.1:{gateway.port}/ws")
    assert got["passed"] == ["text", "empty", "1 MB", "50 events"], got
    # What it hears of its own Close, and what the target does; then the target's.
    assert (got["own"], got["target"]) == ([1000, 1000], [4403, "Forbidden"]), got


async def test_signalr(world):
    """the real npm SignalR client against a small JSON-hub target of ours"""
    gateway, hub = await world.gateway(), await Hub().start()
    world.stack.push_async_callback(hub.close)
    url = f"http://127.0.0.1:{gateway.port}{address(f'ws://127.0.0.1:{hub.port}/hub', KEY)}"
    got = await last_line(world, *javascript("signalr.mjs"), json.dumps({"url": url}))
    assert got["passed"] == ["text", "empty", "1 MB", "called by the hub", "50 events", "pings"], got
    own, left, broken = got["ends"]
    assert own is None and "enough" in left and "4002 (enough)" in broken, got
    closes = await hub.until(3)
    assert [close and close[0] for close in closes] == [1005, 1005, 4002], f"{closes}: it ends without a code, and answers the target's"


# --- the table --------------------------------------------------------------------------------------------------------------
SNIPPETS = {
    "Chromium": {"message": 'new WebSocket("wss://relay.example.com/ws")', "query": f'new WebSocket("{QUERY}&key=" + encodeURIComponent(key))'},
    "wscat": {"message": "wscat --slash -c wss://relay.example.com/ws", "query": f"wscat --slash -H 'X-API-Key: …' -c '{QUERY}'"},
    "curl": {"query": f"curl -i --http1.1 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: …' -H 'X-API-Key: …' '{QUERY.replace('wss:', 'https:', 1)}'"},
    "curl with ws://": {"query": f"curl -N -H 'X-API-Key: …' '{QUERY}'"},
    "Socket.IO": {"query": 'io("https://relay.example.com", { path: "/ws", addTrailingSlash: false, transports: ["websocket"], query: { url: "wss://target.example.com/socket.io/?EIO=4&transport=websocket", key } })'},
    "graphql-ws": {"query": f'createClient({{ url: "{QUERY}&key=" + encodeURIComponent(key) }})'},
    "SignalR": {"query": f'.withUrl("{QUERY.replace("wss:", "https:", 1)}&key=" + encodeURIComponent(key), {{ skipNegotiation: true, transport: HttpTransportType.WebSockets }})'},
    **{who.name: who.options for who in WHOLE},
}
EXCHANGES = {
    "wscat": "text, empty, 1 MiB received, fragments received; its close code at the target (`/close 3001 bye`), the target's close code",
    "curl": "the target's 101, errors as JSON",
    "curl with ws://": "what the target says, its Close too, which curl does not answer; skipped where curl is older",
    "Socket.IO": "events with text, empty, binary, 900 kB; both ends leave",
    "graphql-ws": "queries, subscriptions, text, empty, 1 MB; its subprotocol; its Close 1000 at the target, the target's Close 4403",
    "SignalR": "invocations, calls by the hub, a stream, pings, text, empty, 1 MB; both ends leave, the target's close code",
}
ORDER = [*(who.name for who in WHOLE), "Chromium", "wscat", "curl", "curl with ws://", "Socket.IO", "graphql-ws", "SignalR"]


def fixed_versions() -> dict[str, str]:
    """Those that the repository fixes; the others are of the machine that wrote the table."""
    lines = (ROOT / "tests" / "e2e" / "requirements.txt").read_text().split()
    python = dict(line.split("==") for line in lines)
    npm = json.loads((CLIENTS / "package.json").read_text())["dependencies"]
    return {
        "Python websockets": python["websockets"], "Python aiohttp": python["aiohttp"], "Python websocket-client": python["websocket-client"],
        "Node ws": npm["ws"], "wscat": npm["wscat"], "Socket.IO": npm["socket.io-client"], "graphql-ws": npm["graphql-ws"], "SignalR": npm["@microsoft/signalr"],
        "Rust tokio-tungstenite": tungstenite(), "curl with ws://": "8.11 or later",
    }


def document(versions: dict[str, str]) -> str:
    lines = [
        "# Clients",
        "",
        "Clients that run through ringway unchanged, each tried in every test run (`tests/e2e/test_clients.py`), over an embedded and over a",
        "remote agent. In the [connect-message form](protocol.md#the-connect-message) a client sends one JSON message first; in the",
        "[transparent form](protocol.md#the-transparent-form) the target is in the address, and the key in a header or, where a client",
        "can set none, in the address too.",
        "",
        "| client | version | form | exchanged |",
        "| --- | --- | --- | --- |",
    ]
    whole = "text, empty, binary, 1 MiB, fragments {}; its close code at the target, the target's close code"
    compresses = {**{who.name: who.compresses for who in WHOLE}, "Chromium": True, "wscat": True}
    sends = {who.name: who.sends_fragments for who in WHOLE}
    for name in ORDER:
        for form in SNIPPETS[name]:
            what = EXCHANGES.get(name) or whole.format("both ways" if sends.get(name) else "received")
            if compresses.get(name) and form == "query":
                what += "; compressed (permessage-deflate)"
            lines.append(f"| {name} | {versions[name]} | {'connect message' if form == 'message' else 'transparent'} | {what} |")
    lines += ["", "## What to write", "", "The target is `wss://target.example.com/stream`. In the connect-message form the first message is", "`{\"apiKey\": \"…\", \"url\": \"wss://target.example.com/stream\"}`, and the answer to it `{\"type\":\"connected\", …}`.", ""]
    for name in ORDER:
        for form, snippet in SNIPPETS[name].items():
            lines += [f"{name}, {'connect message' if form == 'message' else 'transparent'}:", "", "```", snippet, "```", ""]
    return "\n".join(lines)


def test_the_table_says_what_is_run():
    """A table in docs/clients.md with versions and the exact client options, generated by the test"""
    versions = fixed_versions()
    if WRITE:
        of = lambda *words: subprocess.run(words, capture_output=True, text=True, check=True).stdout  # noqa: E731
        versions["Node, built-in WebSocket"] = of(node(), "--version").strip()
        versions["curl"] = of("curl", "--version").split()[1]
        versions["Chromium"] = of(browser.CHROMIUM, "--version").split()[1] if browser.CHROMIUM else "–"
        DOCUMENT.write_text(document(versions))
    written = DOCUMENT.read_text()
    for name in ORDER:
        versions.setdefault(name, re.search(rf"^\| {re.escape(name)} \| ([^|]*) \|", written, re.M)[1])
    assert written == document(versions), "docs/clients.md is not what runs here: RINGWAY_WRITE_CLIENTS=1 tests/run -k table_says writes it anew"

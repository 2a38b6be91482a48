"""Clients of other makes, unchanged, through ringway: what each exchanges and which close codes it sees. The table of
docs/clients.md is checked against what ran here; RINGWAY_WRITE_CLIENTS=1 writes it anew."""
from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

from harness import browser
from harness.client import KEY
from harness.matrix_target import Hub, MatrixTarget
from harness.process import ROOT, binary
from harness.programs import CLIENTS, Program, node
from harness.transparent import address

DOCUMENT = ROOT / "docs" / "clients.md"
WRITE = bool(os.environ.get("RINGWAY_WRITE_CLIENTS"))
EXCHANGED = ["text", "empty", "binary", "1 MiB", "fragments received"]
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
    needs: Path | None = field(default=None)


def script(name: str) -> list[str]:
    return [sys.executable, str(CLIENTS / name)]


def javascript(name: str, *flags: str) -> list[str]:
    return [node(), *flags, str(CLIENTS / name)]


BUILTIN = ["--experimental-websocket", "--no-warnings"]
"""Node 20 has it behind a flag, which later versions take too."""
PYTHON = 'connect("wss://relay.example.com/ws")'
QUERY = "wss://relay.example.com/ws?url=wss%3A%2F%2Ftarget.example.com%2Fstream"
WHOLE = [
    Who("Python websockets", script("py_websockets.py"), {"message": PYTHON, "query": f'connect("{QUERY}", additional_headers={{"X-API-Key": key}})'}),
    Who("Python aiohttp", script("py_aiohttp.py"), {"message": 'session.ws_connect("wss://relay.example.com/ws")', "query": f'session.ws_connect("{QUERY}", headers={{"X-API-Key": key}}, compress=15)'}, sends_fragments=False, reason=False, answers=1000),
    Who("Python websocket-client", script("py_websocket_client.py"), {"message": 'create_connection("wss://relay.example.com/ws")', "query": f'create_connection("{QUERY}", header={{"X-API-Key": key}})'}, compresses=False, answers=1000),
    Who("Node ws", javascript("node_ws.mjs"), {"message": 'new WebSocket("wss://relay.example.com/ws")', "query": f'new WebSocket("{QUERY}", {{ headers: {{ "X-API-Key": key }} }})'}),
    Who("Node, built-in WebSocket", javascript("node_builtin.mjs", *BUILTIN), {"message": 'new WebSocket("wss://relay.example.com/ws")', "query": f'new WebSocket("{QUERY}&key=" + encodeURIComponent(key))'}, sends_fragments=False, sets_headers=False),
    Who("Rust tokio-tungstenite", [str(TUNGSTENITE)], {"message": 'connect_async("wss://relay.example.com/ws")', "query": f"connect_async(request), the request to {QUERY} with the header X-API-Key"}, compresses=False, needs=TUNGSTENITE),
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
    if who.needs and not who.needs.exists():
        pytest.skip(f"{who.needs.name} is not built: cargo build --examples")
    gateway, target = await world.gateway(), await target_of(world)
    got = await last_line(world, *who.words, json.dumps(asked(gateway, target, form, who.sets_headers)))
    await judge(target, got, form, who.sends_fragments, who.compresses, who.reason, who.answers)


async def judge(target: MatrixTarget, got: dict, form: str, sends_fragments: bool, compresses: bool, reason: bool = True, answers: int = 4002) -> None:
    want = EXCHANGED + (["fragments sent"] if sends_fragments else [])
    assert sorted(got["passed"]) == sorted(want), got
    # The Close that answers its own says the same; the target's own comes as it was sent.
    assert (got["own"] if reason else got["own"][:1]) == ([3001, "bye"] if reason else [3001]), got
    assert got["target"] == [4002, "enough"], got
    first, second = await target.until(2)
    assert (first["messages"], first["close"]) == (len(want), [3001, "bye"]), first
    assert second["close"][0] == answers, second
    # In the connect-message form no extension is agreed on.
    compressed = compresses and form == "query"
    assert first["compressed"] == compressed and got["compressed"] == compressed, (first, got)


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
    """wscat: text and empty lines, the target's close code"""
    gateway, target = await world.gateway(), await target_of(world)
    ask = asked(gateway, target, form, sets_headers=True)
    headers = [word for name, value in ask["headers"].items() for word in ("-H", f"{name}: {value}")]
    program = await world.program(await Program.wscat("-c", ask["url"], *headers))
    await program.says("Connected")
    if ask["first"]:
        await program.type(ask["first"])
        await program.says('"type":"connected"')
    await program.type("grüße")
    await program.says("< grüße")
    await program.type("fragment 5")
    await program.says("0123456789" * 500)
    await program.type("close 4002 enough")
    await program.says("Disconnected (code: 4002, reason: \"enough\")")
    [seen] = await target.until(1)
    assert seen["messages"] == 3 and seen["close"][0] == 4002, seen


async def test_curl(world):
    """curl: errors as HTTP answers, and the target's 101"""
    gateway, target = await world.gateway(), await target_of(world)

    async def curl(*words: str) -> str:
        program = await world.program(await Program.start("curl", "-sS", "-i", "--http1.1", *words))
        await program.ends(20)
        return program.text

    base, url = f"http://127.0.0.1:{gateway.port}", f"ws://127.0.0.1:{target.port}/"
    upgrade = [word for name, value in (("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")) for word in ("-H", f"{name}: {value}")]
    refused = await curl(*upgrade, "-H", "X-API-Key: wrong", base + address(url))
    assert refused.startswith("HTTP/1.1 401 ") and '"code":"invalid_key"' in refused, refused
    opened = await curl("--max-time", "1", *upgrade, "-H", f"X-API-Key: {KEY}", base + address(url))
    assert "HTTP/1.1 101 " in opened and "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in opened and "Ringway-Node-Id: scraping-de1" in opened, opened


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
    assert (got["target"], got["own"]) == ("io server disconnect", ["websocket", "client namespace disconnect"]), got


async def test_graphql_ws(world):
    """graphql-ws with its real client and server through the relay: subprotocol `graphql-transport-ws`"""
    got = await on_top(world, "graphql_ws.mjs", lambda gateway: f"ws://127.0.0.1:{gateway.port}/ws")
    assert got["passed"] == ["text", "empty", "1 MB", "50 events"], got
    assert (got["own"], got["target"]) == (1000, 1000), got


async def test_signalr(world):
    """the real npm SignalR client against a small JSON-hub target of ours"""
    gateway, hub = await world.gateway(), await Hub().start()
    world.stack.push_async_callback(hub.close)
    url = f"http://127.0.0.1:{gateway.port}{address(f'ws://127.0.0.1:{hub.port}/hub', KEY)}"
    got = await last_line(world, *javascript("signalr.mjs"), json.dumps({"url": url}))
    assert got["passed"] == ["text", "empty", "1 MB", "called by the hub", "50 events"], got
    await asyncio.wait_for(hub.ended.wait(), 15)
    assert hub.closes[0][0] == 1005, "it closes without a code"


# --- the table --------------------------------------------------------------------------------------------------------------
SNIPPETS = {
    "Chromium": {"message": 'new WebSocket("wss://relay.example.com/ws")', "query": f'new WebSocket("{QUERY}&key=" + encodeURIComponent(key))'},
    "wscat": {"message": "wscat -c wss://relay.example.com/ws", "query": f"wscat -H 'X-API-Key: …' -c '{QUERY}'"},
    "curl": {"query": f"curl -i --http1.1 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: …' -H 'X-API-Key: …' '{QUERY.replace('wss:', 'https:', 1)}'"},
    "Socket.IO": {"query": 'io("https://relay.example.com", { path: "/ws", addTrailingSlash: false, transports: ["websocket"], query: { url: "wss://target.example.com/socket.io/?EIO=4&transport=websocket", key } })'},
    "graphql-ws": {"query": f'createClient({{ url: "{QUERY}&key=" + encodeURIComponent(key) }})'},
    "SignalR": {"query": f'.withUrl("{QUERY.replace("wss:", "https:", 1)}&key=" + encodeURIComponent(key), {{ skipNegotiation: true, transport: HttpTransportType.WebSockets }})'},
    **{who.name: who.options for who in WHOLE},
}
EXCHANGES = {
    "wscat": "text, fragments received, the target's close code",
    "curl": "the target's 101, errors as JSON",
    "Socket.IO": "events with text, binary, 900 kB; both ends leave",
    "graphql-ws": "queries, subscriptions, 1 MB, its subprotocol, Close 1000",
    "SignalR": "invocations, calls by the hub, a stream, 1 MB, a Close without a code",
}
ORDER = [*(who.name for who in WHOLE), "Chromium", "wscat", "curl", "Socket.IO", "graphql-ws", "SignalR"]


def fixed_versions() -> dict[str, str]:
    """Those that the repository fixes; the others are of the machine that wrote the table."""
    lines = (ROOT / "tests" / "e2e" / "requirements.txt").read_text().split()
    python = dict(line.split("==") for line in lines)
    npm = json.loads((CLIENTS / "package.json").read_text())["dependencies"]
    return {
        "Python websockets": python["websockets"], "Python aiohttp": python["aiohttp"], "Python websocket-client": python["websocket-client"],
        "Node ws": npm["ws"], "wscat": npm["wscat"], "Socket.IO": npm["socket.io-client"], "graphql-ws": npm["graphql-ws"], "SignalR": npm["@microsoft/signalr"],
        "Rust tokio-tungstenite": tungstenite(),
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
    whole = "text, empty, binary, 1 MiB, fragments{}; its close code at the target, the target's close code{}"
    compresses = {**{who.name: who.compresses for who in WHOLE}, "Chromium": True}
    sends = {who.name: who.sends_fragments for who in WHOLE}
    for name in ORDER:
        for form in SNIPPETS[name]:
            told = EXCHANGES.get(name) or whole.format(" both ways" if sends.get(name) else " received", "; compressed (permessage-deflate)" if compresses[name] and form == "query" else "")
            lines.append(f"| {name} | {versions[name]} | {'connect message' if form == 'message' else 'transparent'} | {told} |")
    lines += ["", "## What to write", "", "The target is `wss://target.example.com/stream`. In the connect-message form the first message is", "`{\"apiKey\": \"…\", \"url\": \"wss://target.example.com/stream\"}`, and the answer to it `{\"type\":\"connected\", …}`.", ""]
    for name in ORDER:
        for form, snippet in SNIPPETS[name].items():
            lines += [f"{name}, {'connect message' if form == 'message' else 'transparent'}:", "", "```", snippet, "```", ""]
    return "\n".join(lines)


def test_the_table_says_what_is_run():
    """A table in docs/clients.md with versions and the exact client options, generated by the test"""
    versions = fixed_versions()
    if WRITE:
        import shutil
        import subprocess

        of = lambda *words: subprocess.run(words, capture_output=True, text=True, check=True).stdout  # noqa: E731
        versions["Node, built-in WebSocket"] = of(node(), "--version").strip()
        versions["curl"] = of("curl", "--version").split()[1]
        versions["Chromium"] = of(browser.CHROMIUM, "--version").split()[1] if shutil.which("chromium") else "–"
        DOCUMENT.write_text(document(versions))
    written = DOCUMENT.read_text()
    for name in ORDER:
        versions.setdefault(name, re.search(rf"^\| {re.escape(name)} \| ([^|]*) \|", written, re.M)[1])
    assert written == document(versions), "docs/clients.md is not what runs here: RINGWAY_WRITE_CLIENTS=1 tests/run -k table_says writes it anew"

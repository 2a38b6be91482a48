"""Clients of other makes, unchanged, through ringway: what each exchanges and which close codes it sees. The table of
docs/clients.md is checked against what ran here; RINGWAY_WRITE_CLIENTS=1 writes it anew."""
from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from harness import browser
from harness.client import KEY
from harness.matrix_target import Hub, MatrixTarget, told
from harness.process import ROOT, binary
from harness.programs import CLIENTS, Program, node

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
    source: str
    """The file of tests/clients that opens its sessions, and that docs/clients.md quotes."""
    sends_fragments: bool = True
    compresses: bool = True
    reason: bool = True
    """It tells the reason of a Close that answers its own."""
    answers: int = 4002
    """With which code it answers the target's Close 4002."""
    missing: Callable[[], str | None] = lambda: None
    """Why it cannot run here."""


def python(name: str, source: str, **what) -> Who:
    return Who(name, [sys.executable, str(CLIENTS / source)], source, **what)


def javascript(name: str, *flags: str) -> list[str]:
    return [node(), *flags, str(CLIENTS / name)]


NODE = int(re.match(r"v(\d+)", subprocess.run([node(), "--version"], capture_output=True, text=True, check=True).stdout)[1])
BUILTIN = ["--experimental-websocket", "--no-warnings"] if NODE < 22 else []


def no_builtin() -> str | None:
    return f"Node {NODE} has no built-in WebSocket, 20 and later have" if NODE < 20 else None


def no_tungstenite() -> str | None:
    return None if TUNGSTENITE.exists() else "tungstenite is not built: cargo build --example tungstenite"


WHOLE = [
    python("Python websockets", "py_websockets.py"),
    python("Python aiohttp", "py_aiohttp.py", sends_fragments=False, reason=False, answers=1000),
    python("Python websocket-client", "py_websocket_client.py", compresses=False, answers=1000),
    Who("Node ws", javascript("node_ws.mjs"), "node_ws.mjs"),
    Who("Node, built-in WebSocket", javascript("node_builtin.mjs", *BUILTIN), "conversation.js", sends_fragments=False, missing=no_builtin),
    Who("Rust tokio-tungstenite", [str(TUNGSTENITE)], "tungstenite.rs", compresses=False, missing=no_tungstenite),
]


async def last_line(world, *words: str) -> dict:
    program = await world.program(await Program.start(*words))
    assert await program.ends(40) == 0, program.text
    return json.loads(program.text.strip().splitlines()[-1])


async def target_of(world) -> MatrixTarget:
    target = await MatrixTarget().start()
    world.stack.push_async_callback(target.close)
    return target


def asked(gateway, target: MatrixTarget, form: str) -> str:
    return json.dumps({"relay": f"ws://127.0.0.1:{gateway.port}/ws", "target": f"ws://127.0.0.1:{target.port}/", "key": KEY, "form": form})


@pytest.mark.parametrize("form", ["message", "query"])
@pytest.mark.parametrize("who", WHOLE, ids=lambda who: who.name)
async def test_the_whole_conversation(world, who, form):
    """each client exchanges text, binary, empty, 1 MiB and fragmented messages and sees the right close code"""
    if why := who.missing():
        pytest.skip(why)
    gateway, target = await world.gateway(), await target_of(world)
    got = await last_line(world, *who.words, asked(gateway, target, form))
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
    converse = (CLIENTS / "conversation.js").read_text().strip().rstrip(";")
    async with chromium.page() as page:
        got = await page.evaluate(f"{converse}(WebSocket, {asked(gateway, target, form)})")
    await judge(target, got, form, sends_fragments=False, compresses=True)


def connect_message(url: str, key: str) -> str:
    return json.dumps({"apiKey": key, "url": url}, ensure_ascii=False)


def in_address(relay: str, target: str) -> str:
    return f"{relay}?url={quote(target, safe='')}"


def wscat(form: str, relay: str, target: str, key: str) -> list[str]:
    """`--slash`: it takes `/close CODE REASON` for a command."""
    return ["--slash", "-c", relay] if form == "message" else ["--slash", "-H", f"X-API-Key: {key}", "-c", in_address(relay, target)]


@pytest.mark.parametrize("form", ["message", "query"])
async def test_wscat(world, form):
    """wscat: what can be typed, what it prints, its own Close and the target's"""
    gateway, target = await world.gateway(), await target_of(world)
    url = f"ws://127.0.0.1:{target.port}/"

    async def begin() -> Program:
        program = await world.program(await Program.wscat(*wscat(form, f"ws://127.0.0.1:{gateway.port}/ws", url, KEY)))
        await program.says("Connected")
        if form == "message":
            await program.type(connect_message(url, KEY))
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
    program = await world.program(await Program.start("curl", *words))
    await program.ends(20)
    return program.text


def upgrade(relay: str, target: str, key: str) -> list[str]:
    """curl as an HTTP client that asks for an upgrade and prints the answer."""
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "X-API-Key": key}
    lines = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    return ["-i", "-sSN", "--http1.1", "--max-time", "1", *lines, in_address(relay, target)]


def listen(relay: str, target: str, key: str) -> list[str]:
    """curl as a WebSocket client."""
    return ["-sSN", "-H", f"X-API-Key: {key}", in_address(relay, target)]


async def test_curl(world):
    """curl: errors as HTTP answers, and the target's 101"""
    gateway, target = await world.gateway(), await target_of(world)
    relay, url = f"http://127.0.0.1:{gateway.port}/ws", f"ws://127.0.0.1:{target.port}/"
    refused = await curl(world, *upgrade(relay, url, "wrong"))
    assert refused.startswith("HTTP/1.1 401 ") and '"code":"invalid_key"' in refused, refused
    nowhere = await curl(world, *upgrade(relay, "http://127.0.0.1/", KEY))
    assert nowhere.startswith("HTTP/1.1 400 ") and '"code":"invalid_request"' in nowhere, nowhere
    opened = await curl(world, *upgrade(relay, url, KEY))
    assert "HTTP/1.1 101 " in opened and "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in opened and "Ringway-Node-Id: scraping-de1" in opened, opened


async def test_curl_with_websockets(world):
    """curl over ws://: it prints what the target says"""
    if "ws" not in (await curl(world, "--version")).split("Protocols:")[1].splitlines()[0].split():
        pytest.skip("this curl knows no ws:// (8.11 and later do)")
    gateway, target = await world.gateway(), await target_of(world)
    words = listen(f"ws://127.0.0.1:{gateway.port}/ws", f"ws://127.0.0.1:{target.port}/greeting", KEY)
    program = await world.program(await Program.start("curl", *words))
    # It prints a Close too, code (0x03e8) and reason, answers it not, and waits for the end of TCP.
    await program.says("that was all")
    assert program.text == "a greeting\x03\ufffdthat was all", program.text


# --- protocols on top, each with its own client and server ----------------------------------------------------------------
async def on_top(world, name: str) -> dict:
    """A program that is server and client: it prints the server's port and is told where the relay is."""
    gateway = await world.gateway()
    program = await world.program(await Program.start(*javascript(name)))
    await program.says('{"port":')
    await program.type(json.dumps({"relay": f"ws://127.0.0.1:{gateway.port}/ws", "key": KEY}))
    program.child.stdin.close()
    assert await program.ends(40) == 0, program.text
    return json.loads(program.text.strip().splitlines()[-1])


async def test_socket_io(world):
    """Socket.IO with its real client and server through the relay"""
    got = await on_top(world, "socket_io.mjs")
    assert got["passed"] == ["text", "empty", "binary", "1 MiB", "fragments received"] and got["compressed"], got
    # What the client is told, with a code where it is told one; what the server is, with the code that it sees.
    assert got["leaves"] == [["io server disconnect", None], ["server namespace disconnect", 1005]], got
    assert got["breaks"] == [["transport close", 4002], ["transport close", 4002]], got
    assert got["own"] == [["io client disconnect", None], ["client namespace disconnect", 1005]], got


async def test_graphql_ws(world):
    """graphql-ws with its real client and server through the relay: subprotocol `graphql-transport-ws`"""
    got = await on_top(world, "graphql_ws.mjs")
    assert got["passed"] == ["text", "empty", "1 MiB", "50 events", "fragments received"] and got["compressed"], got
    # What it hears of its own Close, and what the target does; then the target's.
    assert (got["own"], got["target"]) == ([1000, 1000], [4403, "Forbidden"]), got


async def test_signalr(world):
    """the real npm SignalR client against a small JSON-hub target of ours"""
    gateway, hub = await world.gateway(), await Hub().start()
    world.stack.push_async_callback(hub.close)
    asks = {"relay": f"ws://127.0.0.1:{gateway.port}/ws", "target": f"ws://127.0.0.1:{hub.port}/hub", "key": KEY}
    got = await last_line(world, *javascript("signalr.mjs"), json.dumps(asks))
    assert got["passed"] == ["text", "empty", "1 MiB", "called by the hub", "50 events", "pings"], got
    own, left, broken = got["ends"]
    assert own is None and "enough" in left and "4002 (enough)" in broken, got
    closes = await hub.until(3)
    assert [close and close[0] for close in closes] == [1005, 1005, 4002], f"{closes}: it ends without a code, and answers the target's"
    assert hub.compressed == [True] * 3


# --- the table --------------------------------------------------------------------------------------------------------------
RELAY, TARGET = "wss://relay.example.com/ws", "wss://target.example.com/stream"
FORMS = {"message": "connect message", "query": "transparent"}
SOURCES = {**{who.name: who.source for who in WHOLE}, "Chromium": "conversation.js", "Socket.IO": "socket_io.mjs", "graphql-ws": "graphql_ws.mjs", "SignalR": "signalr.mjs"}
COMMANDS = {
    "wscat": {form: ["wscat", *wscat(form, RELAY, TARGET, "…")] for form in FORMS},
    "curl": {"query": ["curl", *upgrade(RELAY.replace("wss:", "https:"), TARGET, "…")]},
    "curl with ws://": {"query": ["curl", *listen(RELAY, TARGET, "…")]},
}
"""What runs here, with other addresses and no key."""
EXCHANGES = {
    "wscat": "text, empty, 1 MiB received, fragments received; its close code at the target (`/close 3001 bye`), the target's close code",
    "curl": "the target's 101, errors as JSON",
    "curl with ws://": "what the target says, its Close too, which curl does not answer; skipped where curl is older",
    "Socket.IO": "events with text, empty, binary, 1 MiB, fragments received; both ends leave, the target's close code",
    "graphql-ws": "queries, subscriptions, text, empty, 1 MiB, fragments received; its subprotocol; its close code at the target, the target's close code",
    "SignalR": "invocations, calls by the hub, a stream, pings, text, empty, 1 MiB, fragments received; both ends leave, the target's close code",
}
COMPRESS = {*(who.name for who in WHOLE if who.compresses), "Chromium", "wscat", "Socket.IO", "graphql-ws", "SignalR"}
ORDER = [*(who.name for who in WHOLE), "Chromium", "wscat", "curl", "curl with ws://", "Socket.IO", "graphql-ws", "SignalR"]


def quoted(source: str) -> dict[str, str]:
    """What a client's source marks for its readers, by form; `both` is what each form needs."""
    marked: dict[str, list[str]] = {}
    mark = None
    for line in (CLIENTS / source).read_text().splitlines():
        if found := re.fullmatch(r"\s*(?://|#) docs: (\w+)", line):
            mark = None if found[1] == "end" else found[1]
            assert mark in (None, "both", *FORMS), line
        elif mark:
            marked.setdefault(mark, []).append(line)
    return {mark: textwrap.dedent("\n".join(lines)) for mark, lines in marked.items()}


def forms_of(name: str) -> list[str]:
    return [form for form in FORMS if form in (COMMANDS.get(name) or quoted(SOURCES[name]))]


def example(name: str) -> str:
    """What to write, both forms in one block."""
    if name in COMMANDS:
        said = {"message": f"# connect message; the first line to type: {connect_message(TARGET, '…')}", "query": "# transparent"}
        parts = [f"{said[form]}\n{shlex.join(words)}" for form, words in COMMANDS[name].items()]
        return "\n".join(["```sh", "\n\n".join(parts), "```"])
    language = {"py": "python", "js": "js", "mjs": "js", "rs": "rust"}[SOURCES[name].rpartition(".")[2]]
    marked = quoted(SOURCES[name])
    parts = [marked["both"]] if "both" in marked else []
    parts += [f"{'#' if language == 'python' else '//'} {FORMS[form]}\n{marked[form]}" for form in forms_of(name)]
    return "\n".join([f"```{language}", "\n\n".join(parts), "```"])


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
    sends = {who.name: who.sends_fragments for who in WHOLE}
    for name in ORDER:
        for form in forms_of(name):
            what = EXCHANGES.get(name) or whole.format("both ways" if sends.get(name) else "received")
            if name in COMPRESS and form == "query":
                what += "; compressed (permessage-deflate)"
            lines.append(f"| {name} | {versions[name]} | {FORMS[form]} | {what} |")
    lines += [
        "",
        "## What to write",
        "",
        "These are the lines that the tests run. `relay` is the gateway's address, `wss://relay.example.com/ws`, `target` the address to",
        "reach, `wss://target.example.com/stream`, and `key` the API key. The answer to a connect message comes as the first message:",
        '`{"type":"connected", …}`, or what went wrong ([errors](protocol.md#errors)).',
        "",
    ]
    alike: dict[str, list[str]] = {}
    for name in ORDER:
        alike.setdefault(example(name), []).append(name)
    for text, names in alike.items():
        lines += [f"### {'; '.join(names)}", "", text, ""]
        if "Node, built-in WebSocket" in names:
            lines += ["Node 20 has it behind a flag, `node --experimental-websocket`; later ones without.", ""]
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

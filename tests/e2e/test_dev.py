"""`ringway dev`, `ringway echo`: what they print works when it is pasted."""
from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
import signal
import socket
import threading

import pytest
from websockets.asyncio.server import serve

from harness.client import Client
from harness.frames import BINARY, PING, PONG, TEXT, masked
from harness.process import Process
from harness.programs import Program
from harness.seccomp import REFUSING
from harness.tls import Authority


async def dev(world, *arguments: str) -> Process:
    """A running `ringway dev`. Two at once may share the machine: each finds free ports."""
    process = await Process.start("dev", *arguments)
    world.stack.push_async_callback(process.kill)
    await process.ready()
    process.port = int((await process.line(r"^listening on \S+:(\d+) \(public\)$"))[1])
    process.echo_port = int((await process.line(r"^listening on \S+:(\d+) \(echo\)$"))[1])
    await process.wait_until(lambda: "asyncio.run(" in process.out, "the Python snippet on standard output")
    return process


def printed(process: Process, pattern: str) -> str:
    found = re.search(pattern, process.out, re.M)
    assert found, f"{pattern} is not in:\n{process.out}"
    return found[0].strip().removeprefix("$ ")


def message_of(process: Process) -> str:
    return printed(process, r'\{\s*"apiKey".*\}$')


async def test_wscat_line_and_json_to_paste(world):
    """`ringway dev`: prints the wscat, curl and browser lines to paste"""
    process = await dev(world)
    words = shlex.split(printed(process, r"(?<=\S)?\s*(npx )?wscat .*$"))
    words = words[words.index("wscat") + 1 :]
    wscat = await world.program(await Program.wscat(*words))
    await wscat.converse(message_of(process), "hello world")


async def test_curl_line(world):
    """… curl …"""
    process = await dev(world)
    curl = await world.program(await Program.start("sh", "-c", printed(process, r"\bcurl .*$") + " --silent"))
    assert await curl.ends() == 0, curl.text
    answer = json.loads(curl.text)
    assert answer["type"] == "connected" and answer["status"] == 101, answer
    assert f":{process.port}/ws" in answer["message"], answer


async def test_python_snippet(world):
    """prints … a Python snippet"""
    process = await dev(world)
    text = re.search(r"^([ \t]*)import asyncio.*?asyncio\.run\(.*?\)$", process.out, re.M | re.S)
    assert text, process.out
    indent = text[1]
    python = await world.program(await Program.python("\n".join(line.removeprefix(indent) for line in text[0].splitlines())))
    assert await python.ends() == 0, python.text
    assert python.text.strip(), "it prints what came back"


async def test_playground_first(world):
    """prints the playground's address first: before every other one, and it is there"""
    process = await dev(world)
    address = re.search(r"\b\w+://\S+", process.out)[0]
    assert address == f"http://127.0.0.1:{process.port}/ws/docs#url=ws://127.0.0.1:{process.echo_port}", process.out
    curl = await world.program(await Program.start("curl", "-sS", "-i", "-H", "Accept: text/html", address))
    assert await curl.ends() == 0 and "Content-Security-Policy: " in curl.text and "<title>ringway playground</title>" in curl.text, curl.text


async def test_browser_line(world):
    """… and browser lines to paste: they name the address and the connect message"""
    process = await dev(world)
    assert f"new WebSocket(" in process.out, process.out
    assert re.search(rf"""new WebSocket\(["']ws://(127\.0\.0\.1|localhost):{process.port}/ws["']\)""", process.out), process.out


async def test_key_is_fresh(world):
    """one key: `ringway dev` makes a fresh one each time"""
    first, second = await dev(world), await dev(world)
    keys = [json.loads(message_of(process))["apiKey"] for process in (first, second)]
    assert keys[0] != keys[1] and all(len(key) >= 16 for key in keys), keys
    client = await Client.tcp(second.port)
    await client.upgrade()
    await client.connect({**json.loads(message_of(second)), "apiKey": keys[0]})
    await client.expect_error("invalid_key", 1008)


async def test_free_ports_where_the_usual_ones_are_taken(world):
    """free ports where the usual ones are taken"""
    async with asyncio.timeout(60):
        while True:  # until no other test has it
            taken = socket.socket()
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            world.stack.callback(taken.close)
            try:
                taken.bind(("127.0.0.1", 8080))
                taken.listen()
                break
            except OSError:
                await asyncio.sleep(0.1)
    process = await dev(world)
    assert process.port != 8080
    assert not re.search(r":8080\b", printed(process, r"\bwscat .*$"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c(world, number):
    """Ctrl-C ends it, with exit 0; drain 2 s"""
    process = await dev(world)
    client = await Client.tcp(process.port)
    world.stack.callback(client.close)
    await client.upgrade()
    await client.connect(message_of(process))
    assert (await client.read_json())["type"] == "connected"
    process.signal(number)
    await client.expect_close(1012, "Service restart", patience=5)
    assert await process.exit_code(6) == 0


async def test_ca_file(world, tmp_path):
    """`--ca-file` adds roots for wss:// targets: a `wss://` server of another make"""
    authority = Authority(tmp_path)

    async def handler(connection) -> None:
        async for message in connection:
            await connection.send(message)

    server = await world.stack.enter_async_context(serve(handler, "127.0.0.1", 0, ssl=authority.server("localhost", "127.0.0.1")))
    url = f"wss://localhost:{server.sockets[0].getsockname()[1]}/"
    for arguments, fits in ((["--ca-file", str(authority.file)], True), ([], False)):
        process = await dev(world, *arguments)
        client = await Client.tcp(process.port)
        world.stack.callback(client.close)
        await client.upgrade()
        await client.connect({**json.loads(message_of(process)), "url": url})
        got = await client.read_json()
        assert got["type"] == ("connected" if fits else "error"), got
        if fits:
            await client.send_text("over TLS")
            await client.expect_frame(TEXT, b"over TLS")


# --- the echo target ------------------------------------------------------------------------------------------------------------
async def test_echo(world):
    """`ringway echo --listen ADDR`: the echo target: a correct WebSocket server"""
    process = await Process.start("echo", "--listen", "127.0.0.1:0")
    world.stack.push_async_callback(process.kill)
    await process.ready()
    port = int((await process.line(r"^listening on \S+:(\d+) \(echo\)$"))[1])
    client = await Client.tcp(port)
    world.stack.callback(client.close)
    await client.upgrade("/")
    for size in (0, 1, 125, 126, 65535, 65536, 1_000_000):
        for opcode in (TEXT, BINARY):
            await client.send_frame(opcode, b"x" * size)
            await client.expect_frame(opcode, b"x" * size)
    await client.send(masked(TEXT, b"frag", fin=False) + masked(PING, b"p") + masked(0, b"ments"))
    got = [await client.read_frame()]
    while not (got[-1].fin and got[-1].opcode in (0, TEXT)):
        got.append(await client.read_frame())
    assert b"".join(f.payload for f in got if f.opcode != PONG) == b"fragments"
    if not any(f.opcode == PONG for f in got):
        await client.expect_frame(PONG, b"p")
    await client.send_close(4000, "bye")
    assert (await client.read_frame()).close_code == 4000
    await client.expect_fin()
    with pytest.raises(AssertionError, match="still running"):  # As long as nobody ends it.
        await process.exit_code(2.5)
    process.signal(signal.SIGTERM)
    assert await process.exit_code(8) == 0


@pytest.mark.parametrize("opcode", [TEXT, PING])
async def test_echo_of_one_who_never_pauses(world, opcode):
    """one connection that is never out of frames keeps no other waiting, on epoll either"""
    process = await world.process("echo", "--listen", "127.0.0.1:0", launcher=[*REFUSING, "EPERM"])
    port = int((await process.line(r"^listening on \S+:(\d+) \(echo\)$"))[1])
    busy = await Client.tcp(port)
    await busy.upgrade("/")
    # Not by this thread, whose pauses would be the pauses of the flood.
    busy.pipe.sock.setblocking(True)
    block = masked(opcode, b"x") * 20_000
    echoed = 0

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                busy.pipe.sock.sendall(block)

    def drain() -> None:
        nonlocal echoed
        with contextlib.suppress(OSError):
            while got := busy.pipe.sock.recv(1 << 20):
                echoed += len(got)

    threads = [threading.Thread(target=run, daemon=True) for run in (flood, drain)]
    world.stack.callback(lambda: [thread.join() for thread in threads])
    world.stack.callback(busy.pipe.sock.close)
    world.stack.callback(lambda: busy.pipe.sock.shutdown(socket.SHUT_RDWR))
    for thread in threads:
        thread.start()
    while echoed < 100_000:
        await asyncio.sleep(0.01)
    for _ in range(5):
        client = await Client.tcp(port)
        world.stack.callback(client.close)
        await client.upgrade("/")
        await client.send_text("and me")
        await client.expect_frame(TEXT, b"and me")
    before = echoed
    while echoed == before:
        await asyncio.sleep(0.01)


async def test_echo_with_python_websockets(world):
    """… with a client of another make"""
    import websockets

    process = await Process.start("echo", "--listen", "127.0.0.1:0")
    world.stack.push_async_callback(process.kill)
    port = int((await process.line(r"^listening on \S+:(\d+) \(echo\)$"))[1])
    async with websockets.connect(f"ws://127.0.0.1:{port}/any/path?q=1", max_size=None) as ws:
        for payload in ("", "text", b"binary" * 100_000, ["in ", "fragments"]):
            await ws.send(payload)
            assert await ws.recv() == ("in fragments" if isinstance(payload, list) else payload)

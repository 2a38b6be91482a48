"""CONTRACT 6, `ringway connect`: a client like wscat, on a terminal and in a pipe."""
from __future__ import annotations

import asyncio
import json
import os
import signal
import termios
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import frames
from harness.client import KEY
from harness.frames import BINARY, CONTINUATION, PING, PONG, TEXT
from harness.process import binary
from harness.programs import Program
from harness.target import Target
from harness.tls import Authority
from harness.wire import PATIENCE_S


@dataclass
class Done:
    code: int
    out: bytes
    err: str


class Piped:
    """`ringway connect` with pipes for its three streams."""

    def __init__(self, child: asyncio.subprocess.Process):
        self.child = child

    @classmethod
    async def start(cls, world, *words: str, key: str | None = KEY, env: dict | None = None) -> "Piped":
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RINGWAY_")}
        environment = {**inherited, **({"RINGWAY_KEY": key} if key is not None else {}), **(env or {})}
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(binary(), "connect", *words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, limit=1 << 26)
        made = cls(child)
        world.stack.push_async_callback(made.kill)
        return made

    async def type(self, data: bytes) -> None:
        self.child.stdin.write(data)
        await self.child.stdin.drain()

    async def says(self, line: bytes) -> None:
        got = await asyncio.wait_for(self.child.stdout.readline(), PATIENCE_S)
        assert got == line + b"\n", got

    async def ends(self, data: bytes | None = None, patience: float = PATIENCE_S) -> Done:
        """Writes `data`, ends its input, and waits for its end."""
        out, err = await asyncio.wait_for(self.child.communicate(data), patience)
        return Done(self.child.returncode, out, err.decode())

    async def kill(self) -> None:
        if self.child.returncode is None:
            self.child.kill()
            await self.child.wait()


def through(gateway, path: str = "/ws") -> list[str]:
    return ["--gateway", f"ws://127.0.0.1:{gateway.port}{path}"]


async def run(world, *words: str, data: bytes = b"", **options) -> Done:
    return await (await Piped.start(world, *words, **options)).ends(data)


async def opened(world, gateway, *words: str, target: Target | None = None, **options):
    """A connected client and its target's end."""
    target = target or world.target()
    client = await Piped.start(world, *through(gateway), *words, target.url(), **options)
    connection = await target.accept()
    await connection.open()
    return client, connection


async def answer_close(connection, code: int | None = 1000) -> None:
    await connection.expect_close(code)
    await connection.send_close(code)
    connection.close()


# --- pipes ------------------------------------------------------------------------------------------------------------------
async def test_echo_in_a_pipe(world):
    """lines in, messages out: `echo hello | ringway connect …` prints the echo, and nothing else on standard output"""
    gateway, target = await world.gateway(), world.target().serve_echo()
    done = await run(world, *through(gateway), target.url(), data=b"hello\n\nw\xc3\xb6rld without an end")
    assert done.out == "hello\n\nwörld without an end\n".encode(), done
    assert done.code == 0, done
    assert "scraping-de1" in done.err and "code: 1000" in done.err, done.err


@pytest.mark.parametrize("path", ["", "/", "/ws", "/ws/"])
async def test_the_gateways_path(world, path):
    """--gateway ws://127.0.0.1:8080/ws; without a path /ws is meant"""
    gateway, target = await world.gateway(), world.target().serve_echo()
    done = await run(world, *through(gateway, path), target.url(), data=b"hello\n")
    assert (done.code, done.out) == (0, b"hello\n"), done


async def test_messages_come_as_they_come(world):
    """messages out: at once, fragments joined, pings answered, also while nothing is typed"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway)
    await connection.send_text("one")
    await client.says(b"one")
    await connection.send_frame(TEXT, "tw\u00f6"[:2].encode() + b"\xc3", fin=False)
    await connection.send_frame(PING, b"are you there")
    await connection.expect_frame(PONG, b"are you there")
    await connection.send_frame(CONTINUATION, b"\xb6")
    await client.says("twö".encode())
    await client.type(b"three\n")
    await connection.expect_frame(TEXT, b"three")
    await connection.send_close(1000, "bye")
    await connection.expect_close(1000)
    connection.close()
    done = await client.ends()
    assert (done.code, done.out) == (0, b""), done
    assert '(code: 1000, reason: "bye")' in done.err, done.err


async def test_waits_for_what_is_on_its_way(world):
    """On EOF: answers that keep coming are waited for, until nothing has come for a second; then Close 1000"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway)
    ending = asyncio.create_task(client.ends(b"go\n"))
    await connection.expect_frame(TEXT, b"go")
    for number in range(6):
        await connection.send_text(str(number))
        await asyncio.sleep(0.4)
    await answer_close(connection)
    done = await ending
    assert (done.code, done.out) == (0, b"0\n1\n2\n3\n4\n5\n"), done


async def test_wait_is_exact(world):
    """-w/--wait SECONDS, as wscat has it: closes then, whatever comes; and what comes behind our Close is still printed"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway, "-x", "a", "--execute", "b", "-w", "0")
    await connection.expect_frame(TEXT, b"a")
    await connection.expect_frame(TEXT, b"b")
    await connection.expect_close(1000)
    await connection.send_text("late")
    await connection.send_close(1000)
    connection.close()
    done = await client.ends()
    assert (done.code, done.out) == (0, b"late\n"), done


async def test_wait_for_ever(world):
    """-w -1: until the target closes"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway, "-w", "-1")
    ending = asyncio.create_task(client.ends(b""))
    await connection.expect_silence(2)
    await connection.send_close(None)
    await connection.expect_close(None)
    connection.close()
    done = await ending
    assert done.code == 0, "a Close without a code"
    assert "code: none" in done.err, done.err


@pytest.mark.parametrize("code", [1001, 1008, 1011, 1012, 3000, 4000])
async def test_exit_code_of_other_closes(world, code):
    """exit 0 after Close 1000 or one without a code, else 1"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway)
    await connection.send_text("last words")
    await connection.send_close(code, "so there")
    await connection.expect_close(code)
    connection.close()
    done = await client.ends()
    assert (done.code, done.out) == (1, b"last words\n"), done
    assert f'(code: {code}, reason: "so there")' in done.err, done.err


async def test_a_lost_target(world):
    """target's TCP ends without a Close: client 1011 `Target connection lost`, exit 1"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway)
    connection.close()
    done = await client.ends()
    assert done.code == 1 and "1011" in done.err and "Target connection lost" in done.err, done


async def test_a_lost_gateway(world):
    """no Close at all: exit 1, and what came before is printed"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway)
    await connection.send_text("before")
    await client.says(b"before")
    gateway.signal(signal.SIGKILL)
    done = await client.ends()
    assert done.code == 1 and "Disconnected" in done.err and "panicked" not in done.err, done


async def test_a_target_that_does_not_answer_the_close(world):
    """Close 1000 on EOF; who never answers is not waited for for ever"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway, "-w", "0")
    ending = asyncio.create_task(client.ends(b""))
    await connection.expect_close(1000)
    done = await ending
    assert done.code == 1 and "does not answer the Close" in done.err, done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals(world, number):
    """Ctrl-C closes with 1000"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway)
    await connection.send_text("x")
    await client.says(b"x")
    client.child.send_signal(number)
    await answer_close(connection)
    assert await asyncio.wait_for(client.child.wait(), PATIENCE_S) == 0


async def test_a_second_signal_ends_it_at_once(world):
    """As of the gateway: a second signal exits 1 at once"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway)
    await connection.send_text("x")
    await client.says(b"x")
    client.child.send_signal(signal.SIGINT)
    await connection.expect_close(1000)
    client.child.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(client.child.wait(), 3) == 1


async def test_nobody_reads_its_output(world):
    """`… | head -1`: it closes with 1000 and ends"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway)
    await connection.send_text("one")
    await client.says(b"one")
    client.child._transport.get_pipe_transport(1).close()
    while True:  # until it has noticed
        await connection.send_text("two")
        try:
            got = await connection.read_frame(0.2)
            break
        except AssertionError:
            pass
    assert (got.opcode, got.close_code) == (frames.CLOSE, 1000)
    await connection.send_close(1000)
    assert await asyncio.wait_for(client.child.wait(), PATIENCE_S) == 0


async def test_more_than_all_buffers_hold(world):
    """Large messages, and more of them at a time than any buffer holds: it reads while it writes, in bounded memory"""
    gateway, target = await world.gateway(), world.target().serve_echo()
    lines = [os.urandom(1 << 20).hex().encode() for _ in range(12)] + [b"%d" % number for number in range(3000)]
    client = await Piped.start(world, *through(gateway), target.url())
    done = await client.ends(b"\n".join(lines) + b"\n", 50)
    assert done.code == 0, done.err
    assert done.out.split(b"\n")[:-1] == lines


@pytest.mark.limit(90)
async def test_a_message_that_is_too_large_is_refused(world):
    """bounded memory: one message has at most 64 MiB, in one frame or in many"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway)
    await connection.send(frames.header(BINARY, (64 << 20) + 1))
    await connection.expect_close(1009)
    connection.close()
    done = await client.ends()
    assert done.code == 1 and "64 MiB" in done.err, done.err
    client, connection = await opened(world, gateway)
    part = frames.frame(CONTINUATION, bytes(16 << 20), fin=False)
    await connection.send(frames.frame(BINARY, fin=False) + part * 4, 30)
    await connection.send_frame(CONTINUATION, b"x")
    await connection.expect_close(1009, patience=30)
    connection.close()
    assert (await client.ends()).code == 1


BROKEN = {
    "masked text": (frames.masked(TEXT, b"hello"), "masked"),
    "masked with zeroes": (frames.frame(TEXT, b"hello", mask=bytes(4)), "masked"),
    "masked and empty": (frames.masked(BINARY), "masked"),
    "masked ping": (frames.masked(PING, b"x"), "masked"),
    "masked Close": (frames.masked(frames.CLOSE, frames.close_payload(1000)), "masked"),
    "long pong": (frames.frame(PONG, bytes(126)), "125"),
    "long Close": (frames.frame(frames.CLOSE, frames.close_payload(1000, "x" * 124)), "125"),
    "reserved bit": (frames.frame(TEXT, b"x", rsv=4), "eserved"),
    "continuation of nothing": (frames.frame(CONTINUATION, b"x"), "continuation"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_frames(world, name):
    """What breaks RFC 6455 passes the gateway; a client fails the connection: Close 1002, and exit 1. Masked ones are
    section 5.1"""
    made, says = BROKEN[name]
    gateway = await world.gateway()
    client, connection = await opened(world, gateway)
    await connection.send_text("before")
    await connection.send(made)
    await connection.expect_close(1002)
    connection.close()
    done = await client.ends()
    assert (done.code, done.out) == (1, b"before\n"), done
    assert "broke the protocol" in done.err and says in done.err, done.err


async def test_broken_frames_of_a_gateway(world):
    """The same before `connected`"""
    gateway = world.target()
    client = await Piped.start(world, "--gateway", gateway.url("/ws"), "ws://t")
    connection = await (await gateway.accept()).open()
    await connection.read_frame()
    await connection.send(frames.masked(TEXT, b'{"type":"connected","status":101,"node_id":"x"}'))
    await connection.expect_close(1002)
    connection.close()
    done = await client.ends()
    assert done.code == 1 and "masked" in done.err, done


async def test_text_that_is_not_utf8(world):
    """From the target: Close 1007 and exit 1. From standard input: said, nothing sent, exit 1"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway)
    await connection.send_frame(TEXT, b"\xff")
    await connection.expect_close(1007)
    connection.close()
    assert (await client.ends()).code == 1
    client, connection = await opened(world, gateway, "-w", "0")
    ending = asyncio.create_task(client.ends(b"good\n\xff\nnever sent\n"))
    await connection.expect_frame(TEXT, b"good")
    await answer_close(connection)
    done = await ending
    assert done.code == 1 and "UTF-8" in done.err, done


async def test_binary(world):
    """--binary: stdin lines are sent as binary; binary messages come out raw"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway, "--binary")
    ending = asyncio.create_task(client.ends(b"\xff\x00\r\nline\n"))
    await connection.expect_frame(BINARY, b"\xff\x00\r")
    await connection.expect_frame(BINARY, b"line")
    await connection.send_frame(BINARY, b"\xfe\n\x00")
    await connection.send_text("text")
    await answer_close(connection)
    done = await ending
    assert (done.code, done.out) == (0, b"\xfe\n\x00text\n"), done


# --- what the target and the gateway get ----------------------------------------------------------------------------------
async def test_headers_and_cookies(world):
    """-H 'Name: v', as written and in order; --cookie a=b"""
    gateway, target = await world.gateway(), world.target()
    words = ["-H", "x-One:  1 ", "--header", "Origin: https://target.example.com", "-H", "X-Empty:", "--cookie", "a=b=c", "--cookie", "d=e"]
    client, connection = await opened(world, gateway, *words, "-w", "0", target=target)
    lines = connection.header_lines
    at = lines.index("x-One: 1")
    assert lines[at + 1 : at + 3] == ["Origin: https://target.example.com", "X-Empty: "] or lines[at + 1 : at + 3] == ["Origin: https://target.example.com", "X-Empty:"], lines
    assert connection.header("Cookie") == "a=b=c; d=e", lines
    client.child.stdin.close()
    await answer_close(connection)
    assert (await client.ends()).code == 0


@pytest.mark.parametrize("words, code", [
    (["--geo", "us, de"], 0), (["--geo", "US"], 1), (["--agent", "at5,de1"], 0), (["--agent", "at5"], 1), (["--geo", "DE", "--agent", "us3"], 1),
])
async def test_geo_and_agent(world, words, code):
    """[--geo …] [--agent …]"""
    gateway, target = await world.gateway(), world.target().serve_echo()
    done = await run(world, *through(gateway), *words, target.url(), "-w", "0")
    assert done.code == code, done
    assert ("no_agent" in done.err and "1011" in done.err) == (code == 1), done.err


async def test_idle_timeout(world):
    """--idle-timeout: 1000 `Idle timeout`, so exit 0"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway, "--idle-timeout", "0.3")
    await connection.expect_close(1000, "Idle timeout")
    await connection.send_close(1000)
    connection.close()
    assert await asyncio.wait_for(client.child.wait(), PATIENCE_S) == 0


# --- the key ----------------------------------------------------------------------------------------------------------------
async def test_key_from_the_environment_is_in_no_process_list(world):
    """the key also from `RINGWAY_KEY`"""
    gateway = await world.gateway()
    client, connection = await opened(world, gateway)
    line = Path(f"/proc/{client.child.pid}/cmdline").read_bytes()
    assert b"connect" in line and KEY.encode() not in line
    client.child.stdin.close()
    await answer_close(connection)
    assert KEY not in (await client.ends()).err


async def test_key_from_elsewhere(world):
    """--key K; --key-file; --key counts before the environment"""
    gateway, target = await world.gateway(), world.target().serve_echo()
    file = world.folder() / "key"
    file.write_text(f"{KEY}\n")
    for words, key in ((["--key", KEY], "wrong"), (["--key-file", str(file)], "wrong"), (["--key", KEY], None)):
        done = await run(world, *through(gateway), *words, target.url(), "-w", "0", key=key)
        assert done.code == 0, done
    done = await run(world, *through(gateway), target.url(), key="hunter2")
    assert done.code == 1 and "Invalid or missing API key (invalid_key)" in done.err and "1008" in done.err and "hunter2" not in done.err, done


# --- errors -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("words, says", [
    (["http://t"], "url: must start with ws:// or wss://, not http://"),
    (["ws://t/#x"], "url: must not have a fragment"),
    (["ws://t", "-H", "no colon"], "Name: value"),
    (["ws://t", "-H", "a b: c"], "headers.a b: not a legal header name"),
    (["ws://t", "-H", "a: b\nc: d"], "headers.a: not a legal header value"),
    (["ws://t", "--cookie", "novalue"], "name=value"),
    (["ws://t", "--cookie", "a=b;c=d"], "cookies.a: not a legal cookie value"),
    (["ws://t", "--idle-timeout", "-1"], "idle"),
    (["ws://t", "--wait", "-2"], "0 or more"),
    (["ws://t", "--key", "a", "--key-file", "b"], "--key-file"),
    (["ws://t", "--key-file", "/nonexistent"], "/nonexistent"),
    (["ws://t", "--ca-file", "/nonexistent"], "/nonexistent"),
    ([], "<URL>"),
])
async def test_usage(world, words, says):
    """2 usage: refused before anything is dialled"""
    target = world.target()
    done = await run(world, "--gateway", target.url("/ws"), *words)
    assert done.code == 2 and says in done.err and done.out == b"", done
    await target.expect_no_dial(0.1)


async def test_usage_of_gateway_and_key(world):
    """2 usage"""
    for words, key, says in (
        (["ws://t"], KEY, "--gateway"),
        (["--gateway", "http://g", "ws://t"], KEY, "--gateway: must start with ws:// or wss://, not http://"),
        (["--gateway", "ws://127.0.0.1:1", "ws://t"], None, "RINGWAY_KEY"),
        (["--gateway", "ws://127.0.0.1:1", "ws://t"], "", "RINGWAY_KEY"),
    ):
        done = await run(world, *words, key=key)
        assert done.code == 2 and says in done.err, done


async def test_error_answers(world):
    """prints the error clearly; exit 1"""
    gateway = await world.gateway(keys=None)
    refused = world.target()
    refused.close()
    done = await run(world, *through(gateway), refused.url())
    assert done.code == 1 and done.out == b"", done
    assert "Target connection failed" in done.err and "(target_unreachable)" in done.err and "1011" in done.err, done.err

    target = world.target()
    client = await Piped.start(world, *through(gateway), target.url())
    connection = await target.accept()
    await connection.read_request()
    await connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    done = await client.ends()
    assert done.code == 1 and "Target answered HTTP 403 (target_rejected)" in done.err, done


async def test_rate_limit_says_when(world):
    """`retry_after_ms`"""
    from harness.process import key_entry

    gateway, target = await world.gateway(keys=[key_entry(rate=0.01, burst=1)]), world.target().serve_echo()
    assert (await run(world, *through(gateway), target.url(), "-w", "0")).code == 0
    done = await run(world, *through(gateway), target.url(), "-w", "0")
    assert done.code == 1 and "Rate limit exceeded (rate_limited); try again in" in done.err, done


async def test_gateways_that_are_none(world):
    """cannot be reached, answers other than 101, or something else altogether: exit 1 with a reason"""
    gateway = await world.gateway()
    done = await run(world, "--gateway", f"ws://127.0.0.1:{gateway.port}/nothing", "ws://t")
    assert done.code == 1 and "HTTP 404" in done.err and "not_found" in done.err, done
    done = await run(world, "--gateway", f"wss://127.0.0.1:{gateway.port}/ws", "ws://t")
    assert done.code == 1 and "TLS" in done.err and "ws://" in done.err, done
    closed = world.target()
    closed.close()
    done = await run(world, "--gateway", closed.url("/ws"), "ws://t")
    assert done.code == 1 and f"127.0.0.1:{closed.port}" in done.err and "refused" in done.err, done
    # Any other WebSocket server: it gets the connect message and has no answer of that kind.
    echo = world.target().serve_echo()
    done = await run(world, "--gateway", echo.url("/ws"), "ws://t", key="hunter2")
    assert done.code == 1 and "no ringway gateway" in done.err and "hunter2" not in done.err, done
    for answer in (b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html", b"HTTP/1.1 101 X\r\n\r\n"):
        target = world.target()
        client = await Piped.start(world, "--gateway", target.url("/ws"), "ws://t")
        connection = await target.accept()
        await connection.read_request()
        await connection.send(answer)
        connection.half_close()
        done = await client.ends()
        assert done.code == 1 and "panicked" not in done.err and done.out == b"", done


async def test_gateway_over_tls(world):
    """opens the gateway (ws:// or wss://, --ca-file, --insecure)"""
    gateway, target = await world.gateway(), world.target().serve_echo()
    authority = Authority(world.folder())
    server = await asyncio.start_server(lambda *ends: bridge(gateway.port, *ends), "127.0.0.1", 0, ssl=authority.server("localhost"))
    world.stack.callback(server.close)
    port = server.sockets[0].getsockname()[1]
    address = ["--gateway", f"wss://localhost:{port}/ws"]
    lines = b"hello\n" + b"x" * 200_000 + b"\n"
    for words in (["--ca-file", str(authority.file)], ["--insecure"], ["-k"]):
        done = await run(world, *address, *words, target.url(), data=lines)
        assert (done.code, done.out) == (0, lines), done
    done = await run(world, *address, target.url())
    assert done.code == 1 and "TLS: its certificate is signed by nobody who is trusted here; name its root with --ca-file" in done.err, done
    done = await run(world, "--gateway", f"wss://127.0.0.1:{port}/ws", "--ca-file", str(authority.file), target.url())
    assert done.code == 1 and f"cannot reach 127.0.0.1:{port}: TLS: its certificate is for another name; --insecure" in done.err, done


async def bridge(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What terminates TLS in front of a gateway."""
    there, back = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source, sink) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except (ConnectionError, OSError):
            pass
        sink.close()

    await asyncio.gather(copy(reader, back), copy(there, writer))


# --- a terminal ---------------------------------------------------------------------------------------------------------------
class Terminal(Program):
    @property
    def mode(self) -> list:
        return termios.tcgetattr(self._terminal)[:4]

    def press(self, keys: bytes) -> None:
        os.write(self._terminal, keys)


async def terminal(world, gateway, *words: str, url: str, term: str = "xterm", env: list[str] | None = None) -> Terminal:
    """`ringway connect` as somebody at a terminal would start it."""
    clean = [f"--unset={name}" for name in os.environ if name.startswith("RINGWAY_") or name == "NO_COLOR"]
    made = await Terminal.in_terminal("env", *clean, f"TERM={term}", f"RINGWAY_KEY={KEY}", *(env or []), binary(), "connect", *through(gateway), *words, url)
    world.stack.push_async_callback(made.kill)
    return made


async def test_terminal(world):
    """On a terminal: prompt `> `, `< ` for incoming, control messages Connected / Disconnected (code, reason)"""
    gateway, target = await world.gateway(), world.target().serve_echo()
    client = await terminal(world, gateway, "--no-color", url=target.url())
    await client.says("Connected through scraping-de1")
    await client.says("> ")
    before = client.mode
    await client.type("hello wörld")
    await client.says("< hello wörld")
    client.press(b"\x04")  # Ctrl-D
    await client.says('Disconnected (code: 1000, reason: "")')
    assert await client.ends() == 0
    assert "\x1b[34m" not in client.text and "\x1b[32m" not in client.text
    assert before != client.mode and client.mode[3] & termios.ECHO and client.mode[3] & termios.ICANON, "the terminal is as it was"


async def test_terminal_ctrl_c(world):
    """Ctrl-C closes with 1000"""
    gateway, target = await world.gateway(), world.target()
    client = await terminal(world, gateway, url=target.url())
    connection = await (await target.accept()).open()
    await client.says("> ")
    client.press(b"half a line\x03")
    await answer_close(connection)
    await client.says("Disconnected (code: 1000")
    assert await client.ends() == 0
    assert client.mode[3] & termios.ECHO and client.mode[3] & termios.ICANON


async def test_terminal_colours(world):
    """colours; NO_COLOR and --no-color are honoured"""
    gateway, target = await world.gateway(), world.target().serve_echo()
    for words, env, coloured in (([], [], True), ([], ["NO_COLOR=1"], False), ([], ["NO_COLOR="], True), (["--no-color"], [], False)):
        client = await terminal(world, gateway, *words, url=target.url(), env=env)
        await client.says("> ")
        await client.type("hello")
        await client.says("\x1b[34m< hello\x1b[0m" if coloured else "< hello")
        client.press(b"\x04")
        assert await client.ends() == 0
        assert ("\x1b[32mConnected" in client.text) == coloured, client.text


async def test_terminal_when_the_target_closes(world):
    """Everything that came is shown, then Disconnected (code, reason); the terminal is as it was though nobody pressed a key; exit 1"""
    gateway, target = await world.gateway(), world.target()
    for number in range(5):
        client = await terminal(world, gateway, "--no-color", url=target.url())
        connection = await (await target.accept()).open()
        await client.says("> ")
        if number % 2:
            client.press(b"half a line")
            await client.says("half a line")
        for word in ("one", "two", "three"):
            await connection.send_text(word)
        await connection.send_close(4000, "go away")
        await connection.expect_close(4000)
        connection.close()
        await client.says('Disconnected (code: 4000, reason: "go away")')
        assert await client.ends() == 1
        order = [client.text.find(text) for text in ("< one", "< two", "< three", "Disconnected")]
        assert -1 not in order and order == sorted(order), client.text
        assert client.mode[3] & termios.ECHO and client.mode[3] & termios.ICANON


async def test_terminal_takes_long_lines_and_shows_no_escapes(world):
    """Lines longer than a terminal's own 4096 bytes; what a target sends cannot steer the terminal; binary as a hex dump"""
    gateway, target = await world.gateway(), world.target()
    client = await terminal(world, gateway, "--no-color", url=target.url())
    connection = await (await target.accept()).open()
    await client.says("> ")
    line = "x" * 9000
    await client.type(line)
    await connection.expect_frame(TEXT, line.encode())
    await connection.send_text("\x1b]0;owned\x07")
    await client.says("< \\u{1b}]0;owned\\u{7}")
    await connection.send_frame(BINARY, b"\x00\x01AB\xff")
    await client.says("00 01 41 42 ff")
    await client.says("..AB.")
    client.press(b"\x04")
    await answer_close(connection)
    assert await client.ends() == 0
    assert "\x1b]0;owned" not in client.text


async def test_terminal_without_a_cursor(world):
    """TERM=dumb has no line editor, and works all the same"""
    gateway, target = await world.gateway(), world.target()
    client = await terminal(world, gateway, "--no-color", url=target.url(), term="dumb")
    connection = await (await target.accept()).open()
    await client.says("> ")
    await client.type("hello")
    await connection.expect_frame(TEXT, b"hello")
    await connection.send_text("back")
    await client.says("< back")
    await connection.send_close(1000)
    await connection.expect_close(1000)
    assert await client.ends() == 0


async def test_terminal_executes(world):
    """-x on a terminal: standard input is not read"""
    gateway, target = await world.gateway(), world.target().serve_echo()
    client = await terminal(world, gateway, "--no-color", "-x", json.dumps({"a": 1}), url=target.url())
    await client.says('< {"a": 1}')
    await client.says("Disconnected (code: 1000")
    assert await client.ends() == 0

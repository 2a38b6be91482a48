"""The contract, section 6: drivers, signals, limits of the process, and configuration that is refused."""
from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from harness.client import KEY, Client, open_tcp
from harness.frames import BINARY, TEXT, masked
from harness.http import samples
from harness.process import DRIVER, Gateway, gateway_config, key_entry, toml
from harness.seccomp import REFUSING
from harness.wire import PATIENCE_S


async def relays(world, gateway) -> None:
    target = world.target()
    client, connection = await world.session(gateway, target)
    for size in (0, 10, 100_000):
        await connection.expect_raw(await client.send_frame(BINARY, os.urandom(size)))
        await client.expect_raw(await connection.send_frame(BINARY, os.urandom(size)))


# --- the driver ------------------------------------------------------------------------------------------------------------
async def test_the_log_says_which_driver(world):
    """`driver`: one log line saying which"""
    gateway = await world.gateway()
    lines = [line for line in gateway.lines if re.search(rf"\b{DRIVER}\b", line)]
    assert len(lines) == 1, gateway.err


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
async def test_epoll_where_io_uring_is_refused(world, error):
    """epoll driver where io_uring is not allowed (container seccomp): one log line saying which and why and how to allow io_uring"""
    gateway = await world.gateway(driver="auto", launcher=[*REFUSING, error])
    await relays(world, gateway)
    lines = [line for line in gateway.lines if "epoll" in line]
    assert len(lines) == 1, gateway.err
    assert "io_uring" in lines[0] and re.search(r"seccomp|io_uring_disabled", lines[0]), lines


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
async def test_driver_epoll_needs_no_io_uring(world, error):
    """`driver` = "epoll" """
    await relays(world, await world.gateway(driver="epoll", launcher=[*REFUSING, error]))


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
async def test_driver_io_uring_that_is_refused_is_an_error(world, error):
    """`driver` = "io_uring": no silent fallback: exit 1 or 2, and the error names it"""
    gateway = await world.gateway(driver="io_uring", launcher=[*REFUSING, error], listening=False)
    assert await gateway.exit_code() in (1, 2)
    assert "io_uring" in gateway.err and "panicked" not in gateway.err, gateway.err
    assert not any(line.startswith("listening on") for line in gateway.lines)


@pytest.mark.parametrize("workers", [0, 1, 3])
async def test_workers(world, workers):
    """`workers`: 0: one a core"""
    gateway = await world.gateway(workers=workers)
    await asyncio.gather(*(relays(world, gateway) for _ in range(4)))


# --- readiness ---------------------------------------------------------------------------------------------------------------
async def test_listening_line_and_ready_fd(world):
    """one line `listening on 127.0.0.1:8080 (public)` each listener, with the real port where 0 was asked for, plain whatever the log settings"""
    for env in ({}, {"RINGWAY_LOG": "off"}, {"RINGWAY_LOG": "trace"}, {"RINGWAY_LOG_FORMAT": "json"}):
        gateway = await world.gateway(env=env)
        assert len([line for line in gateway.lines if line == f"listening on 127.0.0.1:{gateway.port} (public)"]) == 1, gateway.err


async def test_several_listeners(world):
    """`addr`: several allowed, IPv6 too"""
    gateway = await world.gateway(listen={"addr": ["127.0.0.1:0", "[::1]:0"]})
    six = int((await gateway.line(r"^listening on \[::1\]:(\d+) \(public\)$"))[1])
    wire = Client(await open_tcp(six, "::1"))
    await wire.upgrade()
    wire.close()
    await relays(world, gateway)


async def test_a_taken_port_is_an_error(world):
    """exit 1 failed while running, 2 configuration; the message says which address"""
    target = world.target()
    gateway = await world.gateway(listen={"addr": [f"127.0.0.1:{target.port}"]}, listening=False)
    assert await gateway.exit_code() in (1, 2)
    assert f"127.0.0.1:{target.port}" in gateway.err and "panicked" not in gateway.err


# --- open files ----------------------------------------------------------------------------------------------------------------
async def test_nofile_is_raised_to_the_hard_limit(world):
    """`nofile` is raised to the hard limit"""
    gateway = await world.gateway(launcher=["sh", "-c", 'ulimit -S -n 64; exec "$@"', "sh"])
    limits = Path(f"/proc/{gateway.pid}/limits").read_text()
    soft, hard = re.search(r"Max open files\s+(\d+)\s+(\d+)", limits).groups()
    assert soft == hard and int(soft) > 64


@pytest.mark.limit(90)
async def recovers(world, gateway, wires) -> None:
    """When those have left, it has their files back, and relays."""
    for wire in wires:
        wire.close()
    end = time.monotonic() + PATIENCE_S
    while gateway.fds() >= 70:
        assert time.monotonic() < end, "their files stay open"
        await asyncio.sleep(0.1)
    await relays(world, gateway)


async def test_emfile_on_accept(world):
    """EMFILE on accept is handled without spinning, and the gateway recovers"""
    gateway = await world.gateway(nofile=90, limits={"header_timeout": "60s", "connect_timeout": "60s"})
    wires = [await world.tcp(gateway) for _ in range(120)]
    await asyncio.sleep(1)
    assert gateway.fds() >= 80, "the limit was not reached: the test shows nothing"
    before = gateway.cpu_s()
    await asyncio.sleep(2)
    assert gateway.cpu_s() - before < 0.5, "it spins"
    assert len(gateway.lines) < 200, "it floods its log"
    await recovers(world, gateway, wires)


async def test_emfile_on_the_dial_is_an_error_of_this_session_alone(world):
    """on the dialling side: no file left for the target's socket: an error, and no end of the worker"""
    gateway, target = await world.gateway(nofile=90, limits={"connect_timeout": "60s", "header_timeout": "60s"}), world.target()
    client = await world.client(gateway)
    wires = [await world.tcp(gateway) for _ in range(120)]
    await asyncio.sleep(1)
    await client.connect({"apiKey": KEY, "url": target.url()})
    got = await client.read_json()
    assert got["type"] == "error" and got["code"] in ("target_unreachable", "agent_failure"), got
    await client.expect_close(1011)
    await recovers(world, gateway, wires)


# --- signals -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_while_idle(world, number):
    """The process exits 0 as soon as no session is left"""
    gateway = await world.gateway()
    gateway.signal(number)
    assert await gateway.exit_code(5) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_sessions(world, number):
    """drain or shutdown: client 1012, target 1001, `Service restart`; exit 0"""
    gateway, target = await world.gateway(limits={"drain": "6s"}), world.target()
    sessions = [await world.session(gateway, target) for _ in range(6)]
    waiting = await world.client(gateway)
    gateway.signal(number)

    async def ends(client, connection) -> None:
        await asyncio.gather(client.expect_close(1012, "Service restart"), connection.expect_close(1001, "Service restart"))
        await connection.send_close(1001)
        await client.finish(1012)
        connection.close()

    await asyncio.gather(*(ends(*session) for session in sessions))
    await waiting.expect_close(1012)
    await waiting.finish(1012)
    assert await gateway.exit_code(10) == 0


async def test_signal_closes_at_a_frame_boundary(world):
    """A session inside a frame waits for its end"""
    gateway, target = await world.gateway(limits={"drain": "8s"}), world.target()
    client, connection = await world.session(gateway, target)
    made = masked(BINARY, os.urandom(10_000))
    await connection.send(made[:4000])
    await client.expect_raw(made[:4000])
    gateway.signal(signal.SIGTERM)
    await asyncio.sleep(1)
    await connection.send(made[4000:])
    await client.expect_raw(made[4000:])
    await client.expect_close(1012, "Service restart")
    await connection.expect_close(1001, "Service restart")
    await client.send_close(1012)
    await connection.send_close(1001)
    connection.close()
    assert await gateway.exit_code(12) == 0


async def test_signal_with_peers_that_answer_nothing(world):
    """exits 0 … at the latest after `drain`"""
    gateway, target = await world.gateway(limits={"drain": "2s"}), world.target()
    client, connection = await world.session(gateway, target)
    held, _ = await world.session(gateway, target)
    await held.send(masked(TEXT, b"cut in its payload")[:10])
    await world.dialling(gateway, target)
    gateway.signal(signal.SIGTERM)
    assert await gateway.exit_code(10) == 0
    del client, connection


async def test_second_signal(world):
    """A second signal exits 1 at once."""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.session(gateway, target)
    await connection.send(masked(BINARY, bytes(1000))[:500])
    await client.read_exactly(500)
    gateway.signal(signal.SIGTERM)
    await asyncio.sleep(0.5)
    assert gateway.child.returncode is None, "a session is inside a frame: the process stays"
    gateway.signal(signal.SIGTERM)
    assert await gateway.exit_code(3) == 1


async def test_a_lost_standard_error_does_not_stop_the_relay(world):
    """nobody reads the log any more: sessions go on"""
    gateway = await world.gateway(env={"RINGWAY_LOG": "trace"})
    for reader in gateway._readers:
        reader.cancel()
    gateway.child._transport.get_pipe_transport(2).close()
    await relays(world, gateway)
    await relays(world, gateway)


# --- configuration ---------------------------------------------------------------------------------------------------------------
async def outcome(world, config: str, keys: str | None = None, *, command: str = "check") -> tuple[int, str]:
    folder = world.folder()
    (folder / "gateway.toml").write_text(config)
    (folder / "keys.toml").write_text(keys if keys is not None else toml({"key": [key_entry()]}))
    arguments = ["check", "-c", str(folder / "gateway.toml")] if command == "check" else ["gateway", "-c", str(folder / "gateway.toml")]
    process = await world.process(*arguments, ready=False)
    code = await process.exit_code()
    return code, process.out + process.err


GOOD = toml(gateway_config())


async def test_check_of_a_good_file(world):
    """`ringway check -c FILE`: exit 0"""
    code, said = await outcome(world, GOOD)
    assert code == 0, said


WRONG = {
    "unknown key": (GOOD + "[limits]\nheader_timout = '1s'\n", "header_timout"),
    "unknown table": (GOOD + "[limit]\n", "limit"),
    "not TOML": (GOOD + "= =\n", ""),
    "a number for a duration": (GOOD + "[limits]\nheader_timeout = 10\n", "header_timeout"),
    "a duration that is none": (GOOD + "[limits]\ndrain = 'soon'\n", "drain"),
    "negative": (GOOD + "[limits]\nmax_sessions = -1\n", "max_sessions"),
    "workers": (GOOD.replace("workers = 2", "workers = 'two'"), "workers"),
    "driver": (re.sub(r'driver = ".*"', 'driver = "kqueue"', GOOD), "driver"),
    "addr": (GOOD.replace('"127.0.0.1:0"', '"nonsense"'), "addr"),
    "egress": (GOOD.replace('"127.0.0.0/8"', '"127.0.0.0/99"'), "allow"),
    "idle_channels": (GOOD + "[agents]\nidle_channels = 0\n", "idle_channels"),
    "country": (GOOD.replace('country = "DE"', 'country = "Germany"'), "country"),
    "slug missing": (GOOD.replace('slug = "de1"\n', ""), "slug"),
    "certificate missing": (GOOD + '[listen.tls]\naddr = ["127.0.0.1:0"]\ncert = "c.pem"\nkey = "k.pem"\n', "c.pem"),
    "proxy_protocol": (GOOD.replace("[listen]", "[listen]\nproxy_protocol = 'v2'"), "proxy_protocol"),
    "proxy_protocol_from": (GOOD.replace("[listen]", "[listen]\nproxy_protocol_from = ['10.0.0.0/99']"), "proxy_protocol_from"),
    "keys file missing": (GOOD.replace("keys.toml", "nowhere.toml"), "nowhere.toml"),
}
UNBUILT = {
    "keys.store": (GOOD.replace('file = "keys.toml"', 'file = "keys.toml"\nstore = "redis://127.0.0.1:6379"'), "store"),
    "runtime.relay": (GOOD.replace("[runtime]", '[runtime]\nrelay = "ring"'), "relay"),
}


@pytest.mark.parametrize("command", ["check", "gateway"])
@pytest.mark.parametrize("name", [*WRONG, *UNBUILT])
async def test_configuration_that_is_refused(world, name, command):
    """an unknown or unbuilt configuration key fails `ringway check` and start-up, exit 2, naming it"""
    config, named = {**WRONG, **UNBUILT}[name]
    code, said = await outcome(world, config, command=command)
    assert code == 2, said
    assert named in said and "panicked" not in said, said


@pytest.mark.parametrize("name", ["unknown key", "a duration that is none", "addr", "driver", "not TOML"])
async def test_check_names_the_line(world, name):
    """`ringway check`: errors with line and what to write instead"""
    config, named = WRONG[name]
    good, bad = GOOD.splitlines(), config.splitlines()
    number = next(i for i, line in enumerate(bad, 1) if i > len(good) and (named in line if named else line.startswith("=")) or i <= len(good) and line != good[i - 1])
    _, said = await outcome(world, config)
    assert re.search(rf"\b{number}\b", said), (number, said)


KEYS_WRONG = {
    "no id": ('[[key]]\nsha256 = "%s"\n' % ("0" * 64), "id"),
    "no sha256": ('[[key]]\nid = "a"\n', "sha256"),
    "short sha256": ('[[key]]\nid = "a"\nsha256 = "abcd"\n', "sha256"),
    "sha256 that is no hex": ('[[key]]\nid = "a"\nsha256 = "%s"\n' % ("z" * 64), "sha256"),
    "burst 0": ('[[key]]\nid = "a"\nsha256 = "%s"\nburst = 0\n' % ("0" * 64), "burst"),
    "burst that is no whole number": ('[[key]]\nid = "a"\nsha256 = "%s"\nburst = 1.5\n' % ("0" * 64), "burst"),
    "rate below 0": ('[[key]]\nid = "a"\nsha256 = "%s"\nrate = -1\n' % ("0" * 64), "rate"),
    "rate that is no number": ('[[key]]\nid = "a"\nsha256 = "%s"\nrate = "fast"\n' % ("0" * 64), "rate"),
    "rate nan": ('[[key]]\nid = "a"\nsha256 = "%s"\nrate = nan\n' % ("0" * 64), "rate"),
    "max_sessions": ('[[key]]\nid = "a"\nsha256 = "%s"\nmax_sessions = "many"\n' % ("0" * 64), "max_sessions"),
    "expires": ('[[key]]\nid = "a"\nsha256 = "%s"\nexpires = "tomorrow"\n' % ("0" * 64), "expires"),
    "unknown": ('[[key]]\nid = "a"\nsha256 = "%s"\nkey = "plain"\n' % ("0" * 64), "key"),
    "one id twice": ('[[key]]\nid = "a"\nsha256 = "%s"\n[[key]]\nid = "a"\nsha256 = "%s"\n' % ("0" * 64, "1" * 64), "a"),
}


@pytest.mark.parametrize("name", KEYS_WRONG)
async def test_keys_file_that_is_refused(world, name):
    """for each key of the files a wrong value gives an error naming it"""
    keys, named = KEYS_WRONG[name]
    for command in ("check", "gateway"):
        code, said = await outcome(world, GOOD, keys, command=command)
        assert code == 2, said
        assert named in said and "keys.toml" in said and "panicked" not in said, said


async def test_key_new(world):
    """`ringway key new --id acme [--rate 5 --burst 10 --max-sessions 100] [--file keys.toml]`: prints the key once; stores the block with its SHA-256 only, mode 0600"""
    folder = world.folder()
    file = folder / "keys.toml"
    printed = []
    for number in range(2):
        process = await world.process("key", "new", "--id", f"acme{number}", "--rate", "5", "--burst", "10", "--max-sessions", "100", "--file", str(file), ready=False)
        assert await process.exit_code() == 0, process.err
        printed.append(max(re.findall(r"[\w.~+/=-]{16,}", process.out.replace(str(file), "")), key=len))
    text = file.read_text()
    assert text.count("[[key]]") == 2 and file.stat().st_mode & 0o777 == 0o600
    for key in printed:
        assert key not in text
        assert hashlib.sha256(key.encode()).hexdigest() in text.lower(), (key, text)
    (folder / "gateway.toml").write_text(GOOD)
    check = await world.process("check", "-c", str(file), ready=False)
    assert await check.exit_code() == 0, check.err
    gateway = await Gateway.start("gateway", "-c", str(folder / "gateway.toml"))
    world.stack.push_async_callback(gateway.kill)
    gateway.port = int((await gateway.line(r"^listening on \S+:(\d+) \(public\)$"))[1])
    target = world.target()
    client = await world.client(gateway)
    await client.connect({"apiKey": printed[1], "url": target.url()})
    await (await target.accept()).open()
    await client.expect_connected()


async def test_key_new_without_a_file_prints_the_block(world):
    """or prints the `[[key]]` block with its SHA-256 only"""
    process = await world.process("key", "new", "--id", "acme", ready=False)
    assert await process.exit_code() == 0
    assert "[[key]]" in process.out and 'id = "acme"' in process.out and re.search(r'sha256 = "[0-9a-f]{64}"', process.out), process.out


async def test_usage_errors(world):
    """Exit codes: 2 usage or configuration"""
    for arguments in ([], ["nonsense"], ["gateway"], ["gateway", "-c", "/nowhere/at/all.toml"], ["check"], ["gateway", "--nonsense"], ["connect", "ws://127.0.0.1/"], ["agent", "-c", "x.toml"]):
        process = await world.process(*arguments, ready=False)
        assert await process.exit_code() == 2, (arguments, process.err)
        assert process.err and "panicked" not in process.err


async def test_a_busy_worker_keeps_its_times(world):
    """accept, connect timeout and idle timeout hold while a worker relays at full load"""
    gateway, target = await world.gateway(workers=1, limits={"connect_timeout": "1s"}), world.target()
    client, connection = await world.session(gateway, target)
    block = masked(BINARY, os.urandom(60_000)) * 10 + masked(TEXT, b"small") * 1000
    load = [asyncio.create_task(job) for job in (client.pour(block), connection.pour(block), client.drop(), connection.drop())]
    await asyncio.sleep(0.5)
    began = time.monotonic()
    for _ in range(3):
        waiting = await world.client(gateway)
        idle, _ = await world.session(gateway, target, idle_timeout=1)
        start = time.monotonic()
        await asyncio.gather(waiting.expect_close(1008, "Connect timeout"), idle.expect_close(1000, "Idle timeout"))
        assert time.monotonic() - start < 3
    assert time.monotonic() - began < 15
    assert not any(job.done() for job in load)
    for job in load:
        job.cancel()


@pytest.mark.parametrize("number", ["1", "77", "x"])
async def test_ready_fd_that_cannot_be(world, number):
    """`--ready-fd N`; exit code 2: usage"""
    process = await world.process("echo", "--listen", "127.0.0.1:0", "--ready-fd", number, ready=False)
    assert await process.exit_code() == 2
    assert "--ready-fd" in process.err and "listening" not in process.err, process.err


async def test_address_that_another_gateway_has(world):
    """Two gateways never share an address: the second one says so and exits 1"""
    first = await world.gateway()
    config = GOOD.replace('"127.0.0.1:0"', f'"127.0.0.1:{first.port}"')
    code, said = await outcome(world, config, command="gateway")
    assert code == 1 and f"127.0.0.1:{first.port}" in said and "in use" in said, (code, said)
    await relays(world, first)


async def test_key_that_cannot_be_shown_is_not_stored(world):
    """`ringway key new` prints the key once; a key that nobody saw leaves no entry"""
    file = world.folder() / "keys.toml"
    with open("/dev/full", "w") as full:
        process = await asyncio.create_subprocess_exec(os.environ["RINGWAY_BIN"], "key", "new", "--id", "lost", "--file", str(file), stdout=full, stderr=asyncio.subprocess.PIPE)
        _, said = await process.communicate()
    assert process.returncode == 1 and b"standard output" in said, said
    assert file.read_text() == ""


async def test_level_that_is_none(world):
    """`RINGWAY_LOG` sets log levels; a misspelt one is an error, and not silence"""
    process = await world.process("echo", "--listen", "127.0.0.1:0", ready=False, env={"RINGWAY_LOG": "inof"})
    assert await process.exit_code() == 2 and "inof" in process.err, process.err


async def answers_while(world, gateway, seconds: float) -> None:
    """/healthz is answered again and again, whatever else goes on."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        wire = await world.tcp(gateway)
        await wire.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b'{"ok":true}' in await wire.read_to_end(5)
        wire.close()


async def test_a_client_that_never_pauses_keeps_nobody_waiting(world):
    """1.2: within 10 s of the upgrade; nothing blocks a worker: control frames without end, on the only worker"""
    gateway = await world.gateway(workers=1, limits={"connect_timeout": "1s"})
    client = await world.client(gateway)
    block = masked(0xA, b"") * 100_000
    flooding = asyncio.create_task(client.pour(block))
    began = time.monotonic()
    await answers_while(world, gateway, 3)
    await client.expect_close(1008, "Connect timeout")
    with pytest.raises(OSError):
        await asyncio.wait_for(flooding, 20)
    assert time.monotonic() - began < 20


async def test_a_target_that_never_stops_to_announce_keeps_nobody_waiting(world):
    """closed or spoke no HTTP before its answer: `target_unreachable`; interim answers without end on the only worker"""
    gateway, target = await world.gateway(workers=1), world.target()
    client, connection = await world.dialling(gateway, target)
    block = b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000
    flooding = asyncio.create_task(connection.pour(block))
    await client.expect_error("target_unreachable", 1011, contains="interim", patience=5)
    with pytest.raises(OSError):
        await asyncio.wait_for(flooding, 20)
    await answers_while(world, gateway, 0.1)


# --- workers ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workers, count", [(2, 400), (4, 400), (8, 1000)])
async def test_sessions_that_last_are_even_over_the_workers(world, workers, count):
    """Worker threads share the sessions evenly, also those of one client address and with more workers than cores; a few
    sessions more or less are no matter, so there are enough of them that 5 % are more than a few"""
    gateway, target = await world.gateway(admin=True, workers=workers), world.target().serve_echo()

    async def opened() -> Client:
        client = await world.client(gateway)
        await client.connect({"apiKey": KEY, "url": target.url()})
        await client.expect_connected()
        return client

    clients = []
    while len(clients) < count:
        clients += await asyncio.gather(*(opened() for _ in range(20)))
    found = await samples(gateway)
    each = [found[f'ringway_worker_sessions{{worker="{index}"}}'] for index in range(workers)]
    assert sum(each) == count, each
    assert max(each) <= 1.05 * count / workers, each
    accepted = [found[f'ringway_accepts_total{{worker="{index}"}}'] for index in range(workers)]
    assert workers == 2 or accepted != each, "the kernel itself is not so even, so some were handed over"
    for client in clients:
        await client.send_frame(TEXT, b"there")
    for client in clients:
        assert (await client.read_frame()).payload == b"there"

"""The service manager's side: what it is told over sd_notify, the unit file, and the exit codes it goes by."""
from __future__ import annotations

import asyncio
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from harness.frames import BINARY, masked
from harness.files import Fifo
from harness.process import ROOT, binary, gateway_config, key_entry, toml

UNITS = [ROOT / "packaging" / "systemd" / f"ringway-{name}.service" for name in ("gateway", "agent")]
MOST_EXPOSURE = 2.0
"""What `systemd-analyze security` may give the unit, of 10. Most of it is that a relay needs the network."""


class Manager:
    """The end of NOTIFY_SOCKET that systemd holds."""

    def __init__(self, world, abstract: bool = False):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        world.stack.callback(self.sock.close)
        if abstract:
            self.address = f"@ringway-test-{os.getpid()}-{id(self)}"
            self.sock.bind("\0" + self.address[1:])
        else:
            self.address = str(world.folder() / "notify")
            self.sock.bind(self.address)
        self.sock.setblocking(False)

    def env(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, **more}

    async def message(self, patience: float = 15) -> dict[str, str]:
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, 65536), patience)
        return dict(line.split("=", 1) for line in data.decode().rstrip("\n").split("\n"))

    async def until(self, name: str, patience: float = 15) -> dict[str, str]:
        """The next message that has this variable."""
        async with asyncio.timeout(patience):
            while name not in (got := await self.message(patience)):
                pass
        return got


# --- sd_notify ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("abstract", [False, True])
async def test_ready_when_everything_listens(world, abstract):
    """systemd is notified when every listener listens"""
    manager = Manager(world, abstract)
    gateway = await world.gateway(env=manager.env())
    got = await manager.message()
    assert got["READY"] == "1"
    assert f"listening on 127.0.0.1:{gateway.port}" in got["STATUS"], got


async def test_dev_and_echo_tell_too(world):
    """systemd is notified (gateway, agent, dev, echo)"""
    for arguments in (["dev"], ["echo", "--listen", "127.0.0.1:0"]):
        manager = Manager(world)
        await world.process(*arguments, env=manager.env())
        assert (await manager.message())["READY"] == "1"


@pytest.mark.parametrize("address", ["/nonexistent/notify", "relative", "@", ""])
async def test_a_manager_that_is_not_there_is_no_failure(world, address):
    """started by hand in a service's environment, it runs all the same"""
    gateway = await world.gateway(env={"NOTIFY_SOCKET": address})
    gateway.signal(signal.SIGTERM)
    assert await gateway.exit_code() == 0


async def test_reload_is_told(world):
    """RELOADING=1 with the time, then READY=1; what is wrong with a file is in the status"""
    manager, folder = Manager(world), world.folder()
    gateway = await world.gateway(folder=folder, env=manager.env())
    await manager.until("READY")
    for text, status in ((toml({"key": [key_entry("another")]}), None), ("broken", f"{folder}/keys.toml:1:"), (toml({"key": [key_entry()]}), None)):
        (folder / "keys.toml").write_text(text)
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        gateway.signal(signal.SIGHUP)
        reloading = await manager.until("RELOADING")
        assert reloading["RELOADING"] == "1"
        assert before <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        ready = await manager.message()
        assert ready["READY"] == "1"
        if status:
            assert "reload failed" in ready["STATUS"] and status in ready["STATUS"], ready
        else:
            assert "failed" not in ready["STATUS"], ready


async def test_a_reload_that_waits_is_told(world):
    """Reloading until it is over; the one that was asked for meanwhile is told by itself, and later"""
    manager, folder = Manager(world), world.folder()
    gateway = await world.gateway(folder=folder, env=manager.env(WATCHDOG_USEC="2000000"))
    await manager.until("READY")
    file = Fifo(world, folder / "keys.toml")
    gateway.signal(signal.SIGHUP)
    first = await manager.until("RELOADING")
    await file.is_read()
    asked = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    gateway.signal(signal.SIGHUP)
    await gateway.line("another one follows")
    await manager.until("WATCHDOG")
    file.replace(toml({"key": [key_entry()]}))
    file.write(toml({"key": [key_entry()]}))
    assert (await manager.until("READY"))["READY"] == "1"
    again = await manager.until("RELOADING")
    assert int(first["MONOTONIC_USEC"]) < asked <= int(again["MONOTONIC_USEC"])
    assert (await manager.until("READY"))["READY"] == "1"


async def test_a_drain_during_a_reload_is_told(world):
    """STOPPING=1, and no READY=1 behind it when the reload is over"""
    manager, folder = Manager(world), world.folder()
    gateway, target = await world.gateway(folder=folder, env=manager.env(), limits={"drain": "300s"}), world.target()
    client, connection = await world.session(gateway, target)
    made = masked(BINARY, bytes(1000))
    await connection.send(made[:500])
    await client.read_exactly(500)
    file = Fifo(world, folder / "keys.toml")
    gateway.signal(signal.SIGHUP)
    await manager.until("RELOADING")
    await file.is_read()
    gateway.signal(signal.SIGTERM)
    await manager.until("STOPPING")
    file.write(toml({"key": [key_entry()]}))
    await gateway.line("reload done")
    await manager.until("STATUS")
    gateway.signal(signal.SIGTERM)
    assert await gateway.exit_code() == 1
    with pytest.raises(TimeoutError):
        await manager.until("READY", 0.2)


async def test_drain_is_told(world):
    """STOPPING=1 at once, with the time that it may take, and then how far it is"""
    manager = Manager(world)
    gateway, target = await world.gateway(env=manager.env(), limits={"drain": "300s"}), world.target()
    client, connection = await world.session(gateway, target)
    made = masked(BINARY, bytes(1000))
    await connection.send(made[:500])
    await client.read_exactly(500)
    gateway.signal(signal.SIGTERM)
    got = await manager.until("STOPPING")
    assert got["STOPPING"] == "1" and "1 session left" in got["STATUS"], got
    assert 300e6 <= int(got["EXTEND_TIMEOUT_USEC"]) <= 310e6, got
    assert "1 session left" in (await manager.until("STATUS"))["STATUS"]
    await connection.send(made[500:])
    await client.expect_raw(made[500:])
    await client.expect_close(1012)
    await client.send_close(1012)
    await connection.expect_close(1001)
    connection.close()
    assert await gateway.exit_code() == 0


async def test_status_counts_sessions(world):
    """the status is what an operator wants to know"""
    manager = Manager(world)
    gateway, target = await world.gateway(env=manager.env()), world.target()
    assert (await manager.message())["STATUS"].startswith("0 sessions; ")
    await world.session(gateway, target)
    assert (await manager.until("STATUS"))["STATUS"].startswith("1 session; ")


# --- the watchdog ------------------------------------------------------------------------------------------------------------
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000


class StoppedThread:
    """Holds one thread of a process, and no other."""

    def __init__(self, pid: int, name: str):
        tasks = [int(task) for task in os.listdir(f"/proc/{pid}/task") if Path(f"/proc/{pid}/task/{task}/comm").read_text().strip() == name]
        (self.tid,) = tasks
        self.libc = ctypes.CDLL(None, use_errno=True)

    def ptrace(self, request: int) -> None:
        if self.libc.ptrace(request, self.tid, None, None) != 0:
            pytest.skip(f"ptrace is not allowed here: {os.strerror(ctypes.get_errno())}")

    def __enter__(self):
        self.ptrace(PTRACE_SEIZE)
        self.ptrace(PTRACE_INTERRUPT)
        os.waitpid(self.tid, WALL)
        return self

    def __exit__(self, *_):
        self.ptrace(PTRACE_DETACH)


async def test_watchdog_says_only_what_is_true(world):
    """WATCHDOG=1 is sent as long as every worker answers, and not while one does not"""
    manager = Manager(world)
    gateway = await world.gateway(env=manager.env(WATCHDOG_USEC="2000000"))
    began = time.monotonic()
    for _ in range(6):
        await manager.until("WATCHDOG", 3)
    assert 1 < time.monotonic() - began < 8, "one each half second"
    with StoppedThread(gateway.pid, "worker-1"):
        with pytest.raises(TimeoutError):  # one may be on its way
            await manager.until("WATCHDOG", 2)
            await manager.until("WATCHDOG", 3)
    await manager.until("WATCHDOG", 3)


async def test_watchdog_of_another_process(world):
    """WATCHDOG_PID names whom it is meant for"""
    manager = Manager(world)
    await world.gateway(env=manager.env(WATCHDOG_USEC="200000", WATCHDOG_PID="1"))
    with pytest.raises(TimeoutError):
        await manager.until("WATCHDOG", 1.5)


async def test_watchdog_in_a_drain(world):
    """a gateway that drains is alive"""
    manager = Manager(world)
    gateway, target = await world.gateway(env=manager.env(WATCHDOG_USEC="800000"), limits={"drain": "20s"}), world.target()
    _, connection = await world.session(gateway, target)
    await connection.send(masked(BINARY, bytes(1000))[:500])
    gateway.signal(signal.SIGTERM)
    await manager.until("STOPPING")
    for _ in range(4):
        await manager.until("WATCHDOG", 3)


# --- exit codes ---------------------------------------------------------------------------------------------------------------
async def test_exit_code_2_for_what_the_user_wrote(world, tmp_path):
    """2 usage or configuration"""
    (tmp_path / "gateway.toml").write_text(toml(gateway_config()))
    for keys in (None, "broken"):
        if keys is not None:
            (tmp_path / "keys.toml").write_text(keys)
        gateway = await world.process("gateway", "-c", str(tmp_path / "gateway.toml"))
        assert await gateway.exit_code() == 2
        assert "keys.toml" in gateway.err, gateway.err
    for fd in ("0", "2"):
        gateway = await world.process("gateway", "-c", str(tmp_path / "gateway.toml"), "--ready-fd", fd, ready=False)
        assert await gateway.exit_code() == 2
        assert "--ready-fd" in gateway.err, gateway.err


async def test_ready_fd_without_a_reader(world):
    """said in the log, and the gateway serves"""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        folder = world.folder()
        (folder / "keys.toml").write_text(toml({"key": [key_entry()]}))
        (folder / "gateway.toml").write_text(toml(gateway_config()))
        gateway = await world.process("gateway", "-c", str(folder / "gateway.toml"), "--ready-fd", str(writer), ready=False, pass_fds=[writer])
    finally:
        os.close(writer)
    await gateway.line("WARN .*--ready-fd.*nobody was told")
    gateway.port = int((await gateway.line(r"^listening on \S+:(\d+) \(public\)$"))[1])
    await world.session(gateway, world.target())


async def test_ready_fd_that_cannot_be_written_to(world):
    """2 usage, before anything is started"""
    with open("/dev/null", "rb") as file:
        process = await world.process("echo", "--listen", "127.0.0.1:0", "--ready-fd", str(file.fileno()), ready=False, pass_fds=[file.fileno()])
    assert await process.exit_code() == 2
    assert "--ready-fd" in process.err and "not open for writing" in process.err and "listening" not in process.err, process.err


async def test_exit_code_1_for_what_fails(world):
    """1 failed while running"""
    taken = socket.socket()
    world.stack.callback(taken.close)
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    manager = Manager(world)
    gateway = await world.gateway(listen={"addr": [f"127.0.0.1:{taken.getsockname()[1]}"]}, listening=False, env=manager.env())
    assert await gateway.exit_code() == 1
    with pytest.raises(TimeoutError):
        await manager.until("READY", 0.2)


# --- the unit -----------------------------------------------------------------------------------------------------------------
def analyze(folder: Path, of: Path, *words: str) -> str:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (on Debian: apt-get install systemd)")
    # Its paths are those of an installed ringway; here they name this binary.
    unit = folder / of.name
    unit.write_text(of.read_text().replace("/usr/bin/ringway", binary()))
    ran = subprocess.run(["systemd-analyze", *words, str(unit)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_the_unit(tmp_path, unit):
    """`systemd-analyze verify` has nothing to say"""
    said = analyze(tmp_path, unit, "verify")
    assert unit.name not in said and "ringway" not in said, said


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_unit_is_hardened(tmp_path, unit):
    """`systemd-analyze security`: the overall exposure is low"""
    said = analyze(tmp_path, unit, "security", "--offline=true", "--no-pager")
    exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said)[1])
    assert exposure <= MOST_EXPOSURE, said


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_unit_allows_what_ringway_calls(unit):
    """`SystemCallFilter=` has io_uring, epoll, pinning and limits, and none of the dangerous ones"""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (on Debian: apt-get install systemd)")

    def calls(group: str) -> set[str]:
        ran = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager", group], capture_output=True, text=True, check=True)
        found: set[str] = set()
        for word in (line.strip() for line in ran.stdout.splitlines()[1:]):
            found |= calls(word) if word.startswith("@") else {word} if word and not word.startswith("#") else set()
        return found

    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit.read_text(), re.M):
        words = line.removeprefix("~").split()
        named = set().union(*(calls(word) if word.startswith("@") else {word} for word in words))
        allowed = allowed - named if line.startswith("~") else allowed | named
    needed = {"io_uring_setup", "io_uring_enter", "io_uring_register", "epoll_create1", "epoll_ctl", "epoll_wait", "eventfd2", "sched_setaffinity", "sched_getaffinity", "prlimit64", "accept4", "splice", "poll", "getrandom", "madvise"}
    assert needed <= allowed, needed - allowed
    assert not allowed & {"mount", "ptrace", "bpf", "kexec_load", "init_module", "setuid", "chown", "reboot"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_unit_stops_later_than_the_gateway_drains(unit):
    """TimeoutStopSec > drain; a mistake in the configuration is not tried again"""
    text = unit.read_text()
    assert int(re.search(r"^TimeoutStopSec=(\d+)s$", text, re.M)[1]) > 30
    assert re.search(r"^RestartPreventExitStatus=2$", text, re.M)
    assert re.search(r"^ExecReload=\S*kill -HUP \$MAINPID$", text, re.M)

"""The real binary as a child process: configuration written, listeners awaited, output kept, ended by its id."""
from __future__ import annotations

import asyncio
import hashlib
import os
import re
import resource
import signal
from pathlib import Path

from .client import KEY
from .wire import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]
DRIVER = os.environ.get("RINGWAY_TEST_DRIVER", "io_uring")


def binary() -> str:
    return os.environ.get("RINGWAY_BIN") or str(ROOT / "target" / "debug" / "ringway")


def sha256_hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- configuration ------------------------------------------------------------------------------------------------
def toml_value(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def toml(tables: dict) -> str:
    """Top-level values first, then one `[table]` for each dict, `[[table]]` for each list of dicts."""
    lines = [f"{k} = {toml_value(v)}" for k, v in tables.items() if not isinstance(v, dict) and not (isinstance(v, list) and v and isinstance(v[0], dict))]
    for name, table in tables.items():
        many = table if isinstance(table, list) and table and isinstance(table[0], dict) else None
        for one in many or ([table] if isinstance(table, dict) else []):
            lines.append(f"\n[[{name}]]" if many else f"\n[{name}]")
            lines += [f"{k} = {toml_value(v)}" for k, v in one.items()]
    return "\n".join(lines) + "\n"


def key_entry(key: str = KEY, **limits) -> dict:
    """A `[[key]]` of keys.toml; without limits its bucket is far larger than any test needs."""
    return {"id": f"id-{key}", "sha256": sha256_hex(key), **({"rate": 100000.0, "burst": 100000} if not limits else {}), **limits}


def gateway_config(*, driver: str | None = None, workers: int = 2, limits: dict | None = None, egress: dict | None = None, agent: dict | None = None, top: dict | None = None, listen: dict | None = None, tls: dict | None = None, admin: bool = False, embedded: bool = True, agents: dict | None = None) -> dict:
    """gateway.toml as the tests run it. Only keys that this stage of the gateway has: an unbuilt one is refused.

    `admin`: with an admin listener, on any port; the default port would be taken by the next test."""
    return {
        "node_id": "scraping-de1",
        **(top or {}),
        "runtime": {"workers": workers, "driver": driver or DRIVER},
        "listen": {"addr": ["127.0.0.1:0"], **(listen or {})},
        **({"listen.tls": {"addr": ["127.0.0.1:0"], "cert": "cert.pem", "key": "key.pem", **tls}} if tls is not None else {}),
        "admin": {"addr": "127.0.0.1:0" if admin else ""},
        "keys": {"file": "keys.toml"},
        **({"agents": {"tokens": "agents.toml", **agents}} if agents is not None else {}),
        **({"embedded_agent": {"slug": "de1", "country": "DE", **(agent or {})}} if embedded else {}),
        "egress": {"allow": ["127.0.0.0/8", "::1/128"], **(egress or {})},
        **({"limits": limits} if limits else {}),
    }


def agent_config(gateways: list[str], *, slug: str = "de1", country: str = "DE", node_id: str = "scraping-de1", driver: str | None = None, workers: int = 2, egress: dict | None = None, limits: dict | None = None, top: dict | None = None, admin: bool = False) -> dict:
    """agent.toml as the tests run it."""
    return {
        "slug": slug,
        "country": country,
        "node_id": node_id,
        "gateways": gateways,
        "token_file": "agent.token",
        **(top or {}),
        "runtime": {"workers": workers, "driver": driver or DRIVER},
        "egress": {"allow": ["127.0.0.0/8", "::1/128"], **(egress or {})},
        **({"limits": limits} if limits else {}),
        "admin": {"addr": "127.0.0.1:0" if admin else ""},
    }


# --- the process --------------------------------------------------------------------------------------------------
class Process:
    """One run of the binary. `lines` is its standard error, `out` its standard output."""

    def __init__(self, child: asyncio.subprocess.Process, ready_fd: int | None):
        self.child = child
        self.pid = child.pid
        self.lines: list[str] = []
        self.out = ""
        self._changed = asyncio.Event()
        self._ready_fd = ready_fd
        self._readers = [asyncio.create_task(self._read_err()), asyncio.create_task(self._read_out())]

    @classmethod
    async def start(cls, *arguments: str, cwd: Path | str | None = None, ready: bool = True, launcher: list[str] | None = None, env: dict[str, str] | None = None, nofile: int | None = None, stdin=asyncio.subprocess.DEVNULL, pass_fds: list[int] = []) -> "Process":
        """`launcher` goes in front of the binary (a wrapper that execs); `nofile` is the hard limit of open files."""
        read_fd = write_fd = None
        words = [*(launcher or []), binary(), *arguments]
        if ready:
            read_fd, write_fd = os.pipe()
            words += ["--ready-fd", str(write_fd)]

        def limit() -> None:
            if nofile:
                resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

        child = await asyncio.create_subprocess_exec(
            *words, cwd=cwd, stdin=stdin, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            pass_fds=[*pass_fds, *([write_fd] if ready else [])], preexec_fn=limit if nofile else None,
            env={**{k: v for k, v in os.environ.items() if not k.startswith("RINGWAY_")}, **(env or {})}, limit=1 << 20,
        )
        if ready:
            os.close(write_fd)
        return cls(child, read_fd)

    async def _read_err(self) -> None:
        async for line in self.child.stderr:
            self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
            self._changed.set()

    async def _read_out(self) -> None:
        while data := await self.child.stdout.read(65536):
            self.out += data.decode("utf-8", "replace")
            self._changed.set()

    @property
    def err(self) -> str:
        return "\n".join(self.lines)

    async def wait_until(self, condition, what: str, patience: float = PATIENCE_S):
        """Until `condition()` is true of the output; its value."""
        async with asyncio.timeout(patience) as limit:
            try:
                while not (found := condition()):
                    if all(reader.done() for reader in self._readers):
                        raise AssertionError(f"the binary ended ({await self.child.wait()}) before {what}; stderr:\n{self.err}")
                    self._changed.clear()
                    changed = asyncio.create_task(self._changed.wait())
                    await asyncio.wait([changed, *(r for r in self._readers if not r.done())], return_when=asyncio.FIRST_COMPLETED)
                    changed.cancel()
                return found
            except TimeoutError:
                raise AssertionError(f"no {what} within {patience} s; stderr:\n{self.err}\nstdout:\n{self.out}") from None
            finally:
                del limit

    async def line(self, pattern: str, patience: float = PATIENCE_S) -> re.Match:
        """The first line of standard error that `pattern` is found in."""
        return await self.wait_until(lambda: next((m for line in self.lines if (m := re.search(pattern, line))), None), f"line {pattern!r}", patience)

    async def ready(self, patience: float = PATIENCE_S) -> None:
        """`ready` comes on the fd given by `--ready-fd`, and the fd is closed."""
        loop = asyncio.get_running_loop()
        fd, self._ready_fd = self._ready_fd, None
        with os.fdopen(fd, "rb", buffering=0) as pipe:
            got = await asyncio.wait_for(loop.run_in_executor(None, pipe.read), patience)
        assert got == b"ready\n", f"{got!r} on the ready fd; stderr:\n{self.err}"

    def signal(self, number: int) -> None:
        self.child.send_signal(number)

    async def exit_code(self, patience: float = PATIENCE_S) -> int:
        try:
            code = await asyncio.wait_for(self.child.wait(), patience)
        except TimeoutError:
            raise AssertionError(f"still running after {patience} s; stderr:\n{self.err}") from None
        await asyncio.wait(self._readers, timeout=2)
        return code

    async def kill(self) -> None:
        """The end of every test: by id, whatever state it is in."""
        if self._ready_fd is not None:
            os.close(self._ready_fd)
            self._ready_fd = None
        if self.child.returncode is None:
            try:
                self.child.kill()
            except ProcessLookupError:
                pass
            await self.child.wait()
        for reader in self._readers:
            reader.cancel()

    # --- what the kernel says about it ---------------------------------------------------------------------------
    def rss(self) -> int:
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def sockets(self) -> int:
        count = 0
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                count += os.readlink(f"/proc/{self.pid}/fd/{fd}").startswith("socket:")
            except OSError:
                pass
        return count

    def cpu_s(self) -> float:
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Gateway(Process):
    """`ringway gateway -c gateway.toml`, listening."""

    port = 0
    """Of the first plain listener, or of the first with TLS where there is no plain one."""
    tls_port = 0
    admin_port = 0

    @classmethod
    async def run(cls, folder: Path, *, keys: list[dict] | None = None, tokens: list[dict] | None = None, launcher: list[str] | None = None, env: dict | None = None, nofile: int | None = None, listening: bool = True, **config) -> "Gateway":
        (folder / "keys.toml").write_text(toml({"key": keys if keys is not None else [key_entry()]}))
        if tokens is not None:
            write_tokens(folder, tokens)
            config.setdefault("agents", {})
        (folder / "gateway.toml").write_text(toml(gateway_config(**config)))
        # Started from another folder: relative paths count from the file's.
        gateway = await cls.start("gateway", "-c", str(folder / "gateway.toml"), cwd="/", launcher=launcher, env=env, nofile=nofile)
        if listening:
            try:
                if (config.get("listen") or {}).get("addr") != []:
                    gateway.port = int((await gateway.line(r"^listening on (?:\S+):(\d+) \(public\)$"))[1])
                if config.get("tls") is not None:
                    gateway.tls_port = int((await gateway.line(r"^listening on (?:\S+):(\d+) \(public, tls\)$"))[1])
                gateway.port = gateway.port or gateway.tls_port
                if config.get("admin"):
                    gateway.admin_port = int((await gateway.line(r"^listening on (?:\S+):(\d+) \(admin\)$"))[1])
                await gateway.ready()
            except BaseException:
                await gateway.kill()
                raise
        return gateway


# --- remote agents ------------------------------------------------------------------------------------------------
TOKEN = "test-agent-token"


def token_entry(slug: str = "de1", token: str = TOKEN, **more) -> dict:
    """An `[[agent]]` of agents.toml."""
    return {"slug": slug, "sha256": sha256_hex(token), **more}


def write_tokens(folder: Path, tokens: list[dict]) -> None:
    (folder / "agents.toml").write_text(toml({"agent": tokens}))


class Agent(Process):
    """`ringway agent -c agent.toml`, linked to its first gateway."""

    admin_port = 0

    @classmethod
    async def run(cls, folder: Path, gateways: list[str], *, token: str = TOKEN, linked: bool = True, launcher: list[str] | None = None, env: dict | None = None, nofile: int | None = None, **config) -> "Agent":
        (folder / "agent.token").write_text(token + "\n")
        (folder / "agent.token").chmod(0o600)
        (folder / "agent.toml").write_text(toml(agent_config(gateways, **config)))
        agent = await cls.start("agent", "-c", str(folder / "agent.toml"), cwd="/", ready=True, launcher=launcher, env=env, nofile=nofile)
        try:
            if config.get("admin"):
                agent.admin_port = int((await agent.line(r"^listening on (?:\S+):(\d+) \(admin\)$"))[1])
            if linked:
                await agent.ready()
        except BaseException:
            await agent.kill()
            raise
        return agent

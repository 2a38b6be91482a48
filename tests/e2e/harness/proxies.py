"""Proxies in front of targets: one whose every byte a test decides, and real ones, each a child process."""
from __future__ import annotations

import asyncio
import base64
import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from .client import open_tcp
from .target import Target
from .wire import PATIENCE_S, Lost, PlainPipe, Wire

USER, PASSWORD = "proxyuser", "s3cr3t:p@ss/%"
"""Credentials that need percent-encoding in a URL."""
SOCKS5_YES = b"\x05\0\0\x01\0\0\0\0\0\0"


def proxy_url(scheme: str, port: int, user: str | None = None, password: str | None = None, host: str = "127.0.0.1") -> str:
    userinfo = f"{quote(user, safe='')}:{quote(password or '', safe='')}@" if user is not None else ""
    return f"{scheme}://{userinfo}{host}:{port}"


# --- a scripted one -----------------------------------------------------------------------------------------------------
class ProxyConnection(Wire):
    """The proxy's side of one connection, step by step."""

    async def read_socks5(self, method: int = 0) -> tuple[bytes, tuple[str, int]]:
        """A whole conversation up to the request, with this method; the methods that were offered, and who is asked for."""
        methods = await self.read_greeting()
        await self.send(bytes([5, method]))
        if method == 2:
            await self.read_credentials()
            await self.send(b"\x01\0")
        return methods, await self.read_request()

    async def read_greeting(self) -> bytes:
        version, count = await self.read_exactly(2)
        assert version == 5
        return await self.read_exactly(count)

    async def read_credentials(self) -> tuple[bytes, bytes]:
        assert await self.read_exactly(1) == b"\x01"
        user = await self.read_exactly((await self.read_exactly(1))[0])
        return user, await self.read_exactly((await self.read_exactly(1))[0])

    async def read_request(self) -> tuple[str, int]:
        """Host as a text, and port."""
        version, command, reserved, kind = await self.read_exactly(4)
        assert (version, command, reserved) == (5, 1, 0)
        if kind == 3:
            host = (await self.read_exactly((await self.read_exactly(1))[0])).decode()
        else:
            family, size = {1: (socket.AF_INET, 4), 4: (socket.AF_INET6, 16)}[kind]
            host = socket.inet_ntop(family, await self.read_exactly(size))
        return host, int.from_bytes(await self.read_exactly(2), "big")

    async def read_head(self) -> list[str]:
        """The lines of a CONNECT."""
        return (await self.read_until(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]

    async def say_yes(self, kind: str, behind: bytes = b"") -> None:
        """Reads what is asked, whoever it is for, and lets it through."""
        if kind == "socks5":
            await self.read_socks5()
            await self.send(SOCKS5_YES + behind)
        else:
            await self.read_head()
            await self.send(b"HTTP/1.1 200 OK\r\n\r\n" + behind)

    async def splice(self, port: int, host: str = "127.0.0.1") -> None:
        """From now on a connection to there, until either side ends."""
        other = Wire(await open_tcp(port, host))

        async def pump(source: Wire, sink: Wire) -> None:
            try:
                if source.buffer:
                    await sink.pipe.send(bytes(source.buffer))
                    source.buffer.clear()
                while data := await source.pipe.recv(65536):
                    await sink.pipe.send(data)
                sink.pipe.half_close()
            except OSError:
                pass

        try:
            await asyncio.gather(pump(self, other), pump(other, self))
        finally:
            other.close()


class ScriptedProxy(Target):
    """A listening socket whose connections a test serves by hand."""

    async def accept(self, patience: float = PATIENCE_S) -> ProxyConnection:
        connection = ProxyConnection(PlainPipe(await self.accept_tcp(patience)))
        self.connections.append(connection)
        return connection

    def address(self, kind: str, user: str | None = None, password: str | None = None) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return proxy_url(kind, self.port, user, password, host)

    def serve(self, kind: str, port: int) -> "ScriptedProxy":
        """Lets everybody through, to that port of this machine, whatever they ask for. `asked`: what that was."""
        self.asked: list[tuple[str, int] | list[str]] = []

        async def one(connection: ProxyConnection) -> None:
            try:
                if kind == "socks5":
                    self.asked.append((await connection.read_socks5())[1])
                    await connection.send(SOCKS5_YES)
                else:
                    self.asked.append(await connection.read_head())
                    await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
                await connection.splice(port)
            except (Lost, OSError):
                pass
            finally:
                connection.close()

        async def all_of_them() -> None:
            while True:
                self.tasks.append(asyncio.create_task(one(await self.accept(3600.0))))

        self.tasks.append(asyncio.create_task(all_of_them()))
        return self


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# --- real ones ----------------------------------------------------------------------------------------------------------
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def program(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
    if not found:
        pytest.skip(f"{name} is missing (on Debian: {package})")
    return found


class RealProxy:
    """A proxy program that runs; `url` is how a client names it, `wrong` the same with a password that it refuses."""

    def __init__(self, child: asyncio.subprocess.Process, url: str, wrong: str | None, log: Path):
        self.child, self.url, self.wrong, self.log = child, url, wrong, log

    @classmethod
    async def start(cls, world, words: list[str], port: int, url: str, wrong: str | None, folder: Path) -> "RealProxy":
        log = folder / "log"
        with open(log, "wb") as out:
            child = await asyncio.create_subprocess_exec(*words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        proxy = cls(child, url, wrong, log)
        world.stack.push_async_callback(proxy.kill)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                assert child.returncode is None, f"{words[0]} ended: {log.read_text(errors='replace')}"
                try:
                    (await open_tcp(port)).close()
                    return proxy
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """With the children that it has made: they are of its process group, which is this test's own."""
        if self.child.returncode is None:
            os.killpg(self.child.pid, 9)
            await self.child.wait()


async def microsocks(world, authentication: bool) -> RealProxy:
    port = free_port()
    words = [program("microsocks", "microsocks"), "-i", "127.0.0.1", "-p", str(port)]
    if authentication:
        words += ["-u", USER, "-P", PASSWORD]
    user = (USER, PASSWORD) if authentication else ()
    return await RealProxy.start(world, words, port, proxy_url("socks5h", port, *user), proxy_url("socks5", port, USER, "wrong") if authentication else None, world.folder())


async def danted(world, authentication: bool) -> RealProxy:
    """It asks the system for passwords, so with authentication it runs with a passwd and a shadow of its own."""
    found, port, folder = program("danted", "dante-server"), free_port(), world.folder()
    me = pwd.getpwuid(os.getuid()).pw_name
    (folder / "danted.conf").write_text(
        f"logoutput: stderr\ninternal: 127.0.0.1 port = {port}\nexternal: 127.0.0.1\nclientmethod: none\n"
        f"socksmethod: {'username' if authentication else 'none'}\nuser.privileged: {me}\nuser.unprivileged: {me}\n"
        "client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\nsocks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
    )
    words = [found, "-f", str(folder / "danted.conf"), "-p", str(folder / "danted.pid")]
    if not authentication:
        return await RealProxy.start(world, words, port, proxy_url("socks5", port), None, folder)
    password = "s3cr3t:p@ss"
    openssl = subprocess.run(["openssl", "passwd", "-6", password], capture_output=True, text=True)
    if openssl.returncode or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("a passwd of danted's own needs openssl and a mount namespace")
    for name, line in (("passwd", f"{USER}:x:65534:65534::/:/bin/false"), ("shadow", f"{USER}:{openssl.stdout.strip()}:20000::::::")):
        (folder / name).write_text(Path("/etc", name).read_text() + line + "\n")
    script = 'mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/shadow" /etc/shadow && shift && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", script, "sh", str(folder), *words]
    return await RealProxy.start(world, words, port, proxy_url("socks5", port, USER, password), proxy_url("socks5", port, USER, "wrong"), folder)


async def tinyproxy(world, authentication: bool) -> RealProxy:
    found, port, folder = program("tinyproxy", "tinyproxy-bin"), free_port(), world.folder()
    password = "s3cr3t-p_ss"  # it takes no odder ones from its configuration
    (folder / "tinyproxy.conf").write_text(f"Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nLogLevel Connect\n" + (f"BasicAuth {USER} {password}\n" if authentication else ""))
    user = (USER, password) if authentication else ()
    return await RealProxy.start(world, [found, "-d", "-c", str(folder / "tinyproxy.conf")], port, proxy_url("http", port, *user), proxy_url("http", port, USER, "wrong") if authentication else None, folder)

"""A network of a test's own: a namespace with loopback, addresses that swallow packets, and a DNS server.

The namespace has no name: it lives as long as the thread, the sockets and the children that are in it.
"""
from __future__ import annotations

import asyncio
import ctypes
import functools
import inspect
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from .world import World

CLONE_NEWNET = 0x40000000
SETUP = """
ip link set lo up
ip route add 10.77.0.0/24 dev lo
ip -6 route add fd77::/64 dev lo
tries=0
until ip route get 10.77.0.9 && ip -6 route get fd77::9; do
    tries=$((tries + 1))
    [ $tries -lt 100 ]
    sleep 0.05
done
"""
"""What is sent to 10.77.0.0/24 or fd77::/64 comes back on loopback, is nobody's, and so is swallowed.
The kernel takes a moment until loopback's routes count: before that, the network is unreachable."""


class Dns:
    """Answers A questions from `names`; `hang…` gets no answer, the rest NXDOMAIN. `asked` counts."""

    def __init__(self, names: dict[str, str]):
        self.names, self.asked = names, []
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 53))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                question, peer = self.sock.recvfrom(4096)
            except OSError:
                return
            labels, at = [], 12
            while question[at]:
                labels.append(question[at + 1 : at + 1 + question[at]].decode().lower())
                at += 1 + question[at]
            (kind,) = struct.unpack_from("!H", question, at + 1)
            section, name = question[12 : at + 5], ".".join(labels)
            self.asked.append(name)
            if name.startswith("hang"):
                continue
            address = self.names.get(name)
            answer = b""
            if address and kind == 1:
                answer = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(address)
            code = 0 if address else 3
            self.sock.sendto(question[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, 1 if answer else 0, 0, 0) + section + answer, peer)

    def close(self) -> None:
        self.sock.close()


def launcher(folder: Path, hosts: str = "") -> list[str]:
    """Runs the binary with these /etc/hosts and with the namespace's DNS server, seen by it alone."""
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:5 attempts:2\n")
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + hosts)
    script = 'mount --bind "$1/resolv.conf" /etc/resolv.conf && mount --bind "$1/hosts" /etc/hosts && shift && exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, "sh", str(folder)]


def in_namespace(test):
    """Runs an `async def test(world)` on a thread that has its own network; skips where that is not allowed."""

    @functools.wraps(test)
    def run(**arguments) -> None:
        failure: list[BaseException] = []

        def body() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.unshare(CLONE_NEWNET) != 0:
                    pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
                made = subprocess.run(["sh", "-ec", SETUP], capture_output=True, text=True)
                if made.returncode:
                    pytest.skip(f"cannot set the network up: {made.stderr.strip()}")
                asyncio.run(session())
            except BaseException as error:
                failure.append(error)

        async def session() -> None:
            world = World()
            try:
                async with asyncio.timeout(90):
                    await test(world, **arguments)
            finally:
                await world.close()

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]

    del run.__wrapped__
    run.__signature__ = inspect.Signature()
    return run

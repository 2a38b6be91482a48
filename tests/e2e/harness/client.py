"""A WebSocket client of raw bytes, and the steps that every session begins with."""
from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import socket
import ssl

from . import frames
from .secure import SecurePipe
from .wire import PATIENCE_S, PlainPipe, Wire

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KEY = "test-key"
"""The API key that every gateway of the harness knows, with a bucket that tests do not empty by chance."""


def accept_of(key: str) -> str:
    return base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()


def upgrade_request(path: str = "/ws", headers: dict[str, str] | None = None, key: str | None = None) -> bytes:
    lines = {
        "Host": "relay.example.com",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key or base64.b64encode(os.urandom(16)).decode(),
        **(headers or {}),
    }
    return f"GET {path} HTTP/1.1\r\n".encode() + b"".join(f"{n}: {v}\r\n".encode() for n, v in lines.items() if v is not None) + b"\r\n"


async def open_tcp(port: int, host: str = "127.0.0.1", *, rcvbuf: int | None = None, sndbuf: int | None = None) -> PlainPipe:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    if rcvbuf:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    if sndbuf:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    sock.setblocking(False)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, (host, port)), PATIENCE_S)
    except BaseException:
        sock.close()
        raise
    return PlainPipe(sock)


class Client(Wire):
    """One client connection to a gateway."""

    masks = True

    @classmethod
    async def tcp(cls, port: int, *, tls: ssl.SSLContext | None = None, **sizes) -> "Client":
        """Connected, nothing sent; with `tls` its handshake is done."""
        pipe = await open_tcp(port, **sizes)
        return cls(await SecurePipe.connect(pipe.sock, tls) if tls else pipe)

    async def upgrade(self, path: str = "/ws", headers: dict[str, str] | None = None, behind: bytes = b"") -> str:
        """The opening handshake; `behind` goes out in the same write. Gives the answer's head."""
        key = base64.b64encode(os.urandom(16)).decode()
        await self.send(upgrade_request(path, headers, key) + behind)
        head = (await self.read_until(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 101 "), head
        fields = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in head.split("\r\n")[1:-2])}
        assert fields["sec-websocket-accept"] == accept_of(key), head
        assert fields["upgrade"].lower() == "websocket", head
        assert "upgrade" in fields["connection"].lower(), head
        return head

    async def connect(self, message: dict | str | bytes) -> None:
        """Sends the connect message in one frame."""
        await self.send(connect_frame(message))

    async def expect_connected(self, subprotocol: str | None = None, patience: float = PATIENCE_S) -> None:
        got = await self.read_json(patience)
        want = {"type": "connected", "status": 101, "node_id": "scraping-de1"}
        if subprotocol is not None:
            want["subprotocol"] = subprotocol
        assert got == want, got
        assert list(got)[:3] == ["type", "status", "node_id"], got

    async def expect_error(self, code: str, close: int, message: str | None = None, contains: str | None = None, patience: float = PATIENCE_S) -> dict:
        """The error JSON, then Close with this code, then (after our own Close) the end of TCP."""
        got = await self.read_json(patience)
        assert got["type"] == "error" and list(got)[:2] == ["type", "message"], got
        assert got.get("code") == code, got
        if message is not None:
            assert got["message"] == message, got
        if contains is not None:
            assert contains.lower() in got["message"].lower(), got
        await self.expect_close(close)
        await self.finish(close)
        return got

    async def finish(self, code: int | None = 1000) -> None:
        """Answers a Close; then the server closes TCP first, and cleanly."""
        await self.send_close(code)
        await self.expect_end()
        self.close()


def connect_frame(message: dict | str | bytes, **bits) -> bytes:
    if isinstance(message, dict):
        message = json.dumps(message)
    return frames.masked(frames.TEXT, message.encode() if isinstance(message, str) else message, **bits)

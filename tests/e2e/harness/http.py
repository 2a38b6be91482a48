"""Requests to a gateway's HTTP surface, and their answers."""
from __future__ import annotations

import asyncio
import json
import time

from .client import Client
from .process import Gateway
from .wire import PATIENCE_S


class Answer:
    def __init__(self, head: str, body: bytes):
        lines = head.split("\r\n")
        self.status = int(lines[0].split()[1])
        self.head = head
        self.fields = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:] if line)}
        self.body = body

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> dict:
        assert self.fields["content-type"] == "application/json", self.head
        return json.loads(self.body)

    def expect_error(self, status: int, code: str) -> "Answer":
        got = self.json()
        assert (self.status, got["type"], got["code"]) == (status, "error", code), (self.head, got)
        assert got["message"], got
        return self


async def read_answer(wire, patience: float = PATIENCE_S) -> Answer:
    head = (await wire.read_until(b"\r\n\r\n", patience)).decode("latin-1")
    answer = Answer(head, b"")
    answer.body = await wire.read_exactly(int(answer.fields["content-length"]), patience)
    return answer


def request_bytes(path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in {"Host": "127.0.0.1", **(headers or {})}.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


async def fetch(port: int, path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    wire = await Client.tcp(port)
    try:
        await wire.send(request_bytes(path, method=method, headers=headers))
        return await read_answer(wire)
    finally:
        wire.close()


async def until(ask, condition, what: str, patience: float = PATIENCE_S):
    """Asks again and again until `condition` is true of the answer; that answer."""
    end = time.monotonic() + patience
    while not condition(got := await ask()):
        assert time.monotonic() < end, f"no {what} within {patience} s: {got}"
        await asyncio.sleep(0.05)
    return got


async def samples(gateway: Gateway) -> dict[str, float]:
    """`/metrics`: each series, labels in alphabetical order, with its value."""
    answer = await fetch(gateway.admin_port, "/metrics")
    assert answer.status == 200, answer.head
    return parse_samples(answer.text)


def parse_samples(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name, _, labels = series.partition("{")
            labels = ",".join(sorted(labels.rstrip("}").split(","))) if labels else ""
            series = name + ("{" + labels + "}" if labels else "")
            assert series not in found, f"{series} stands twice"
            found[series] = float(value)
    return found


async def sessions(gateway: Gateway) -> list[dict]:
    answer = await fetch(gateway.admin_port, "/sessions")
    assert answer.status == 200, answer.text
    return answer.json()["sessions"]

"""The transparent form: what a client asks for in the address of `/ws`."""
from __future__ import annotations

from urllib.parse import quote

from .client import KEY, Client, upgrade_request
from .http import Answer, read_answer
from .process import Gateway
from .target import Target, TargetConnection


def address(url: str | None, key: str | None = None, **fields: str) -> str:
    """`/ws?…`, everything in it percent-encoded."""
    pairs = {**({"url": url} if url is not None else {}), **({"key": key} if key is not None else {}), **fields}
    return "/ws?" + "&".join(f"{name}={quote(str(value), safe='')}" for name, value in pairs.items())


async def ask(world, gateway: Gateway, path: str, headers: dict | None = None) -> Client:
    """A client that has sent its request, with the key in a header unless `headers` says otherwise."""
    client = await world.tcp(gateway)
    await client.send(upgrade_request(path, {"X-API-Key": KEY, **(headers or {})}))
    return client


async def dialling(world, gateway: Gateway, target: Target, rest: str = "/", headers: dict | None = None, **fields) -> tuple[Client, TargetConnection]:
    """The target has the request and has not answered."""
    client = await ask(world, gateway, address(target.url(rest), **fields), headers)
    connection = await target.accept()
    await connection.read_request()
    return client, connection


async def session(world, gateway: Gateway, target: Target, rest: str = "/", headers: dict | None = None, extra: str = "", **fields) -> tuple[Client, TargetConnection]:
    """A relayed session, nothing passed yet; `client.head` is the answer's."""
    client, connection = await dialling(world, gateway, target, rest, headers, **fields)
    await connection.send(connection.switching(extra))
    client.head = (await client.read_until(b"\r\n\r\n")).decode("latin-1")
    assert client.head.startswith("HTTP/1.1 101 "), client.head
    return client, connection


async def refused(world, gateway: Gateway, path: str, status: int, code: str, headers: dict | None = None) -> Answer:
    """The error that answers this request; then the connection ends."""
    client = await ask(world, gateway, path, headers)
    answer = (await read_answer(client)).expect_error(status, code)
    assert answer.fields.get("connection", "").lower() == "close", answer.head
    await client.expect_fin()
    client.close()
    return answer

"""What a test is handed: it makes gateways, clients and targets, and takes them all down at the end."""
from __future__ import annotations

import asyncio
import os
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from .client import KEY, Client, upgrade_request
from .process import Agent, Gateway, Process, token_entry
from .programs import Program
from .secure import SecurePipe
from .target import Target, TargetConnection
from .tls import Authority
from .wire import PATIENCE_S


REMOTE = os.environ.get("RINGWAY_TEST_AGENT") == "remote"
"""The same tests with a remote agent in the place of the embedded one."""


class World:
    def __init__(self, front_tls: bool = False, target_tls: bool = False, remote: bool = REMOTE) -> None:
        """`front_tls`: gateways listen with TLS only, and clients connect so; `target_tls`: targets are `wss://`; `remote`:
        a remote agent in the place of the embedded one."""
        self.remote = remote
        self.stack = AsyncExitStack()
        self.front_tls, self.target_tls = front_tls, target_tls
        self.authority = Authority(self.folder()) if front_tls or target_tls else None

    def front(self, **options) -> dict:
        """`options` of a gateway with what this world's front asks for."""
        if self.front_tls and "tls" not in options:
            pem = str(self.authority.identity("localhost", "127.0.0.1"))
            options = {**options, "tls": {"cert": pem, "key": pem}, "listen": {**(options.get("listen") or {}), "addr": []}}
        if self.target_tls:
            options = {**options, "egress": {"ca_file": str(self.authority.file), **(options.get("egress") or {})}}
        return options

    def folder(self) -> Path:
        return Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="ringway-test-")))

    async def gateway(self, **options) -> Gateway:
        """A running gateway; options as for `Gateway.run` and `gateway_config`."""
        options = self.front(**options)
        options.setdefault("folder", self.folder())
        agent = self.split(options) if self.remote and options.get("embedded", True) and "tokens" not in options else None
        gateway = await Gateway.run(options.pop("folder"), **options)
        self.stack.push_async_callback(gateway.kill)
        if agent is not None:
            gateway.agent = await self.agent(gateway, **agent)
        return gateway

    def split(self, options: dict) -> dict:
        """Takes the embedded agent out of a gateway's options; what a remote agent in its place is given."""
        agent = {"slug": "de1", "country": "DE", "node_id": "scraping-de1", **(options.pop("agent", None) or {})}
        options.update(embedded=False, tokens=[token_entry(agent["slug"])])
        kept = {name: options[name] for name in ("driver", "workers", "egress", "env", "folder", "launcher", "admin") if name in options}
        limits = {name: value for name, value in (options.get("limits") or {}).items() if name in ("target_timeout", "tcp_keepalive")}
        return {**agent, **kept, **({"limits": limits} if limits else {})}

    async def agent(self, *gateways: Gateway, folder: Path | None = None, **options) -> Agent:
        """A remote agent that is linked to the first of these gateways; options as for `Agent.run`."""
        addresses = [f"ws{'s' if gateway.port == gateway.tls_port else ''}://localhost:{gateway.port}/agent" for gateway in gateways]
        if any(address.startswith("wss") for address in addresses):
            options["top"] = {"ca_file": str(self.authority.file), **(options.get("top") or {})}
        agent = await Agent.run(folder or self.folder(), addresses, **options)
        self.stack.push_async_callback(agent.kill)
        return agent

    async def process(self, *arguments: str, **options) -> Process:
        process = await Process.start(*arguments, **options)
        self.stack.push_async_callback(process.kill)
        return process

    def target(self, *arguments, **options) -> Target:
        if self.target_tls and "tls" not in options:
            options["tls"] = self.authority.server("localhost", "127.0.0.1")
        target = Target(*arguments, **options)
        if self.target_tls:
            target.pipe = SecurePipe
        self.stack.callback(target.close)
        return target

    async def tcp(self, gateway: Gateway, **sizes) -> Client:
        """A connection to the gateway on which nothing was sent."""
        if self.front_tls and "tls" not in sizes:
            sizes["tls"] = self.authority.client()
        client = await Client.tcp(gateway.port, **sizes)
        self.stack.callback(client.close)
        return client

    async def client(self, gateway: Gateway, headers: dict | None = None, path: str = "/ws", **sizes) -> Client:
        """An upgraded client that has not sent its connect message."""
        client = await self.tcp(gateway, **sizes)
        await client.upgrade(path, headers)
        return client

    async def dialling(self, gateway: Gateway, target: Target, rest: str = "/", sizes: dict | None = None, **fields) -> tuple[Client, TargetConnection]:
        """A client whose connect message was taken: the target has the request and has not answered."""
        client = await self.client(gateway, **(sizes or {}))
        await client.connect({"apiKey": KEY, "url": target.url(rest), **fields})
        connection = await target.accept()
        await connection.read_request()
        return client, connection

    async def session(self, gateway: Gateway, target: Target, rest: str = "/", sizes: dict | None = None, **fields) -> tuple[Client, TargetConnection]:
        """A relayed session: both ends raw, nothing passed yet."""
        client, connection = await self.dialling(gateway, target, rest, sizes, **fields)
        await connection.send(connection.switching())
        await client.expect_connected()
        return client, connection

    async def refused(self, gateway: Gateway, message: dict | str | bytes, code: str, close: int, text: str | None = None, **contains) -> dict:
        """A client whose connect message is answered with this error; the error."""
        client = await self.client(gateway)
        await client.connect(message)
        return await client.expect_error(code, close, text, **contains)

    async def until_upgraded(self, gateway: Gateway) -> Client:
        """A client as soon as there is room for one: meanwhile the gateway answers 503."""
        end = time.monotonic() + PATIENCE_S
        while True:
            client = await self.tcp(gateway)
            await client.send(upgrade_request())
            head = await client.read_until(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 101 "):
                return client
            assert head.startswith(b"HTTP/1.1 503 ") and time.monotonic() < end, head
            client.close()
            await asyncio.sleep(0.05)

    async def program(self, program: Program) -> Program:
        """A client of another make, taken down at the end with the rest."""
        self.stack.push_async_callback(program.kill)
        return program

    async def pair(self, sizes: dict | None = None, target: dict | None = None, **options) -> tuple[Gateway, Target, Client, TargetConnection]:
        """A gateway, a target and one session between them."""
        gateway, made = await self.gateway(**options), self.target(**(target or {}))
        return gateway, made, *(await self.session(gateway, made, sizes=sizes))

    async def close(self) -> None:
        await self.stack.aclose()

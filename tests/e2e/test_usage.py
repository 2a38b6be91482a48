"""CONTRACT 5: `GET /usage` and `GET /network/agents`."""
from __future__ import annotations

import asyncio

from harness.client import KEY
from harness.http import fetch, until
from harness.process import key_entry

KEYS = ["id", "rate", "burst", "tokens", "sessions_active", "sessions_total", "bytes_client_to_target", "bytes_target_to_client"]


async def usage(gateway, key: str = KEY) -> dict:
    answer = await fetch(gateway.port, "/usage", headers={"X-API-Key": key})
    assert answer.status == 200, answer.head
    assert list(answer.json()) == KEYS
    return answer.json()


async def test_usage_of_a_key(world):
    """`{"id","rate","burst","tokens","sessions_active","sessions_total","bytes_client_to_target","bytes_target_to_client"}` of that key"""
    gateway, target = await world.gateway(keys=[key_entry(KEY, rate=0.001, burst=5), key_entry("other", rate=2.5, burst=7)]), world.target()
    fresh = {"id": f"id-{KEY}", "rate": 0.001, "burst": 5, "tokens": 5, "sessions_active": 0, "sessions_total": 0, "bytes_client_to_target": 0, "bytes_target_to_client": 0}
    assert await usage(gateway) == fresh
    client, connection = await world.session(gateway, target)
    sent, back = await client.send_text("x" * 5000), await connection.send_text("y" * 300)
    await connection.expect_raw(sent)
    await client.expect_raw(back)
    live = await usage(gateway)
    assert 4 <= live.pop("tokens") < 4.1
    assert live == {**{name: fresh[name] for name in KEYS if name != "tokens"}, "sessions_active": 1, "sessions_total": 1, "bytes_client_to_target": len(sent), "bytes_target_to_client": len(back)}
    assert await usage(gateway, "other") == {**fresh, "id": "id-other", "rate": 2.5, "burst": 7, "tokens": 7}
    sent += await client.send_close(1000)
    await connection.expect_close(1000)
    back += await connection.send_close(1000)
    await client.expect_close(1000)
    client.close()
    connection.close()
    ended = await until(lambda: usage(gateway), lambda got: got["sessions_active"] == 0, "end of the session")
    assert (ended["sessions_total"], ended["bytes_client_to_target"], ended["bytes_target_to_client"]) == (1, len(sent), len(back))


async def test_tokens_are_the_level_now(world):
    """`tokens` the bucket's level now: asking costs none, a session one, and they come back"""
    gateway, target = await world.gateway(keys=[key_entry(KEY, rate=2, burst=2)]), world.target()
    for _ in range(10):
        assert (await usage(gateway))["tokens"] == 2
    await world.session(gateway, target)
    assert (await usage(gateway))["tokens"] < 2
    await until(lambda: usage(gateway), lambda got: got["tokens"] == 2, "full bucket")


async def test_sessions_on_all_workers_are_one_account(world):
    """of that key, across workers"""
    gateway, target = await world.gateway(workers=3), world.target().serve_echo()

    async def one() -> int:
        client = await world.client(gateway)
        await client.connect({"apiKey": KEY, "url": target.url()})
        await client.expect_connected()
        sent = await client.send_text("hello")
        await client.read_frame()
        return len(sent)

    sent = sum(await asyncio.gather(*(one() for _ in range(30))))
    got = await usage(gateway)
    assert (got["sessions_active"], got["sessions_total"], got["bytes_client_to_target"]) == (30, 30, sent)


async def test_refused_sessions_are_not_counted(world):
    """sessions are those that were validated and took a token"""
    gateway, target = await world.gateway(keys=[key_entry(KEY, rate=0.001, burst=1)]), world.target()
    for message, code in (({"url": "http://x"}, "invalid_connect_message"), ({"url": "ws://10.0.0.1/"}, "target_not_allowed"), ({"url": target.url()}, "rate_limited")):
        client = await world.client(gateway)
        await client.connect({"apiKey": KEY, **message})
        assert (await client.read_json())["code"] == code
        client.close()
    got = await until(lambda: usage(gateway), lambda got: got["sessions_active"] == 0, "end of the session")
    assert got["sessions_total"] == 1 and got["tokens"] < 0.1


async def test_keys_and_no_keys(world):
    """with `X-API-Key` or Bearer; 401 JSON otherwise"""
    gateway = await world.gateway()
    for path in ("/usage", "/network/agents"):
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"authorization": f"bEARER {KEY}"}, {"X-API-Key": KEY, "Authorization": "Bearer wrong"}):
            assert (await fetch(gateway.port, path, headers=headers)).status == 200, headers
        for headers in ({}, {"X-API-Key": ""}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": "wrong", "Authorization": f"Bearer {KEY}"}, {"Cookie": KEY}):
            answer = await fetch(gateway.port, path, headers=headers)
            answer.expect_error(401, "invalid_key")
            assert answer.fields["www-authenticate"] == "Bearer"
        assert (await fetch(gateway.port, f"{path}?key={KEY}")).status == 401
        (await fetch(gateway.port, path, method="POST", headers={"X-API-Key": KEY})).expect_error(405, "method_not_allowed")


async def test_agents(world):
    """`{"agents":[{"slug","country","up"}]}`, one entry a slug"""
    gateway = await world.gateway()
    answer = await fetch(gateway.port, "/network/agents", headers={"X-API-Key": KEY})
    assert answer.json() == {"agents": [{"slug": "de1", "country": "DE", "up": True}]}
    without = await world.gateway(embedded=False)
    assert (await fetch(without.port, "/network/agents", headers={"X-API-Key": KEY})).json() == {"agents": []}

"""The contract, section 4: one token a session, the order of the checks, and counts that are exact across worker threads."""
from __future__ import annotations

import asyncio

import pytest

from harness.client import KEY
from harness.process import key_entry

SLOW = 0.001  # tokens a second: none comes back during a test


async def attempt(world, gateway, url: str, /, **fields) -> dict:
    """One session's first answer: connected, or the error."""
    client = await world.client(gateway)
    await client.connect({"apiKey": KEY, "url": url, **fields})
    got = await client.read_json()
    if got["type"] == "error":
        await client.expect_close(1011 if got["code"] in ("no_agent", "target_unreachable", "target_rejected", "target_timeout") else 1008)
        await client.finish(1008)
    return got | {"client": client}


def codes(answers: list[dict]) -> list[str]:
    return [a.get("code", a["type"]) for a in answers]


async def test_burst_then_refused(world):
    """`burst` capacity; a new bucket is full; bucket empty: `Rate limit exceeded`, `retry_after_ms`, 1008"""
    gateway, target = await world.gateway(keys=[key_entry(rate=SLOW, burst=3)]), world.target().serve_echo()
    answers = [await attempt(world, gateway, target.url()) for _ in range(5)]
    assert codes(answers) == ["connected"] * 3 + ["rate_limited"] * 2
    assert answers[3]["message"] == "Rate limit exceeded"
    retry = answers[3]["retry_after_ms"]
    assert isinstance(retry, int) and 900_000 < retry <= 1_000_001, retry
    assert list(answers[3])[:2] == ["type", "message"]


async def test_tokens_come_back_at_the_rate(world):
    """`rate` tokens a second (may be a fraction); `retry_after_ms` says when"""
    gateway, target = await world.gateway(keys=[key_entry(rate=0.5, burst=1)]), world.target().serve_echo()
    assert (await attempt(world, gateway, target.url()))["type"] == "connected"
    refused = await attempt(world, gateway, target.url())
    assert refused["code"] == "rate_limited" and 500 < refused["retry_after_ms"] <= 2000, refused
    await asyncio.sleep(refused["retry_after_ms"] / 1000 + 0.02)
    assert (await attempt(world, gateway, target.url()))["type"] == "connected"
    assert (await attempt(world, gateway, target.url()))["code"] == "rate_limited"


async def test_a_full_bucket_takes_no_more(world):
    """`burst` capacity: time does not fill it beyond"""
    gateway, target = await world.gateway(keys=[key_entry(rate=2.0, burst=2)]), world.target().serve_echo()
    await asyncio.sleep(2)
    answers = await asyncio.gather(*(attempt(world, gateway, target.url()) for _ in range(6)))
    connected = codes(answers).count("connected")
    assert connected in (2, 3), "2 tokens, and at most one that came back meanwhile"


async def test_default_rate_and_burst(world):
    """default 10; `burst` default: rate rounded up"""
    gateway, target = await world.gateway(keys=[{k: v for k, v in key_entry().items() if k not in ("rate", "burst")}, key_entry("fraction", rate=0.0015)]), world.target().serve_echo()
    answers = await asyncio.gather(*(attempt(world, gateway, target.url()) for _ in range(30)))
    assert 10 <= codes(answers).count("connected") <= 25
    assert codes([await attempt(world, gateway, target.url(), apiKey="fraction") for _ in range(2)]) == ["connected", "rate_limited"]


async def test_frames_cost_nothing(world):
    """frames cost nothing"""
    gateway, target = await world.gateway(keys=[key_entry(rate=SLOW, burst=1)]), world.target().serve_echo()
    client = (await attempt(world, gateway, target.url()))["client"]
    for number in range(50):
        await client.send_text(str(number))
        assert (await client.read_frame()).payload == str(number).encode()


async def test_each_key_has_its_own_bucket(world):
    """Token bucket for each key"""
    gateway, target = await world.gateway(keys=[key_entry(rate=SLOW, burst=1), key_entry("second", rate=SLOW, burst=1)]), world.target().serve_echo()
    got = [await attempt(world, gateway, target.url(), apiKey=key) for key in (KEY, KEY, "second", "second")]
    assert codes(got) == ["connected", "rate_limited", "connected", "rate_limited"]


@pytest.mark.parametrize("wrong", [{"url": 7}, {"url": "http://127.0.0.1/"}, {"headers": []}, {"cookies": 1}, {"geo": 1}, {"agent": []}, {"idle_timeout": -1}, {"proxy": "https://127.0.0.1:1"}], ids=str)
async def test_refusal_before_the_bucket_costs_nothing(world, wrong):
    """ONE token per session, taken when the connect message has been validated. A refusal before the bucket costs nothing"""
    gateway, target = await world.gateway(keys=[key_entry(rate=SLOW, burst=1)]), world.target().serve_echo()
    for _ in range(3):
        assert (await attempt(world, gateway, target.url(), **wrong))["code"] == "invalid_connect_message"
    assert codes([await attempt(world, gateway, target.url()) for _ in range(2)]) == ["connected", "rate_limited"]


@pytest.mark.parametrize(
    "fields, code",
    [({"url": "ws://127.0.0.1:1/"}, "target_unreachable"), ({"url": "ws://0.0.0.0:1/"}, "target_not_allowed"), ({"geo": "US"}, "no_agent")],
    ids=["target", "egress", "agent"],
)
async def test_failure_after_the_bucket_does_not_give_the_token_back(world, fields, code):
    """before the agent is picked; a failure after it (egress, agent, target) does not give the token back"""
    gateway, target = await world.gateway(keys=[key_entry(rate=SLOW, burst=1)]), world.target().serve_echo()
    assert (await attempt(world, gateway, target.url(), **fields))["code"] == code
    assert (await attempt(world, gateway, target.url()))["code"] == "rate_limited"


async def test_order_of_the_checks(world):
    """Order of the checks: JSON, key (known, not expired), fields, `max_sessions`, bucket."""
    keys = [key_entry(rate=SLOW, burst=1, max_sessions=1), key_entry("expired", expires="2001-01-01T00:00:00Z")]
    gateway, target = await world.gateway(keys=keys), world.target().serve_echo()
    first = await attempt(world, gateway, target.url())
    assert first["type"] == "connected"
    # From here on both max_sessions is reached and the bucket is empty.
    assert codes([
        await attempt(world, gateway, target.url(), apiKey=17, headers=[]),
        await attempt(world, gateway, 7, apiKey="unknown"),
        await attempt(world, gateway, 7, apiKey="expired"),
        await attempt(world, gateway, 7),
        await attempt(world, gateway, target.url()),
    ]) == ["invalid_connect_message", "invalid_key", "invalid_key", "invalid_connect_message", "too_many_sessions"]
    await first["client"].send_close(1000)
    await first["client"].expect_close(1000)
    await first["client"].expect_end()
    first["client"].close()
    for _ in range(100):
        last = await attempt(world, gateway, target.url())
        if last["code"] != "too_many_sessions":
            break
        await asyncio.sleep(0.05)
    assert last["code"] == "rate_limited", last


async def test_too_many_sessions_costs_no_token(world):
    """too many sessions of this key: `Too many concurrent sessions`; a refusal before the bucket costs nothing"""
    gateway, target = await world.gateway(keys=[key_entry(rate=SLOW, burst=2, max_sessions=1)]), world.target()
    client, connection = await world.session(gateway, target)
    for _ in range(5):
        refused = await attempt(world, gateway, target.url())
        assert (refused["code"], refused["message"]) == ("too_many_sessions", "Too many concurrent sessions")
    await connection.send_close(1000)
    await client.expect_close(1000)
    await client.send_close(1000)
    await connection.expect_close(1000)
    connection.close()
    await client.expect_end()
    client.close()
    target.serve_echo()
    for _ in range(100):
        got = await attempt(world, gateway, target.url())
        if got.get("code") != "too_many_sessions":
            break
        await asyncio.sleep(0.05)
    assert got["type"] == "connected", got


async def test_max_sessions_counts_while_dialling(world):
    """`max_sessions` counts from there (the check) until both connections are closed"""
    gateway, target = await world.gateway(keys=[key_entry(rate=100.0, burst=100, max_sessions=1)]), world.target()
    client, connection = await world.dialling(gateway, target)
    assert (await attempt(world, gateway, target.url()))["code"] == "too_many_sessions"
    client.reset()
    await connection.expect_end()


async def test_max_sessions_counts_until_both_connections_are_closed(world):
    """… until both connections are closed"""
    gateway, target = await world.gateway(keys=[key_entry(rate=100.0, burst=100, max_sessions=1)]), world.target()
    client, connection = await world.session(gateway, target)
    client.reset()
    await connection.expect_close(1001, "Client disconnected")
    # The target's Close is still awaited.
    assert (await attempt(world, gateway, target.url()))["code"] == "too_many_sessions"
    await connection.send_close(1001)
    connection.close()
    target.serve_echo()
    for _ in range(100):
        got = await attempt(world, gateway, target.url())
        if got["type"] == "connected":
            return
        await asyncio.sleep(0.05)
    raise AssertionError(got)


@pytest.mark.parametrize("workers", [1, 4])
async def test_max_sessions_is_exact_across_workers(world, workers):
    """`max_sessions` counts … across all worker threads"""
    gateway = await world.gateway(workers=workers, keys=[key_entry(rate=100000.0, burst=100000, max_sessions=25)])
    target = world.target().serve_echo()
    answers = await asyncio.gather(*(attempt(world, gateway, target.url()) for _ in range(150)))
    assert codes(answers).count("connected") == 25
    assert codes(answers).count("too_many_sessions") == 125


@pytest.mark.parametrize("workers", [1, 4])
async def test_one_bucket_across_workers(world, workers):
    """Token bucket for each key: one bucket, exact under a burst of parallel connects"""
    gateway = await world.gateway(workers=workers, keys=[key_entry(rate=SLOW, burst=37)])
    target = world.target().serve_echo()
    answers = await asyncio.gather(*(attempt(world, gateway, target.url()) for _ in range(150)))
    assert codes(answers).count("connected") == 37
    assert codes(answers).count("rate_limited") == 113

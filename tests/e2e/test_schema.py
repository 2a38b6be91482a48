"""CONTRACT 5: `GET /ws/schema`, held against the gateway itself."""
from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from harness.client import KEY
from harness.http import fetch
from harness.process import key_entry

URL = "ws://127.0.0.1:1/"

VALID = [
    {},
    {"url": "WSS://user:pass@127.0.0.1:1/path?query=1"},
    {"url": " ws://[::1]:1/ "},
    {"key": None, "headers": None, "cookies": None, "geo": None, "agent": None, "idle_timeout": None, "proxy": None},
    {"headers": {}, "cookies": {}},
    {"headers": {"X-Custom": "value", "Cookie": "a=1", "x_odd.name~": "", "X": "tab\there, ünïcode"}},
    {"headers": {"Connection": 5, "sec-websocket-KEY": "a\r\nb", "Proxy-Whatever it is": [], "TE": {}, "Keep-Alive": None}},
    {"cookies": {"a": "1", "b[]": "x=y, z", "ü": ""}},
    {"geo": "US, de,,", "agent": "de1,at5"},
    {"geo": "", "agent": ","},
    {"idle_timeout": 0},
    {"idle_timeout": 0.5},
    {"proxy": "socks5://127.0.0.1:1"},
    {"proxy": " SOCKS5h://us er:p%40ss:@[::1]:1/ "},
    {"proxy": "http://127.0.0.1:1/"},
    {"idle_timeout": 1e300},
    {"unknown": {"anything": [1, None]}},
    {"key": "ignored where apiKey is given"},
]
INVALID = [
    {"url": None},
    {"url": 5},
    {"url": ""},
    {"url": "http://127.0.0.1:1/"},
    {"url": "ws:/127.0.0.1/"},
    {"url": "ws:///path"},
    {"url": "//127.0.0.1:1/"},
    {"url": "ws://127.0.0.1:1/#"},
    {"url": "ws://127.0.0.1:1/a#b"},
    {"url": "ws://127.0.0.1:1/a\r\nb"},
    {"apiKey": 5},
    {"key": ["x"]},
    {"headers": []},
    {"headers": "X: y"},
    {"headers": {"X": 5}},
    {"headers": {"X": None}},
    {"headers": {"X": "a\r\nb"}},
    {"headers": {"X": "\x00"}},
    {"headers": {"": "x"}},
    {"headers": {"a b": "x"}},
    {"headers": {"Trailers:": "x"}},
    {"cookies": 1},
    {"cookies": {"a": 1}},
    {"cookies": {"a": None}},
    {"cookies": {"a;b": "1"}},
    {"cookies": {"": "1"}},
    {"cookies": {"a": "1; b=2"}},
    {"cookies": {"a": "tab\t"}},
    {"geo": ["US"]},
    {"agent": 1},
    {"idle_timeout": "5"},
    {"idle_timeout": -1},
    {"idle_timeout": True},
    {"proxy": ""},
    {"proxy": "127.0.0.1:1080"},
    {"proxy": "https://127.0.0.1:1"},
    {"proxy": "socks4://127.0.0.1:1"},
    {"proxy": "socks5://"},
    {"proxy": "socks5:///127.0.0.1"},
    {"proxy": "http://127.0.0.1:1/path"},
    {"proxy": "http://127.0.0.1:1?query"},
    {"proxy": "socks5://127.0.0.1:1#"},
    {"proxy": "http://127.0.0.1:1\r\nX: y"},
    {"proxy": {}},
    [],
    "text",
    5,
    None,
]


async def schema_of(gateway) -> dict:
    answer = await fetch(gateway.port, "/ws/schema")
    assert answer.status == 200, answer.head
    return answer.json()


def validator(schema: dict, part: str | None = None) -> Draft202012Validator:
    return Draft202012Validator({**schema, **({"anyOf": [{"$ref": f"#/$defs/{part}"}]} if part else {})})


async def test_it_is_a_schema(world):
    """the JSON Schema of connect message, answers and errors"""
    schema = await schema_of(await world.gateway())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)
    assert set(schema["$defs"]) == {"connect", "connected", "error"}
    assert set(schema["$defs"]["connect"]["properties"]) == {"apiKey", "key", "url", "headers", "cookies", "geo", "agent", "idle_timeout", "proxy"}


async def test_it_judges_connect_messages_as_the_gateway_does(world):
    """valid and invalid messages, each judged by both"""
    gateway = await world.gateway()
    judge = validator(await schema_of(gateway), "connect")
    for fields, usable in [*((fields, True) for fields in VALID), *((fields, False) for fields in INVALID)]:
        message = {"apiKey": KEY, "url": URL, **fields} if isinstance(fields, dict) else fields
        assert judge.is_valid(message) == usable, (message, [error.message for error in judge.iter_errors(message)])
        client = await world.client(gateway)
        await client.connect(json.dumps(message))
        code = (await client.read_json())["code"]
        client.close()
        assert (code != "invalid_connect_message") == usable, (message, code)


async def test_answers_are_as_it_says(world):
    """every key of an answer stands in it, and no other"""
    gateway, target = await world.gateway(keys=[key_entry(KEY), key_entry("poor", rate=0.001, burst=1)]), world.target()
    schema = await schema_of(gateway)
    whole, connected, error = validator(schema), validator(schema, "connected"), validator(schema, "error")

    def check(judge: Draft202012Validator, part: str, got: dict) -> dict:
        judge.validate(got)
        whole.validate(got)
        assert set(got) <= set(schema["$defs"][part]["properties"]), got
        return got

    for extra in ("", "Sec-WebSocket-Protocol: chat\r\n"):
        client = await world.client(gateway)
        await client.connect({"apiKey": KEY, "url": target.url(), "headers": {"Sec-WebSocket-Protocol": "chat"}})
        await (await target.accept()).open(extra)
        got = check(connected, "connected", await client.read_json())
        assert ("subprotocol" in got) == bool(extra)
        assert not error.is_valid(got)

    async def refused(message) -> dict:
        client = await world.client(gateway)
        await client.connect(message)
        return check(error, "error", await client.read_json())

    await refused("no json")
    await refused({"apiKey": "wrong", "url": URL})
    await refused({"apiKey": KEY, "url": "ws://10.0.0.1/"})
    await refused({"apiKey": KEY, "url": URL})
    await refused({"apiKey": "poor", "url": URL})
    assert "retry_after_ms" in await refused({"apiKey": "poor", "url": URL})
    client = await world.client(gateway)
    await client.connect({"apiKey": KEY, "url": target.url()})
    connection = await target.accept()
    await connection.read_request()
    await connection.send(b"HTTP/1.1 403 Forbidden\r\n\r\n")
    assert check(error, "error", await client.read_json())["target_status"] == 403


@pytest.mark.parametrize("broken", [{"type": "connected", "status": 101}, {"type": "connected", "status": 200, "node_id": "x"}, {"type": "error", "message": "x"}, {"type": "error", "message": "x", "code": "new"}, {}])
async def test_it_refuses_what_is_none_of_them(world, broken):
    """it can say no"""
    assert not validator(await schema_of(await world.gateway())).is_valid(broken)

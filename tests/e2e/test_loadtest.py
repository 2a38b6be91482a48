"""ringway-loadtest against the real gateway: the load generator speaks the connect message, and every byte is verified."""
from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from harness.client import KEY
from harness.process import ROOT, key_entry
from harness.world import World

LOADTEST = os.environ.get("RINGWAY_LOADTEST_BIN") or str(ROOT / "target" / "debug" / "ringway-loadtest")

pytestmark = pytest.mark.skipif(not os.access(LOADTEST, os.X_OK), reason=f"{LOADTEST} is missing: cargo build -p ringway-loadtest, or name one in RINGWAY_LOADTEST_BIN")


class Echo:
    """The load generator's own echo target."""

    async def __aenter__(self) -> "Echo":
        self.child = await asyncio.create_subprocess_exec(LOADTEST, "echo", "--addr", "127.0.0.1:0", "--threads", "1", stderr=asyncio.subprocess.PIPE)
        line = (await self.child.stderr.readline()).decode()
        self.url = f"ws://{line.split()[-1]}/"
        return self

    async def __aexit__(self, *_) -> None:
        self.child.kill()
        await self.child.wait()


async def load(folder: Path, command: str, gateway, target: str, *options: str, key: str = KEY) -> tuple[int, dict]:
    """Exit code and report of a run through the gateway."""
    report = folder / "report.json"
    child = await asyncio.create_subprocess_exec(
        LOADTEST, command, "--gateway", f"ws://127.0.0.1:{gateway.port}", *options, "--json", str(report), target,
        env={**os.environ, "RINGWAY_KEY": key}, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        code = await child.wait()
    except BaseException:
        child.kill()
        raise
    text = report.read_text()
    assert key not in text, "the key is in the report"
    return code, json.loads(text)


@pytest.mark.parametrize("options", [
    ("latency", "--rate", "1000", "--size", "0-3000"),
    ("throughput", "--size", "0-200KiB", "--window", "3"),
    ("storm", "--messages", "2"),
], ids=lambda options: options[0])
async def test_every_byte_comes_back(world: World, options: tuple) -> None:
    gateway = await world.gateway()
    async with Echo() as echo:
        code, report = await load(world.folder(), options[0], gateway, echo.url, *options[1:], "-n", "50", "--duration", "2s")
    assert code == 0 and report["failures"] == {}, report
    assert report["verified_messages"] > 100
    assert "connected" in [stage["stage"] for stage in report["stages"]]


async def test_what_the_gateway_refuses_is_reported(world: World) -> None:
    gateway = await world.gateway(keys=[key_entry(KEY, rate=0.001, burst=3)])
    async with Echo() as echo:
        code, report = await load(world.folder(), "latency", gateway, echo.url, "-n", "5", "--duration", "500ms")
        assert code == 1
        assert report["sessions_opened"] == 3
        assert report["failures"]["refused"]["count"] == 2
        assert "rate_limited" in report["failures"]["refused"]["examples"][0]
        code, report = await load(world.folder(), "latency", gateway, echo.url, "-n", "2", key="rw_wrong")
        assert code == 1 and "invalid_key" in report["failures"]["refused"]["examples"][0], report


async def test_memory_of_idle_sessions(world: World) -> None:
    gateway = await world.gateway()
    async with Echo() as echo:
        code, report = await load(world.folder(), "idle", gateway, echo.url, "-n", "300", "--duration", "500ms", "--relay-pid", str(gateway.pid), "--touch")
    assert code == 0, report
    assert 0 < report["relay"]["kib_per_session"] < 100, report["relay"]

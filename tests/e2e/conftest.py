"""Runs `async def` tests, hands each its own `World`, and keeps what the binary said for a failure's report."""
from __future__ import annotations

import asyncio
import inspect
import os
import resource

import pytest

from harness.process import DRIVER, Process, binary
from harness.world import World


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: waits 30 s or more for a time that the contract fixes")
    config.addinivalue_line("markers", "limit(seconds): how long the whole test may take (default 60)")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pytest_report_header() -> str:
    return f"ringway: {binary()}, driver {DRIVER}"


def pytest_sessionstart(session: pytest.Session) -> None:
    if not os.access(binary(), os.X_OK):
        pytest.exit(f"{binary()} is missing: build it, or name one in RINGWAY_BIN", returncode=2)


@pytest.fixture
def world() -> World:
    return World()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    made = arguments.get("world")
    marker = pyfuncitem.get_closest_marker("limit")
    seconds = marker.args[0] if marker else 60

    processes: list[Process] = []
    started = Process.__init__

    async def run() -> None:
        try:
            async with asyncio.timeout(seconds):
                await pyfuncitem.obj(**arguments)
        finally:
            if made is not None:
                await made.close()

    def remember(self, *args, **options) -> None:
        started(self, *args, **options)
        processes.append(self)

    Process.__init__ = remember
    try:
        asyncio.run(run())
    finally:
        Process.__init__ = started
        for process in processes:
            pyfuncitem.add_report_section("call", f"stderr of {process.pid}", process.err[-8000:])
    return True

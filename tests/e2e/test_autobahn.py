"""tests/conformance, without Autobahn: which Python 2.7 it takes, what it calls a difference, and that it leaves no
process behind."""
from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from harness.process import ROOT

FOLDER = ROOT / "tests" / "conformance"
NONE = 3
"""The exit code that says: no Python 2.7, nothing was tested."""


def autobahn():
    spec = importlib.util.spec_from_file_location("conformance_autobahn", FOLDER / "autobahn.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


autobahn = autobahn()


# --- which Python 2.7 -----------------------------------------------------------------------------------------------------
async def ask(program: str, *path: Path, versions: Path) -> tuple[int, str, str]:
    """Exit code, output and standard error."""
    env = {"PATH": ":".join([*map(str, path), "/usr/bin", "/bin"]), "PYENV_ROOT": str(versions), "HOME": str(versions)}
    child = await asyncio.create_subprocess_exec(str(FOLDER / program), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=env)
    output, error = await child.communicate()
    return child.returncode, output.decode().strip(), error.decode()


def python(folder: Path, code: int) -> Path:
    """A `python2.7` that says so with this exit code."""
    folder.mkdir(parents=True)
    file = folder / "python2.7"
    file.write_text(f"#!/bin/sh\nexit {code}\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def nothing_installed():
    if any(Path(folder, "python2.7").exists() for folder in ("/usr/bin", "/bin")):
        pytest.skip("the system has a Python 2.7")


@pytest.mark.parametrize("program", ["python2", "run"])
async def test_without_python_2_nothing_passes(nothing_installed, tmp_path, program):
    code, output, error = await ask(program, versions=tmp_path)
    assert (code, output) == (NONE, "") and "there is no Python 2.7" in error and "nothing was tested" in error


async def test_the_python_2_in_path_comes_first(nothing_installed, tmp_path):
    python(tmp_path / "versions" / "2.7.18" / "bin", 0)
    own = python(tmp_path / "own", 0)
    assert await ask("python2", own.parent, versions=tmp_path) == (0, str(own), "")


async def test_one_that_does_not_run_is_passed_over(nothing_installed, tmp_path):
    shim = python(tmp_path / "shims", 127)
    python(tmp_path / "versions" / "2.7.18" / "bin", 1)
    (tmp_path / "versions" / "2.7.17" / "bin").mkdir(parents=True)
    of_pyenv = python(tmp_path / "versions" / "2.7.16" / "bin", 0)
    assert await ask("python2", shim.parent, versions=tmp_path) == (0, str(of_pyenv), "")


async def test_the_newest_of_pyenv_is_taken(nothing_installed, tmp_path):
    newest = [python(tmp_path / "versions" / version / "bin", 0) for version in ("2.7.9", "2.7.18", "2.7.2", "3.11.7")][1]
    assert await ask("python2", versions=tmp_path) == (0, str(newest), "")


# --- what is a difference -------------------------------------------------------------------------------------------------
def report(**changes) -> dict:
    """Of a case that goes well."""
    plain = {
        **dict.fromkeys(autobahn.SEEN), "behavior": "OK", "behaviorClose": "OK", "received": [["message", "hello", False]], "wasClean": True,
        "remoteCloseCode": 1000, "rxFrameStats": {"1": 1, "8": 1}, "txFrameStats": {"1": 1, "8": 1}, "trafficStats": None,
        "httpRequest": "GET / HTTP/1.1\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n", "httpResponse": "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    }
    return autobahn.seen({**plain, **changes})


FINE = report()
CUT = report(wasClean=False, remoteCloseCode=None, rxFrameStats={"1": 1})
OURS = report(remoteCloseCode=1011, remoteCloseReason="Target connection lost", behaviorClose="WRONG CODE")


LATE = report(behavior="FAILED", result="Case did not finish within 60 seconds.", rxFrameStats={"1": 734})


class Scripted:
    """Runs of the case 1.1.1 with these results, the first of them apart."""

    def __init__(self, direct: list[dict], relayed: list[dict]):
        self.left = {None: direct[1:], "relayed": relayed[1:]}
        self.first = direct[0], relayed[0]

    async def run(self, cases: list[str], variant, cuts: bool = False) -> dict[str, dict]:
        left = self.left[variant]
        return {"1.1.1": left.pop(0) if len(left) > 1 else left[0]}


async def judged(direct: list[dict], relayed: list[dict]) -> str:
    runs = Scripted(direct, relayed)
    outcome = await autobahn.compare(runs, "relayed", *({"1.1.1": one, "1.1.2": FINE} for one in runs.first))
    kinds = {"races": outcome.races, "allowed": outcome.allowed, "out of time": outcome.late, "different": list(outcome.different)}
    found = [kind for kind, cases in kinds.items() if cases]
    assert all(cases in ([], ["1.1.1"]) for cases in kinds.values()) and outcome.same == 2 - len(found) and outcome.cases == 2
    return found[0] if found else "same"


def report_of(extension: str) -> dict:
    return report(httpResponse=f"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-extensions: {extension}\r\n\r\n")


JUDGED = {
    "the same": ([FINE], [FINE], "same"),
    "always other": ([FINE, FINE], [CUT, CUT], "different"),
    "at times other": ([FINE, FINE], [CUT, FINE], "different"),
    "other than any of a case that races": ([CUT, FINE, CUT], [report(remoteCloseCode=1002), FINE], "different"),
    "the peers race": ([FINE, CUT, FINE], [CUT, FINE], "races"),
    "a Close of ours": ([CUT, CUT], [OURS, OURS], "allowed"),
    "a Close of ours at times": ([CUT, CUT], [OURS, CUT], "allowed"),
    "a Close of ours where there was one": ([FINE, FINE], [OURS, OURS], "different"),
    "a Close like ours": ([CUT, CUT], [report(remoteCloseCode=1011, remoteCloseReason="")] * 2, "different"),
    "a Close of ours, and less before it": ([CUT, CUT], [{**OURS, "received": []}] * 2, "different"),
    "a Close of ours, and another verdict": ([CUT, CUT], [{**OURS, "behavior": "FAILED"}] * 2, "different"),
    "a Close of ours, and another frame": ([CUT, CUT], [{**OURS, "rxFrameStats": {"1": 2, "8": 1}}] * 2, "different"),
    "no result": ([FINE, FINE], [{}, {}], "different"),
    "no result either way": ([{}, {}], [{}, {}], "different"),
    "no result without ringway": ([{}, {}], [FINE, FINE], "different"),
    "out of time once, and elsewhere the next time": ([LATE, FINE], [report(result="Did not receive message within 100 seconds.", received=[]), FINE], "races"),
    "out of time through ringway once": ([FINE, FINE], [LATE, FINE], "races"),
    "out of time without ringway once": ([LATE, FINE], [FINE, FINE], "races"),
    "always out of time": ([LATE, LATE], [LATE, LATE], "out of time"),
    "always out of time through ringway only": ([FINE, FINE], [LATE, LATE], "different"),
    "always out of time without ringway only": ([LATE, LATE], [FINE, FINE], "different"),
    "out of time once, and other than without ringway": ([FINE, FINE], [LATE, CUT], "different"),
    "no extension": ([report_of("permessage-deflate")] * 2, [FINE] * 2, "different"),
    "another extension": ([report_of("permessage-deflate")] * 2, [report_of("permessage-deflate; server_no_context_takeover")] * 2, "different"),
}


@pytest.mark.parametrize("what", JUDGED)
async def test_what_counts_as_a_difference(what):
    direct, relayed, verdict = JUDGED[what]
    # The last of them stands for all further runs.
    assert await judged([*direct, direct[-1]], [*relayed, relayed[-1]]) == verdict


def test_the_document_owns_up():
    plain, *others = autobahn.VARIANTS
    whole = [("Autobahn's client", "2 ok", variant, autobahn.Outcome(2, 2)) for variant in autobahn.VARIANTS]
    text = autobahn.document(whole, ["*"])
    assert "sees no difference" in text and "Not all cases" not in text and "Not run" not in text
    text = autobahn.document([("Autobahn's client", "2 ok", plain, autobahn.Outcome(2, 1, different={"1.1.1": ([FINE], CUT)}))], ["1.*"])
    assert "sees 1 differences" in text and "different: 1.1.1" in text and "Not all cases: 1.*." in text
    assert f"Not run: {'; '.join(variant.title for variant in others)}." in text


async def test_cuts_change_no_byte():
    """Nor the end, in each direction"""
    sent, server_got = os.urandom(300_000), asyncio.get_running_loop().create_future()

    async def serve_one(reader, writer) -> None:
        server_got.set_result(await reader.read())
        writer.write(sent[::-1])
        writer.close()

    async with await asyncio.start_server(serve_one, "127.0.0.1", 0) as server, autobahn.Cuts(server.sockets[0].getsockname()[1]) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 20) == sent[::-1] and await server_got == sent
        writer.close()


# --- children ---------------------------------------------------------------------------------------------------------
FAMILY = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "300"])
print(child.pid, file=open(sys.argv[1], "w"), flush=True)
child.wait()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


async def test_a_run_that_hangs_leaves_no_process(tmp_path, monkeypatch):
    """It does not mind SIGTERM, and has a child of its own"""
    monkeypatch.setattr(autobahn, "END_S", 0.5)
    os.mkfifo(tmp_path / "pid")
    reading = asyncio.get_running_loop().run_in_executor(None, (tmp_path / "pid").read_text)
    running = asyncio.create_task(autobahn.in_a_process([sys.executable, "-c", FAMILY, str(tmp_path / "pid")], 60))
    child = int(await asyncio.wait_for(reading, 20))
    assert alive(child)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(10):
        while alive(child):
            await asyncio.sleep(0.01)


async def test_a_run_that_fails_says_so(tmp_path):
    with pytest.raises(AssertionError, match="with 7"):
        await autobahn.in_a_process([sys.executable, "-c", "print('{}'); raise SystemExit(7)"], 20)
    assert await autobahn.in_a_process([sys.executable, "-c", "print('{}')"], 20) == {}

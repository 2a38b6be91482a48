"""Clients of other makes: npm `wscat` and `ws`, Python scripts, curl. Each is a child process with its output kept."""
from __future__ import annotations

import asyncio
import os
import pty
import shutil
import sys
import termios

from .process import ROOT
from .wire import PATIENCE_S

CLIENTS = ROOT / "tests" / "clients"


class Program:
    """A child process whose standard output (with its errors) is read line by line."""

    def __init__(self, child: asyncio.subprocess.Process, output=None, terminal: int | None = None):
        self.child = child
        self._output = output or child.stdout
        self._terminal = terminal
        self.text = ""
        self._changed = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, *words: str, cwd=None) -> "Program":
        return cls(await asyncio.create_subprocess_exec(*words, cwd=cwd, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT))

    @classmethod
    async def wscat(cls, *arguments: str) -> "Program":
        """In a terminal: into a pipe wscat does not print when it is connected, nor close codes."""
        return await cls.in_terminal(node(), str(CLIENTS / "node_modules" / "wscat" / "bin" / "wscat"), "--no-color", *arguments)

    @classmethod
    async def in_terminal(cls, *words: str) -> "Program":
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (50, 1000))  # wide, so that no line is broken
        child = await asyncio.create_subprocess_exec(*words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        output = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(output), open(master, "rb", buffering=0, closefd=False))
        return cls(child, output, master)

    @classmethod
    async def ws(cls, url: str, message: str) -> "Program":
        return await cls.start(node(), str(CLIENTS / "ws_session.mjs"), url, message)

    @classmethod
    async def python(cls, script: str) -> "Program":
        return await cls.start(sys.executable, "-c", script)

    async def _read(self) -> None:
        try:
            while data := await self._output.read(65536):
                self.text += data.decode("utf-8", "replace")
                self._changed.set()
        except OSError:
            pass  # EIO: how a terminal says that its last program has ended

    async def says(self, text: str, patience: float = PATIENCE_S) -> None:
        """Waits until the output holds `text`."""
        try:
            async with asyncio.timeout(patience):
                while text not in self.text:
                    assert not self._reader.done(), f"ended without saying {text!r}:\n{self.text}"
                    self._changed.clear()
                    changed = asyncio.create_task(self._changed.wait())
                    await asyncio.wait([changed, self._reader], return_when=asyncio.FIRST_COMPLETED)
                    changed.cancel()
        except TimeoutError:
            raise AssertionError(f"did not say {text!r} within {patience} s:\n{self.text}") from None

    async def converse(self, connect_message: str, text: str) -> None:
        """wscat, from its connection to a text that an echo target sends back."""
        await self.says("Connected")
        await self.type(connect_message)
        await self.says('"type":"connected"')
        await self.type(text)
        await self.says(f"< {text}")

    async def type(self, line: str) -> None:
        if self._terminal is not None:
            os.write(self._terminal, line.encode() + b"\r")
            return
        self.child.stdin.write(line.encode() + b"\n")
        await self.child.stdin.drain()

    async def ends(self, patience: float = PATIENCE_S) -> int:
        code = await asyncio.wait_for(self.child.wait(), patience)
        await asyncio.wait([self._reader], timeout=2)
        return code

    async def kill(self) -> None:
        if self.child.returncode is None:
            self.child.kill()
            await self.child.wait()
        self._reader.cancel()
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None


def node() -> str:
    found = shutil.which("node")
    assert found, "node is needed: see tests/run"
    return found

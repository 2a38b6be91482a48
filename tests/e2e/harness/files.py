"""Files that keep whoever reads them waiting, as a mount that hangs does."""
from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

from .wire import PATIENCE_S


class Fifo:
    """A named pipe in a file's place: a reader waits for a writer."""

    def __init__(self, world, path: Path):
        self.path, self.fd = path, None
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        world.stack.callback(self.close)

    async def is_read(self) -> None:
        """Until somebody has it open for reading, and waits for what is written."""
        async with asyncio.timeout(PATIENCE_S):
            while self.fd is None:
                try:
                    self.fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    await asyncio.sleep(0.01)

    def replace(self, text: str) -> None:
        """From now on an ordinary file stands in its place; who reads it already goes on with that."""
        other = self.path.with_suffix(".new")
        other.write_text(text)
        other.replace(self.path)

    def write(self, text: str) -> None:
        """What its reader gets, and the end."""
        os.write(self.fd, text.encode())
        self.close()

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

"""A terminal for tests: runs the driver in a pty and shows the screen as a person would see it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("driver.py")


class Terminal:
    """A child process whose terminal is a screen of `columns` x `lines`."""

    def __init__(self, *args: str, columns: int = 80, lines: int = 24, **env: str) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=1000, ratio=0.5)
        self.stream = pyte.ByteStream(self.screen)
        self.status: int | None = None
        outside = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
        whole = {
            **outside, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT),
            "PROMPT_TOOLKIT_NO_CPR": "1", **env,
        }  # fmt: skip
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                if "CWD" in whole:
                    os.chdir(whole["CWD"])
                    os.rmdir(whole["CWD"])
                os.execve(sys.executable, [sys.executable, str(DRIVER), *args], whole)
            finally:
                os._exit(127)
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, size)

    def send(self, text: str) -> None:
        """Type."""
        os.write(self.fd, text.encode())

    def text(self) -> str:
        """Everything that was shown, scrolled-off lines first, without trailing blanks."""
        top = [
            "".join(line[column].data for column in range(self.screen.columns))
            for line in self.screen.history.top
        ]
        return "\n".join(line.rstrip() for line in [*top, *self.screen.display]).rstrip()

    def wait(self, done: str | Callable[[str], bool], seconds: float = 20.0) -> str:
        """Until the text has `done` in it; the text. Fails with what is shown instead."""
        found = done if callable(done) else lambda text: done in text
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found(self.text()):
                return self.text()
            if not self._read(0.05):
                break
        assert found(self.text()), f"waited for {done!r}, saw:\n{self.text()}"
        return self.text()

    def close(self, seconds: float = 20.0) -> int:
        """Wait for the process to end; its exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._read(0.05):
            pass
        if self.status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if not done:
                os.kill(self.pid, 9)
                _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
            os.close(self.fd)
        return self.status

    def _read(self, seconds: float) -> bool:
        """Take what the child writes; false once it has gone."""
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                return False
            if not data:
                return False
            self.stream.feed(data)
        return True

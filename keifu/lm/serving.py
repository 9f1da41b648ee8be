"""A server of our own in a child process: started on a free port, awaited, stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

import httpx

from keifu.core.errors import KeifuError

START = 600.0
"""Seconds that a server may take until its model is there."""
STOP = 40.0
"""Seconds that it may take to end: more than its own drain."""


def command(model: str, flags: Sequence[str] = ()) -> list[str]:
    """`keifu serve` of this Python and this Keifu, on a free port."""
    return [sys.executable, "-m", "keifu.cli.main", "serve", "-m", model, "--port", "0", *flags]


class Serving:
    """A server's process, ready when it is made; a context that stops it.

    Its first line of output must be its address, and its `/health` must be 200 once it is ready.

    Raises:
        KeifuError: it ended, or was not ready in time, with the last line that it said.
    """

    def __init__(self, command: Sequence[str], *, patience: float = START, **process: Any) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed when it is stopped)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._said, text=True, **process
        )
        self.url = ""
        try:
            self._await(time.monotonic() + patience)
        except BaseException:
            self.stop()
            raise

    def _await(self, until: float) -> None:
        assert self.process.stdout is not None
        late = threading.Timer(until - time.monotonic(), self.process.kill)
        late.start()
        self.url = self.process.stdout.readline().strip()
        late.cancel()
        if not self.url.startswith("http"):
            raise KeifuError(f"the server ended before it listened: {self.words()}")
        # What else it prints must not fill the pipe.
        threading.Thread(target=self._discard, daemon=True).start()
        with httpx.Client(base_url=self.url, timeout=10, trust_env=False) as client:
            while True:
                if self.process.poll() is not None:
                    raise KeifuError(f"the server ended: {self.words()}")
                try:
                    if client.get("/health").status_code == 200:
                        return
                except httpx.TransportError:
                    pass  # it does not listen yet, or has just ended
                if time.monotonic() > until:
                    raise KeifuError(f"the server was not ready in time: {self.words()}")
                time.sleep(0.05)

    def _discard(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for _ in lines:
                pass

    def words(self) -> str:
        """The last line that it wrote on its standard error."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def stop(self) -> int:
        """End it, letting what runs end first; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if self.process.stdout is not None and not self.url:
            self.process.stdout.close()
        self._said.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

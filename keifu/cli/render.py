"""Drawing an answer while it is made: as it is for pipes, as markdown on a terminal."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.live import Live
    from rich.markdown import MarkdownElement

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_FRAME = 0.08  # seconds between two drawings


class Printer(Protocol):
    """Takes the pieces of one answer; `end` leaves the cursor at the start of a line."""

    def write(self, text: str) -> None:
        """Draw the next piece."""

    def end(self) -> None:
        """Draw what is left. Called once, also after an error."""


def printer(stream: TextIO, *, markdown: bool) -> Printer:
    """How answers are drawn on this stream: markdown only where colours are welcome."""
    if markdown and colourful(stream):
        return Markdown()
    return Plain(stream)


def colourful(stream: TextIO) -> bool:
    """Whether a stream is a terminal that moves its cursor and shows colours (NO_COLOR: none)."""
    dumb = os.environ.get("TERM", "") in ("", "dumb")
    return stream.isatty() and not dumb and not os.environ.get("NO_COLOR")


def safe(text: str) -> str:
    """Text without control characters: what a model says must not command the terminal."""
    return _CONTROLS.sub("", text)


class Plain:
    """Text as it comes; byte for byte into a pipe, without control characters on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.terminal, self.last = stream, stream.isatty(), "\n"

    def write(self, text: str) -> None:
        """Write and flush: whoever reads the pipe sees each piece at once."""
        text = safe(text) if self.terminal else text
        if text:
            self.stream.write(text)
            self.stream.flush()
            self.last = text[-1]

    def end(self) -> None:
        """A last newline if there was none."""
        if self.last != "\n":
            self.stream.write("\n")
        self.stream.flush()


class Markdown:
    """Markdown drawn block by block: whole blocks scroll by and are never drawn again.

    Only the block being written (a paragraph, a list, a table, a code block) is redrawn, at most a
    dozen times a second, and only as much of its end as the screen holds: so nothing flickers,
    however long the answer, and the scrollback stays whole.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console: Console = Console(highlight=False)
        self.live: Live = Live(
            console=self.console, auto_refresh=False, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self.tail, self.drawn, self.any = "", 0.0, False

    def write(self, text: str) -> None:
        """Take a piece; draw if a frame's time has passed."""
        self.tail += safe(text)
        whole, self.tail = split_blocks(self.tail)
        if whole.strip():
            self._stop()
            self._print(whole)
        if self.tail.strip() and time.monotonic() - self.drawn > _FRAME:
            if not self.live.is_started:
                self.live.start()
            self.live.update(self._last_lines(), refresh=True)
            self.drawn = time.monotonic()

    def end(self) -> None:
        """Draw the last block for good."""
        self._stop()
        if self.tail.strip():
            self._print(self.tail)
        self.tail = ""

    def _stop(self) -> None:
        if self.live.is_started:
            self.live.update("", refresh=False)
            self.live.stop()

    def _print(self, text: str) -> None:
        if self.any:
            self.console.print()
        self.any = True
        self.console.print(_markdown(text))

    def _last_lines(self) -> RenderableType:
        from rich.segment import Segment, Segments

        lines = self.console.render_lines(_markdown(self.tail), pad=False)
        room = max(1, self.console.height - 2)
        shown: list[Any] = []
        for line in lines[-room:]:
            shown += [*line, Segment.line()]
        return Segments(shown[:-1])


def split_blocks(text: str) -> tuple[str, str]:
    """Markdown cut into its finished blocks and the one still being written.

    A block ends at a blank line that is outside a code fence and not followed by an indented line
    (the continuation of a list item); what comes after must have begun, so that this is known.
    """
    lines = text.split("\n")
    fence, cut = "", 0
    for number, line in enumerate(lines[:-1]):
        mark = _FENCE.match(line)
        if fence:
            closes = mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence)
            fence = "" if closes and not line.strip(" `~") else fence
        elif mark:
            fence = mark[1]
        elif not line.strip() and number and lines[number + 1][:1] not in ("", " ", "\t"):
            cut = number + 1
    return "\n".join(lines[:cut]), "\n".join(lines[cut:])


def _markdown(text: str) -> RenderableType:
    from rich.markdown import Heading
    from rich.markdown import Markdown as Rich

    class Left(Heading):
        """A heading at the left, where the rest of the answer is."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            self.text.justify = "left"
            yield self.text

    class Document(Rich):
        elements: ClassVar[dict[str, type[MarkdownElement]]] = {
            **Rich.elements,
            "heading_open": Left,
        }

    return Document(text.strip("\n"), code_theme="ansi_dark", hyperlinks=False)


@contextmanager
def keyboard_off(stream: TextIO) -> Iterator[None]:
    """While inside, what is typed is not echoed: it would shift what is being drawn.

    Ctrl-C works on, and what was typed is read afterwards.
    """
    if os.name != "posix" or stream is None or not stream.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(stream)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(stream, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(stream, termios.TCSANOW, before)


def note(text: str) -> None:
    """A dim line on stderr: what is no part of the answer."""
    if colourful(sys.stderr):
        text = f"\x1b[2m{text}\x1b[0m"
    print(text, file=sys.stderr, flush=True)

"""The prompt as the user gives it: words, piped input, `-` for standard input, `@file`."""

from __future__ import annotations

import os
import re
import select
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from keifu.core.errors import KeifuError

MOST_FILE = 4 << 20
"""Bytes of one attached file: four times what the longest contexts hold."""
MOST_DOCUMENT = 256 << 20
"""Bytes of a document that is asked about: it need not fit a context."""
MOST_INPUT = 32 << 20
"""Bytes of piped input."""

_ATTACHMENT = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|([^\s@]\S*))')


def gather(words: Sequence[str], *, attach: bool = True) -> str:
    """One prompt from the command line's words and the piped input; empty if there is neither.

    Piped input stands before the words, or where a word is `-`. With `attach`, `@path` puts a
    text file's content before the prompt (`@"a path with spaces"`; `@@` is a plain @). Raises
    KeifuError for input that is no text.
    """
    parts = [text(word, "the prompt") for word in words]
    if attach:
        parts = [attached(part) for part in parts]
    explicit = "-" in words
    if not explicit and not piped():
        return " ".join(parts)
    read = _stdin()
    if explicit:
        return " ".join(
            read if word == "-" else part for word, part in zip(words, parts, strict=True)
        )
    return "\n\n".join(filter(None, [read, " ".join(parts)]))


def attached(prompt: str) -> str:
    """The prompt with the files that it names before it, each fenced under its name."""
    files: list[str] = []

    def name(match: re.Match[str]) -> str:
        path = match[1] or match[2].rstrip(",.;:!?)")
        tail = "" if match[1] else match[2][len(path) :]
        files.append(f"{Path(path).name}:\n{_fenced(_file(path))}")
        return Path(path).name + tail

    prompt = _ATTACHMENT.sub(name, prompt)
    return "\n\n".join([*files, re.sub(r"(?<!\S)@@", "@", prompt)])


def text(raw: str, what: str) -> str:
    """`raw`, if it is Unicode text (an argument that is not UTF-8 arrives as lone surrogates)."""
    try:
        raw.encode()
    except UnicodeEncodeError as wrong:
        raise KeifuError(f"{what} is not valid UTF-8 at character {wrong.start}") from None
    if "\0" in raw:
        raise KeifuError(f"{what} has a NUL character at {raw.index(chr(0))}: give text")
    return raw


def piped() -> bool:
    """Whether standard input is a file or a pipe, so that reading it is what the user means.

    Not a terminal, nothing (closed), nor a socket, which a remote shell may keep open for ever.
    """
    if sys.stdin is None or sys.stdin.closed:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # not a real file: an embedding program's stand-in
        return not sys.stdin.isatty()
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def _stdin() -> str:
    if sys.stdin is None or sys.stdin.closed:
        raise KeifuError("standard input is closed: there is nothing to read for `-`")
    _tell_if_waiting()
    data = sys.stdin.buffer.read(MOST_INPUT + 1)
    return _decode(data, "standard input", MOST_INPUT).rstrip("\n")


def _tell_if_waiting() -> None:
    """A pipe that stays silent looks like a hang: say what is awaited."""
    try:
        if sys.stdin.isatty() or select.select([sys.stdin.fileno()], [], [], 2.0)[0]:
            return
    except (OSError, ValueError):
        return
    print("keifu: waiting for piped input (</dev/null means none)", file=sys.stderr, flush=True)


def document(name: str) -> str:
    """The text of a document: a file, or standard input as `-`. Raises KeifuError."""
    if name == "-":
        return _stdin()
    return _read(name, name, MOST_DOCUMENT, "")


def _file(name: str) -> str:
    return _read(name, f"@{name}", MOST_FILE, " (write @@ for a plain @)")


def _read(name: str, shown: str, most: int, hint: str) -> str:
    path = Path(name).expanduser()
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise KeifuError(f"{shown} is a folder: give its files one by one")
        if not stat.S_ISREG(mode):
            raise KeifuError(f"{shown} is no regular file: pipe it in instead")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise KeifuError(f"{shown}: there is no such file{hint}") from None
    except (OSError, ValueError) as wrong:
        why = wrong.strerror if isinstance(wrong, OSError) else str(wrong)
        raise KeifuError(f"{shown} cannot be read: {why}{hint}") from None
    return _decode(data, shown, most)


def _decode(data: bytes, what: str, most: int) -> str:
    if len(data) > most:
        raise KeifuError(f"{what} is larger than {most >> 20} MiB: more than a context holds")
    if b"\0" in data:
        raise KeifuError(f"{what} is binary (a NUL byte at {data.index(0)}): only text can be read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise KeifuError(
            f"{what} is not UTF-8 text (byte {wrong.start}): convert it, for example with iconv"
        ) from None


def _fenced(content: str) -> str:
    """A code fence longer than any in the content."""
    longest = max((len(run) for run in re.findall(r"`{3,}", content)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}\n{content.rstrip()}\n{fence}"

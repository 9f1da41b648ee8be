"""A plain text table that fits the terminal, drawn with spaces alone."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Columns as wide as they must be; where the line is too long the widest ones wrap."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    every = [list(header), *(list(row) for row in rows)]
    sizes = [max(map(_columns, column)) for column in zip(*every, strict=True)]
    while sum(sizes) + 2 * (len(sizes) - 1) > width and max(sizes) > 8:
        sizes[sizes.index(max(sizes))] -= 1
    lines: list[str] = []
    for number, row in enumerate(every):
        cells = [_wrap(cell, size) for cell, size in zip(row, sizes, strict=True)]
        for level in range(max(map(len, cells))):
            parts = [cell[level] if level < len(cell) else "" for cell in cells]
            lines.append("  ".join(map(_pad, parts, sizes)).rstrip())
        if number == 0:
            lines.append("  ".join("-" * size for size in sizes))
    return "\n".join(lines)


def size(bytes: float) -> str:
    """Bytes as a person reads them: 92.9 MB, 1.4 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if bytes < 999.5:
            return f"{bytes:.0f} {unit}" if bytes >= 99.5 or unit == "B" else f"{bytes:.1f} {unit}"
        bytes /= 1000
    return f"{bytes:.1f} TB"


def _wrap(text: str, size: int) -> list[str]:
    return textwrap.wrap(text, size, break_on_hyphens=False) or [""]


def _pad(text: str, size: int) -> str:
    return text + " " * (size - _columns(text))


def _columns(text: str) -> int:
    """Terminal columns of a text: East Asian wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )

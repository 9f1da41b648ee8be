"""The page tables of a step as kernels read them: written once, then only where they change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keifu.nn.pages import PageTable

Ints = np.ndarray[Any, np.dtype[np.int32]]
Seen = tuple[list[int | None], int, list[int | None]]
"""Of a table: its first pages that stay, how many were let go, the pages after those."""


class PageRows:
    """Rows of page numbers, one a request of the step, for one group of layers.

    What a window has let go is never looked at, nor copied.

    Args:
        sinks: first pages that stay beside a window.
    """

    def __init__(self, sinks: int) -> None:
        self._sinks = sinks
        self._rows: Ints = np.zeros((1, 16), dtype=np.int32)
        self._seen: list[Seen | None] = [None]

    def of(self, tables: Sequence[PageTable]) -> Ints:
        """Page numbers, row i those of table i: (at least as many rows, at least as many pages)."""
        rows, width = self._rows.shape
        wanted = max(len(table.pages) for table in tables)
        if len(tables) > rows or wanted > width:
            rows, width = (
                2 ** (n - 1).bit_length() for n in (max(len(tables), rows), max(wanted, width))
            )
            self._rows = np.zeros((rows, width), dtype=np.int32)
            self._seen = [None] * rows
        for i, table in enumerate(tables):
            pages, gone = table.pages, table.gone
            seen = (pages[: min(self._sinks, gone)], gone, pages[gone:])
            if seen != self._seen[i]:
                self._seen[i] = seen
                early, _, late = seen
                self._rows[i, : len(early)] = [page or 0 for page in early]
                self._rows[i, gone : len(pages)] = [page or 0 for page in late]
        return self._rows

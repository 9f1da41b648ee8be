"""Text as it is made: never half a character, and nothing that may turn out to be a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keifu.text.tokenizer import Tokenizer


class Detokenizer:
    """Token ids in, text out; the pieces joined are `decode` of all the ids.

    Bytes that are not yet a whole character wait; bytes that can never be one come out as U+FFFD.
    `start` says whether the text begins a document: SentencePiece writes a space there that is not
    part of the text. A continuation of a prompt keeps it (start=False). Special tokens are left out
    (`skip_special`), but for those in `shown`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special: bool = True,
        start: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids - shown if skip_special else frozenset()
        self._strip = start and tokenizer.pieces.strip_first
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = b""

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        if token in self._hidden:
            return ""
        data = self._held + self._tokenizer.token_bytes(token)
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        if self._tokenizer.pieces.strip_last and data.endswith(b" "):
            data, self._held = data[:-1], b" "
        else:
            self._held = b""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What was held back at the end of the text."""
        self._held = b""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Cuts a stream of text at the first of some strings, whatever the pieces it arrives in.

    The string that is complete first wins; of those complete at once, the longest.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops, self._include = tuple(stops), include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to show, and the stop string if one is complete.

        After a stop, the rest of the text is dropped.
        """
        text, known = self._held + text, len(self._held)
        found: tuple[int, int, str] | None = None
        for stop in self._stops:
            at = text.find(stop, max(0, known - len(stop) + 1))
            if at >= 0 and (found is None or (at + len(stop), at) < found[:2]):
                found = (at + len(stop), at, stop)
        if found:
            end, at, stop = found
            self._held = ""
            return text[: end if self._include else at], stop
        keep = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back: no stop string came."""
        text, self._held = self._held, ""
        return text

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """How many characters at the end of `text` begin `stop`."""
        for size in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:size]):
                return size
        return 0

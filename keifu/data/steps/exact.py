"""Exact duplicates: the same text again, by its 128-bit hash, or a Bloom filter of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from keifu.data.bloom import Bloom
from keifu.data.document import Document, Dropped
from keifu.data.step import CorpusStep, Judge, Look, Verdict


@dataclass(frozen=True, kw_only=True)
class Exact(CorpusStep):
    """The first of equal documents stays."""

    loose: bool = True
    """Whether texts that differ in case and white space alone are equal"""
    bloom: int = 0
    """Documents a Bloom filter is made for: fixed memory, one in a million unseen ones is lost
    (0: every hash is kept, some 150 bytes a document)"""

    def look(self) -> Look:
        """Sixteen bytes."""

        def look(document: Document) -> bytes:
            text = " ".join(document.text.casefold().split()) if self.loose else document.text
            return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

        return look

    def judge(self) -> Judge:
        """Whether it came before."""
        if self.bloom:
            filter = Bloom(self.bloom)

            def filtered(number: int, looked: bytes) -> Verdict:
                return Dropped("duplicate") if filter.add(int.from_bytes(looked[:8])) else None

            return filtered
        seen: dict[bytes, int] = {}

        def judge(number: int, looked: bytes) -> Verdict:
            first = seen.setdefault(looked, number)
            return None if first == number else Dropped("duplicate", f"of document {first}")

        return judge


STEP = Exact

"""What a build did: numbers, examples of what was dropped, and a sample for people to look at."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keifu.data.document import Document
from keifu.data.executor import Outcome

_SHOWN = 5


@dataclass
class Report:
    """What a build did, in numbers."""

    read: int = 0
    kept: int = 0
    read_characters: int = 0
    kept_characters: int = 0
    bad: int = 0
    bad_examples: list[tuple[str, str]] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    """Documents read, by source."""
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Documents by step ("3 minhash") and reason."""
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """"step: reason" -> (place, detail) of the first five."""

    def count(self, facts: Mapping[str, Any]) -> None:
        """Take in the facts of one finished chunk."""
        for name in ("read", "kept", "read_characters", "kept_characters"):
            setattr(self, name, getattr(self, name) + facts[name])
        self.sources.update(facts["sources"])
        for step, reason, times in facts["dropped"]:
            self.dropped[step, reason] += times
        for name, found in facts["examples"].items():
            mine = self.examples.setdefault(name, [])
            mine += [(place, detail) for place, detail in found][: _SHOWN - len(mine)]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "read": self.read, "kept": self.kept, "read_characters": self.read_characters,
            "kept_characters": self.kept_characters, "bad_rows": self.bad,
            "bad_examples": self.bad_examples, "sources": dict(self.sources),
            "dropped": [
                {"step": step, "reason": reason, "documents": times,
                 "examples": self.examples.get(f"{step}: {reason}", [])}
                for (step, reason), times in sorted(self.dropped.items())
            ],
        }  # fmt: skip


class Samples:
    """A fixed number of documents drawn at random, the same whoever counts them and when.

    Those with the smallest hash of their place stay: a draw without replacement (bottom-k).
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._drawn: dict[str, list[tuple[int, str]]] = {"kept": [], "dropped": []}

    def offer(self, kind: str, place: str, line: str, drawn: list[tuple[int, str]]) -> None:
        """Draw a document or not; what is drawn is noted in `drawn`."""
        raw = hashlib.blake2b(f"{kind} {place}".encode("utf-8", "replace"), digest_size=8).digest()
        rank = int.from_bytes(raw)
        pool = self._drawn[kind]
        if self.count and (len(pool) < self.count or rank < -pool[0][0]):
            self._put(pool, rank, line)
            drawn.append((rank, line))

    def again(self, drawn: Sequence[tuple[int, str]]) -> None:
        """Take in what an earlier run drew."""
        for rank, line in drawn:
            self._put(self._drawn["dropped" if line.startswith('{"dropped"') else "kept"],
                      rank, line)  # fmt: skip

    def lines(self) -> str:
        """All of them, the kept ones first."""
        every = (sorted(pool, reverse=True) for pool in self._drawn.values())
        return "".join(line + "\n" for pool in every for _, line in pool)

    def _put(self, pool: list[tuple[int, str]], rank: int, line: str) -> None:
        heapq.heappush(pool, (-rank, line))
        if len(pool) > self.count:
            heapq.heappop(pool)


@dataclass(frozen=True)
class Finished:
    """A chunk that has gone through all stages."""

    came: Sequence[Document]
    found: Sequence[Outcome]
    """One a document; `step` counts through all stages."""
    names: Sequence[str]
    looks: Sequence[Sequence[tuple[int, bytes]]]

    def facts(self, samples: Samples) -> tuple[dict[str, Any], bytes]:
        """The chunk in numbers, and its documents as they are written."""
        dropped: Counter[tuple[str, str]] = Counter()
        examples: dict[str, list[tuple[str, str]]] = {}
        kept: list[str] = []
        drawn: list[tuple[int, str]] = []
        size = 0
        for outcome in self.found:
            document = outcome.document
            row = {"text": document.text, "meta": {**document.meta, "place": document.place}}
            line = json.dumps(row, ensure_ascii=False, default=str)
            if outcome.dropped is None:
                kept.append(line + "\n")
                size += len(document.text)
                samples.offer("kept", document.place, line, drawn)
                continue
            name, (reason, detail) = self.names[outcome.step], outcome.dropped
            dropped[name, reason] += 1
            shown = examples.setdefault(f"{name}: {reason}", [])
            if len(shown) < _SHOWN:
                shown.append((document.place, detail))
            said = json.dumps({"dropped": name, "reason": reason, "detail": detail, **row},
                              ensure_ascii=False, default=str)  # fmt: skip
            samples.offer("dropped", document.place, said, drawn)
        return {
            "read": len(self.came), "kept": len(kept), "kept_characters": size,
            "read_characters": sum(len(document.text) for document in self.came),
            "sources": Counter(d.place.rpartition(":")[0] for d in self.came),
            "dropped": [[*key, times] for key, times in dropped.items()],
            "examples": examples, "drawn": drawn,
        }, "".join(kept).encode("utf-8", "replace")  # fmt: skip

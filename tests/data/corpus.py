"""A small corpus with planted faults; what is clean and what is not is known of each document."""

from __future__ import annotations

import json
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path

from keifu.data.document import Change, Document
from keifu.data.step import DocumentStep

WORDS = (
    "river stone light morning garden letter window mountain paper silence market bridge "
    "winter harbour teacher question answer machine number forest journey kitchen promise "
    "history village station evening island music shadow colour doctor engine summer valley"
).split()
HEAD = "The Daily Harbour | your news from the coast every morning since 1921"
NAVIGATION = "Home | News | Sports | Weather | Contact"
AD = "Limited-time offer: 50% off all shoes, buy now!"
COOKIES = "We use cookies to make this site better, see our cookie policy."
EVALUATION = (
    "Which of the two travellers who met at the old stone bridge in winter carried the letter "
    "that the doctor had promised to the village?"
)


def prose(seed: int, sentences: int = 12) -> str:
    """Sentences of common words, different for each seed."""
    rng = random.Random(seed)
    lines = []
    for _ in range(sentences):
        a, b, c, d, e = rng.sample(WORDS, 5)
        lines.append(
            f"In the {a} of {seed * 7 + rng.randrange(1000)} they have found that the {b} and the "
            f"{c} belong with a {d}, which nobody told to the {e}."
        )
    return "\n".join(lines)


def altered(text: str, seed: int) -> str:
    """The same text with a word here and there changed: a near-duplicate."""
    rng = random.Random(seed)
    words = text.split(" ")
    for at in rng.sample(range(len(words)), max(1, len(words) // 100)):
        words[at] = "otherwise"
    return " ".join(words)


def planted() -> list[tuple[str, str]]:
    """(kind, text); "clean" stays as it is, "trimmed" stays without its furniture."""
    found = [("clean", prose(seed)) for seed in range(40)]
    found += [("exact", prose(seed)) for seed in range(0, 8)]
    found += [("exact", prose(seed).upper().replace(" ", "  ")) for seed in range(8, 10)]
    found += [("near", altered(prose(seed), seed)) for seed in range(10, 20)]
    found += [("trimmed", f"{NAVIGATION}\n{prose(100 + n)}\n{AD}\n{COOKIES}\n") for n in range(10)]
    found += [("shared", f"{HEAD}\n{prose(200 + n)}") for n in range(10)]
    found += [("toxic line", prose(300 + n) + "\nFree porn and viagra here.") for n in range(5)]
    found += [("toxic", "\n".join(["fuck you", "porn", prose(400 + n, 3)])) for n in range(3)]
    found += [("contaminated", prose(500 + n, 6) + "\n" + EVALUATION) for n in range(4)]
    found += [("short", "Too short to be of use."), ("repeating", "the cat and the dog " * 60)]
    found += [("other language", GERMAN)]
    return found


GERMAN = (
    "Am Morgen gingen die Kinder durch den Wald zur Schule, und der Lehrer wartete schon vor der "
    "Tür. Er hatte ihnen versprochen, heute von den Sternen zu erzählen, die man im Winter über "
    "dem Hafen sehen kann. Niemand wollte zu spät kommen. Die Glocke läutete, als der letzte "
    "Schüler den Hof betrat, und alle setzten sich leise auf ihre Plätze und hörten zu."
)


def write(path: Path, documents: list[tuple[str, str]]) -> Path:
    """As JSONL, with the kind in `meta`."""
    rows = (json.dumps({"text": text, "meta": {"kind": kind}}) for kind, text in documents)
    path.write_text("".join(row + "\n" for row in rows), "utf-8")
    return path


@dataclass(frozen=True, kw_only=True)
class Killing(DocumentStep):
    """A step whose process is killed at a short text, as by a machine without memory."""

    def start(self) -> Change:
        def change(document: Document) -> Document:
            if document.text.startswith("Too short"):
                os.kill(os.getpid(), signal.SIGKILL)
            return document

        return change

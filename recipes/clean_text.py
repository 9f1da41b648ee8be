"""Clean real text in which faults were planted: Python's own documentation.

    python recipes/clean_text.py FOLDER

The corpus is the language reference that comes with Python (pydoc's topics) and the docstrings of
the standard library's modules, classes and functions, which no network brings. Planted are exact
and near copies, rows of links, advertisements, toxic lines and the questions of an evaluation set.
It prints what went and why. Expected: every copy and question is found, nine of ten near copies at
least, no planted line is left, and nine of ten documents of real text are as they were but for what
they say twice.
"""

from __future__ import annotations

import ast
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from keifu.data.pipeline import BuildOptions, Pipeline
from keifu.data.step import steps_of

LINKS, AD = "Home | Docs | Download | Blog | About us", "Free shipping and 30% off, order now!"
TOXIC, QUESTION = (
    "Watch free porn and camgirls here.",
    "Which keyword of the language would a careful programmer choose to leave the innermost loop "
    "before its condition becomes false?",
)
STEPS: list[Any] = [
    "normalise",
    {"language": {"keep": ["en"], "least": 0.5}},
    "boilerplate",
    "toxic",
    {"gopher": {"fewest_words": 30, "symbols": 0.3, "letters": 0.6}},
    "exact",
    "minhash",
]


def real() -> list[str]:
    """Topics and docstrings of 60 words or more, each once."""
    from pydoc_data.topics import topics

    found = list(topics.values())
    for path in sorted(Path(os.path.dirname(os.__file__)).glob("*.py")):
        tree = ast.parse(path.read_text("utf-8", "replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found.append(ast.get_docstring(node) or "")
    return [text for text in dict.fromkeys(found) if len(text.split()) >= 60]


def planted(texts: list[str], rng: random.Random) -> list[tuple[str, str]]:
    """(kind, text): the real ones, then copies with faults."""
    rows = [("real", text) for text in texts]
    rows += [("copy", text) for text in rng.sample(texts, 40)]
    for text in rng.sample([text for text in texts if len(text.split()) > 200], 40):
        words = text.split(" ")
        for at in rng.sample(range(len(words)), max(1, len(words) // 200)):
            words[at] = "moreover"
        rows.append(("near copy", " ".join(words)))
    halves = rng.sample([text for text in texts if len(text.split()) > 400], 30)
    for number, text in enumerate(halves):  # the second half alone is new to MinHash
        half = text[len(text) // 2 :].partition("\n")[2]
        fault = (f"{LINKS}\n{half}\n{AD}", f"{half}\n{TOXIC}", f"{half}\n{QUESTION}")[number % 3]
        rows.append((("furniture", "toxic line", "question")[number % 3], fault))
    return rows


def main(folder: Path) -> dict[str, Any]:
    """Plant, clean, count."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = planted(real(), random.Random(0))
    source, questions = folder / "source.jsonl", folder / "questions.jsonl"
    questions.write_text(json.dumps({"question": QUESTION}) + "\n", "utf-8")
    lines = (json.dumps({"text": text, "meta": {"kind": kind}}) for kind, text in rows)
    source.write_text("\n".join(lines), "utf-8")
    steps = [*STEPS, {"contamination": {"against": [str(questions)]}}]
    report = Pipeline(steps=steps_of(steps)).build(
        [source], folder / "clean", BuildOptions(processes=2, restart=True)
    )
    written = (folder / "clean/documents.jsonl").read_text("utf-8")
    kept = [json.loads(line) for line in written.split("\n") if line]
    every, left = Counter(kind for kind, _ in rows), Counter(row["meta"]["kind"] for row in kept)
    whole = {text.strip() for kind, text in rows if kind == "real"}
    same = sum(row["text"].strip() in whole for row in kept if row["meta"]["kind"] == "real")
    for (step, reason), times in sorted(report.dropped.items()):
        print(f"{times:5} {step}: {reason}; {report.examples[f'{step}: {reason}'][0][1]}")
    lines_left = sum(fault in row["text"] for row in kept for fault in (LINKS, AD, TOXIC, QUESTION))
    print(f"{report.kept} of {report.read} documents stay: {dict(left)} of {dict(every)}")
    print(f"{same} real ones are as they were; {lines_left} planted lines are left")
    return {"every": every, "left": left, "same": same, "lines_left": lines_left}


if __name__ == "__main__":
    main(Path(sys.argv[1]))

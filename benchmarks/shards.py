"""Texts to shards: tokens a second beside the tokenizer alone, and beside `datasets`.

The text is the standard library's own sources and documents as JSON lines. Ours is everything: the
lines are read, tokenised by as many processes as the others have threads, hashed and written, and
every row of 2,048 tokens of the result is read once. Raw is `encode_batch` of the same tokenizer on
texts that are in memory, with as many threads, nothing kept. `datasets` maps the tokenizer of
`transformers` with as many processes, groups and saves. Each runs in a process of its own, in
shuffled order; ratios are taken within a round, then their median.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keifu.families._load import open_checkpoint

SUBJECT = Path(__file__).with_name("shards_subject.py")
MOST, LENGTH, BAR, AIM = 12_000_000, 2048, 0.9, 1e6
RUNS = ("keifu", "raw", "datasets")


def corpus(path: Path, most: int = MOST) -> int:
    """Write the text as JSON lines, a file a document, in sorted order; its characters."""
    held = 0
    with path.open("w", encoding="utf-8") as file:
        for source in sorted(Path(os.path.dirname(os.__file__)).rglob("*")):
            if source.suffix not in (".py", ".txt", ".rst") or "site-packages" in source.parts:
                continue
            text = source.read_text("utf-8", "replace")
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            held += len(text)
            if held >= most:
                break
    return held


def run(name: str, folder: Path, *, threads: int, python: str) -> dict[str, Any]:
    """What one subject says of itself, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        parallel = {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
        environment = {
            **os.environ, **parallel, "HF_HUB_OFFLINE": "1", "HF_HOME": made,
            "PYTHONPATH": str(SUBJECT.parents[1]),
        }  # fmt: skip
        words = [name, folder / "text.jsonl", folder / "tokenizer", made, threads, LENGTH]
        done = subprocess.run(
            [python, str(SUBJECT), *map(str, words)],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
    if done.returncode:
        return {"absent": done.stderr.strip().splitlines()[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(path: Path, *, threads: int, python: str | None, rounds: int = 3) -> Mapping[str, Any]:
    """Medians over rounds of tokens a second, and of the ratios."""
    speeds: dict[str, list[float]] = {name: [] for name in RUNS}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        characters = corpus(folder / "text.jsonl")
        open_checkpoint(path).tokenizer().save(folder / "tokenizer")
        for number in range(rounds):
            for name in random.Random(number).sample(RUNS, len(RUNS)):
                at = sys.executable if name == "keifu" or python is None else python
                said = run(name, folder, threads=threads, python=at)
                if "absent" in said:
                    found[name] = f"absent: {said['absent']}"
                    continue
                speeds[name].append(said["tokens"] / said["seconds"])
                if name == "keifu":
                    found["text"] = (
                        f"{characters} characters, {said['tokens']} tokens of {path.name}'s "
                        f"vocabulary, {threads} threads"
                    )
    found["thousand tokens/s"] = {
        name: statistics.median(told) / 1e3 for name, told in speeds.items() if told
    }
    for name, bar in (("raw", BAR), ("datasets", None)):
        if speeds["keifu"] and len(speeds[name]) == len(speeds["keifu"]):
            pairs = zip(speeds["keifu"], speeds[name], strict=True)
            ratios = sorted(a / b for a, b in pairs)
            middle = statistics.median(ratios)
            holds = {} if bar is None else {"holds": middle >= bar}
            found[f"over {name}"] = {
                "ratio": middle, "lowest": ratios[0], "highest": ratios[-1], **holds
            }  # fmt: skip
    found["aim of a million tokens/s"] = statistics.median(speeds["keifu"]) >= AIM
    return found

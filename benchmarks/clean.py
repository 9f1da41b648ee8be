"""Cleaning a corpus beside `datasketch` and `datatrove`, step by step and as a whole.

The text is the standard library's sources in pieces of 4,000 characters. The same work is timed
in processor seconds of one thread, in turn, and ratios are taken within a round: MinHash signatures
of word 5-grams (128 orders; datatrove 9 bands of 14), Gopher's quality and repetition rules. The
whole is Keifu's usual steps through `Pipeline.build`, files included.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PIECE, MOST = 4000, 400
Timed = dict[str, Callable[[str], object]]


def corpus() -> list[str]:
    """The standard library's sources, in pieces; files in sorted order."""
    folder, found = Path(os.path.dirname(os.__file__)), []
    for path in sorted(folder.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib"} & set(path.parts):
            continue
        text = path.read_text("utf-8", "replace")
        found += [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
        if len(found) >= MOST:
            break
    return found[:MOST]


def ours() -> Timed:
    """Keifu's steps."""
    from keifu.data.document import Document
    from keifu.data.steps.gopher import Gopher
    from keifu.data.steps.gopher_repetition import GopherRepetition
    from keifu.data.steps.minhash import MinHash

    look = MinHash().look()
    quality, repetition = Gopher().start(), GopherRepetition().start()
    return {
        "minhash": lambda text: look(Document(text)),
        "gopher": lambda text: quality(Document(text)),
        "gopher-repetition": lambda text: repetition(Document(text)),
    }


def datasketch() -> Timed:
    """Its MinHash, fed in one call, as its documentation advises."""
    from datasketch import MinHash

    def minhash(text: str) -> object:
        words = re.findall(r"\w+", text.lower())
        sketch = MinHash(num_perm=128)
        grams = {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
        sketch.update_batch([gram.encode() for gram in grams])
        return sketch

    return {"minhash": minhash}


def datatrove() -> Timed:
    """Its filters and signatures, as its pipelines call them."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

    quality, repetition = GopherQualityFilter(), GopherRepetitionFilter()
    config = MinhashConfig(n_grams=5, num_buckets=9, hashes_per_bucket=14)
    signer = MinhashDedupSignature(tempfile.mkdtemp(), config=config)
    return {
        "minhash": lambda text: signer.get_signature(signer.get_shingles(text)),
        "gopher": lambda text: quality.filter(Document(text, "0")),
        "gopher-repetition": lambda text: repetition.filter(Document(text, "0")),
    }


SUBJECTS: dict[str, Callable[[], Timed]] = {
    "keifu": ours, "datasketch": datasketch, "datatrove": datatrove,
}  # fmt: skip


def subject(name: str, rounds: int) -> dict[str, list[float]]:
    """Characters a processor second of each kind of work, once a round."""
    texts = corpus()
    size = sum(map(len, texts))
    found: dict[str, list[float]] = {}
    for kind, work in SUBJECTS[name]().items():
        work(texts[0])
        for _ in range(rounds):
            start = time.process_time()
            for text in texts:
                work(text)
            found.setdefault(kind, []).append(size / (time.process_time() - start))
    return found


def asked(name: str, python: str, rounds: int) -> dict[str, list[float]] | str:
    """A subject in a process of its own; a line of text if it is not there."""
    words = [python, "-m", "benchmarks.clean", name, str(rounds)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed"])[-1][:200]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def whole() -> dict[str, Any]:
    """The usual steps on all pieces, from a file to a folder."""
    from keifu.data.pipeline import BuildOptions, Pipeline
    from keifu.data.recipe import usual

    texts = corpus()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        start = time.perf_counter()
        report = Pipeline(steps=usual().steps).build(
            [source], Path(folder) / "out", BuildOptions(processes=1)
        )
        took = time.perf_counter() - start
    return {
        "documents_per_second": report.read / took,
        "mb_per_second": sum(map(len, texts)) / took / 1e6,
        "kept": f"{report.kept} of {report.read}",
    }  # fmt: skip


def measure(path: Path | None, *, threads: int, python: str | None = None, rounds: int = 3) -> Any:
    """Each kind of work beside the peers that are there, then the whole."""
    texts = corpus()
    found: dict[str, Any] = {"corpus": f"{len(texts)} pieces, {sum(map(len, texts)):,} characters"}
    told = {name: asked(name, (python if name != "keifu" else None) or sys.executable, rounds)
            for name in SUBJECTS}  # fmt: skip
    mine = told.pop("keifu")
    if isinstance(mine, str):
        return {"not comparable": mine}
    for kind, speeds in mine.items():
        found[kind] = {"keifu_mb_per_second": statistics.median(speeds) / 1e6}
        for name, theirs in told.items():
            if isinstance(theirs, str):
                found[f"{name} absent"] = theirs
            elif kind in theirs:
                ratios = [a / b for a, b in zip(speeds, theirs[kind], strict=True)]
                found[kind][f"{name}_mb_per_second"] = statistics.median(theirs[kind]) / 1e6
                found[kind][f"ratio_to_{name}"] = statistics.median(ratios)
    found["whole"] = whole()
    return found


if __name__ == "__main__":
    print(json.dumps(subject(sys.argv[1], int(sys.argv[2]))))

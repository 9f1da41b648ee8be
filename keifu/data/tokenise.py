"""From files of text to a folder of shards: in parallel, continued after a kill, the same bytes.

    tokenise("shards", {"books": ["books.jsonl"], "code": ["src/"]}, tokenizer, workers=8)

A job is divided into units (job.py), each of which is done by one process (work.py); the manifest
is written when all are. What was done before a kill is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keifu.core.atomic import write_text
from keifu.core.errors import KeifuError
from keifu.core.machine import threads
from keifu.data.job import PLAN, WORK, Encoding, Job, listed, units
from keifu.data.shards import (
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Columns,
    Manifest,
    Shard,
    parsed,
    write_manifest,
)
from keifu.data.work import record_of, work
from keifu.text.load import load
from keifu.text.tokenizer import Tokenizer

SHARD_TOKENS = 1 << 24
"""Tokens after which a unit begins another file."""
Show = Callable[[int, int], None]
"""Hears how many units are done, and how many there are."""
Sources = Mapping[str, Sequence[str | Path]]


def tokenise(
    folder: str | Path,
    sources: Sources,
    tokenizer: Tokenizer,
    encoding: Encoding = Encoding(),
    *,
    workers: int | None = None,
    ray: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    show: Show = lambda done, total: None,
) -> Manifest:
    """Tokenise files into a folder; called again after an interruption it goes on.

    Args:
        sources: files, folders or hub data sets by the name of the source that they belong to.
        workers: processes; None: one a core. 1 works in this process.
        ray: units are done by Ray's workers, which see `folder` and the files at the same paths.

    Raises:
        KeifuError: the folder is finished, or was begun with other data or options; a document
            cannot be read; the disk is full.
    """
    path = Path(folder)
    job = begin(path, sources, tokenizer, encoding, shard_tokens)
    total = len(job.units)
    left = [n for n in range(total) if not record_of(path, n).exists()]
    done = total - len(left)
    show(done, total)

    def one_more() -> None:
        nonlocal done
        done += 1
        show(done, total)

    workers = min(workers or threads(), max(1, len(left)))
    if ray:
        _on_ray(path, left, one_more)
    elif workers == 1:
        for number in left:
            work(path, number)
            one_more()
    else:
        _processes(path, left, workers, one_more)
    return finish(path, job)


def begin(
    folder: Path, sources: Sources, tokenizer: Tokenizer, encoding: Encoding, shard_tokens: int
) -> Job:
    """Write down what is to be done, or see that it is what was begun."""
    if (folder / MANIFEST).exists():
        raise KeifuError(f"{folder} is finished: name another folder, or remove it first")
    for place in (Path(place).absolute() for places in sources.values() for place in places):
        if place.is_dir() and folder.absolute().is_relative_to(place):
            raise KeifuError(f"{folder} lies in its own source {place}: name another folder")
    try:
        (folder / WORK).mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise KeifuError(f"cannot write {folder}: {refused.strerror}") from None
    plan = folder / WORK / PLAN
    if not plan.exists():
        tokenizer.save(folder / TOKENIZER)
    used = load(folder / TOKENIZER)
    marks, found = used.marks, listed(sources, encoding)
    end = marks.suffix or (() if used.eos_id is None else (used.eos_id,))
    job = Job(
        encoding=encoding,
        fingerprint=used.fingerprint,
        vocabulary=used.vocab_size,
        begin=marks.prefix,
        end=end,
        shard_tokens=shard_tokens,
        files=found,
        units=units(found, encoding),
    )
    if not plan.exists():
        write_text(plan, job.json())
    elif plan.read_text() != job.json() or tokenizer.fingerprint != used.fingerprint:
        raise KeifuError(
            f"{folder} was begun with other data, options or another tokenizer: "
            "remove it, or name another folder"
        )
    return job


def finish(folder: Path, job: Job) -> Manifest:
    """Gather the units' records into the manifest."""
    shards: list[Shard] = []
    dropped = Counter[str]()
    for number in range(len(job.units)):
        record = record_of(folder, number)
        said: dict[str, Any] = json.loads(record.read_bytes())
        shards += [parsed(Shard, one, str(record)) for one in said["shards"]]
        dropped.update(said["dropped"])
    if not shards:
        raise KeifuError("no document has any text: there is nothing to learn from")
    encoding = job.encoding
    manifest = Manifest(
        fingerprint=job.fingerprint,
        vocabulary=job.vocabulary,
        begin=job.begin,
        end=job.end,
        columns=Columns(
            keep=encoding.prompt is not None,
            target=encoding.target is not None,
            label=encoding.label is not None,
        ),
        options=asdict(encoding),
        dropped=dict(sorted(dropped.items())),
        shards=tuple(sorted(shards, key=lambda shard: SPLITS.index(shard.split))),
    )
    for torn in folder.glob(".*.safetensors.*.tmp"):  # what a killed process was writing
        torn.unlink(missing_ok=True)
    write_manifest(folder, manifest)
    shutil.rmtree(folder / WORK)
    return manifest


def _processes(
    folder: Path, numbers: Sequence[int], count: int, one_more: Callable[[], None]
) -> None:
    """Share units out to processes of one thread each; the first failure ends them all."""
    left = iter(numbers)
    lock, faults = threading.Lock(), list[str]()
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "keifu.data.work", str(folder)]
    started: list[subprocess.Popen[str]] = []
    feeds: list[threading.Thread] = []

    def feed(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        while not faults:
            with lock:
                number = next(left, None)
            if number is None:
                return
            try:
                process.stdin.write(f"{number}\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            with lock:
                if answer == "done\n":
                    one_more()
                else:
                    ended = f"a process that tokenised ended: {process.poll()}"
                    faults.append(answer.removeprefix("failed ").strip() or ended)

    try:
        pipe = subprocess.PIPE
        for _ in range(count):
            # In a session of their own: an interruption is for this process, which ends them.
            started.append(
                subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, text=True, env=environment,
                    start_new_session=True,
                )
            )  # fmt: skip
        feeds += [threading.Thread(target=feed, args=(p,), daemon=True) for p in started]
        for thread in feeds:
            thread.start()
        for thread in feeds:
            thread.join()
    finally:
        _end(started, feeds)
    if faults:
        raise KeifuError(faults[0])


def _end(started: Sequence[subprocess.Popen[str]], feeds: Sequence[threading.Thread]) -> None:
    """No process is left, and no pipe, whatever happened."""
    for process in started:
        process.kill()
        process.wait()
    for thread in feeds:
        if thread.is_alive():
            thread.join(5)
    for process in started:
        process.communicate()


def _on_ray(folder: Path, numbers: Sequence[int], one_more: Callable[[], None]) -> None:
    """The same work on many machines, with what they have in common: a file system."""
    try:
        import ray
    except ModuleNotFoundError:
        raise KeifuError("Ray is not installed: pip install 'keifu[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    there = ray.remote(num_cpus=1)(work)
    waiting = [there.remote(folder.absolute(), number) for number in numbers]
    while waiting:
        ready, waiting = ray.wait(waiting)
        try:
            ray.get(ready)
        except ray.exceptions.RayTaskError as failed:
            for other in waiting:
                ray.cancel(other, force=True)
            if isinstance(failed.cause, KeifuError):
                raise KeifuError(str(failed.cause)) from None
            raise
        one_more()

"""How long `keifu chat --max-tokens 1 hi` takes from nothing, and how much memory a context takes.

Pairs of fresh processes, ours and a script that does the same with llama-cpp-python and imports
torch, take turns with the page cache warm. Memory is the most that a process has held after it
filled a context of 2048 tokens.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keifu.lm.measure import OURS, Worker, commands

PAIRS, CONTEXT = 9, 2048
ROOM = 300e6
THEIRS = """
import sys, torch
from llama_cpp import Llama
model, threads = sys.argv[1], int(sys.argv[2])
llama = Llama(model, n_ctx=0, n_threads=threads, n_threads_batch=threads, verbose=False)
asked = [{"role": "user", "content": "hi"}]
print(llama.create_chat_completion(asked, max_tokens=1)["choices"][0]["message"]["content"])
"""
IMPORT = "import time; s = time.perf_counter(); import keifu; print(time.perf_counter() - s)"


def seconds(command: Sequence[str]) -> float:
    """How long a command takes; it must succeed."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return taken


def importing() -> float:
    """Seconds of `import keifu`, the median of several fresh processes."""
    runs = [
        subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        for _ in range(PAIRS)
    ]
    return statistics.median(float(run.stdout) for run in runs)


def of_torch() -> int:
    """Bytes that a process holds after `import torch`."""
    script = "import torch; from keifu.lm.peers import usage; print(usage()['peak'])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def memory(path: Path, threads: int) -> int:
    """Bytes that Keifu has held at most once a context of 2048 tokens is full."""
    worker = Worker(OURS, commands([])[OURS])
    try:
        worker.ask("load", model=str(path), threads=threads, context=CONTEXT)
        prompt = [i % 1000 + 100 for i in range(CONTEXT - 48)]
        worker.ask("run", prompt=prompt, new=48)
        return int(worker.ask("memory")["peak"])
    finally:
        worker.close()


def measure(path: Path, *, threads: int, python: str | None = None) -> Mapping[str, Any]:
    """Start and memory; each says what it found and whether that is enough."""
    keifu = Path(sys.executable).with_name("keifu")
    ours = [str(keifu), "chat", "-m", str(path), "--threads", str(threads)]
    ours += ["--max-tokens", "1", "hi"]
    theirs = [python or sys.executable, "-c", THEIRS, str(path), str(threads)]
    used, torch, file = memory(path, threads), of_torch(), os.path.getsize(path)
    found: dict[str, Any] = {
        "import": {"seconds": importing()},
        "memory": {"keifu": used, "file": file, "torch": torch, "allowed": file + torch + ROOM},
    }
    found["import"]["holds"] = found["import"]["seconds"] < 0.3
    found["memory"]["holds"] = used <= found["memory"]["allowed"]
    seconds(ours)  # the first of each warms the page cache
    try:
        seconds(theirs)
    except RuntimeError as missing:
        return {**found, "absent": str(missing).splitlines()[-1]}
    pairs = []
    for number in range(PAIRS):
        turns = (ours, theirs) if number % 2 else (theirs, ours)
        taken = {id(command): seconds(command) for command in turns}
        pairs.append((taken[id(ours)], taken[id(theirs)]))
    ratios = sorted(a / b for a, b in pairs)
    found["start"] = {
        "keifu": statistics.median(a for a, _ in pairs),
        "llama-cpp-python and torch": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
        "holds": statistics.median(ratios) <= 1.3,
    }
    return found

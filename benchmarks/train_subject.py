"""One trainer of the training benchmark in a process of its own: a line of JSON in, a line out.

Run by path, since the peer's Python has no keifu: `python train_subject.py NAME FOLDER THREADS`,
where the folder has a Llama in Hugging Face form and `batches.npy` (steps, rows, tokens).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

RATE, DECAY, CLIP = 3e-4, 0.01, 1.0


def peer(folder: Path, batches: list[torch.Tensor], compiled: bool) -> Iterator[float]:
    """The plain loop: transformers' class, autocast to bfloat16, fused AdamW; losses."""
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.use_cache = False
    model.train()
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    for number in range(1 << 30):
        ids = batches[number % len(batches)]
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def ours(
    folder: Path, batches: list[torch.Tensor], precision: str, told: Callable[[float], None]
) -> None:
    """Keifu's trainer on the same; `told` gets every step's loss and never returns the last."""
    from keifu.families._load import build_model, open_checkpoint
    from keifu.training import Sequences, Trainer
    from keifu.training.loop import TrainOptions
    from keifu.training.objectives.causal_lm import CausalLM
    from keifu.training.optimizers.adamw import AdamW

    def batch(number: int) -> Sequences:
        return Sequences.of(list(batches[number % len(batches)]))

    trainer = Trainer(
        build_model(open_checkpoint(folder)),
        CausalLM(),
        optimization=AdamW(lr=RATE, decay=DECAY),
        options=TrainOptions(steps=1 << 30, clip=CLIP, precision=precision),
        on_step=[lambda record: told(record.loss)],
    )
    trainer.fit(batch)


class Clock:
    """Takes the loss of a step; once as many ran as were asked for, answers and waits for more."""

    def __init__(self, answers: Any) -> None:
        self.answers = answers
        self.losses: list[float] = []
        self.left = 0
        self.began = self.used = 0.0

    def __call__(self, loss: float) -> None:
        self.losses.append(loss)
        self.left -= 1
        if self.left > 0:
            return
        self.answer(
            seconds=time.perf_counter() - self.began,
            cpu=time.process_time() - self.used,
            losses=self.losses,
            peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
        self.wait()

    def wait(self) -> None:
        """For a request: {"do": "run", "steps": n}; the end of input ends the process."""
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        self.left = int(json.loads(line)["steps"])
        self.losses = []
        self.began, self.used = time.perf_counter(), time.process_time()

    def answer(self, **told: Any) -> None:
        print(json.dumps(told), file=self.answers, flush=True)


def main() -> None:
    """Train, a few steps whenever asked."""
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    clock = Clock(sys.stdout)
    sys.stdout = sys.stderr  # libraries that print do not disturb the protocol
    torch.set_num_threads(threads)
    batches = [torch.from_numpy(part) for part in np.load(folder / "batches.npy")]
    clock.answer(name=name)
    clock.wait()
    if name.startswith("peer"):
        for loss in peer(folder, batches, name == "peer, compiled"):
            clock(loss)
    else:
        ours(folder, batches, name, clock)


if __name__ == "__main__":
    main()

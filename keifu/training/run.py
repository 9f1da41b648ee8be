"""A run: from a recipe to a folder with a trained model, cut short and gone on with exactly."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from keifu.checkpoints import whole
from keifu.core.atomic import write_text
from keifu.core.errors import KeifuError
from keifu.data.corpus import Corpus
from keifu.training.groups import optimizer_groups
from keifu.training.loop import Record, Trainer, evaluate
from keifu.training.making import (
    SHARDS,
    TOKENIZER,
    Made,
    Say,
    examples_of,
    identity,
    model_at,
    new_model,
    objective_of,
    shards_of,
    tokenizer_of,
)
from keifu.training.natural import vocabulary_of
from keifu.training.reading import numbered
from keifu.training.recipe import Recipe, read
from keifu.training.run_folder import RunFolder, locked
from keifu.training.saved_state import read_state
from keifu.training.saving import STATE, Saver, restore, snapshot

_log = logging.getLogger("keifu")
Show = Callable[[Record, dict[str, Any]], None]
"""Hears what each step did, and what was measured after it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended."""

    folder: Path
    family: str
    steps: int
    loss: float
    held_out: float | None
    """Loss on what was held out, at the last measurement."""
    seconds: float
    """Of this process."""
    checkpoint: Path


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    override: bool = False,
    say: Say = lambda text: None,
    show: Show = lambda record, found: None,
) -> Result:
    """Train what a recipe says, in a folder.

    Args:
        resume: go on from the latest whole checkpoint, where there is one.
        override: though the recipe changed: weights, moments and the number of the step are the
            run's; the learning rate, its schedule and the data are the recipe's from there on, and
            rows are counted on from as many as were read.

    Raises:
        KeifuError: the folder has a run already, or one of another recipe; another process trains
            there; the data, the model or a step fails. What was saved stays.
        KeyboardInterrupt: after the first Ctrl-C, once the run is saved.
    """
    started = time.monotonic()
    with locked(out) as folder:
        found = _begin(folder, recipe, resume, override)
        tokenizer = tokenizer_of(recipe, out, say)
        shards = shards_of(recipe, out, tokenizer, say)
        state = read_state(found / STATE) if found else None
        facts = {
            "world": 1,
            "rows": recipe.data.batch,
            "data": identity(shards),
            "optimizer": type(recipe.optimizer).__name__,
        }
        if state and not override:
            _same(dict(state["facts"]), facts)
        begin = str(found or recipe.model.path or "")
        made = model_at(begin, recipe, tokenizer) if begin else new_model(recipe, tokenizer)
        if not found:
            write_text(folder.recipe, recipe.text())
        trainer, data, measure = _trainer(recipe, made, tokenizer, shards)
        if found and state:
            _restore(trainer, folder, found, state, recipe, facts)
            if override:
                write_text(folder.recipe, recipe.text())
            say(f"going on from step {trainer.state.step}")

        def take() -> Any:
            return snapshot(trainer, made.family, made.model, tokenizer, facts, made.settings)

        saver = Saver(folder, recipe.checkpoints, take, last=recipe.train.steps)
        with _interruptible() as interrupted:

            def after(record: Record) -> None:
                measured = measure(record)
                folder.log(record, measured)
                show(record, measured)
                saver(record)
                if interrupted.is_set():
                    saver.save(trainer.state.step)
                    raise KeyboardInterrupt

            trainer.on_step = (*trainer.on_step, after)
            try:
                trainer.fit(data)
            finally:
                saver.close()
        return _result(folder, made, trainer, time.monotonic() - started)


def _begin(folder: RunFolder, recipe: Recipe, resume: bool, override: bool) -> Path | None:
    """The checkpoint to go on from; None: from the beginning."""
    if folder.begun() and not resume:
        at = next(iter(whole.steps(folder.path)), 0)
        raise KeifuError(
            f"{folder.path} has a run already (saved at step {at}): --resume goes on with it, "
            "--out names another folder"
        )
    if not folder.recipe.exists():
        return None
    changed = recipe.against(read(folder.recipe))
    if changed and not folder.begun():  # it failed before its first step: nothing is lost
        for made in (TOKENIZER, SHARDS):
            shutil.rmtree(folder.path / made, ignore_errors=True)
        return None
    if changed and not override:
        raise KeifuError(
            f"{folder.path} was begun with another recipe: {'; '.join(changed)} (--override goes "
            "on with the new values from its step on)"
        )
    found = whole.latest_whole(folder.path)
    if found is None:
        folder.resumed(0)
    return found


def _same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with another world or data."""
    changed = [f"{k}: {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
    if changed:
        raise KeifuError(
            f"the run was begun otherwise: {'; '.join(changed)} (--override goes on all the same)"
        )


def _trainer(
    recipe: Recipe, made: Made, tokenizer: Any, shards: tuple[str, ...]
) -> tuple[Trainer[Any], Callable[[int], Any], Callable[[Record], dict[str, Any]]]:
    """The trainer, its data, and what measures it."""
    objective, options = objective_of(recipe, made.family), recipe.data
    reader = objective.reader(vocabulary_of(made.family, tokenizer))
    data = numbered(examples_of(options, shards), options.batch, reader, seed=options.seed)
    trainer = Trainer(
        made.model, objective, optimization=recipe.optimizer, schedule=recipe.plan(),
        groups=recipe.groups, options=recipe.train, guard=recipe.guard, average=recipe.average,
    )  # fmt: skip
    if not any(Corpus(folder).sources("held-out") for folder in shards):
        return trainer, data, lambda record: {}
    held = examples_of(recipe.data, shards, "held-out")
    most = recipe.evaluate.batches
    if held.epoch is not None:
        most = max(1, min(most, held.epoch // recipe.data.batch))
    drawn = numbered(held, options.batch, reader, seed=options.seed)

    def measure(record: Record) -> dict[str, Any]:
        done = record.step + 1
        if done % recipe.evaluate.every and done != recipe.train.steps:
            return {}
        with torch.random.fork_rng(), trainer.averaged():
            loss, metrics = evaluate(made.model, objective, (drawn(i) for i in range(most)))
        return {"held_out": {"loss": loss, **metrics}}

    return trainer, data, measure


def _restore(
    trainer: Trainer[Any],
    folder: RunFolder,
    found: Path,
    state: dict[str, Any],
    recipe: Recipe,
    facts: dict[str, Any],
) -> None:
    """Stand where the run stood; what the recipe says otherwise now holds from here on."""
    before = dict(state["facts"])
    if before.get("optimizer") != facts["optimizer"]:
        _log.warning("the optimizer is another one: its moments begin anew")
        state["optimizer"] = trainer.state_dict()["optimizer"]
    restore(trainer, folder, state, found)
    if before.get("rows") != facts["rows"]:  # batches are counted in rows of another number
        rows = trainer.state.batch * int(before["rows"])
        trainer.state.batch = -(-rows // int(facts["rows"]))
    fresh = optimizer_groups(
        trainer.model, recipe.groups, lr=recipe.optimizer.lr, decay=recipe.optimizer.decay
    )
    by_name = {name: group for group in fresh for name in group["names"]}
    for group in trainer.optimizer.param_groups:  # an optimizer may have split them further
        new = by_name[group["names"][0]]
        group["base"], group["weight_decay"] = new["base"], new["weight_decay"]


def _result(folder: RunFolder, made: Made, trainer: Trainer[Any], seconds: float) -> Result:
    done = trainer.history[-10:]
    there = next(iter(whole.steps(folder.path).values()), None)
    if there is None or not done:
        raise KeifuError(f"{folder.path}: the run made no step and has no checkpoint")
    held = folder.held_out
    return Result(
        folder=folder.path,
        family=made.name,
        steps=trainer.state.step,
        loss=sum(record.loss for record in done) / len(done),
        held_out=held[max(held)] if held else None,
        seconds=seconds,
        checkpoint=there,
    )


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C or SIGTERM; the second one ends the process as ever."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def hear(number: int, frame: FrameType | None) -> None:
        asked.set()
        for kind, handler in before.items():
            signal.signal(kind, handler)
        _log.warning("the step is ended and saved; once more stops at once")

    for kind in before:
        signal.signal(kind, hear)
    try:
        yield asked
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)

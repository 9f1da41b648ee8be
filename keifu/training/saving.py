"""Checkpoints while a run goes on: copied at the end of a step, written by a thread, pruned."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from keifu.checkpoints import whole
from keifu.core.errors import FormatError, KeifuError
from keifu.families._family import Family
from keifu.families._load import Checkpoint, build_model
from keifu.families._save import Saved
from keifu.nn.part import Part
from keifu.text.tokenizer import Tokenizer
from keifu.training.loop import Record, Trainer
from keifu.training.run_folder import RunFolder
from keifu.training.saved_state import frozen, write_state

STATE = "state"


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """When a run is saved, and what is kept of it."""

    every: int = 500
    """Steps from one checkpoint to the next; the last step always has one"""
    keep: int = 3
    """So many of the latest are kept"""
    best: bool = True
    """Keep the one with the lowest held-out loss, too"""
    milestones: int | None = None
    """Keep each that is a multiple of so many steps for good"""

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise KeifuError("checkpoints: every and keep must be 1 or more")
        if self.milestones is not None and self.milestones < 1:
            raise KeifuError("checkpoints: milestones must be 1 or more, or none")


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A run as it stands after a step, apart from the run itself."""

    model: Saved
    state: dict[str, Any]

    def write(self, folder: Path) -> None:
        """As a checkpoint's folder."""
        self.model.write(folder)
        write_state(folder / STATE, self.state)


def snapshot(
    trainer: Trainer[Any],
    family: Family,
    model: nn.Module,
    tokenizer: Tokenizer | None,
    facts: dict[str, Any],
    settings: dict[str, Any] | None = None,
) -> Snapshot:
    """A copy of weights and state; what the steps did stays in metrics.jsonl.

    Args:
        facts: what else going on must find as it was (the world's size, a digest of the data).
    """
    return Snapshot(
        model=Saved.of(family, model, tokenizer, settings=settings, copy=True),
        state=frozen({**trainer.state_dict(), "facts": facts}),
    )


def weights(checkpoint: Checkpoint, spec: Part | None = None) -> nn.Module:
    """A checkpoint's model (or these parts with its weights), in memory of its own, to train."""
    model = build_model(checkpoint, spec=spec)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # not the file's pages, which pruning would keep
    return model


def restore(
    trainer: Trainer[Any], folder: RunFolder, state: Mapping[str, Any], checkpoint: Path
) -> None:
    """Stand where the run stood that had this state; the trainer's model is `weights(checkpoint)`.

    Raises:
        FormatError: the state is of another run.
    """
    try:
        trainer.load_state_dict({name: value for name, value in state.items() if name != "facts"})
    except (KeyError, TypeError, ValueError) as bad:
        raise FormatError(f"{checkpoint / STATE} is not this run's state: {bad}") from bad
    trainer.history = folder.resumed(trainer.state.step)


class Saver:
    """Saves a run every so many steps: call it after each step, and `close` it at the end.

    `take` copies the run when its turn comes; a thread writes the copy while training goes on. A
    failure to write ends the run at the next step, with the earlier checkpoints as they were.
    """

    def __init__(
        self,
        folder: RunFolder,
        options: CheckpointOptions,
        take: Callable[[], Snapshot],
        *,
        last: int,
    ) -> None:
        """`last`: the steps of the whole run."""
        self.folder, self.options, self.take, self.last = folder, options, take, last
        self.saved: int | None = None
        """Steps of the latest checkpoint that was begun."""
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __call__(self, record: Record) -> None:
        """After a step; where the run went back, the checkpoints of the way it left go.

        Raises:
            KeifuError: an earlier checkpoint could not be written.
        """
        self._check()
        if record.back_to is not None:
            self._wait()
            self.folder.forget(record.back_to)
            self.saved = None
            return
        done = record.step + 1
        if done % self.options.every == 0 or done == self.last:
            self.save(done)

    def save(self, step: int) -> None:
        """Save now; waits for the checkpoint before it if that is still being written."""
        if step == self.saved:
            return
        self._wait()
        self.folder.sync()
        taken = self.take()
        self.saved = step

        def write() -> None:
            try:
                whole.publish(self.folder.checkpoint(step), taken.write)
                options = self.options
                self.folder.prune(
                    keep=options.keep, best=options.best, milestones=options.milestones
                )
            except BaseException as failed:  # handed to the thread that trains
                self._error = failed

        self._thread = threading.Thread(target=write, name="keifu-checkpoint")
        self._thread.start()

    def close(self) -> None:
        """Wait until what was begun is on the disk. Raises KeifuError if it is not."""
        self._wait()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._check()

    def _check(self) -> None:
        if self._error is None:
            return
        error, self._error = self._error, None
        if not isinstance(error, KeifuError | OSError):
            raise error
        there = next(iter(whole.steps(self.folder.path)), None)
        last = "there is no earlier one" if there is None else f"step {there} is whole"
        raise KeifuError(f"the checkpoint was not saved: {error}; {last}") from error

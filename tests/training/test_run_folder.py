"""A run's folder: saved while it goes on, gone on with to the last bit, pruned, opened by keifu."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from keifu.checkpoints import whole
from keifu.families import families, load_model
from keifu.families._load import open_checkpoint
from keifu.text.tokenizer import Tokenizer
from keifu.text.train import TrainOptions as Vocabulary
from keifu.text.train import train
from keifu.training import Sequences, Trainer
from keifu.training.loop import TrainOptions
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.optimizers.adamw import AdamW
from keifu.training.run_folder import RunFolder, locked
from keifu.training.saved_state import read_state, write_state
from keifu.training.saving import CheckpointOptions, Saver, restore, snapshot, weights

FAMILY = families["gpt-2"].tiny()
STEPS = 7


def words() -> Tokenizer:
    """A tokenizer of a few tokens."""
    return train("byte-bpe", ["some words of a text"], Vocabulary(size=260))


def batch(number: int) -> Sequences:
    """The number-th batch."""
    made = torch.Generator().manual_seed(number)
    return Sequences.of([torch.randint(0, 20, (9,), generator=made) for _ in range(3)])


def trainer(model: Any, on_step: Any = ()) -> Trainer[Any]:
    """A trainer that draws: dropout is on."""
    options = TrainOptions(steps=STEPS)
    return Trainer(model, CausalLM(), optimization=AdamW(lr=0.01), options=options, on_step=on_step)


def fresh() -> Any:
    """The model before training."""
    torch.set_num_threads(1)
    return FAMILY.spec().build().initialise(0)  # type: ignore[operator]


def run(folder: RunFolder, model: Any, *, stop: int | None = None, resume: Path | None = None,
        **options: Any) -> Trainer[Any]:  # fmt: skip
    """Train to the end, or until an exception after `stop` steps."""
    mine = trainer(model)
    if resume:
        state = read_state(resume / "state")
        assert state["facts"]["world"] == 1
        restore(mine, folder, state, resume)
    tokenizer = words()
    saver = Saver(
        folder,
        CheckpointOptions(**options),
        lambda: snapshot(mine, FAMILY, model, tokenizer, {"world": 1}),
        last=STEPS,
    )

    def end(record: Any) -> None:
        if stop == record.step + 1:
            raise KeyboardInterrupt

    mine.on_step = (folder.log, saver, end)
    with contextlib.suppress(KeyboardInterrupt):
        mine.fit(batch)
    saver.close()
    return mine


def test_a_run_that_was_cut_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole_run = fresh()
    trainer(whole_run).fit(batch)
    with locked(tmp_path / "run") as folder:
        run(folder, fresh(), stop=5, every=3)
    assert list(whole.steps(tmp_path / "run")) == [3]
    found = whole.latest_whole(tmp_path / "run")
    assert found is not None
    with locked(tmp_path / "run") as folder:
        model: Any = weights(open_checkpoint(found))
        done = run(folder, model, resume=found, every=3)
    assert [r.step for r in done.history] == list(range(STEPS))
    for name, value in whole_run.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(STEPS))
    (tmp_path / "run/recipe.yaml").write_text("{}")
    again, tokenizer = load_model(str(tmp_path / "run"))
    assert tokenizer.decode(tokenizer.encode("some words")) == "some words"
    ids = torch.arange(9)
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_a_step_twice_a_step_ahead_and_half_a_line_go(tmp_path: Path) -> None:
    def line(step: int, loss: float | None) -> str:
        facts = {"step": step, "loss": loss, "count": 1, "norm": 1.0, "lr": 0.1, "skipped": False,
                 "batches": [step, step + 1],
                 "metrics": {"accuracy": None}, "seconds": 0.1}  # fmt: skip
        return json.dumps(facts | {"held_out": {"loss": loss}} if step % 2 else facts) + "\n"

    with locked(tmp_path) as folder:
        pass
    text = line(0, 5.0) + line(1, 4.0) + line(2, 9.0) + line(1, None) + line(2, 3.0) + line(3, 2.0)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "lo')
    with locked(tmp_path) as folder:
        records = folder.resumed(3)
        assert [r.step for r in records] == [0, 1, 2]
        assert (records[0].loss, records[2].loss) == (5.0, 3.0)
        assert math.isnan(records[1].loss)
        assert list(folder.held_out) == [2]
        folder.log(records[2])
    steps = [json.loads(t)["step"] for t in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 2]


def test_the_last_the_best_and_milestones_are_kept(tmp_path: Path) -> None:
    with locked(tmp_path) as folder:
        for step in range(1, 10):
            whole.publish(folder.checkpoint(step), lambda made: (made / "x").write_bytes(b"x"))
        folder.held_out = {2: 1.0, 3: 0.5, 9: 2.0}
        folder.prune(keep=2, best=True, milestones=4)
        assert list(whole.steps(tmp_path)) == [9, 8, 4, 3]
        folder.prune(keep=1, best=False, milestones=None)
        assert list(whole.steps(tmp_path)) == [9]


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "run": {"step": 3, "rng": torch.get_rng_state(), "none": None, "loss": math.nan},
        "optimizer": {
            "state": {0: {"exp_avg": torch.randn(3, 2), "step": torch.tensor(3.0)}, 1: {}},
            "param_groups": [{"betas": (0.9, 0.999), "names": ["a", "b"], "lr": math.inf}],
        },
        "$": torch.tensor([1, 2], dtype=torch.uint8),
        "dtype": torch.bfloat16,
        "half": torch.randn(5).to(torch.bfloat16),
    }
    write_state(tmp_path, state)
    found = read_state(tmp_path)
    assert found["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    moments = found["optimizer"]["state"]
    assert list(moments) == [0, 1]
    assert moments[1] == {}
    assert torch.equal(moments[0]["exp_avg"], state["optimizer"]["state"][0]["exp_avg"])
    assert math.isnan(found["run"]["loss"])
    assert found["run"]["none"] is None
    assert torch.equal(found["$"], state["$"])
    assert found["dtype"] is torch.bfloat16
    assert torch.equal(found["half"], state["half"])
    with pytest.raises(TypeError, match="cannot hold a set"):
        write_state(tmp_path, {"x": {1}})


def test_checkpoints_of_a_way_that_was_left_go(tmp_path: Path) -> None:
    with locked(tmp_path) as folder:
        for step in (2, 4, 6):
            whole.publish(folder.checkpoint(step), lambda made: (made / "x").write_bytes(b"x"))
        folder.held_out = {2: 1.0, 6: 0.5}
        assert sorted(folder.forget(4)) == [6]
        assert list(whole.steps(tmp_path)) == [4, 2]
        assert folder.held_out == {2: 1.0}

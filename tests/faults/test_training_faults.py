"""Training that is killed, resumed otherwise, or diverges (faults 46 to 48)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from keifu.checkpoints import whole
from keifu.core.errors import ConfigError, KeifuError
from keifu.text.load import load
from keifu.training.recipe import read
from keifu.training.run import train

RECIPE = """
model: {family: ulmfit, width: 16, hidden: 24, depth: 2}  # it draws: dropout everywhere
tokenizer: {size: 300}
data: {sources: {text: [text.txt]}, unit: line, length: 16, batch: 2, held_out: 0.1}
optimizer: {name: adamw, lr: 1e-2}
schedule: {name: cosine, warmup: 3}
train: {steps: 60}
evaluate: {every: 20, batches: 2}
checkpoints: {every: 7, keep: 2}
"""


ROOT = Path(__file__).parents[2]
FORKS = """
import os, sys
from pathlib import Path
from keifu.training.recipe import read
from keifu.training.run import train

for line in sys.stdin:
    if line == "wait\\n":
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    child = os.fork()
    if not child:
        try:
            train(read(Path(sys.argv[1]), sys.argv[2:]), Path(line.strip()), resume=True)
        except KeyboardInterrupt:
            os._exit(130)
        finally:
            os._exit(0)
    print(child, flush=True)
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that takes two seconds."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    made = random.Random(0)
    words = "the cat sat on a mat and the dog lay by its side".split()
    lines = [" ".join(made.choices(words, k=12)) for _ in range(200)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def start(recipe: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """`keifu train` in a process of its own."""
    words = ["keifu", "train", str(recipe), "-o", str(out), "--threads", "1", *more]
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def steps_of(out: Path) -> list[int]:
    """The steps of metrics.jsonl, as they stand there."""
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


class Forks:
    """A process that has imported all and forks one that trains for each folder it is told."""

    def __init__(self, recipe: Path, *settings: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS, str(recipe), *settings], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def say(self, word: str) -> str:
        """A folder: begin, and its process's number. "wait": until that one has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def kill(child: int, out: Path, step: int, how: signal.Signals = signal.SIGKILL) -> None:
    """A signal once so many steps are written down, or after a minute."""
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= step):
        if time.monotonic() > deadline:
            break
        time.sleep(0.002)
    os.kill(child, how)


def survives(recipe: Path, kills: int, seed: int, *, fresh: bool) -> None:
    """Killed so often and gone on with, the weights are those of a run that nobody touched.

    fresh: each time by `keifu train --resume` in a new process.
    """
    one, other = recipe.parent / "one", recipe.parent / "other"
    train(read(recipe), one)
    made = random.Random(seed)
    forks = None if fresh else Forks(recipe)
    try:
        for at in sorted(made.sample(range(1, 60), kills)):
            if forks is None:
                process = start(recipe, other, "--resume")
                kill(process.pid, other, at)
                process.communicate()
            else:
                kill(int(forks.say(str(other))), other, at)
                assert forks.say("wait") == "-9"
    finally:
        if forks is not None:
            forks.process.kill()
            forks.process.communicate()
    train(read(recipe), other, resume=True)
    assert steps_of(one) == steps_of(other) == list(range(60))
    found = [load_file(run / "checkpoints/step-60/model.safetensors") for run in (one, other)]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_47_killed_at_random_steps_it_ends_with_the_same_bits(recipe: Path) -> None:
    survives(recipe, 3, seed=1, fresh=False)


@pytest.mark.slow
def test_47_killed_twenty_times_it_ends_with_the_same_bits(recipe: Path) -> None:
    survives(recipe, 20, seed=2, fresh=True)


def test_47_the_first_interrupt_saves_and_stops(recipe: Path) -> None:
    out = recipe.parent / "out"
    forks = Forks(recipe, "train.steps=100000", "checkpoints.every=100000")
    try:
        kill(int(forks.say(str(out))), out, 3, signal.SIGINT)
        assert forks.say("wait") == "130"
    finally:
        forks.process.kill()
        forks.process.communicate()
    (at,) = whole.steps(out)
    assert whole.latest_whole(out) is not None
    assert steps_of(out) == list(range(at))


@pytest.mark.slow
def test_47_keifu_train_says_how_to_go_on_after_an_interrupt(recipe: Path) -> None:
    out = recipe.parent / "out"
    process = start(recipe, out, "train.steps=100000", "checkpoints.every=100000")
    kill(process.pid, out, 3, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert f"step {next(iter(whole.steps(out)))} is saved" in told


def test_48_another_recipe_or_other_data_is_refused_with_the_difference(recipe: Path) -> None:
    out = recipe.parent / "out"
    train(read(recipe, ["train.steps=10"]), out)
    with pytest.raises(KeifuError, match="has a run already"):
        train(read(recipe), out)
    changed = ["train.steps=12", "optimizer.lr=0.5", "data.batch=4", "checkpoints.every=5"]
    diff = r"data.batch: 2 -> 4; optimizer.lr: 0.01 -> 0.5; train.steps: 10 -> 12 \(--override"
    with pytest.raises(KeifuError, match=diff):
        train(read(recipe, changed), out, resume=True)
    train(read(recipe, changed), out, resume=True, override=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12))
    assert lines[9]["batches"] == [9, 10], "of 2 rows each"
    assert lines[10]["batches"] == [5, 6], "of 4 rows each: none is read again"
    assert lines[10]["lr"] > 10 * lines[9]["lr"]
    assert read(out / "recipe.yaml").train.steps == 12


def test_48_a_recipe_that_failed_before_its_first_step_can_be_mended(recipe: Path) -> None:
    out = recipe.parent / "out"
    with pytest.raises(ConfigError, match="does not fit"):
        train(read(recipe, ["train.steps=2"]), out)
    train(read(recipe, ["train.steps=4", "tokenizer.size=290"]), out)
    assert len(load(out / "checkpoints/step-4")) <= 290


def test_48_other_shards_and_another_optimizer_are_noticed(recipe: Path) -> None:
    a, b = recipe.parent / "a", recipe.parent / "b"
    train(read(recipe, ["train.steps=4"]), a)
    (recipe.parent / "text.txt").write_text("".join(f"another text, line {n}\n" for n in range(99)))
    train(read(recipe, ["train.steps=4", f"tokenizer.path={a / 'tokenizer'}"]), b)
    mine = recipe.parent / "shards"
    (a / "shards").rename(mine)
    over = ["data.sources={}", f"data.shards=[{mine}]", "train.steps=4"]
    out = recipe.parent / "out"
    train(read(recipe, over), out)
    mine.rename(recipe.parent / "gone")
    (b / "shards").rename(mine)
    with pytest.raises(KeifuError, match=r"data: .* -> .*--override"):
        train(read(recipe, over), out, resume=True)
    more = [*over, "train.steps=5", "optimizer={name: sgd, lr: 0.1}"]
    assert train(read(recipe, more), out, resume=True, override=True).steps == 5


def test_46_a_run_that_diverges_stops_with_the_last_checkpoint_whole(recipe: Path) -> None:
    out = recipe.parent / "out"
    wild = ["optimizer={name: sgd, lr: 1e30}", "schedule=constant", "train.clip=null"]
    with pytest.raises(KeifuError, match=r"steps in a row .*lower the learning rate"):
        train(read(recipe, [*wild, "checkpoints.every=1"]), out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any(line["skipped"] for line in lines)
    assert whole.latest_whole(out) is not None


def test_46_a_recipe_says_all_that_is_wrong_with_it_in_one_line(recipe: Path) -> None:
    wrong = ["modle.family=gpt-2", "train.stesp=4", "optimizer.lr=fast", "model.widht=3"]
    with pytest.raises(ConfigError) as told:
        read(recipe, wrong)
    for part in ("modle is no setting (nearest: model)", "train.stesp", "expected a number",
                 "model.widht is no setting (nearest: width)"):  # fmt: skip
        assert part in str(told.value)
    assert "\n" not in str(told.value)

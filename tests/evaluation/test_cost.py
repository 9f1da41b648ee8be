"""The cost probe: bytes as declared and as taken, against sums by hand; flat beside growing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from keifu.cli.main import main
from keifu.core.errors import KeifuError
from keifu.evaluation.probe import examine
from keifu.evaluation.probes.cost import Cost
from keifu.families import families, save_model
from keifu.lm.costs import Meter, declared_slope, request_bytes
from keifu.nn.part import build
from keifu.nn.stack import StackModule
from keifu.nn.state import Fixed, PerToken


def folder(to: Path, name: str, **sizes: int) -> Path:
    """A checkpoint of a tiny model with random weights."""
    family = families[name](**sizes)
    model = build(family.spec())
    assert isinstance(model, StackModule)
    return save_model(to / name, family, model.initialise(seed=0, std=0.1))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Llama of two layers, two heads of keys, width 8 a head; a Mamba of two layers."""
    to = tmp_path_factory.mktemp("tiny")
    llama = folder(
        to, "llama", vocab=64, width=32, depth=2, heads=4, kv_heads=2, head_width=8, hidden=48,
        context=512,
    )  # fmt: skip
    return llama, folder(to, "mamba", vocab=64, width=32, depth=2, states=8)


def test_attention_grows_by_its_keys_and_values(tiny: tuple[Path, Path]) -> None:
    meter = Meter(str(tiny[0]), 300, threads=1, precision="exact")
    token = 2 * 2 * 2 * 8 * 4  # keys and values, two layers, two heads, float32
    assert meter.facts() | {"token": token, "fixed": 0} == meter.facts()
    for length in (128, 256):
        cost = meter.at(length, windows=2, window=4)
        assert (cost.declared, cost.state) == (length * token, length * token)
        assert cost.seconds > 0
        assert cost.prefill > 0
    assert meter.at(130, windows=1, window=2).state == 160 * token  # whole pages of 32
    assert meter.pool.free_tokens == meter.pool.capacity


def test_a_recurrence_stays_as_it_is(tiny: tuple[Path, Path]) -> None:
    meter = Meter(str(tiny[1]), 256, threads=1, precision="exact")
    inner = 2 * 32
    fixed = 2 * (inner * 8 + inner * 3) * 4  # two layers: states, and a convolution's tail of three
    costs = [meter.at(length, windows=1, window=4) for length in (64, 256)]
    assert [(c.declared, c.state) for c in costs] == [(fixed, fixed)] * 2
    assert meter.facts()["token"] == 0


def test_windows_end() -> None:
    entries = [{"k": PerToken((2,), window=100, sinks=4), "s": Fixed((3,))}, {"k": PerToken((5,))}]
    size = torch.bfloat16
    assert request_bytes(entries, 10, size) == 12 + 10 * 4 + 10 * 10
    assert request_bytes(entries, 1000, size) == 12 + 104 * 4 + 1000 * 10
    assert declared_slope(entries, size) == (12 + 104 * 4, 10)


def test_published_sizes_need_no_weights() -> None:
    with pytest.raises(KeifuError, match="no published model 'mamba-131m'; nearest: mamba-130m"):
        Meter("published:mamba-131m", 64)
    with pytest.raises(KeifuError, match="does not continue texts"):
        Meter("published:bert-base-uncased", 64)
    meter = Meter("published:hyenadna-tiny-1k-seqlen", 128, threads=1)
    assert meter.at(100, windows=1, window=2).seconds > 0


def test_side_by_side_on_the_command_line(
    tiny: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(path) for path in tiny]
    options = ["--lengths", "64,256", "--windows", "1", "--window", "4", "--threads", "1"]
    plot = tmp_path / "cost.png"
    assert main(["probe", "cost", *models, *options, "--json", "--plot", str(plot)]) == 0
    found = json.loads(capsys.readouterr().out)
    state = {(row["model"], row["length"]): row["state"] for row in found["rows"]}
    assert state["llama", 256] == 4 * state["llama", 64]
    assert state["mamba", 256] == state["mamba", 64]
    assert [row["slope"] for row in found["rows"]] == [128, 128, 0, 0]  # bfloat16
    assert all(row["declared"] == row["state"] for row in found["rows"])
    assert min(row["resident"] for row in found["rows"]) > 50 << 20
    assert plot.stat().st_size > 10_000


def test_more_positions_than_there_are(
    tiny: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "cost", str(tiny[0]), "--lengths", "600"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--lengths 600 is more than the 512 positions" in line


def test_options_are_checked() -> None:
    with pytest.raises(KeifuError, match="--lengths 48 is not allowed: from 49"):
        Cost(lengths=(48,))
    with pytest.raises(KeifuError, match="--windows 0 is not allowed"):
        Cost(windows=0)
    with pytest.raises(KeifuError, match="no model to probe"):
        examine("cost", Cost(), [])


def test_asking_imports_no_torch() -> None:
    code = (
        "import sys; from keifu.evaluation.probe import probes; dict(probes);"
        "import keifu.cli.probe, keifu.evaluation.plot;"
        "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

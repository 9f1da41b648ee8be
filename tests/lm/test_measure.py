"""The benchmark harness: what it computes from subjects of known speed, and what a token costs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from keifu.cli.bench import drawn
from keifu.core.errors import KeifuError
from keifu.families import families
from keifu.inference.engine import Engine
from keifu.lm import measure, peers
from keifu.lm.measure import BenchOptions, Worker, compare
from keifu.lm.subject import work

FAKE = Path(__file__).with_name("fake_subject.py")


def fake(version: str, step: float, *how: str) -> list[str]:
    return [sys.executable, str(FAKE), version, str(step), *how]


def test_two_subjects_of_known_speed(tmp_path: Path) -> None:
    subjects = {
        "keifu": fake("1.0", 0.02),
        "slow": fake("2.0", 0.06),
        "gone": fake("3.0", 0.0, "absent"),
        "broken": fake("4.0", 0.0, "fail"),
    }
    options = BenchOptions(threads=2, prompt=8, new=5, rounds=3)
    told: list[str] = []
    found = compare(tmp_path / "m.gguf", subjects, options, told=told.append)
    json.dumps(found)
    ours, theirs = found["subjects"]["keifu"], found["subjects"]["slow"]
    # 8 tokens in two steps of 20 ms, then one token a step; sleeping is never shorter.
    assert 0 < ours["prefill"] <= 8 / 0.04
    assert 0 < ours["decode"] <= 1 / 0.02
    assert ours["first_token"] >= 16 / 4 * 0.02
    assert theirs["version"] == "2.0"
    assert len(theirs["samples"]["decode"]) == 3
    assert ours["memory"] >= 64 << 20
    for name in ("prefill", "decode", "first_token"):
        ratio = found["ratios"]["slow"][name]
        assert ratio["low"] <= ratio["median"] <= ratio["high"]
        assert 1.2 < ratio["median"] < 6, name  # three times, on a machine that may be busy
    assert set(found["absent"]) == {"gone", "broken"}
    assert "cannot read m.gguf" in found["absent"]["broken"]
    # 1000 bytes of weights and 10 a token of 8 + 5/2 in the state, at 4 MB/s; 4000 flops at 16e6.
    assert found["limits"]["bytes_per_token"] == 1105
    assert found["limits"]["decode"] == pytest.approx(4e6 / 1105)
    assert found["limits"]["prefill"] == pytest.approx(16e6 / 4000)
    limit = found["ratios"]["limit"]["decode"]["median"]
    assert limit == pytest.approx(ours["decode"] / found["limits"]["decode"])
    text = drawn(found)
    assert "slow 2.0" in text
    assert "gone was left out: No module named 'fake'" in text
    assert told[0] == "starting keifu"


def test_our_own_failure_is_the_users_to_see(tmp_path: Path) -> None:
    with pytest.raises(KeifuError, match=r"keifu failed: ValueError: cannot read x\.gguf"):
        compare(tmp_path / "x.gguf", {"keifu": fake("1", 0, "fail")}, BenchOptions(threads=1))


def test_a_dead_worker_says_its_last_line() -> None:
    worker = Worker("unlucky", fake("1", 0, "die"))
    with pytest.raises(KeifuError, match=r"unlucky ended.*out of luck"):
        worker.ask("load", model="x", threads=1, context=1)
    worker.close()


def test_options_and_peers_are_checked() -> None:
    with pytest.raises(KeifuError, match="--new 1 is not allowed"):
        BenchOptions(new=1)
    with pytest.raises(KeifuError, match="llama-cpp-python"):
        measure.commands(["llama-cpp"])


def test_peers_file_needs_the_standard_library_alone() -> None:
    text = Path(peers.__file__).read_text()
    top = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    names = {line.split()[1].split(".")[0] for line in top}
    assert names <= set(sys.stdlib_module_names) | {"__future__"}


def test_work_of_a_tiny_llama() -> None:
    """Counted by hand from the shapes."""
    family = families["llama"].tiny()
    spec = family.spec()
    model = spec.build()
    engine = Engine(model, _NoTokenizer(), context=64, budget=1 << 20)  # type: ignore[arg-type]
    found = work(engine)
    flops = size = state = 0
    for block in spec.blocks:
        a, m = block.mixer, block.mlp
        columns = (a.heads + 2 * a.kv_heads) * a.head_width
        weights = a.width * columns + a.heads * a.head_width * a.width + 3 * m.width * m.hidden
        flops, size = flops + 2 * weights, size + 4 * weights
        state += 2 * a.kv_heads * a.head_width * 4
    head = model.input.table.outputs * spec.blocks[0].mixer.width
    assert found == {"bytes": size + 4 * head, "state": state, "flops": flops}


class _NoTokenizer:
    vocab_size = 1


def test_logprobs_are_natural_and_of_the_next_token() -> None:
    """transformers' subject against a hand calculation over its own logits."""
    subject = peers.Transformers()

    class Two:
        def __call__(self, ids: torch.Tensor) -> object:
            rows = torch.tensor([[[0.0, math.log(3.0)], [math.log(4.0), 0.0], [0.0, 0.0]]])
            return type("Out", (), {"logits": rows})()

    subject._model = Two()
    assert subject.logprobs([0, 1, 0]) == pytest.approx([math.log(3 / 4), math.log(4 / 5)])

"""The benchmark harness: what it computes from subjects of known speed, and what a token costs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from keifu.cli.bench import drawn
from keifu.cli.bench_plot import draw
from keifu.core.errors import KeifuError
from keifu.families import families
from keifu.inference.engine import Engine
from keifu.lm import measure, peers, peers_compiled
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


@pytest.mark.parametrize("file", [peers, peers_compiled])
def test_peers_files_need_the_standard_library_alone(file: ModuleType) -> None:
    text = Path(str(file.__file__)).read_text()
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


@pytest.mark.parametrize("name", ["openvino-genai", "onnxruntime-genai"])
def test_a_compiled_peer_is_found_or_says_what_is_missing(name: str) -> None:
    worker = Worker(name, measure.commands([name])[name])
    worker.close()
    assert ("version" in worker.hello) != ("No module named" in worker.hello.get("absent", ""))


class Pipeline:
    """A pipeline of openvino-genai's shape: a request's token k is its first one + k."""

    def __init__(self) -> None:
        self.open: list[SimpleNamespace] = []

    def add_request(self, number: int, ids: np.ndarray, wanted: dict[str, object]) -> object:
        assert wanted["ignore_eos"]
        request = SimpleNamespace(number=number, left=wanted["max_new_tokens"], made=[], ids=ids)
        request.can_read = lambda: bool(request.made)
        request.read = lambda: {0: SimpleNamespace(generated_ids=[request.made.pop()])}
        told = [1.0, *(-float(i) for i in range(1, ids.shape[1])), -9.0]
        request.read_all = lambda: [SimpleNamespace(generated_log_probs=told)]
        self.open.append(request)
        return request

    def has_non_finished_requests(self) -> bool:
        return any(r.left for r in self.open)

    def step(self) -> None:
        for r in self.open:
            if r.left:
                r.left -= 1
                r.made = [int(r.ids[0, 0]) + r.left]


def test_openvino_reads_what_each_step_made() -> None:
    subject = peers_compiled.OpenVino.__new__(peers_compiled.OpenVino)
    subject._numpy, subject._asked = np, 0
    subject._base = SimpleNamespace(Tensor=lambda ids: ids)
    subject._package = SimpleNamespace(GenerationConfig=dict)
    subject._model = Pipeline()
    assert list(subject.generate([40, 7], 3)) == [42, 41, 40]
    times = subject.together([[1], [2]], 4)
    assert [len(each) for each in times] == [4, 4]
    assert times[0] == sorted(times[0])
    assert subject.logprobs([5, 6, 7]) == [-1.0, -2.0]  # of 6 and 7; the first is nothing's


def test_onnx_logprobs_are_natural_and_of_the_next_token() -> None:
    """By hand, as for transformers above."""
    subject = peers_compiled.OnnxRuntime.__new__(peers_compiled.OnnxRuntime)
    rows = np.array([[[0.0, math.log(3.0)], [math.log(4.0), 0.0], [0.0, 0.0]]], dtype=np.float32)
    subject._numpy, subject._model = np, None
    params = SimpleNamespace(set_search_options=lambda **given: None)
    made = SimpleNamespace(append_tokens=lambda ids: None, get_output=lambda name: rows)
    subject._package = SimpleNamespace(
        GeneratorParams=lambda model: params, Generator=lambda model, wanted: made
    )
    assert subject.logprobs([0, 1, 0]) == pytest.approx([math.log(3 / 4), math.log(4 / 5)])


def test_the_picture_has_a_bar_a_subject_and_the_limit(tmp_path: Path) -> None:
    subjects = {"keifu": fake("1.0", 0.002), "slow": fake("2.0", 0.004)}
    options = BenchOptions(threads=1, prompt=8, new=5, rounds=1)
    draw(compare(tmp_path / "m.gguf", subjects, options), tmp_path / "one.png")
    image = imread(tmp_path / "one.png")[..., :3]
    for colour in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0, 0, 0)):
        assert (abs(image - np.array(colour) / 255) < 0.02).all(-1).sum() > 1000, colour

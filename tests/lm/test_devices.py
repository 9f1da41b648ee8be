"""Where a model runs, and weights that are packed once they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import keifu
from keifu.core.errors import KeifuError
from keifu.inference.device import DevicePlan
from keifu.inference.request import Sampling
from keifu.lm.devices import placed
from keifu.lm.local import LocalLM
from keifu.nn.linear import Linear
from keifu.nn.packing import KINDS
from tests.lm.test_window import tiny


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("devices"), "llama")


def opened(path: Path, **options: object) -> LocalLM:
    lm = keifu.load(str(path), threads=1, device="cpu", **options)
    assert isinstance(lm, LocalLM)
    return lm


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_model_is_packed_once_it_is_read(llama: Path, kind: str) -> None:
    """Every matrix is that of the dense model, rounded; and it writes."""
    plain, lm = opened(llama), opened(llama, quantize=kind)
    found = 0
    pairs = zip(plain.engine.model.modules(), lm.engine.model.modules(), strict=True)
    for one, other in pairs:
        if isinstance(other, Linear) and other.pieces:
            assert isinstance(one, Linear)
            exact = one.dense()
            assert 0.0005 < float((other.dense() - exact).norm() / exact.norm()) < 0.12
            found += 1
    assert found
    for temperature in (0.0, 1.0):
        asked = Sampling(max_tokens=5, temperature=temperature, ignore_eos=True)
        assert len(lm.engine.submit([3, 4, 5], asked).result().tokens) == 5
    plain.close()
    lm.close()


def test_kinds_and_devices_that_are_not_there_are_named(llama: Path) -> None:
    with pytest.raises(KeifuError, match=r"int7.*int8"):
        keifu.load(str(llama), quantize="int7")
    with pytest.raises(KeifuError, match=r"exact.*quantize"):
        keifu.load(str(llama), quantize="int8", precision="exact")
    with pytest.raises(KeifuError, match="'gpu' is not known: cpu, cuda"):
        placed("gpu")
    with pytest.raises(KeifuError, match=r"cuda:99.*not here"):
        placed("cuda:99")
    assert placed("cpu") == torch.device("cpu")


def test_on_the_processor_nothing_is_recorded(llama: Path) -> None:
    lm = opened(llama)
    assert not any(isinstance(runner, DevicePlan) for runner in lm.engine.runners)
    lm.close()

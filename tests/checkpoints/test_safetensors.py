"""Safetensors folders: what transformers and safetensors write we read, and the other way round."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from keifu.checkpoints.safetensors import (
    DTYPES,
    Planned,
    SafetensorsSource,
    read_header,
    write_safetensors,
)
from keifu.checkpoints.source import check_values
from keifu.core.errors import FormatError, KeifuError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def llama():
    """A tiny model of transformers with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def planned(tensors: dict[str, torch.Tensor]) -> list[Planned]:
    return [Planned.of(name, tensor) for name, tensor in tensors.items()]


@pytest.mark.parametrize("limit", ["1GB", "20KB"])
def test_reads_what_transformers_writes(llama, tmp_path: Path, limit: str) -> None:
    llama.save_pretrained(tmp_path, max_shard_size=limit)
    source = SafetensorsSource(tmp_path)
    state = llama.state_dict()
    assert set(source.names()) == set(state)
    assert source.metadata == {"format": "pt"}
    for name, tensor in state.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert source.dtype(name) == tensor.dtype
        assert torch.equal(source.read(name), tensor)


@pytest.mark.parametrize("limit", [10**9, 20_000])
def test_transformers_loads_what_we_write(llama, tmp_path: Path, limit: int) -> None:
    from transformers import LlamaForCausalLM

    files = write_safetensors(tmp_path, planned(llama.state_dict()), max_shard_bytes=limit)
    assert len(files) == 1 if limit == 10**9 else len(files) > 2
    llama.config.save_pretrained(tmp_path)
    theirs, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in llama.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
    assert not list(tmp_path.glob(".*"))


def test_shards_and_index_are_those_of_transformers(llama, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    state = llama.state_dict()
    write_safetensors(tmp_path / "ours", planned(state), max_shard_bytes=20_000)
    index = "model.safetensors.index.json"
    theirs = json.loads((tmp_path / "theirs" / index).read_text())
    ours = json.loads((tmp_path / "ours" / index).read_text())
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]


def test_every_dtype_survives_both_ways(tmp_path: Path) -> None:
    raw = torch.arange(48, dtype=torch.uint8)
    tensors = {
        code: (raw % 2 if dtype == torch.bool else raw).view(dtype)
        for code, dtype in DTYPES.items()
    }
    tensors |= {
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "cube": torch.ones(2, 3, 4),
    }
    write_safetensors(tmp_path, planned(tensors))
    theirs = load_file(tmp_path / "model.safetensors")
    ours = SafetensorsSource(tmp_path)
    assert set(theirs) == set(tensors) == set(ours.names())
    for name, tensor in tensors.items():
        for got in (theirs[name], ours.read(name)):
            assert got.dtype == tensor.dtype
            assert got.shape == tensor.shape
            assert got.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))


def test_ours_and_the_librarys_file_are_the_same_bytes_of_data(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 5), "a": torch.ones(7, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    write_safetensors(tmp_path, planned(tensors))
    ours = read_header(tmp_path / "model.safetensors")
    theirs = read_header(tmp_path / "theirs.safetensors")
    assert ours == theirs
    assert (tmp_path / "model.safetensors").stat().st_size == os.path.getsize(
        tmp_path / "theirs.safetensors"
    )


def test_writing_keeps_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def make() -> torch.Tensor:
        nonlocal most
        tensor = torch.zeros(100)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    plan = [Planned(f"t{k}", (100,), torch.float32, make) for k in range(20)]
    write_safetensors(tmp_path, plan, max_shard_bytes=3000)
    assert most <= 2  # the one just written and its successor
    assert len(SafetensorsSource(tmp_path).names()) == 20


def test_a_failure_leaves_the_earlier_checkpoint_alone(tmp_path: Path) -> None:
    write_safetensors(tmp_path, planned({"a": torch.ones(4)}))
    before = (tmp_path / "model.safetensors").read_bytes()

    def fail() -> torch.Tensor:
        raise OSError(28, "No space left on device")

    plan = [Planned.of("a", torch.zeros(4)), Planned("b", (4,), torch.float32, fail)]
    with pytest.raises(KeifuError, match="No space left"):
        write_safetensors(tmp_path, plan, max_shard_bytes=16)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_weights_of_an_earlier_save_go(tmp_path: Path) -> None:
    tensors = {name: torch.ones(4) for name in "abc"}
    write_safetensors(tmp_path, planned(tensors), max_shard_bytes=16)
    assert len(list(tmp_path.iterdir())) == 4
    write_safetensors(tmp_path, planned(tensors))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_reading_is_a_private_view_of_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1024)}, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    source = SafetensorsSource(tmp_path)
    source.read("a").fill_(1)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    if Path("/proc/self/maps").exists():
        assert str(tmp_path) in Path("/proc/self/maps").read_text()


def test_a_shared_weight_is_given_once_and_transformers_ties_it(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    state = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    write_safetensors(tmp_path, planned(state))
    config.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.model.embed_tokens.weight)
    with pytest.raises(KeifuError, match="twice"):
        write_safetensors(tmp_path, [*planned(state), *planned(state)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(dtype: torch.dtype, bad: float) -> None:
    good = torch.ones(3, 1000).to(dtype)
    check_values("w", good)
    spoilt = torch.ones(3, 1000)
    spoilt[2, 999] = bad
    if dtype == torch.float8_e4m3fn:
        spoilt = torch.where(spoilt.isfinite(), spoilt, torch.nan)  # it has no infinity
    with pytest.raises(FormatError, match="w has NaN"):
        check_values("w", spoilt.to(dtype))


def test_integers_pass_and_empty_tensors_do_not() -> None:
    check_values("i", torch.arange(4))
    with pytest.raises(FormatError, match="empty"):
        check_values("e", torch.zeros(0, 3))


def test_a_name_that_is_not_there_is_a_key_error_with_the_nearest(tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.zeros(4)}, tmp_path / "model.safetensors")
    with pytest.raises(KeyError, match=r"nearest: model\.norm\.weight"):
        SafetensorsSource(tmp_path).read("model.norm.wieght")

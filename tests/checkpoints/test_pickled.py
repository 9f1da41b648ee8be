"""Pickled weights behind their flag, and the ranks of original LLaMA checkpoints joined."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keifu.checkpoints.pickled import PickledSource
from keifu.core.errors import FormatError, KeifuError

torch.set_num_threads(1)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_reads_what_torch_saves(tmp_path: Path, zipped: bool, wrapper: str | None) -> None:
    state = torch.nn.Linear(4, 3).state_dict()
    content = {wrapper: state} if wrapper else state
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    source = PickledSource(tmp_path / "w.pt", allow_pickle=True)
    assert source.names() == list(state)
    for name, tensor in state.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert source.dtype(name) == tensor.dtype
        assert torch.equal(source.read(name), tensor)


def test_reads_the_shards_of_an_older_transformers(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        '{"weight_map": {"a": "pytorch_model-00001-of-00002.bin", '
        '"b": "pytorch_model-00002-of-00002.bin"}}'
    )
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    source = PickledSource(tmp_path, allow_pickle=True)
    assert source.read("a").tolist() == [1, 1]
    assert source.read("b").tolist() == [0, 0, 0]
    torch.save({"c": torch.zeros(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(FormatError, match="b is not in"):
        PickledSource(tmp_path, allow_pickle=True)


def test_without_the_flag_the_error_says_what_to_do(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(KeifuError, match=r"w\.pth is a Python pickle.*keifu convert"):
        PickledSource(tmp_path / "w.pth")


VOCAB, DIM, HIDDEN = 16, 8, 12
KEPT = {
    "tok_embeddings.weight": (VOCAB, DIM),
    "output.weight": (VOCAB, DIM),
    "norm.weight": (DIM,),
    "rope.freqs": (2,),
    "layers.0.attention.wq.weight": (DIM, DIM),
    "layers.0.attention.wk.weight": (4, DIM),
    "layers.0.attention.wv.weight": (4, DIM),
    "layers.0.attention.wo.weight": (DIM, DIM),
    "layers.0.feed_forward.w1.weight": (HIDDEN, DIM),
    "layers.0.feed_forward.w2.weight": (DIM, HIDDEN),
    "layers.0.feed_forward.w3.weight": (HIDDEN, DIM),
    "layers.0.attention_norm.weight": (DIM,),
    "layers.0.ffn_norm.weight": (DIM,),
}
COLUMN_PARALLEL = ("wq", "wk", "wv", "w1", "w3", "output")
ROW_PARALLEL = ("wo", "w2")


def cut(name: str, tensor: torch.Tensor, rank: int, ranks: int, vocab_parallel: bool):
    """The rank's piece, as the layers of fairscale's model parallelism keep it."""
    part = name.split(".")[-2]
    if part in COLUMN_PARALLEL or (part == "tok_embeddings" and vocab_parallel):
        return tensor.chunk(ranks, 0)[rank].clone()
    if part in ROW_PARALLEL or part == "tok_embeddings":
        return tensor.chunk(ranks, 1)[rank].clone()
    return tensor


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("vocab_parallel", [False, True], ids=["llama-2", "llama-3"])
def test_ranks_of_original_llama_are_joined(tmp_path, ranks: int, vocab_parallel: bool) -> None:
    whole = {name: torch.randn(shape) for name, shape in KEPT.items()}
    for rank in range(ranks):
        pieces = {n: cut(n, t, rank, ranks, vocab_parallel) for n, t in whole.items()}
        torch.save(pieces, tmp_path / f"consolidated.{rank:02d}.pth")
    source = PickledSource(tmp_path, allow_pickle=True)
    assert set(source.names()) == set(whole)
    for name, tensor in whole.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert torch.equal(source.read(name), tensor), name


def test_ranks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save({"norm.weight": torch.ones(4)}, tmp_path / "consolidated.00.pth")
    torch.save({"norm.weight": torch.zeros(4)}, tmp_path / "consolidated.01.pth")
    with pytest.raises(FormatError, match="differs from rank to rank"):
        PickledSource(tmp_path, allow_pickle=True)
    torch.save({"other.weight": torch.zeros(4)}, tmp_path / "consolidated.01.pth")
    with pytest.raises(FormatError, match="not in every rank"):
        PickledSource(tmp_path, allow_pickle=True)
    (tmp_path / "consolidated.01.pth").rename(tmp_path / "consolidated.02.pth")
    with pytest.raises(FormatError, match="a rank is missing"):
        PickledSource(tmp_path, allow_pickle=True)

"""`window` and `sinks`: texts of any length in a memory that ends, and what they cost in loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import keifu
from keifu.core.errors import KeifuError
from keifu.families import families
from keifu.families._load import load_model
from keifu.inference.chunks import CHUNK
from keifu.lm.local import LocalLM
from keifu.lm.opening import ENDLESS
from keifu.nn.kernels import native
from keifu.nn.stack import StackModule
from keifu.nn.state import places
from keifu.nn.streaming import streaming
from tests.families.parity import export
from tests.pairs import t5_tokenizer

FEW = 40
"""Positions that the tiny models were made for."""


def tiny(to: Path, name: str) -> Path:
    """A checkpoint of a family's tiny model, with random weights and a tokenizer of words."""
    rust = t5_tokenizer()
    family = replace(families[name].tiny(), vocab=rust.get_vocab_size(), context=FEW)
    model = family.spec().build()
    assert isinstance(model, StackModule)
    path = export(family, model.initialise(seed=0, std=0.3).eval(), to / f"tiny-{name}")
    rust.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("window"), "llama")


def opened(path: Path, **options: object) -> LocalLM:
    lm = keifu.load(str(path), threads=1, **options)
    assert isinstance(lm, LocalLM)
    return lm


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_text_of_any_length_in_a_memory_that_ends(llama: Path, parallel: int) -> None:
    """Three thousand tokens through a pool of a few hundred places, as the model has it at once."""
    lm = opened(llama, window=8, sinks=2, precision="exact", parallel=parallel)
    pool = lm.engine.pool
    assert lm.context == ENDLESS
    assert pool.capacity <= parallel * (CHUNK + 8 + 2 + 4 * pool.page)
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(3, lm.tokenizer.vocab_size, (3000,), generator=made).tolist()
    done = lm.complete(ids, max_tokens=20, temperature=0, ignore_eos=True)
    lm.close()
    assert pool.free_tokens > pool.capacity - CHUNK - 5 * pool.page
    plain, _ = load_model(llama)
    spec = streaming(plain.spec, 8, 2)
    assert pool.capacity == parallel * places(spec.entries(), ENDLESS, CHUNK)
    whole = spec.build()
    assert isinstance(whole, StackModule)
    whole.load_state_dict(plain.state_dict())
    # What is further back than both layers' windows matters through the sinks alone.
    with torch.no_grad():
        logits = whole.eval()(torch.tensor([*ids, *done.tokens])).logits
    assert list(done.tokens) == logits[len(ids) - 1 : -1].argmax(-1).tolist()


def test_without_a_window_the_context_ends(llama: Path) -> None:
    lm = opened(llama)
    with pytest.raises(KeifuError, match=f"the context holds {FEW}"):
        lm.complete([3] * 50)
    lm.close()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("llama", {"window": 0}, "window=0, sinks=4 is not allowed"),
        ("llama", {"window": -3}, "window=-3, sinks=4 is not allowed"),
        ("llama", {"window": 8, "sinks": -1}, "window=8, sinks=-1 is not allowed"),
        ("llama", {"window": 8, "sinks": 8}, "sinks=8 with window=8 is not allowed"),
        ("llama", {"window": FEW, "sinks": 1}, f"more than the {FEW} positions"),
        ("gpt-2", {"window": 8}, "learned positions are added to the tokens"),
        ("mamba", {"window": 8}, "no attention reaches further than the window"),
    ],
)
def test_what_is_not_allowed_is_said_in_a_line(
    name: str, options: dict[str, int], said: str, tmp_path: Path
) -> None:
    path = tiny(tmp_path, name)
    with pytest.raises(KeifuError, match=said) as caught:
        opened(path, **options)
    assert "\n" not in str(caught.value)


def prose() -> str:
    """Python's own documentation, as far as it comes with the interpreter."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))[:30_000]


@pytest.mark.skipif(not native.available(), reason=native.why())
def test_the_real_model_reads_through_a_window_on_its_plan(smollm2: Path) -> None:
    """Well past the window, the plan against plain torch on the same engine."""
    lm = opened(smollm2, window=64, sinks=4, parallel=1)
    assert lm.context == ENDLESS
    assert lm.engine.why_plain == ""
    assert [type(r).__name__ for r in lm.engine.runners] == ["Plan", "TorchRunner"]
    ids, found = lm.encode(prose())[:200], []
    for _ in lm.engine.runners[:]:
        found.append(torch.tensor(lm.score(ids[:120], ids[120:]).logprobs))
        on = lm.complete(ids, max_tokens=4, temperature=0, ignore_eos=True)
        assert on.usage.completion_tokens == 4
        lm.engine.runners = lm.engine.runners[1:]
    lm.close()
    assert abs(found[0].mean() - found[1].mean()) < 0.05
    assert (found[0] - found[1]).abs().median() < 0.05


def loss(lm: LocalLM, ids: Sequence[int], rest: Sequence[int]) -> float:
    """Mean loss (nats) of the rest's tokens after `ids`."""
    told = lm.score(ids, rest).logprobs
    return -sum(told) / len(told)


@pytest.mark.slow
def test_sinks_keep_what_the_window_knows_and_without_them_it_is_lost(smollm2: Path) -> None:
    """A window of 256 over texts of 1,536 tokens (StreamingLLM, Table 1 and Figure 3).

    Against reading the last 192 ... 255 tokens afresh for every 64, which is the most that such a
    window can know: with four sinks the same loss; with none 0.6 nats more. Against the whole past
    0.17 nats more, for what only the whole past tells.
    """
    full = opened(smollm2, ctx=2048, parallel=1)
    ids = full.encode(prose())
    parts = [ids[i : i + 1536] for i in range(0, 4 * 1536, 1536)]
    assert len(parts[-1]) == 1536
    whole = [loss(full, part[:1024], part[1024:]) for part in parts]
    afresh = [
        sum(loss(full, part[i - 192 : i], part[i : i + 64]) for i in range(1024, 1536, 64)) / 8
        for part in parts
    ]
    full.close()
    streamed = {}
    for sinks in (4, 0):
        lm = opened(smollm2, window=256, sinks=sinks, parallel=1)
        streamed[sinks] = [loss(lm, part[:1024], part[1024:]) for part in parts]
        lm.close()
    for i in range(len(parts)):
        assert abs(streamed[4][i] - afresh[i]) < 0.05
        assert streamed[4][i] - whole[i] < 0.3
        assert streamed[0][i] - streamed[4][i] > 0.4

"""`retrieve`: an encoder-decoder behind the LM interface reads sources longer than it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import keifu
from keifu.cli.main import cli
from keifu.core.errors import ContextLengthError, KeifuError
from keifu.families.bart import BART
from keifu.lm.opening import load_local
from keifu.lm.pair import PairLM
from keifu.nn.pair import PairModule
from tests.families.parity import export
from tests.pairs import TEXTS, t5_tokenizer, tiny_t5

BOOK = "the dog sat on the mat and " * 40
"""280 words."""


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART of 32 learned positions."""
    folder, rust = tmp_path_factory.mktemp("bart") / "tiny-bart", t5_tokenizer()
    family = replace(BART.tiny(), vocab=rust.get_vocab_size(), context=32)
    model = family.spec().build()
    assert isinstance(model, PairModule)
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.4, generator=dice)
    ids = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    export(family, model.eval(), folder, ids)
    rust.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps(ids))
    return folder


@pytest.mark.parametrize("beams", [1, 3])
def test_short_sources_say_the_same(bart: Path, beams: int) -> None:
    """Where every head reads every place, nothing changes."""
    said = []
    for retrieve in (None, 32):
        lm = keifu.load(str(bart), precision="exact", threads=1, retrieve=retrieve)
        try:
            done = [lm.complete(t[:24], max_tokens=10, beams=beams, logprobs=1) for t in TEXTS]
            said.append([(d.tokens, [t.logprob for t in d.choices[0].logprobs]) for d in done])
        finally:
            lm.close()
    for (tokens, told), (others, found) in zip(*said, strict=True):
        assert tokens == others
        assert told == pytest.approx(found, abs=1e-4)
    assert len({tuple(told) for _, told in said[0]}) == len(TEXTS)


@pytest.mark.parametrize("precision", ["exact", "default"])
def test_sources_may_be_longer_than_the_positions(bart: Path, precision: str) -> None:
    plain = load_local(str(bart), precision=precision, threads=1)
    lm = load_local(str(bart), precision=precision, threads=1, retrieve=8)
    try:
        assert isinstance(lm, PairLM)
        with pytest.raises(ContextLengthError, match="context holds 32"):
            plain.complete(BOOK, max_tokens=4)
        done = lm.complete(BOOK, max_tokens=8, logprobs=1, ignore_eos=True)
        assert done.usage.prompt_tokens > 280
        assert len(done.tokens) == 8
        other = lm.complete(BOOK + "lazy", max_tokens=8, logprobs=1, ignore_eos=True)
        assert [t.logprob for t in done.choices[0].logprobs] != [
            t.logprob for t in other.choices[0].logprobs
        ], "the end of the source is read"
        scores = lm.score(BOOK, list(done.tokens))
        if precision == "exact":
            told = [t.logprob for t in done.choices[0].logprobs]
            assert scores.logprobs == pytest.approx(told, abs=1e-4)
        (vector,) = lm.embed([BOOK])
        assert len(vector) == 32
        assert lm.engine.source_context >= 100_000
        assert lm.engine.context == 32, "what is written is bounded as before"
        with pytest.raises(ContextLengthError, match="plus 100 requested"):
            lm.complete("the cat", max_tokens=100)
    finally:
        plain.close()
        lm.close()


def test_the_budget_bounds_the_source(bart: Path) -> None:
    lm = load_local(str(bart), precision="exact", threads=1, retrieve=8, max_memory=250_000)
    try:
        assert isinstance(lm, PairLM)
        most = lm.engine.source_context
        assert 32 < most < 1600, "what the output needs comes first"
        with pytest.raises(ContextLengthError, match=f"context holds {most}"):
            lm.complete([3] * (most + 1), max_tokens=2)
        assert len(lm.complete([3] * most, max_tokens=2, ignore_eos=True).tokens) == 2
    finally:
        lm.close()
    with pytest.raises(KeifuError, match="raise --max-memory"):
        load_local(str(bart), precision="exact", threads=1, retrieve=8, max_memory=2000)


def test_with_a_window_neither_side_has_an_end(tmp_path: Path) -> None:
    """T5: a source of hundreds of tokens, an output beyond the 64 that it was made for."""
    folder = tiny_t5(tmp_path / "t5")
    lm = load_local(str(folder), precision="exact", threads=1, retrieve=8, window=16)
    try:
        done = lm.complete(BOOK, max_tokens=100, temperature=0.0, ignore_eos=True)
        assert done.usage.prompt_tokens > 280
        assert len(done.tokens) == 100
    finally:
        lm.close()


def test_refusals_are_one_line(bart: Path, tmp_path: Path) -> None:
    with pytest.raises(KeifuError, match="retrieve=0 is not allowed: a head reads at least 1"):
        keifu.load(str(bart), retrieve=0)
    with pytest.raises(KeifuError, match=r"chunks of 2 tokens have no middle half"):
        keifu.load(str(bart), retrieve=4, ctx=2)


def test_the_command_line(bart: Path) -> None:
    given = ["complete", "-m", str(bart), "--precision", "exact", "--max-tokens", "6", "--json"]

    def run(*more: str) -> Result:
        return CliRunner().invoke(cli, [*given, *more, BOOK])

    done = run("--retrieve", "8")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["usage"]["prompt_tokens"] > 280
    for more, why in (((), "context holds 32"), (("--retrieve", "0"), "0 is not allowed: from 1")):
        refused = run(*more)
        assert refused.exit_code != 0
        assert why in f"{refused.exception} {refused.output}"

"""RMT against loops written by hand over transformers' GPT-2, LLaMA and BERT; its config, names."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import keifu
from keifu.checkpoints.transfer import fill
from keifu.cli.main import main
from keifu.core.errors import ConfigError, KeifuError
from keifu.families import families, save_model
from keifu.families._load import build_model, open_checkpoint
from keifu.families._sides import for_task
from keifu.families.bert import Bert
from keifu.families.rmt import RMT
from keifu.nn.losses import IGNORE
from keifu.nn.segments import Segments, SegmentsModule
from keifu.nn.stack import Stack
from keifu.training import Sequences, Trainer, evaluate
from keifu.training.loop import TrainOptions
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.optimizers.adam import Adam
from recipes.char_lm import characters
from tests.families.parity import Tensors, export, greedy, randomise, tokens

MEMORY, SEGMENT = 3, 6
LLAMA: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BASES: dict[str, nn.Module] = {
    "gpt2": GPT2LMHeadModel(
        GPT2Config(
            **{"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
            **{"bos_token_id": 0, "eos_token_id": 0},
        )
    ),
    "llama": LlamaForCausalLM(LlamaConfig(**LLAMA)),
}


def loop(theirs: Any, memory: Tensor, ids: Tensor) -> Tensor:
    """The decoder of the paper, segment after segment: logits (batch, time, vocab)."""
    state, said = memory.expand(ids.shape[0], -1, -1), []
    for segment in ids.split(SEGMENT, dim=1):
        seen = torch.cat([state, theirs.get_input_embeddings()(segment), state], 1)
        out = theirs(inputs_embeds=seen, output_hidden_states=True)
        said.append(out.logits[:, MEMORY:-MEMORY])
        state = out.hidden_states[-1][:, -MEMORY:]
    return torch.cat(said, 1)


def cell(theirs: nn.Module) -> dict[str, Tensor]:
    """A checkpoint as the released code's wrapper names it."""
    memory = torch.randn(MEMORY, 32, generator=torch.manual_seed(7)) * 0.3
    inside = {f"memory_cell.model.{name}": t for name, t in theirs.state_dict().items()}
    return {"memory_cell.memory": memory, **inside}


def made(kind: str) -> tuple[RMT, SegmentsModule, Any, Tensor]:
    theirs: Any = BASES[kind].eval()
    randomise(theirs, std=0.3 if kind == "gpt2" else 0.15)  # larger ones amplify rounding
    config = {"model_type": "rmt", "base": theirs.config.to_dict(), "max_n_segments": 2}
    family = RMT.from_hf({**config, "num_mem_tokens": MEMORY, "segment_size": SEGMENT, "k2": -1})
    ours = family.spec().build()
    assert isinstance(ours, SegmentsModule)
    weights = cell(theirs)
    fill(ours, family.names(), Tensors(weights))
    return family, ours.eval(), theirs, weights["memory_cell.memory"]


@pytest.mark.parametrize("kind", BASES)
@torch.no_grad()
def test_unrolled_equals_the_loop_written_by_hand(kind: str) -> None:
    _, ours, theirs, memory = made(kind)
    ids = tokens(96, 3, 4 * SEGMENT + 2)
    got = ours(ids).logits
    assert got is not None
    torch.testing.assert_close(got, loop(theirs, memory, ids), atol=1e-5, rtol=1e-5)
    changed = ids.clone()
    changed[:, 0] = (ids[:, 0] + 1) % 96
    later = ours(changed).logits
    assert later is not None
    assert (later - got)[:, -1].abs().max() > 1e-3  # five segments on, through memory alone


@torch.no_grad()
def test_cached_greedy_tokens_are_those_of_the_loop() -> None:
    _, ours, theirs, memory = made("gpt2")
    ids = tokens(96, 1, 9, seed=5)
    said = greedy(ours, ids[0].tolist(), 2 * SEGMENT)
    for token in said:
        assert int(loop(theirs, memory, ids)[0, -1].argmax()) == token
        ids = torch.cat([ids, torch.tensor([[token]])], 1)


@torch.no_grad()
def test_a_checkpoint_has_the_released_names_and_comes_back(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    family, ours, theirs, _ = made("gpt2")
    folder = export(family, ours, tmp_path / "m")
    names = {n for n in cell(theirs) if not n.endswith(("lm_head.weight", ".bias.attn"))}
    assert set(load_file(folder / "model.safetensors")) == names
    read = open_checkpoint(folder)
    assert (read.family_name, read.family) == ("rmt", family)
    assert read.family.context == 2 * SEGMENT
    ids = tokens(96)
    assert torch.equal(build_model(read)(ids).logits, ours(ids).logits)


def classifier() -> tuple[Any, Stack, Bert]:
    """transformers' BERT classifier whose table has memory tokens at its end, and our stack."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(**sizes, vocab_size=96, intermediate_size=48, max_position_embeddings=40)
    theirs: Any = BertForSequenceClassification(config).eval()
    randomise(theirs)
    family = Bert.from_hf({**config.to_dict(), "architectures": ["BertForSequenceClassification"]})
    spec = family.spec()
    assert isinstance(spec, Stack)
    return theirs, spec, family


@torch.no_grad()
def test_an_encoder_reads_and_writes_the_memory_before_a_segment() -> None:
    theirs, spec, family = classifier()
    own = (93, 94, 95)
    around = ((1,), (2,), (2,))
    whole = Segments.of(spec, memory=3, segment=SEGMENT, appended=False, around=around, tokens=own)
    ours = whole.build()
    assert isinstance(ours, SegmentsModule)
    fill(ours, family.names(), Tensors(theirs.state_dict()))
    ids = tokens(90, 2, 3 * SEGMENT + 4)
    table = theirs.get_input_embeddings()
    state = table(torch.tensor(own)).expand(2, -1, -1)
    hidden = []
    for segment in ids.split(SEGMENT, dim=1):
        first, mark = (torch.full((2, 1), i) for i in (1, 2))
        seen = torch.cat([table(first), state, table(mark), table(segment), table(mark)], 1)
        out = theirs(inputs_embeds=seen, output_hidden_states=True)
        state = out.hidden_states[-1][:, 1:4]
        hidden.append(out.hidden_states[-1][:, 5:-1])
    got = ours.eval()(ids, taps=["head.classify"])
    torch.testing.assert_close(got.taps["head.classify"], out.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.hidden, torch.cat(hidden, 1), atol=1e-5, rtol=1e-5)
    assert whole.entries() == [{"memory": whole.entries()[0]["memory"]}]


def test_what_does_not_fit_is_one_line() -> None:
    tiny = RMT.tiny()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"segment": 60}, "segment_size=60 and num_mem_tokens=3 twice take 66 positions"),
        ({"memory": 30}, "more than the 64 of gpt2: make one of them smaller"),
        ({"memory": 0}, "num_mem_tokens=0 is not allowed: a whole number above 0"),
        ({"segment": -4}, "segment_size=-4 is not allowed"),
        ({"segment": 2.5}, "segment_size=2.5 is not allowed"),
        ({"bptt": 0}, "k2=0 is not allowed"),
        ({"base": families["bert"].tiny()}, "bert is no decoder of one stack"),
        ({"base": families["t5"].tiny()}, "t5 is no decoder of one stack"),
    ]
    for change, text in cases:
        with pytest.raises(ConfigError, match=text) as refused:
            dataclasses.replace(tiny, **change)
        assert "\n" not in str(refused.value)
    with pytest.raises(KeifuError, match="lacks base's config"):
        RMT.from_hf({"model_type": "rmt", "segment_size": 4})
    with pytest.raises(KeifuError, match="of rmt lacks segment_size"):
        RMT.from_hf({"model_type": "rmt", "base": families["gpt-2"].tiny().to_hf()})


def test_any_decoder_of_one_stack_is_a_base() -> None:
    for name in ("llama", "bloom", "gemma2", "mistral"):
        family = RMT(base=for_task(families[name].tiny(), ("generate",)), memory=2, segment=7)
        assert RMT.from_hf(family.to_hf()) == family
        model = family.spec().build()
        assert isinstance(model, SegmentsModule)
        logits = model.initialise(seed=1, std=0.3).eval()(tokens(90, 2, 30)).logits
        assert logits is not None
        assert logits.isfinite().all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of random weights that reads characters, trained on rows of 15 tokens."""
    tokenizer = characters("abcdefgh .")
    base = dataclasses.replace(families["gpt-2"].tiny(), vocab=len(tokenizer))
    family = RMT(base=base, memory=3, segment=5, segments=3)
    model: Any = family.spec().build()
    model.initialise(seed=4, std=0.3)
    return save_model(tmp_path_factory.mktemp("rmt") / "m", family, model.eval(), tokenizer)


def test_a_saved_folder_is_read_far_beyond_any_context(folder: Path) -> None:
    """In one batch with others, and the same as the model's whole sequences say."""
    lm: Any = keifu.load(str(folder), precision="exact", ctx=4000, threads=1)
    assert lm.context == 4000
    model = build_model(open_checkpoint(folder))
    texts = ["abc " * 150, "a", "hg fed." * 3]
    streams = [lm.complete_stream(t, max_tokens=13, temperature=0) for t in texts]
    for text, stream in zip(texts, streams, strict=True):
        ids, new = lm.encode(text), list(stream.result().tokens)
        logits = model(torch.tensor([*ids, *new[:-1]])).logits
        assert logits[len(ids) - 1 :].argmax(-1).tolist() == new
    lm.close()
    lm = keifu.load(str(folder), threads=1)  # in bfloat16
    assert lm.context == 15
    assert len(lm.complete("abc", max_tokens=10).tokens) == 10
    with pytest.raises(KeifuError, match="15"):
        lm.complete("abc " * 20, max_tokens=10)
    lm.close()


@pytest.mark.parametrize("verb", ["complete", "chat"])
def test_the_command_line_reads_it(
    verb: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    words = ["-m", str(folder), "--ctx", "900", "--max-tokens", "9", "--threads", "1"]
    assert main([verb, *words, "--json", "hgf abc " * 90]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["usage"]["prompt_tokens"] > 700
    assert answer["usage"]["completion_tokens"] == 9


def test_it_trains_through_the_one_loop() -> None:
    """An answer that only memory can give: two segments, one fact; minutes' worth in the recipe."""
    family = RMT(base=dataclasses.replace(families["gpt-2"].tiny(), vocab=6), memory=2, segment=3)
    model: Any = family.spec().build()
    model.initialise(seed=0, std=0.1)
    rows = [[fact, 4, 4, 5, fact] for fact in range(4)]
    labels = [[IGNORE] * 4 + [row[-1]] for row in rows]
    batch = Sequences.of(rows, labels)
    options = TrainOptions(steps=150)
    trainer = Trainer(model, CausalLM(), optimization=Adam(lr=5e-3), options=options)
    trainer.fit(lambda number: batch)
    assert evaluate(model, CausalLM(), [batch])[1]["accuracy"] == 1.0
    assert evaluate(model, CausalLM(), [batch])[0] < 0.1

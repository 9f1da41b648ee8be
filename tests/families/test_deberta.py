"""DeBERTa v1, v2 and v3 against transformers, and the enhanced mask decoder against the paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DebertaConfig, DebertaV2Config

from keifu.core.errors import ConfigError, FormatError
from keifu.families import families
from keifu.families._load import build_model, open_checkpoint
from keifu.families.deberta import Deberta
from keifu.families.deberta_v2 import DebertaV2
from keifu.families.published import PUBLISHED
from keifu.families.published.deberta import DEBERTA
from keifu.nn.part import count
from tests.families.encoder_parity import both_ways, same_names
from tests.families.parity import converted, export, randomise, tokens

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 24, "relative_attention": True,
}  # fmt: skip
SUBSETS = [[], ["c2p"], ["p2c"], ["c2p", "p2c"]]
FIRST = {
    "biased": {"position_biased_input": True, "type_vocab_size": 2},
    "clipped": {"position_biased_input": False, "max_relative_positions": 5},
    "narrow": {"embedding_size": 20, "type_vocab_size": 3},
    "talking": {"talking_head": True, "position_biased_input": False},
    "relu": {"hidden_act": "relu", "pooler_hidden_act": "tanh"},
}
SECOND = {
    "plain": {"position_biased_input": False},
    "buckets": {"position_buckets": 6, "type_vocab_size": 2},
    "shared": {"position_buckets": 6, "share_att_key": True, "norm_rel_ebd": "layer_norm",
               "position_biased_input": False},
    "conv": {"conv_kernel_size": 3, "conv_act": "gelu", "norm_rel_ebd": "layer_norm"},
    "groups": {"conv_kernel_size": 5, "conv_groups": 4, "attention_head_size": 8},
    "narrow": {"embedding_size": 20, "position_buckets": 4, "max_relative_positions": 9},
}  # fmt: skip
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


@pytest.mark.parametrize("terms", SUBSETS)
@pytest.mark.parametrize("name", FIRST)
def test_version_one_bare(name: str, terms: list[str], tmp_path: Path) -> None:
    config = DebertaConfig(**SIZES, pos_att_type=terms, **FIRST[name])
    both_ways(Deberta, transformers.DebertaModel(config), tmp_path / "m")


@pytest.mark.parametrize("terms", SUBSETS)
@pytest.mark.parametrize("name", SECOND)
def test_version_two_bare(name: str, terms: list[str], tmp_path: Path) -> None:
    config = DebertaV2Config(**SIZES, pos_att_type=terms, **SECOND[name])
    both_ways(DebertaV2, transformers.DebertaV2Model(config), tmp_path / "m")


@pytest.mark.parametrize("terms", SUBSETS)
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_masked_words(version: int, legacy: bool, terms: list[str], tmp_path: Path) -> None:
    options = {**SIZES, "pos_att_type": terms, "legacy": legacy}
    if version == 1:
        theirs: Any = transformers.DebertaForMaskedLM(DebertaConfig(**options, **FIRST["clipped"]))
        both_ways(Deberta, theirs, tmp_path / "m")
    else:
        config = DebertaV2Config(**options, **SECOND["shared"])
        both_ways(DebertaV2, transformers.DebertaV2ForMaskedLM(config), tmp_path / "m")


def test_a_narrow_table_s_masked_words(tmp_path: Path) -> None:
    """The legacy head goes down to the table's width."""
    theirs = transformers.DebertaForMaskedLM(DebertaConfig(**SIZES, **FIRST["narrow"]))
    both_ways(Deberta, theirs, tmp_path / "m")


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("version", [1, 2])
def test_heads(version: int, name: str, tmp_path: Path) -> None:
    options = {**SIZES, "pos_att_type": "p2c|c2p", "num_labels": 2}
    if "Question" not in name:
        options["num_labels"] = 3
    if version == 1:
        config: Any = DebertaConfig(**options, **FIRST["biased"])
        both_ways(Deberta, getattr(transformers, f"Deberta{name}")(config), tmp_path / "m")
    else:
        config = DebertaV2Config(**options, **SECOND["shared"], conv_kernel_size=3)
        both_ways(DebertaV2, getattr(transformers, f"DebertaV2{name}")(config), tmp_path / "m")


def test_choices(tmp_path: Path) -> None:
    config = DebertaV2Config(**SIZES, pos_att_type="c2p|p2c", **SECOND["buckets"])
    theirs = transformers.DebertaV2ForMultipleChoice(config)
    both_ways(DebertaV2, theirs, tmp_path / "m", choices=2)


@pytest.mark.parametrize("terms", SUBSETS)
def test_without_relative_positions_the_terms_still_scale(terms: list[str], tmp_path: Path) -> None:
    options = {**SIZES, "relative_attention": False, "pos_att_type": terms}
    first = transformers.DebertaModel(DebertaConfig(**options))
    both_ways(Deberta, first, tmp_path / "a")
    second = transformers.DebertaV2Model(DebertaV2Config(**options))
    both_ways(DebertaV2, second, tmp_path / "b")


def enhanced(**more: Any) -> Deberta:
    return Deberta(
        task="fill-mask", vocab=96, width=32, hidden=48, depth=3, heads=4, context=24,
        relative=True, reach=5, terms=("c2p", "p2c"), biased=False, legacy=False, decoder=True,
        **more,
    )  # fmt: skip


def slow_layer(p: dict[str, Tensor], layer: int, query: Tensor, memory: Tensor) -> Tensor:
    """One layer by the paper's equations 2 to 4, pair by pair: (time, width) each."""
    at = f"blocks.{layer}."
    heads, width, reach = 4, 32, 5
    d = width // heads

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-7).sqrt()
        return scaled * p[f"{at}norms.{name}.weight"] + p[f"{at}norms.{name}.bias"]

    wq, wk, wv = p[at + "mixer.qkv.weight"].chunk(3)
    qc, kc = query @ wq.T + p[at + "mixer.q_bias"], memory @ wk.T
    vc = memory @ wv.T + p[at + "mixer.v_bias"]
    table = p["shared.relative.table.weight"]
    kr = table @ p[at + "mixer.relative_k.weight"].T
    qr = table @ p[at + "mixer.relative_q.weight"].T + p[at + "mixer.relative_q.bias"]
    time, outs = query.shape[0], []
    for h in range(heads):
        s = slice(h * d, (h + 1) * d)
        scores = torch.zeros(time, time, dtype=torch.float64)
        for i in range(time):
            for j in range(time):
                delta = 0 if i - j <= -reach else 2 * reach - 1 if i - j >= reach else i - j + reach
                scores[i, j] = (
                    qc[i, s] @ kc[j, s] + qc[i, s] @ kr[delta, s] + kc[j, s] @ qr[delta, s]
                )
        outs.append((scores / (3 * d) ** 0.5).softmax(-1) @ vc[:, s])
    mixed = torch.cat(outs, -1) @ p[at + "mixer.out.weight"].T + p[at + "mixer.out.bias"]
    x = norm(query + mixed, "mixer_norm")
    up = x @ p[at + "mlp.up.weight"].T + p[at + "mlp.up.bias"]
    gelu = up * 0.5 * (1 + torch.erf(up / 2**0.5))
    return norm(x + gelu @ p[at + "mlp.down.weight"].T + p[at + "mlp.down.bias"], "mlp_norm")


@torch.no_grad()
def test_the_enhanced_mask_decoder_is_the_paper_s() -> None:
    """Section 3.2: H of the second-last layer stays the memory, positions begin the queries."""
    model: Any = enhanced().spec().build()
    randomise(model.initialise().eval(), std=0.5)
    p = {name: value.double() for name, value in model.named_parameters()}
    ids = tokens(96, rows=2, time=7)
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    got = model(ids, attention_mask=mask)
    for row, length in enumerate((7, 3)):
        x = p["input.table.weight"][ids[row, :length]]
        x = torch.nn.functional.layer_norm(
            x, (32,), p["input.norm.weight"], p["input.norm.bias"], 1e-7
        )
        for layer in (0, 1):
            x = slow_layer(p, layer, x, x)
        query = x + p["readout.positions.weight"][:length]
        for _ in range(2):
            query = slow_layer(p, 2, query, x)
        torch.testing.assert_close(got.hidden[row, :length].double(), query, atol=1e-4, rtol=1e-4)
    plain: Any = replace(enhanced(), decoder=False).spec().build()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if "readout" not in n})
    other = plain.eval()(ids, attention_mask=mask)
    assert (other.logits - got.logits)[0].abs().max() > 0.1, "no absolute position is in there"
    torch.testing.assert_close(
        other.hidden[0], model(ids[:1], taps=["block.2"]).taps["block.2"][0], atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_the_decoder_over_their_layers(tmp_path: Path) -> None:
    """Version 2 with the authors' loop over transformers' own layer; the files keep their names."""
    options = {**SIZES, "pos_att_type": ["c2p", "p2c"], "legacy": False, **SECOND["shared"]}
    theirs: Any = transformers.DebertaV2ForMaskedLM(DebertaV2Config(**options))
    randomise(theirs.eval())
    config = {**theirs.config.to_dict(), "enhanced_mask_decoder": True,
              "architectures": ["DebertaV2ForMaskedLM"]}  # fmt: skip
    family = DebertaV2.from_hf(config)
    assert family.decoder
    positions = torch.randn(24, 32, generator=torch.manual_seed(8))
    theirs.deberta.embeddings.register_parameter("position", torch.nn.Parameter(positions))
    state = dict(theirs.state_dict())
    state["deberta.embeddings.position_embeddings.weight"] = state.pop(
        "deberta.embeddings.position"
    )

    class Theirs(torch.nn.Module):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return state

    ours = converted(family, Theirs())
    ids = tokens(96, rows=2, time=11)
    encoder = theirs.deberta.encoder
    states = theirs.deberta(ids, output_hidden_states=True).hidden_states
    query = states[-2] + positions[:11]
    mask = encoder.get_attention_mask(torch.ones_like(ids))
    for _ in range(2):
        query, _ = encoder.layer[-1](
            states[-2], mask, query_states=query,
            relative_pos=encoder.get_rel_pos(states[-2]),
            rel_embeddings=encoder.get_rel_embedding(),
        )  # fmt: skip
    expected = theirs.lm_predictions(query, theirs.deberta.embeddings.word_embeddings)
    torch.testing.assert_close(ours(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ours(ids).logits, theirs(ids).logits, atol=0.1)
    read = open_checkpoint(export(family, ours, tmp_path / "m"))
    assert read.family == family
    torch.testing.assert_close(build_model(read)(ids).logits, expected, atol=1e-4, rtol=1e-4)
    again = transformers.DebertaV2ForMaskedLM.from_pretrained(tmp_path / "m").eval()
    torch.testing.assert_close(again(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_published_files_hold_what_the_bare_model_leaves(tmp_path: Path) -> None:
    """microsoft/deberta-base: no class in its config, positions and a head beside the encoder."""
    family = enhanced()
    model: Any = family.spec().build()
    randomise(model.initialise().eval())
    folder = export(family, model, tmp_path / "m")
    config = family.to_hf()
    for key in ("architectures", "legacy", "enhanced_mask_decoder"):
        del config[key]
    read = open_checkpoint(folder)
    bare = Deberta.from_hf(config)
    assert bare.task == "encode"
    ids = tokens(96, rows=2, time=9)
    opened = build_model(replace(read, family=bare, names=bare.names()))
    hidden = model(ids, taps=["block.2"]).taps["block.2"]
    torch.testing.assert_close(opened(ids).hidden, hidden, atol=1e-5, rtol=1e-5)


def test_what_is_refused(tmp_path: Path) -> None:
    config = enhanced().to_hf()
    for change, said in (
        ({"pos_att_type": ["c2p", "p2p"]}, "pos_att_type"),
        ({"pos_att_type": "c2p|c2p"}, "pos_att_type"),
        ({"position_biased_input": True}, "enhanced_mask_decoder"),
        ({"num_hidden_layers": 1}, "two layers"),
        ({"enhanced_mask_decoder": False, "embedding_size": 16}, "legacy=false"),
        ({"pooler_hidden_size": 16}, "pooler_hidden_size"),
        ({"num_attention_heads": 5}, "divide"),
        ({"position_bucket": 4}, "position_bucket"),
    ):
        with pytest.raises(ConfigError, match=said):
            Deberta.from_hf({**config, **change})
    second = families["deberta-v2"].tiny().to_hf()
    for change, said in (
        ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd"),
        ({"conv_kernel_size": 4}, "odd"),
        ({"conv_groups": 5}, "conv_groups"),
        ({"attention_head_size": 9}, "attention_head_size"),
    ):
        with pytest.raises(ConfigError, match=said):
            DebertaV2.from_hf({**second, **change})
    model: Any = enhanced().spec().build().initialise()
    folder = export(replace(enhanced(), talking=True), model, tmp_path / "m")
    with pytest.raises(FormatError, match="head_logits_proj"):
        build_model(open_checkpoint(folder))


COUNTED = {"deberta-base": 138_601_728, "deberta-v2-xxlarge": 1_564_549_632}
"""Figures that were counted with the reference classes, written down a second time."""


@pytest.mark.parametrize("name", DEBERTA)
def test_published_sizes(name: str) -> None:
    row = PUBLISHED[name]
    family = families[row.family].from_hf(row.config)
    assert count(family.spec()) == row.parameters == COUNTED.get(name, row.parameters)
    assert families[row.family].from_hf(family.to_hf()) == family
    config, theirs = (
        (DebertaConfig, transformers.DebertaModel)
        if row.family == "deberta"
        else (DebertaV2Config, transformers.DebertaV2Model)
    )
    few = {**row.config, "num_hidden_layers": 2}
    with torch.device("meta"):
        reference = theirs(config(**few))
    same_names(families[row.family].from_hf(few), reference)

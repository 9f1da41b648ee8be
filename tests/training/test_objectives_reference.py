"""Losses, gradients and a step of each objective equal those of the Hugging Face classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F

from keifu.checkpoints.transfer import fill
from keifu.families import families
from keifu.nn.losses import IGNORE
from keifu.nn.part import build
from keifu.training import Pairs, Sequences, Trainer
from keifu.training.loop import TrainOptions
from keifu.training.objective import Objective
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.objectives.denoising import Denoising
from keifu.training.objectives.distillation import Distillation
from keifu.training.objectives.masked_lm import MaskedLM
from keifu.training.objectives.next_sentence import NextSentence
from keifu.training.objectives.prefix_lm import PrefixLM, prefixed
from keifu.training.objectives.sentence_order import SentenceOrder
from keifu.training.objectives.span_corruption import Spans
from keifu.training.optimizers.sgd import SGD
from keifu.training.reading import numbered
from tests.families.parity import Tensors, randomise
from tests.training.models import transformer
from tests.training.vocabularies import examples, vocabulary

torch.set_num_threads(1)
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}
RATE = 0.1
SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
STILL: dict[str, Any] = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.0,
}


def llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, num_key_value_heads=2))


def bert(kind: str) -> Any:
    return getattr(hf, kind)(hf.BertConfig(**SMALL, **STILL, architectures=[kind]))


def albert() -> Any:
    sizes = {**SMALL, "embedding_size": 16, "num_hidden_groups": 1}
    made = hf.AlbertConfig(**sizes, **STILL, architectures=["AlbertForPreTraining"])
    return hf.AlbertForPreTraining(made)


def t5() -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "dropout_rate": 0.0, "decoder_start_token_id": 0,
    }  # fmt: skip
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes))


def bart() -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "max_position_embeddings": 64, "decoder_start_token_id": 2,
        "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 2, "forced_eos_token_id": None,
    }  # fmt: skip
    return hf.BartForConditionalGeneration(hf.BartConfig(**sizes))


def grid(rows: Sequences, values: Tensor | None = None, fill: int = 0) -> Tensor:
    """(rows, longest), padded on the right."""
    each = (rows.ids if values is None else values).split(list(rows.lengths))
    return nn.utils.rnn.pad_sequence(list(each), batch_first=True, padding_value=fill)


def mask(rows: Sequences) -> Tensor:
    return grid(rows, torch.ones_like(rows.ids))


def of_causal(batch: Sequences) -> dict[str, Tensor]:
    labels = batch.ids if batch.labels is None else batch.labels
    return {
        "input_ids": grid(batch),
        "attention_mask": mask(batch),
        "labels": grid(batch, labels, IGNORE),
    }


def of_pretraining(name: str) -> Callable[[Sequences], dict[str, Tensor]]:
    def made(batch: Sequences) -> dict[str, Tensor]:
        assert batch.classes is not None
        kinds = grid(batch, batch.segments)
        return {**of_causal(batch), "token_type_ids": kinds, name: batch.classes}

    return made


def of_pair(batch: Pairs) -> dict[str, Tensor]:
    """They shift the labels themselves."""
    target = grid(batch.target, batch.target.ids, IGNORE)
    return {
        "input_ids": grid(batch.source),
        "attention_mask": mask(batch.source),
        "labels": target[:, 1:].contiguous(),
    }


def prefixes(batch: Sequences) -> dict[str, Tensor]:
    """A mask (rows, 1, time, time) that shows each row's prefix to all."""
    found = of_causal(batch)
    time = torch.arange(found["input_ids"].shape[1])
    seen = torch.stack(
        [(time <= time[:, None]) | (time < marks.prefix) for marks in batch.landmarks]
    )
    seen = seen & (mask(batch)[:, None] > 0) | torch.eye(len(time), dtype=torch.bool)
    floor = torch.finfo(torch.float32).min
    return {**found, "attention_mask": torch.where(seen, 0.0, floor)[:, None]}


Case = tuple[Callable[[], Any], str, Objective[Any], Callable[[Any], dict[str, Tensor]]]
CASES: dict[str, Case] = {
    "causal-lm": (llama, "llama", CausalLM(), of_causal),
    "masked-lm": (lambda: bert("BertForMaskedLM"), "bert", MaskedLM(), of_causal),
    "next-sentence": (
        lambda: bert("BertForPreTraining"),
        "bert",
        NextSentence(most=17, ratio=0.2),
        of_pretraining("next_sentence_label"),
    ),
    "sentence-order": (
        albert,
        "albert",
        SentenceOrder(most=17, unit="token", ratio=0.2),
        of_pretraining("sentence_order_label"),
    ),
    "span-corruption": (t5, "t5", Spans(), of_pair),
    "denoising": (bart, "bart", Denoising(), of_pair),
    "prefix-lm": (llama, "llama", PrefixLM(), prefixes),
}


def theirs_as_ours(spec: Any, names: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their weights or gradients under our names and in our shapes."""
    model = build(spec, device="meta")
    fill(model, names, Tensors(dict(tensors)))
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_loss_gradient_and_step_are_those_of_the_reference(name: str) -> None:
    make, key, objective, inputs = CASES[name]
    theirs = make()
    randomise(theirs)
    theirs.train()
    family = families[key].from_hf(theirs.config.to_dict())
    spec: Any = family.spec() if name != "prefix-lm" else prefixed(family.spec())
    ours: Any = build(spec, device="meta")
    fill(ours, family.names(), Tensors({n: t.clone() for n, t in theirs.state_dict().items()}))
    ours.requires_grad_(True)
    start = {"t5": 0, "bart": 2}.get(key, 0)
    roles = {**vocabulary().roles, "start": start}
    bare: dict[str, Any] = {"prefix": (), "suffix": ()} if key in ("llama", "t5") else {}
    words = vocabulary(roles=roles, **bare)
    # Pairs of texts hide equally many tokens of each row: 17 of both texts.
    data = numbered(
        examples(6, length=40 if "sentence" in name else 20), 4, objective.reader(words)
    )
    batch = next(b for b in map(data, range(40)) if even(name, b))

    said = theirs(**inputs(batch))
    said.loss.backward()
    loss = objective(ours, batch)
    (loss.total / loss.count).backward()
    assert (loss.total / loss.count).item() == pytest.approx(said.loss.item(), abs=1e-5)
    states = theirs.state_dict()
    slopes = dict(theirs.named_parameters(remove_duplicate=False))
    zero = {n: torch.zeros_like(t) for n, t in states.items()}
    grads = {n: zero[n] if slopes.get(n) is None or slopes[n].grad is None else slopes[n].grad
             for n in states}  # fmt: skip
    for n, wanted in theirs_as_ours(spec, family.names(), grads).items():
        found = ours.get_parameter(n).grad
        found = torch.zeros_like(wanted) if found is None else found
        torch.testing.assert_close(found, wanted, **CLOSE)

    optimizer = torch.optim.SGD(theirs.parameters(), lr=RATE)
    optimizer.step()
    ours.zero_grad()
    Trainer(
        ours,
        objective,
        optimization=SGD(lr=RATE),
        options=TrainOptions(steps=1, clip=None),
    ).fit(lambda number: batch)
    for n, wanted in theirs_as_ours(spec, family.names(), theirs.state_dict()).items():
        torch.testing.assert_close(ours.get_parameter(n).detach(), wanted, **CLOSE)


def even(name: str, batch: Any) -> bool:
    """Rows that hide equally many tokens, where the reference counts tokens and we count rows."""
    if "sentence" not in name:
        return True
    hidden = [int((row != IGNORE).sum()) for row in batch.labels.split(list(batch.lengths))]
    return len(set(hidden)) == 1 and len(set(batch.classes.tolist())) == 2


def test_distillation_is_the_formula_on_both_logits() -> None:
    torch.manual_seed(0)
    student, teacher = transformer(), transformer()
    randomise(teacher, seed=5)
    ids = [torch.randint(0, 23, (n,)) for n in (5, 9, 3)]
    objective = Distillation(teacher=teacher, temperature=3.0, share=0.7)
    loss = objective(student, Sequences.of(ids))
    expected = torch.tensor(0.0)
    for row in ids:
        mine, theirs = student(row).logits[:-1], teacher(row).logits[:-1].detach()
        told = (theirs / 3).softmax(-1)
        apart = told * (told.log() - (mine / 3).log_softmax(-1))
        expected = expected + 0.7 * 9 * apart.sum()
        expected = expected + 0.3 * F.cross_entropy(mine, row[1:], reduction="sum")
    assert loss.count == 14
    torch.testing.assert_close(loss.total, expected, **CLOSE)
    loss.total.backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_z_loss_is_added_to_each_token() -> None:
    model, ids = transformer(), torch.arange(9)
    plain, with_z = (CausalLM(z=z)(model, Sequences.of([ids])) for z in (0.0, 0.1))
    squared = model(ids).logits[:-1].logsumexp(-1).square().sum()
    torch.testing.assert_close(with_z.total, plain.total + 0.1 * squared, **CLOSE)
    assert float(with_z.metrics["z"][0]) == pytest.approx(0.1 * squared.item(), rel=1e-4)

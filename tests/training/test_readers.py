"""From examples to batches: what is hidden, moved and asked, and that nothing of a text is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer as Rust
from tokenizers import models, pre_tokenizers

from keifu.core.errors import KeifuError
from keifu.data.example import Example, Listed
from keifu.data.noising import restored as undone
from keifu.data.span_corruption import restored
from keifu.data.vocabulary import Vocabulary
from keifu.nn.losses import IGNORE
from keifu.text.marks import Marks
from keifu.text.tokenizer import Tokenizer
from keifu.training import Pairs, Sequences
from keifu.training.batch import Matches
from keifu.training.objectives import objectives
from keifu.training.objectives.causal_lm import CausalLM
from keifu.training.objectives.contrastive import Contrastive
from keifu.training.objectives.denoising import NOISES, Denoising
from keifu.training.objectives.fill_in_the_middle import FillInTheMiddle
from keifu.training.objectives.gap_sentences import GapSentences, principal
from keifu.training.objectives.gist import Gist
from keifu.training.objectives.masked_lm import MaskedLM
from keifu.training.objectives.mixture_of_denoisers import MixtureOfDenoisers
from keifu.training.objectives.next_sentence import NextSentence
from keifu.training.objectives.prefix_lm import PrefixLM
from keifu.training.objectives.sentence_order import SentenceOrder
from keifu.training.objectives.seq2seq import Seq2Seq
from keifu.training.objectives.span_corruption import Spans
from keifu.training.reading import Drawn, drawn, numbered
from tests.training.models import transformer
from tests.training.vocabularies import examples, text, vocabulary

torch.set_num_threads(1)
WORDS = vocabulary()
PLAIN = vocabulary(prefix=(), suffix=())


def alone(ids: Any, seed: int = 0, **fields: Any) -> Drawn:
    one = Example(ids=np.asarray(ids, np.int64), **fields)
    return drawn(Listed(items=[one], shuffle=False), 0, seed)


def test_masking_has_the_collators_ratios_on_100k_tokens() -> None:
    """Of 100,000 tokens 15 % are hidden: 80 % masks, 10 % others, 10 % left, as in theirs."""
    texts = Listed(
        items=[Example(ids=np.full(500, 7 + n % 40, np.int64)) for n in range(200)], shuffle=False
    )
    batch = numbered(texts, 200, MaskedLM().reader(PLAIN))(0)
    assert batch.labels is not None
    ours = shares(batch.ids, batch.labels)
    rust = Rust(models.WordLevel({str(i): i for i in range(96)}, unk_token="0"))
    fast: Any = transformers.PreTrainedTokenizerFast
    theirs = fast(tokenizer_object=rust, mask_token="5", pad_token="0")
    collator = transformers.DataCollatorForLanguageModeling(theirs, seed=1)
    made = collator([{"input_ids": texts(n).ids.tolist()} for n in range(200)])
    expected = shares(made["input_ids"].flatten(), made["labels"].flatten())
    for mine, other, exact in zip(ours, expected, (0.15, 0.8, 0.1), strict=True):
        assert mine == pytest.approx(exact, abs=0.008)
        assert mine == pytest.approx(other, abs=0.016)


def shares(ids: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, float]:
    """Hidden tokens; of them masks, and others than they were."""
    hidden = labels != IGNORE
    masks = (ids == 5) & hidden
    other = (ids != labels) & hidden & ~masks
    return tuple(float(x) for x in (hidden.float().mean(), masks.sum() / hidden.sum(),
                                    other.sum() / hidden.sum()))  # type: ignore[return-value]  # fmt: skip


def test_units_are_hidden_whole_and_marks_never() -> None:
    ids = [20, 7, 8, 21, 22, 9, 23, 24, 25, 10, 26, 27] * 3
    inside = [n for n, t in enumerate(ids) if 7 <= t <= 11]
    for seed in range(20):
        batch = MaskedLM(unit="word", ratio=0.3).reader(WORDS)([alone(ids, seed)])
        assert batch.labels is not None
        found = batch.labels.tolist()
        assert found[0] == found[-1] == IGNORE, "the marks"
        hidden = {n - 1 for n, label in enumerate(found) if label != IGNORE}
        for place in inside:
            assert (place in hidden) == (place - 1 in hidden)
    spans = ((2, 6), (8, 11))
    seen = set()
    for seed in range(30):
        one = alone(ids[:12], seed, spans=spans)
        batch = MaskedLM(unit="entity", ratio=0.5).reader(WORDS)([one])
        assert batch.labels is not None
        hidden = {n - 1 for n, label in enumerate(batch.labels.tolist()) if label != IGNORE}
        for start, stop in spans:
            inner = hidden & set(range(start, stop))
            assert len(inner) in (0, stop - start)
            seen.add(len(inner))
    assert seen == {0, 3, 4}
    lengths = []
    for seed in range(60):
        batch = MaskedLM(unit="span", masked=1.0, replaced=0.0).reader(PLAIN)(
            [alone(range(12, 52), seed)]
        )
        runs = "".join("x" if t == 5 else " " for t in batch.ids.tolist()).split()
        lengths += [len(run) for run in runs]
    assert 1.5 < np.mean(lengths) < 5.0
    assert max(lengths) >= 4


def test_static_masks_stay_and_dynamic_ones_change() -> None:
    ids = list(range(12, 52))

    def masks(objective: MaskedLM) -> set[tuple[int, ...]]:
        read = objective.reader(PLAIN)
        return {tuple(read([alone(ids, seed)]).ids.tolist()) for seed in range(30)}

    assert len(masks(MaskedLM(ways=1))) == 1
    assert len(masks(MaskedLM(ways=4))) == 4
    assert len(masks(MaskedLM())) > 20


@pytest.mark.parametrize("name", ["spans", "denoisers", "rows", "middle", "noises"])
def test_of_a_thousand_random_texts_nothing_is_lost(name: str) -> None:
    random = np.random.default_rng(3)
    ends = [WORDS.roles["eos"]]
    for seed in range(1000):
        ids = text(random, int(random.integers(2, 40))).tolist()
        one = alone(ids, seed)
        if name == "middle":
            cut = FillInTheMiddle(rate=0.9)
            made = cut.reader(PLAIN)([one])
            whole, _ = cut.middles(PLAIN).whole(made.ids.tolist())
            assert whole == ids
        elif name == "noises":
            noised = Denoising(noises=tuple(random.permutation(NOISES)[:3])).noised(ids, one, PLAIN)
            assert list(noised.target) == ids
            known = undone(noised, PLAIN.roles["mask"])
            assert all(t in (None, u) for t, u in zip(known, ids, strict=True))
            covered = [p for place in noised.places for p in place]
            assert len(covered) == len(set(covered))
        elif name == "rows":
            row: Any = MixtureOfDenoisers(form="row").reader(PLAIN)([one])
            end = row.landmarks[0].prefix
            assert row.ids[0] in [PLAIN.named[n] for n in ("[NLU]", "[S2S]", "[NLG]")]
            read, written = row.ids[1:end].tolist(), row.ids[end:].tolist()
            assert restored(read, written, PLAIN.sentinels, ends[0]) == ids
        else:
            objective: Any = Spans() if name == "spans" else MixtureOfDenoisers(signs=False)
            pair = objective.reader(PLAIN)([one])
            assert isinstance(pair, Pairs)
            assert pair.target.ids[0] == PLAIN.roles["start"]
            read, written = pair.source.ids.tolist(), pair.target.ids[1:].tolist()
            assert restored(read, written, PLAIN.sentinels, ends[0]) == ids


def test_next_sentences_are_balanced_and_from_elsewhere() -> None:
    texts = []
    for n in range(40):  # the words of a document are its own
        words = 7 + n % 40 + np.zeros(24, np.int64)
        words[5::6] = 6
        texts.append(Example(ids=words))
    data = numbered(Listed(items=texts, seed=1), 1, NextSentence(most=20).reader(WORDS), seed=2)
    found = []
    for n in range(1000):
        batch = data(n)
        assert batch.classes is not None
        assert batch.labels is not None
        assert batch.segments is not None
        ids = torch.where(batch.labels == IGNORE, batch.ids, batch.labels)
        assert int(batch.classes[0]) in (0, 1)
        sides = [set(ids[batch.segments == k].tolist()) - {3, 4, 5, 6} for k in (0, 1)]
        if all(sides):
            assert (sides[0] == sides[1]) == (int(batch.classes[0]) == 0)
        found.append(int(batch.classes[0]))
        assert len(batch.ids) <= 23
        assert batch.ids[0] == 3
    # Of 1000 fair draws 95 % fall within 31 of 500; 4.5 deviations are allowed.
    assert 430 <= sum(found) <= 570


def test_swapped_sentences_by_hand() -> None:
    first, second = [20, 21, 6], [30, 31, 6]
    seen = set()
    for seed in range(40):
        batch = SentenceOrder(ratio=0.0).reader(WORDS)([alone(first + second, seed)])
        assert batch.labels is not None
        assert batch.classes is not None
        assert batch.segments is not None
        ids = torch.where(batch.labels == IGNORE, batch.ids, batch.labels).tolist()
        swapped = bool(batch.classes[0])
        ordered = [second, first] if swapped else [first, second]
        if len(ids) == 9:  # sometimes a pair is made shorter
            assert ids == [3, *ordered[0], 4, *ordered[1], 4]
            assert batch.segments.tolist() == [0] * 5 + [1] * 4
            seen.add(swapped)
    assert seen == {False, True}


def test_packed_documents_are_the_documents_by_themselves() -> None:
    random = np.random.default_rng(0)
    parts = [random.integers(0, 23, n) for n in (5, 9, 2, 7)]
    packed = Example(ids=np.concatenate(parts), pieces=(5, 9, 2, 7))
    read, model = CausalLM().reader(PLAIN), transformer()
    one = CausalLM()(model, read([alone(packed.ids, pieces=packed.pieces)]))
    each = [CausalLM()(model, read([alone(part)])) for part in parts]
    assert one.count == sum(loss.count for loss in each) == 19
    torch.testing.assert_close(one.total, torch.stack([x.total for x in each]).sum())
    whole = CausalLM()(model, read([alone(packed.ids)]))
    assert whole.count == 22
    assert abs(whole.total.item() - one.total.item()) > 0.1


def test_a_principal_sentence_says_most_of_the_others() -> None:
    """By hand: [1 2 3] shares 1, 2, 3 with the rest, F1 = 2 * 3 / (3 + 6); [7 8] shares none."""
    assert principal([[1, 2, 3], [1, 2, 9], [3, 5, 5]], 1) == [0]
    ids = [20, 21, 22, 6, 20, 21, 30, 6, 22, 31, 32, 6]
    pair = GapSentences().reader(PLAIN)([alone(ids)])
    assert pair.source.ids.tolist() == [5, *ids[4:]]
    assert pair.target.ids.tolist() == [0, *ids[:4], 2]


def test_what_a_decoder_reads_and_writes() -> None:
    pair = Seq2Seq().reader(WORDS)([alone([9, 8, 2], target=np.array([7, 6, 2]))])
    assert pair.source.ids.tolist() == [3, 9, 8, 4], "marks round it, and its eos is gone"
    assert pair.target.ids.tolist() == [0, 7, 6, 2], "start, text, end"
    row = Gist(k=2).reader(PLAIN)(
        [alone([9, 8, 10], pieces=(2, 1), target=np.array([7]))]
    )  # fmt: skip
    assert isinstance(row, Sequences)
    gist = PLAIN.named["<GIST>"]
    assert row.ids.tolist() == [9, 8, gist, gist, 10, 7, 2]
    assert row.landmarks[0].gist == (2, 4)
    prefix = PrefixLM().reader(PLAIN)([alone(range(10, 20))])
    cut = prefix.landmarks[0].prefix
    assert prefix.labels is not None
    assert prefix.labels.tolist() == [IGNORE] * cut + list(range(10 + cut, 20))
    cropped = Contrastive().reader(PLAIN)([alone(range(12, 42), seed) for seed in range(4)])
    assert isinstance(cropped, Matches)
    assert len(cropped.first.lengths) == len(cropped.second.lengths) == 4


def test_parts_of_rows_have_the_gradient_of_all_together() -> None:
    random = np.random.default_rng(1)
    rows = [random.integers(0, 23, n).tolist() for n in (4, 7, 3, 6, 5, 8, 2, 9)]
    others = [random.integers(0, 23, n).tolist() for n in (5, 3, 6, 2, 7, 4, 9, 3)]
    batch = Matches(first=Sequences.of(rows), second=Sequences.of(others))
    found = []
    for part in (None, 3):
        model = transformer()
        loss = Contrastive(part=part, symmetric=True)(model, batch)
        loss.total.backward()
        found.append((loss, [p.grad for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0][0].total, found[1][0].total)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    model = transformer()
    hidden = [[model(torch.tensor(r)).hidden.mean(0) for r in side] for side in (rows, others)]
    first, second = (torch.nn.functional.normalize(torch.stack(h), dim=-1) for h in hidden)
    scores = first @ second.T / 0.05
    both = sum(
        torch.nn.functional.cross_entropy(s, torch.arange(8), reduction="sum")
        for s in (scores, scores.T)
    )
    torch.testing.assert_close(found[0][0].total, both / 2, atol=1e-4, rtol=1e-5)


READ = sorted(set(objectives) - {"word-vectors", "ctc", "distillation", "bidirectional-lm"})


@pytest.mark.parametrize("name", READ)
def test_a_row_does_not_depend_on_who_else_is_in_its_batch(name: str) -> None:
    """The same examples by one, by two and by four are the same rows."""
    options: dict[str, Any] = {"head": "tag"} if name == "classification" else {}
    fields: dict[str, Any] = {}
    read = objectives[name](**options).reader(replace(WORDS, context=64))
    texts = examples(6, **fields)
    rows = [
        [row for n in range(8 // size) for row in _rows(numbered(texts, size, read, seed=3)(n))]
        for size in (1, 2, 4)
    ]
    assert rows[0] == rows[1] == rows[2]
    other = [row for n in range(8) for row in _rows(numbered(texts, 1, read, seed=4)(n))]
    fixed = {"causal-lm", "seq2seq", "classification", "span", "gap-sentences", "gist"}
    fixed |= {"contrastive", "prefix-lm"}  # matches are given; a prefix is in the landmarks
    fixed |= {"span-corruption"}  # texts so short have one span, which T5 puts at their end
    assert (other == rows[0]) == (name in fixed)


def _rows(batch: Any) -> list[Any]:
    if isinstance(batch, Pairs):
        return list(zip(_rows(batch.source), _rows(batch.target), strict=True))
    if isinstance(batch, Matches):
        return list(zip(_rows(batch.first), _rows(batch.second), strict=True))
    return [row.tolist() for row in batch.ids.split(list(batch.lengths))]


def test_a_tokenizer_says_what_an_objective_needs() -> None:
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "un", "##able", ".", "<extra_id_0>"]
    rust = Rust(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="[PAD]"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.add_special_tokens([p for p in pieces if p[0] in "[<"])
    made = Vocabulary.of(Tokenizer(rust, Marks(named={"pad": 0, "cls": 1, "sep": 2, "mask": 3})))
    assert (made.id("mask"), made.id("start"), made.sentinels) == (3, 0, (7,))
    assert made.inside(5)
    assert not made.inside(4)
    assert made.ends(6)
    assert not made.ends(4)
    assert [i for i, _ in made.layout().between] == [2]
    with pytest.raises(KeifuError, match=r"no eos token \(it has: pad, cls"):
        made.id("eos")
    with pytest.raises(KeifuError, match="no special token <fim_prefix>"):
        FillInTheMiddle().reader(made)([alone([4, 5, 6])])
    with pytest.raises(KeifuError, match="there is only one"):
        alone([1, 2]).other()

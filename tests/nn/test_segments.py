"""Segments: any split of rows at any phase, constant state, cut gradients, the PyPI oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from keifu.core.errors import ConfigError, KeifuError
from keifu.families import families
from keifu.inference.runner import step_of
from keifu.nn.block import Block
from keifu.nn.heads import LMHead
from keifu.nn.inputs import Tokens
from keifu.nn.losses import cross_entropy
from keifu.nn.norms import RMSNorm
from keifu.nn.part import Part
from keifu.nn.positions import Learned
from keifu.nn.segments import Segments, SegmentsModule
from keifu.nn.stack import Stack
from keifu.nn.state import Fixed, Handle, PerToken, RequestState, StatePool, state_bytes
from keifu.nn.step import Step, fresh_step
from keifu.nn.wiring import Plain
from tests.families.parity import tokens

LENGTHS = (23, 1, 14)
SPLITS = [
    [LENGTHS],
    [(1, 1, 1), *[(1, 0, 1)] * 13, *[(1, 0, 0)] * 9],
    [(3, 0, 1), (0, 1, 9), (13, 0, 0), (1, 0, 4), (6, 0, 0)],
]
"""For each step, how many tokens of each row run; phases differ within steps."""


def stack_of(name: str) -> Stack:
    spec = families[name].tiny().spec()
    assert isinstance(spec, Stack)
    return spec


def made(name: str = "gpt-2", std: float = 0.3, **chosen: Any) -> SegmentsModule:
    sizes = {"memory": 3, "segment": 5, **chosen}
    model = Segments.of(stack_of(name), **sizes).build()
    assert isinstance(model, SegmentsModule)
    model.initialise(seed=3, std=std)
    return model.eval()


def feed(
    model: SegmentsModule, pool: StatePool, states: Sequence[RequestState], rows: Sequence[Tensor]
) -> list[Tensor]:
    """The next tokens of some requests in one step: hidden states a row."""
    lengths = [row.shape[0] for row in rows]
    for state, n in zip(states, lengths, strict=True):
        pool.reserve(state, n)
    step = step_of(states, lengths, [64] * len(rows), torch.device("cpu"))
    out = model.run(torch.cat(list(rows)), step, pool.handles(states, lengths)).hidden
    for state, n in zip(states, lengths, strict=True):
        pool.advance(state, n)
    return list(out.split(lengths))


@pytest.mark.parametrize("name", ["gpt-2", "llama", "mistral", "griffin", "mamba"])
@torch.no_grad()
def test_any_split_of_rows_at_any_phase_gives_the_same(name: str) -> None:
    """Per-token state, windows, and recurrences whose fixed state starts with each segment."""
    model = made(name, std=0.1)
    rows = tokens(90, 1, sum(LENGTHS))[0].split(LENGTHS)
    whole = model.run(torch.cat(rows), fresh_step(list(LENGTHS))).hidden
    for row, out in zip(rows, whole.split(LENGTHS), strict=True):
        torch.testing.assert_close(model(row).hidden, out, atol=1e-5, rtol=1e-5)
    for split in SPLITS:
        pool = StatePool(model.spec.entries(), budget=1 << 22, slots=3)
        states = [pool.open() for _ in rows]
        outs: list[list[Tensor]] = [[] for _ in rows]
        for counts in split:
            taken = [r for r, n in enumerate(counts) if n]
            fed = [rows[r][states[r].length :][: counts[r]] for r in taken]
            found = feed(model, pool, [states[r] for r in taken], fed)
            for r, out in zip(taken, found, strict=True):
                outs[r].append(out)
        got = torch.cat([part for out in outs for part in out])
        torch.testing.assert_close(got, whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_a_segment_says_depends_on_the_past_through_memory_alone() -> None:
    model = made()
    ids = tokens(90, 1, 15)[0]
    pool = StatePool(model.spec.entries(), budget=1 << 22, slots=2)
    states = [pool.open(), pool.open()]
    feed(model, pool, states, [ids[:10], ids[3:13]])
    use, before = len(model.spec.entries()) - 1, pool.fixed
    held = before[use, "memory"]
    assert not torch.allclose(held[states[0].slot], held[states[1].slot], atol=0.1)
    a, b = feed(model, pool, states, [ids[10:12], ids[10:12]])
    assert (a - b).abs().max() > 1e-2
    for key, tensor in before.items():
        if key != (use, "memory"):
            tensor.normal_()  # what buffers hold of a past segment is never read
    held[states[1].slot] = held[states[0].slot]
    for state in states:
        pool.restore(state, 0)
        state.length = 10
    held[states[0].slot] = held[states[1].slot] = torch.randn(held.shape[1:])
    a, b = feed(model, pool, states, [ids[10:15], ids[10:15]])
    torch.testing.assert_close(a, b)  # rows of one product may be rounded apart


@torch.no_grad()
def test_state_is_constant_and_snapshots_bring_it_back() -> None:
    model = made()
    entries = model.spec.entries()
    declared = [e for use in entries for e in use.values()]
    assert all(isinstance(e, Fixed) for e in declared)
    # two layers of keys and values, (5 + 2 * 3) places of 4 heads of 8; the memory: 3 of 32
    assert state_bytes(entries, torch.float32) == (4 * (2 * 2 * 11 * 32 + 3 * 32), 0)
    pool = StatePool(entries, budget=1 << 22, slots=3)
    assert pool.capacity > 10**9
    ids = tokens(90, 1, 40)[0]
    state = pool.open()
    feed(model, pool, [state], [ids[:13]])
    pool.snapshot(state)
    expected = feed(model, pool, [state], [ids[13:24]])[0]
    other = pool.fork(state)
    assert pool.restore(state, 20) == 13
    torch.testing.assert_close(feed(model, pool, [state], [ids[13:24]])[0], expected)
    both = feed(model, pool, [state, other], [ids[24:31], ids[24:31]])
    torch.testing.assert_close(both[0], both[1])
    assert pool.restore(other, 0) == 0
    torch.testing.assert_close(feed(model, pool, [other], [ids[:13]])[0], model(ids[:13]).hidden)


def test_state_of_another_model_is_refused() -> None:
    own, other = made(), made(segment=6)
    pools = [StatePool(m.spec.entries(), budget=1 << 22, slots=2) for m in (own, other)]
    with pytest.raises(KeifuError, match="of another model"):
        feed(own, pools[0], [pools[1].open()], [torch.arange(4)])


def gradients(model: SegmentsModule, ids: Tensor) -> list[Tensor]:
    """Of the loss of every token after the first."""
    model.zero_grad()
    logits = model(ids).logits
    assert logits is not None
    cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def unrolled(model: SegmentsModule, ids: Tensor, kept: int) -> list[Tensor]:
    """The same by hand, segment after segment: the graph is cut every `kept` from the end."""
    model.zero_grad()
    spec, said = model.spec, []
    state = model.memory
    assert state is not None
    pieces = ids.split(spec.segment)
    for n, piece in enumerate(pieces):
        if n and (len(pieces) - n) % kept == 0:
            state = state.detach()
        x = torch.cat([state, model.input.table(piece), state])
        inner = fresh_step([x.shape[0]])
        out = model.through(model.input.placed(x, inner), inner)
        state = out.hidden[-spec.memory :]
        assert out.logits is not None
        said.append(out.logits[spec.memory : -spec.memory])
    cross_entropy(torch.cat(said)[:-1], ids[1:]).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("kept", [1, 2, 3, None])
def test_gradients_go_back_through_as_many_segments_as_asked(kept: int | None) -> None:
    model = made(std=0.15, bptt=kept)
    ids = tokens(90, 1, 20)
    got = gradients(model, ids)
    expected = unrolled(model, ids[0], kept or 99)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    full = gradients(made(std=0.15), ids)
    parted = max(float((a - b).abs().max()) for a, b in zip(got, full, strict=True))
    assert (parted > 1e-3) == (kept is not None)


def test_what_cannot_run_in_segments_is_refused() -> None:
    gpt = stack_of("gpt-2")
    assert isinstance(gpt.input, Tokens)
    narrow = replace(gpt, input=replace(gpt.input, table_width=16))
    with pytest.raises(ConfigError, match="width 32 does not fit a token table of width 16"):
        Segments.of(narrow, memory=2, segment=4)
    with pytest.raises(ConfigError, match="segment=0 is not allowed: 1 or more"):
        Segments.of(gpt, memory=2, segment=0)
    with pytest.raises(ConfigError, match="1 tokens are no memory of 2"):
        Segments.of(gpt, memory=2, segment=4, tokens=(5,))
    with pytest.raises(ConfigError, match="reads an encoder"):
        Segments.of(families["bart"].tiny().spec().decoder, memory=2, segment=4)  # type: ignore[attr-defined]


@torch.no_grad()
def test_an_encoders_segments_come_whole_and_their_memory_streams() -> None:
    bert = replace(stack_of("bert"), head=None)
    sizes: dict[str, Any] = {"memory": 3, "segment": 6, "appended": False}
    spec = Segments.of(bert, **sizes, around=((1,), (2,), (2,)))
    model = spec.build()
    assert isinstance(model, SegmentsModule)
    model.initialise(seed=1, std=0.3).eval()
    ids = tokens(90, 1, 22)[0]
    whole = model(ids).hidden
    pool = StatePool(spec.entries(), budget=1 << 16, slots=2)
    state = pool.open()
    got = [feed(model, pool, [state], [piece])[0] for piece in ids.split(12)]
    torch.testing.assert_close(torch.cat(got), whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="runs in one step"):
        feed(model, pool, [state], [ids[:4]])


@dataclass(frozen=True, kw_only=True)
class Theirs(Part):
    """The layers of the PyPI package's transformer as one mixer."""

    layers: Any
    memory: int
    segment: int

    def build(self) -> nn.Module:
        return _Theirs(self)


class _Theirs(nn.Module):
    def __init__(self, spec: Theirs) -> None:
        super().__init__()
        self.layers, self.m, self.n = spec.layers, spec.memory, spec.segment

    def forward(self, x: Tensor, step: Step, state: Handle | None) -> Tensor:
        outs = []
        for row in x.split(step.lengths()):
            h, first = row[None], None
            at = torch.arange(row.shape[0])
            read, write = at < self.m, at >= self.m + self.n
            # Read memory sees itself, tokens it and the past, write memory everything.
            token = ~read & ~write
            past = token[:, None] & token & (at[:, None] >= at)
            mask = (read | past | write[:, None])[None, None]
            for attention, feed_forward in self.layers:
                h, _, values = attention(h, mask=mask, value_residual=first)
                first = values if first is None else first
                h = feed_forward(h)
            outs.append(h[0])
        return torch.cat(outs)


@torch.no_grad()
def test_the_recurrence_is_that_of_the_pypi_package() -> None:
    """Its layers (null keys, value residuals, GEGLU) in our segments, beside its own wrapper.

    Its settings as in the paper: no Transformer-XL cache, one residual stream, the read memory
    added to the next write memory. Its mask is its own (memories see themselves whole; its causal
    one does not run with its null key), so the mixer here makes the same. Two of its deviations
    from the paper vanish at given weights: its learnt vectors of read and write memory are 0 (it
    reads the sum, and nothing but it in the first segment); only tokens have positions.
    """
    package = pytest.importorskip("recurrent_memory_transformer_pytorch")
    m, n, width = 3, 6, 32
    theirs = package.RecurrentMemoryTransformer(
        width, num_tokens=50, depth=2, num_memory_tokens=m, seq_len=n, dim_head=8, heads=4,
        use_xl_memories=False, add_write_to_next_write_mem=True,
        next_write_mem_stop_grad=False, num_residual_streams=1, emb_gradient_frac=1.0,
    ).eval()  # fmt: skip
    made = torch.Generator().manual_seed(0)
    for p in theirs.parameters():
        p.normal_(0.0, 0.2, generator=made)
    for learnt in (theirs.memory_tokens, theirs.read_memory_emb):
        learnt.zero_()
    norm = RMSNorm(width=width, eps=torch.finfo(torch.float32).eps)
    spec = Segments(
        input=Tokens(vocab=50, width=width, positions=Learned(length=n + 2 * m, width=width)),
        blocks=(Block(mixer=Theirs(layers=theirs.layers, memory=m, segment=n), wiring=Plain()),),
        norm=norm,
        head=LMHead(width=width, vocab=50, bias=True),
        memory=m,
        segment=n,
    )
    ours: Any = spec.build()
    ours.memory.zero_()
    ours.input.table.weight.copy_(theirs.token_emb.weight)
    ours.input.positions.weight.zero_()
    ours.input.positions.weight[m : m + n] = theirs.pos_emb.weight
    ours.norm.weight.copy_(theirs.norm.weight)
    ours.head.out.weight.copy_(theirs.to_logits.weight)
    ours.head.out.bias.copy_(theirs.to_logits.bias)
    ids = tokens(50, 2, 4 * n + 2)
    expected, _ = package.RecurrentMemoryTransformerWrapper(theirs)(ids)
    torch.testing.assert_close(ours(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert {e for use in spec.entries()[:-1] for e in use.values()} == set()
    assert not any(isinstance(e, PerToken) for use in spec.entries() for e in use.values())

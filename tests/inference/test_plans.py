"""Plan = plain: every family's tiny model gives the same logits on a native tape as in PyTorch."""

from __future__ import annotations

import pytest
import torch

from keifu.families import families
from keifu.inference.lowering import Unplanned
from keifu.inference.plans import Plan
from keifu.inference.runner import Feed, TorchRunner
from keifu.inference.speculation import MOST
from keifu.nn.kernels import native
from keifu.nn.kernels.formats import Packed
from keifu.nn.linear import Linear, Weight
from keifu.nn.stack import StackModule
from keifu.nn.state import RequestState, StatePool
from keifu.nn.streaming import streaming
from tests.families.parity import DECODERS

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why())
PLANNED = set(
    "bloom falcon gemma gemma2 gemma3 gpt-1 gpt-2 gpt-3 gpt-j gpt-neox gpt-neox-japanese llama "
    "mistral palm phi phi3 qwen2 qwen3 stablelm mamba falcon-mamba mamba2 griffin".split()
)
"""Families that must not lose their plan. Another is planned or says which part no plan knows."""


def model_of(name: str) -> StackModule:
    made = families[name].tiny().spec().build()
    assert isinstance(made, StackModule)
    return made.initialise(seed=2, std=0.3).eval()


def runs(
    runner_of: type,
    model: StackModule,
    dtype: torch.dtype = torch.float32,
    prompts: tuple[int, int] = (9, 4),
    page: int = 8,
) -> torch.Tensor:
    """Logits of two requests: prompts of 9 and 4 tokens, then three tokens each, together."""
    pool = StatePool(model.spec.entries(), budget=1 << 22, page=page, dtype=dtype)
    runner = runner_of(model, pool, 64) if runner_of is Plan else runner_of(model, pool)
    states, made, out = [pool.open(), pool.open()], torch.Generator().manual_seed(0), []

    def step(rows: list[RequestState], lengths: list[int]) -> None:
        for state, n in zip(rows, lengths, strict=True):
            pool.reserve(state, n)
        ids = torch.randint(0, 90, (sum(lengths),), generator=made).tolist()
        feed = Feed(ids=ids, states=rows, lengths=lengths, limits=[64] * len(rows))
        assert runner.takes(lengths, rows)
        out.append(runner.run(feed, range(len(ids))).clone())
        for state, n in zip(rows, lengths, strict=True):
            pool.advance(state, n)

    with torch.inference_mode():
        step(states[:1], [prompts[0]])
        step(states[1:], [prompts[1]])
        for _ in range(3):
            step(states, [1, 1])
        step(states, [5, 2])
    return torch.cat(out)


@pytest.mark.parametrize("name", DECODERS)
def test_every_family_gives_the_same_logits(name: str) -> None:
    model = model_of(name)
    planned = attempt(model)
    if isinstance(planned, Unplanned):
        assert name not in PLANNED, planned
        assert str(planned)
        return
    torch.testing.assert_close(planned, runs(TorchRunner, model), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("prompts", [(9, 4), (30, 25)])
@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "gpt-neox", "mistral", "stablelm"])
def test_state_in_eight_bits(name: str, prompts: tuple[int, int]) -> None:
    """Both paths read the same codes; PyTorch makes bfloat16 of them, so it rounds more."""
    model, how = model_of(name), {"prompts": prompts, "page": 16}
    plain, planned = (runs(r, model, torch.int8, **how) for r in (TorchRunner, Plan))  # type: ignore[arg-type]
    exact = runs(TorchRunner, model, **how)  # type: ignore[arg-type]
    size = exact.std()
    assert 0 < (planned - exact).std() < 0.02 * size
    assert (planned - plain).std() < 0.015 * size


def attempt(model: StackModule) -> torch.Tensor | Unplanned:
    try:
        return runs(Plan, model)
    except Unplanned as why:
        return why


RECURRENT = ["mamba", "falcon-mamba", "mamba2", "griffin"]


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("level", native.features())
def test_forks_snapshots_and_slots(name: str, level: str) -> None:
    """Requests that come, fork, go back and leave, with each set of kernels, as in PyTorch."""
    model, best = model_of(name), native.current()
    expected = lives(TorchRunner, model)
    native.force(level)
    got = lives(Plan, model)
    native.force(best)
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-4)


def lives(runner_of: type, model: StackModule) -> torch.Tensor:
    """Logits of requests that share a pool of four slots."""
    pool = StatePool(model.spec.entries(), budget=1 << 22, page=8, slots=4)
    runner = runner_of(model, pool, 64) if runner_of is Plan else runner_of(model, pool)
    made, out = torch.Generator().manual_seed(0), []

    def step(rows: list[RequestState], lengths: list[int]) -> None:
        for state, n in zip(rows, lengths, strict=True):
            pool.reserve(state, n)
        ids = torch.randint(0, 90, (sum(lengths),), generator=made).tolist()
        feed = Feed(ids=ids, states=rows, lengths=lengths, limits=[64] * len(rows))
        out.append(runner.run(feed, range(len(ids))).clone())
        for state, n in zip(rows, lengths, strict=True):
            pool.advance(state, n)

    with torch.inference_mode():
        first, second = pool.open(), pool.open()
        step([second, first], [1, 3])
        pool.snapshot(first)
        other = pool.fork(first)
        step([other, second, first], [2, 1, 1])
        pool.free(second)
        assert pool.restore(first, 4) == 3
        third = pool.open()
        step([third, first, other], [7, 1, 4])
        step([first, other, third], [1, 1, 1])
    return torch.cat(out)


@pytest.mark.parametrize("name", RECURRENT)
def test_any_split_is_the_whole(name: str) -> None:
    """A text in one step, token by token and in uneven chunks: the same last logits."""
    model = model_of(name)
    ids = torch.randint(0, 90, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    found = []
    for split in ([30], [1] * 30, [7, 1, 13, 9]):
        pool = StatePool(model.spec.entries(), budget=1 << 22, page=8, slots=2)
        plan, state, at = Plan(model, pool, 64), pool.open(), 0
        for n in split:
            pool.reserve(state, n)
            feed = Feed(ids=ids[at : at + n], states=[state], lengths=[n], limits=[64])
            with torch.inference_mode():
                logits = plan.run(feed, [n - 1]).clone()
            pool.advance(state, n)
            at += n
        found.append(logits)
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[2], found[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama", "q4_0"),
        ("llama", "q4_1"),
        ("llama", "q8_0"),
        ("falcon-mamba", "q8_0"),
        ("griffin", "q8_0"),
    ],
)
def test_packed_weights_meet_eight_bit_activations(name: str, kind: str) -> None:
    """The tape against float32 products with the same decoded weights."""
    model = model_of(name)
    for module in list(model.modules()):
        if isinstance(module, Weight) and module.weight is not None and module.inputs % 32 == 0:
            module.pack([Packed.quantize(module.weight.detach(), kind)])
    planned = runs(Plan, model)
    for module in model.modules():
        if isinstance(module, Weight) and module.weight is None:
            dense = module.dense()
            module.weight, module.pieces, module.tiles = torch.nn.Parameter(dense), (), ()
    exact = runs(TorchRunner, model)
    error = (planned - exact).norm() / exact.norm()
    assert 0 < error < 0.05


def test_an_adapter_sends_the_model_to_the_plain_path() -> None:
    model = model_of("llama")
    projection = next(m for m in model.modules() if isinstance(m, Linear))
    projection.deltas.append(lambda x, y: y)
    pool = StatePool(model.spec.entries(), budget=1 << 22)
    with pytest.raises(Unplanned, match="adapters"):
        Plan(model, pool, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("name", ["llama", "mamba", "mamba2", "griffin"])
def test_rows_do_not_depend_on_their_batch(name: str, dtype: torch.dtype) -> None:
    model = model_of(name)
    pool = StatePool(model.spec.entries(), budget=1 << 22, dtype=dtype)
    plan = Plan(model, pool, 64)
    states = [pool.open() for _ in range(3)]
    ids = [[5, 6, 7], [1, 2, 3], [9, 9, 9]]

    def logits(rows: list[int]) -> torch.Tensor:
        chosen = [states[r] for r in rows]
        for state in chosen:
            pool.restore(state, 0)
            pool.reserve(state, 3)
        flat = [t for r in rows for t in ids[r]]
        each = {"lengths": [3] * len(rows), "limits": [64] * len(rows)}
        return plan.run(Feed(ids=flat, states=chosen, **each), range(3 * len(rows))).clone()

    with torch.inference_mode():
        together, alone = logits([0, 1, 2]), [logits([r]) for r in range(3)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("level", native.features())
@pytest.mark.parametrize("kind", ["f32", "q4_1"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, torch.bfloat16) for n in ("llama", "gemma2", "griffin", "mamba", "mamba2")]
    + [("llama", torch.int8), ("gemma2", torch.int8)],
)
def test_a_few_tokens_at_once_have_the_bits_of_tokens_alone(
    name: str, dtype: torch.dtype, kind: str, level: str
) -> None:
    """Up to a draft and the token before it, over a past of several spans."""
    model, best = model_of(name), native.current()
    for module in list(model.modules()):
        packs = isinstance(module, Weight) and module.weight is not None
        if packs and kind != "f32" and module.inputs % 32 == 0:
            module.pack([Packed.quantize(module.weight.detach(), kind)])
    pool = StatePool(model.spec.entries(), budget=1 << 22, dtype=dtype)
    native.force(level)
    plan = Plan(model, pool, 256)
    ids = torch.randint(0, 90, (140,), generator=torch.Generator().manual_seed(0)).tolist()
    found = []
    for rest in ([1] * (1 + MOST), [1 + MOST], [3, 4, MOST - 6]):
        state, at, out = pool.open(), 0, []
        for n in (20, 20, 20, 20, 20, 20, *rest):
            pool.reserve(state, n)
            feed = Feed(ids=ids[at : at + n], states=[state], lengths=[n], limits=[256])
            with torch.inference_mode():
                out.append(plan.run(feed, range(n)).clone())
            pool.advance(state, n)
            at += n
        found.append(torch.cat(out)[-1 - MOST :])
        pool.free(state)
    native.force(best)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("sinks", [0, 1, 4])
@pytest.mark.parametrize("name", ["llama", "gpt-j", "gemma2", "bloom", "gpt-neox", "stablelm"])
def test_a_window_with_sinks_gives_the_same_logits(name: str, sinks: int) -> None:
    """Rotary in both layouts, capped scores, ALiBi: prompts of many rows, then single tokens."""
    model = streaming(families[name].tiny().spec(), 5, sinks).build()
    assert isinstance(model, StackModule)
    model.initialise(seed=2, std=0.3).eval()
    ours, plain = (runs(r, model, prompts=(31, 17)) for r in (Plan, TorchRunner))
    torch.testing.assert_close(ours, plain, atol=2e-4, rtol=2e-4)

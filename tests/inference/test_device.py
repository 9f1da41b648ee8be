"""Recorded steps: the plan for devices, run on the processor, gives what the plain path gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from keifu.families import families
from keifu.inference.device import DevicePlan
from keifu.inference.engine import Engine
from keifu.inference.lowering import Unplanned
from keifu.inference.record import Calls, Work
from keifu.inference.request import Sampling
from keifu.inference.runner import Feed, Runner, TorchRunner
from keifu.nn.attention import Attention
from keifu.nn.experts import Experts
from keifu.nn.masks import Causal, Window
from keifu.nn.part import build
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool
from tests.families.parity import DECODERS
from tests.inference.test_engine import byte_tokenizer
from tests.inference.test_plans import model_of

PLANNED = set(
    "bloom falcon falcon-mamba gemma gemma2 gemma3 gpt-1 gpt-2 gpt-3 gpt-j gpt-neox "
    "gpt-neox-japanese griffin llama mamba mamba2 mistral mixtral opt palm phi phi3 qwen2 "
    "qwen2-moe qwen3 qwen3-moe stablelm".split()
)
"""Families whose steps can be recorded; another says which part cannot."""

Make = Callable[[StackModule, StatePool], Runner]


class Requests:
    """Requests over one pool, whose memory holds what must not matter."""

    def __init__(self, model: StackModule, make: Make | None, dtype: torch.dtype) -> None:
        self.pool = StatePool(model.spec.entries(), budget=1 << 22, page=8, dtype=dtype)
        for group in self.pool.groups:
            for storage in group.storage.values():
                storage.fill_(float("nan"))
        self.plain = TorchRunner(model, self.pool)
        self.fast = make(model, self.pool) if make else None
        self.states = [self.pool.open() for _ in range(4)]
        self.compute = None if dtype == torch.float32 else dtype
        self.made, self.out = torch.Generator().manual_seed(0), list[torch.Tensor]()

    def step(self, rows: list[int], lengths: list[int]) -> None:
        states = [self.states[r] for r in rows]
        for state, n in zip(states, lengths, strict=True):
            self.pool.reserve(state, n)
        ids = torch.randint(0, 90, (sum(lengths),), generator=self.made).tolist()
        limits = [64] * len(rows)
        feed = Feed(ids=ids, states=states, lengths=lengths, limits=limits, compute=self.compute)
        fast = self.fast is not None and self.fast.takes(lengths, states)
        assert fast == (self.fast is not None and max(lengths) == 1)
        runner = self.fast if fast and self.fast else self.plain
        with torch.inference_mode():
            self.out.append(runner.run(feed, range(len(ids))).clone())
        for state, n in zip(states, lengths, strict=True):
            self.pool.advance(state, n)


def long(model: StackModule, make: Make | None, dtype: torch.dtype) -> torch.Tensor:
    """Prompts, then tokens: rows come, leave and change places, from one bucket to another."""
    requests = Requests(model, make, dtype)
    requests.step([0], [9])
    requests.step([1], [4])
    for _ in range(3):
        requests.step([0, 1], [1, 1])
    requests.step([2], [20])
    for _ in range(8):
        requests.step([2, 0, 1], [1, 1, 1])
    requests.step([1], [1])
    requests.step([3], [1])
    requests.step([2, 3, 0, 1], [1, 1, 1, 1])
    requests.step([2, 0], [5, 2])
    requests.step([0, 2], [1, 1])
    return torch.cat(requests.out)


def short(model: StackModule, make: Make | None, dtype: torch.dtype) -> torch.Tensor:
    """Three prompts, and four tokens of all of them."""
    requests = Requests(model, make, dtype)
    for row, n in enumerate((9, 4, 11)):
        requests.step([row], [n])
    for _ in range(4):
        requests.step([0, 1, 2], [1, 1, 1])
    return torch.cat(requests.out)


def recorded(backend: str | None) -> Make:
    return lambda model, pool: DevicePlan(model, pool, 64, backend=backend, record=Calls())


@pytest.mark.parametrize("name", DECODERS)
def test_every_family_gives_the_same_logits(name: str) -> None:
    model = model_of(name)
    if name not in PLANNED:
        with pytest.raises(Unplanned):
            long(model, recorded(None), torch.float32)
        return
    got, plain = (long(model, make, torch.float32) for make in (recorded(None), None))
    torch.testing.assert_close(got, plain, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "mamba"])
def test_compiled_steps_give_the_same_logits(name: str) -> None:
    """Each block is traced as a whole: nothing in it looks at values or leaves the graph."""
    model = model_of(name)
    got = short(model, recorded("eager"), torch.float32)
    torch.testing.assert_close(got, short(model, None, torch.float32), atol=2e-4, rtol=2e-4)


def test_experts_are_the_same_whether_few_or_all_of_them_are_read() -> None:
    blocks: Any = model_of("qwen2-moe").blocks
    mlp = next(b.mlp for b in blocks if isinstance(b.mlp.spec, Experts))
    made, few = torch.Generator().manual_seed(3), []
    for tokens in (1, 2, 7):
        x = torch.randn(tokens, mlp.spec.expert.width, generator=made)
        with torch.inference_mode():
            routed = mlp.spec.router.route(mlp.router(x), None)
            expected, got = mlp._mixed(x, routed, None), mlp._any(x, routed)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        few.append(len(routed.token) < mlp.spec.count)
    assert few[0]  # both ways were run
    assert not few[-1]


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "mamba"])
def test_bfloat16_state_is_near(name: str) -> None:
    model = model_of(name).to(torch.bfloat16)
    got = long(model, recorded(None), torch.bfloat16)
    plain = long(model, None, torch.bfloat16)
    assert (got - plain).norm() / plain.norm() < 0.03


@pytest.mark.parametrize(("window", "sinks"), [(5, 0), (5, 3), (11, 9), (40, 4)])
def test_windows_with_first_tokens_that_stay(window: int, sinks: int) -> None:
    spec = families["llama"].tiny().spec()
    block = spec.blocks[0]
    assert isinstance(block.mixer, Attention)
    mixer = dataclasses.replace(block.mixer, mask=Causal() & Window(window, sinks))
    blocks = (dataclasses.replace(block, mixer=mixer), *spec.blocks[1:])
    model = dataclasses.replace(spec, blocks=blocks).build()
    assert isinstance(model, StackModule)
    model.initialise(seed=2, std=0.3).eval()
    got, plain = (long(model, make, torch.float32) for make in (recorded(None), None))
    torch.testing.assert_close(got, plain, atol=2e-4, rtol=2e-4)


def test_rows_that_are_too_many_write_into_nobody_s_pages() -> None:
    model = model_of("llama")
    requests = Requests(model, recorded(None), torch.float32)
    for row, n in enumerate((9, 4, 11)):
        requests.step([row], [n])
    for group in requests.pool.groups:
        for storage in group.storage.values():
            storage.nan_to_num_(nan=7.0)
    before = {k: s.clone() for g in requests.pool.groups for k, s in g.storage.items()}
    at = [state.length for state in requests.states]
    requests.step([0, 1, 2], [1, 1, 1])
    plan = requests.fast
    assert isinstance(plan, DevicePlan)
    for i, group in enumerate(requests.pool.groups):
        mine = {plan._spare.tables[i].pages[0]}
        allowed = {page * 8 for page in mine if page is not None}
        for state, n in zip(requests.states[:3], at, strict=False):
            page = state.tables[i].pages[n // 8]
            assert page is not None
            assert page not in mine
            allowed.add(page * 8 + n % 8)
        for key, storage in group.storage.items():
            changed = (storage != before[key]).flatten(1).any(1).nonzero().flatten().tolist()
            assert set(changed) == allowed


class _NoHost(TorchDispatchMode):
    """Fails where an operation sees a tensor of the processor: a device would wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs or {}, out)):
            if isinstance(leaf, torch.Tensor):
                assert leaf.device.type == "meta", f"{func} of {leaf.device}"
        return out


class _Watched:
    """A recorder that lets work run under `_NoHost`."""

    runs = 0

    def record(self, work: Work) -> Work:
        def watched() -> torch.Tensor:
            self.runs += 1
            with _NoHost():
                return work()

        return watched


@pytest.mark.parametrize("name", sorted(PLANNED))
def test_what_is_recorded_reads_nothing_of_the_host(name: str) -> None:
    """On "meta" no value can be read, and every tensor of the processor is seen."""
    model = build(families[name].tiny().spec(), device="meta")
    assert isinstance(model, StackModule)
    pool = StatePool(model.spec.entries(), budget=1 << 22, page=8, device="meta")
    record = _Watched()
    plan = DevicePlan(model, pool, 64, backend=None, record=record)
    states = [pool.open() for _ in range(3)]
    for state in states:
        pool.reserve(state, 1)
    with torch.inference_mode():
        logits = plan.step(Feed(ids=[1, 2, 3], states=states, lengths=[1] * 3, limits=[64] * 3))
    assert logits.shape[0] == 4  # three, and one that is too many
    assert logits.is_meta
    assert record.runs


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine whose steps are recorded."""
    model = families["llama"].tiny().spec().build()
    assert isinstance(model, StackModule)
    model.initialise(seed=0, std=0.5).eval()

    def fast(model: StackModule, pool: StatePool, context: int) -> tuple[list[Runner], str]:
        return [DevicePlan(model, pool, context, backend=None, record=Calls(), rows=4)], ""

    kept = {"context": 64, "parallel": 6, "budget": 1 << 20}
    made = Engine(model, byte_tokenizer(), **kept, runners=fast)
    yield made
    made.close()


def test_an_engine_with_recorded_steps_chooses_the_same_tokens(engine: Engine) -> None:
    """More requests than rows of the widest step, of many lengths; reports and rules among them."""
    plain = Engine(engine.model, byte_tokenizer(), context=64, parallel=6, budget=1 << 20)
    prompts = [list(range(3, 3 + k)) for k in (1, 5, 9, 20, 2, 7, 30)]
    asked = [
        Sampling(max_tokens=10, temperature=0.0, logprobs=2 if k == 1 else None,
                 repetition_penalty=1.3 if k == 2 else 1.0)
        for k in range(len(prompts))
    ]  # fmt: skip
    found = []
    for each in (engine, plain):
        streams = [each.submit(p, s) for p, s in zip(prompts, asked, strict=True)]
        found.append([list(stream.result().tokens) for stream in streams])
    plain.close()
    assert found[0] == found[1]


def test_a_seed_gives_the_same_text_on_a_device_whatever_else_runs(engine: Engine) -> None:
    asked = Sampling(max_tokens=12, seed=11, n=2, temperature=1.0)
    alone = engine.submit([1, 2, 3], asked).result()
    others = [engine.submit([4, 5], Sampling(max_tokens=20, seed=s)) for s in range(2)]
    among = engine.submit([1, 2, 3], asked).result()
    assert [c.tokens for c in among.choices] == [c.tokens for c in alone.choices]
    assert alone.choices[0].tokens != alone.choices[1].tokens
    assert all(len(other.result().tokens) == 20 for other in others)


def test_a_step_is_recorded_for_each_bucket_and_no_more() -> None:
    model = model_of("llama")
    requests = Requests(model, recorded(None), torch.float32)
    plan = requests.fast
    assert isinstance(plan, DevicePlan)
    for rows in ([0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [3], [1, 2]):
        requests.step(rows, [1] * len(rows))
    assert sorted({shape[0] for shape in plan._grids}) == [1, 2, 4]
    assert len(plan._grids) == 3
    assert not plan.takes([1] * 65, [requests.states[0]] * 65)
    assert not plan.takes([2], requests.states[:1])

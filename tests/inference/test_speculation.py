"""Speculation: whatever is guessed, by whom and how far, an output is what it is without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from keifu.families import families
from keifu.inference.drafters import drafters
from keifu.inference.engine import Engine
from keifu.inference.request import Completion, Sampling
from keifu.inference.sequence import Sequence as Output
from keifu.inference.speculation import Draft, Drafter, Guide, Load, Target
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool
from tests.inference.test_engine import byte_tokenizer

NAMES = ("llama", "mistral", "mamba", "griffin")
"""Per-token state, a window of it, a recurrence, and one beside a window."""


def built(name: str, seed: int = 2) -> StackModule:
    torch.manual_seed(0)
    model = families[name].tiny().spec().build()
    assert isinstance(model, StackModule)
    return model.initialise(seed=seed, std=0.4).eval()


class Told(Drafter):
    """Guesses what it is told will come, with every `wrong`-th token another one."""

    def __init__(self, texts: Sequence[Sequence[int]], wrong: int = 3) -> None:
        self.texts, self.wrong = [list(t) for t in texts], wrong

    @classmethod
    def of(cls, argument: str, load: Load) -> Draft:
        raise NotImplementedError

    def propose(self, outputs: Sequence[Output], counts: Sequence[int]) -> None:
        for output, count in zip(outputs, counts, strict=True):
            text = next(t for t in self.texts if t[: len(output.tokens)] == output.tokens)
            at = len(output.tokens)
            output.guessed += [
                (t + 1) % 32 if (at + i) % self.wrong == 0 else t
                for i, t in enumerate(text[at : at + count])
            ]


def run(
    model: StackModule,
    prompts: Sequence[Sequence[int]],
    asked: Sequence[Sampling] | Sampling,
    draft: Draft | None = None,
    **more: Any,
) -> list[Completion]:
    options: dict[str, Any] = {"context": 96, "parallel": 4, "budget": 1 << 21} | more
    engine = Engine(model, byte_tokenizer(), draft=draft, **options)
    each = [asked] * len(prompts) if isinstance(asked, Sampling) else asked
    streams = [engine.submit(p, s) for p, s in zip(prompts, each, strict=True)]
    done = [s.result() for s in streams]
    engine.close()
    assert engine.pool.free_tokens == engine.pool.capacity
    return done


def eager(draft: Draft) -> Draft:
    """The same drafter, asked for tokens whether they pay or not."""

    def made(target: Target) -> Drafter:
        drafter = draft(target)
        drafter.price = -1.0
        return drafter

    return made


def told(prompts: Sequence[Sequence[int]], plain: Sequence[Completion], wrong: int = 3) -> Draft:
    texts = [[*p, *d.tokens] for p, d in zip(prompts, plain, strict=True)]
    return eager(lambda target: Told(texts, wrong))


PROMPTS = [list(range(3, 3 + k)) for k in (1, 5, 9, 20)]
GREEDY = Sampling(max_tokens=24, temperature=0.0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> StackModule:
    return built(str(request.param))


@pytest.fixture(scope="module")
def plain(model: StackModule) -> list[Completion]:
    return run(model, PROMPTS, GREEDY)


def guide(model: StackModule) -> Guide:
    pool = StatePool(model.spec.entries(), budget=1 << 21, slots=72)
    return Guide(name="g", model=model, tokenizer=byte_tokenizer(), pool=pool, context=96)


@pytest.mark.parametrize("wrong", [2, 5, 1000])
def test_right_and_wrong_guesses_change_nothing(
    model: StackModule, plain: list[Completion], wrong: int
) -> None:
    """Several rows at once, each with drafts of its own length that break off elsewhere."""
    done = run(model, PROMPTS, GREEDY, told(PROMPTS, plain, wrong))
    assert [d.tokens for d in done] == [p.tokens for p in plain]
    for each in done:
        assert each.usage.drafted_tokens > 10
        if wrong == 1000:
            assert each.usage.accepted_tokens == each.usage.drafted_tokens
        else:
            assert each.usage.accepted_tokens < each.usage.drafted_tokens


@pytest.mark.parametrize("name", list(drafters))
def test_every_drafter_changes_nothing(
    model: StackModule, plain: list[Completion], name: str
) -> None:
    argument = {"draft": "other", "early-exit": "1"}.get(name, "")
    other = built("llama", seed=9)
    draft = eager(drafters[name].of(argument, lambda ref: guide(other)))
    assert [d.tokens for d in run(model, PROMPTS, GREEDY, draft)] == [p.tokens for p in plain]


def test_a_model_that_drafts_for_itself_is_always_right(
    model: StackModule, plain: list[Completion]
) -> None:
    """Drawn tokens too: it makes the draws that the output is going to make."""
    drawn = Sampling(max_tokens=24, seed=5, temperature=1.2, top_p=0.95, presence_penalty=0.5)
    for asked, expected in ((GREEDY, plain), (drawn, run(model, PROMPTS, drawn))):
        draft = eager(drafters["draft"].of("self", lambda ref: guide(model)))
        done = run(model, PROMPTS, asked, draft)
        assert [d.tokens for d in done] == [p.tokens for p in expected]
        for each in done:
            assert each.usage.accepted_tokens == each.usage.drafted_tokens > 12

"""Constrained outputs: valid at any temperature, under any settings, beside any neighbours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Rust

import keifu
from keifu.core.errors import KeifuError
from keifu.families.llama import Llama
from keifu.inference.constraint import Constraint
from keifu.inference.drafters import drafters
from keifu.inference.engine import Engine
from keifu.inference.request import Choice, ParameterError, Sampling
from keifu.inference.sequence import Sequence as Output
from keifu.inference.speculation import Draft, Drafter, Guide, Load
from keifu.lm.base import LM
from keifu.nn.stack import StackModule
from keifu.text.marks import Marks
from keifu.text.tokenizer import Tokenizer
from tests.inference.schemas import PERSON, SCHEMAS, Schema, longest

END = 256


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and one that ends."""
    chars = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = Rust(models.BPE({c: i for i, c in enumerate(chars)}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens([AddedToken("<end>", special=True)])
    return Tokenizer(rust, Marks(named={"eos": END}))


@pytest.fixture(scope="module")
def model() -> StackModule:
    made = replace(Llama.tiny(), vocab=END + 3).spec().build()
    assert isinstance(made, StackModule)
    return made.initialise(seed=0, std=0.5).eval()


@pytest.fixture(scope="module")
def engine(model: StackModule) -> Iterator[Engine]:
    """Two rows of its table are no tokens."""
    torch.set_num_threads(1)
    made = Engine(model, byte_tokenizer(), context=1024, parallel=4, budget=1 << 24, end_ids=[END])
    yield made
    made.close()


def asked(engine: Engine, constraint: Constraint, **settings: Any) -> tuple[Choice, ...]:
    given = {"max_tokens": 600, "temperature": 1.5, "seed": 1, **settings}
    return engine.submit([1, 2, 3], Sampling(constraint=constraint, **given)).result().choices


def check(choice: Choice, schema: Schema) -> None:
    assert choice.finish == "stop", (choice, schema)
    checker = jsonschema.FormatChecker()
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(
        json.loads(choice.text)
    )


@pytest.mark.parametrize("at", range(0, len(SCHEMAS), 10))
def test_a_random_model_writes_valid_json(engine: Engine, at: int) -> None:
    """It knows nothing, so what it writes is whatever the grammar leaves, far from any habit."""
    for schema in SCHEMAS[at : at + 10]:
        room = longest(schema)
        for choice in asked(engine, Constraint.json(schema), n=2, max_tokens=room):
            check(choice, schema)


SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 100.0},
    {"temperature": 0.0},
    {"temperature": 1e-42},
    {"top_k": 1},
    {"top_k": 5, "top_p": 0.01},
    {"top_p": 0.0},
    {"min_p": 1.0},
    {"typical_p": 0.0},
    {"repetition_penalty": 100.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
    {"logit_bias": {END: 100.0, 7: 100.0}},
    {"logit_bias": {END: -100.0, **dict.fromkeys(range(200), -100.0)}},
    {"no_repeat_ngram": 1},
    {"min_tokens": 500},
    {"ignore_eos": True},
    {"ignore_eos": True, "min_tokens": 500, "no_repeat_ngram": 1},
    {"include_stop": True, "show_special": True},
    {"logprobs": 5, "prompt_logprobs": 1},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_no_setting_breaks_a_constraint(engine: Engine, settings: dict[str, Any]) -> None:
    for choice in asked(engine, Constraint.json(PERSON), n=2, **settings):
        check(choice, PERSON)
    # Here the end may come after every character, so the settings decide about it.
    many = asked(engine, Constraint.regex("[ab]{1,30}"), **settings)[0]
    assert re.fullmatch("[ab]{1,30}", many.text)
    if settings.get("ignore_eos") or settings.get("min_tokens"):
        assert len(many.text) == 30
    assert many.finish == "stop"


def test_nothing_else_ends_a_constrained_output(engine: Engine) -> None:
    for name, value in (("stop", ("a",)), ("stop_ids", (5,))):
        with pytest.raises(ParameterError, match=f"{name}=.*constraint"):
            Sampling(constraint=Constraint.regex("a"), **{name: value})


def test_the_kinds(engine: Engine) -> None:
    for choice in asked(engine, Constraint.choice(["yes", "no", 'qu"ote\n']), n=8):
        assert choice.text in ("yes", "no", 'qu"ote\n')
    for choice in asked(engine, Constraint.regex(r"(\d{3}|x)-[a-c]+z"), n=4):
        assert re.fullmatch(r"(\d{3}|x)-[a-c]+z", choice.text) or choice.finish == "length"
    lark = 'start: "(" start ")" | "x"'
    gbnf = 'root ::= "(" root ")" | "x"'
    for text in (lark, gbnf):
        for choice in asked(engine, Constraint.grammar(text), n=4):
            assert choice.finish == "stop"
            assert re.fullmatch(r"(\(*)x(\)*)", choice.text)
            assert choice.text.count("(") == choice.text.count(")")
    for choice in asked(engine, Constraint.json(), n=2):
        if choice.finish == "stop":
            assert isinstance(json.loads(choice.text), dict)


def test_digits_are_the_ten_of_ascii(engine: Engine) -> None:
    """As JSON Schema has them, and not all that Unicode has."""
    for pattern in (r"\d{20}", r"[\d]{20}", r'(?i)"\d{20}/"'):
        (done,) = asked(engine, Constraint.regex(pattern), temperature=100.0)
        assert re.fullmatch('"?[0-9]{20}/?"?', done.text)
    assert asked(engine, Constraint.regex(""))[0].text == ""


@pytest.mark.parametrize("few", [0, 64])
def test_tokens_are_distributed_as_among_those_that_may_come(
    engine: Engine, model: StackModule, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Whether one was chosen among all and kept, among a few, or under a mask."""
    monkeypatch.setattr("keifu.inference.grammar.FEW", few)
    wanted = Constraint.regex("[a-eh-z0-9]{2}")
    prompt = torch.tensor([1, 2, 3])
    logits = model(prompt[None]).logits[0, -1] / 1.5
    ids = torch.tensor(byte_tokenizer().encode("abcdehijklmnopqrstuvwxyz0123456789"))
    expected = logits[ids].softmax(-1)
    assert logits.softmax(-1)[ids].sum() < 0.6, "most choices among all are refused"
    seen, second = torch.zeros(len(ids)), torch.zeros(len(ids))
    for seed in range(8):
        for choice in asked(engine, wanted, seed=128 * seed, n=128):
            seen[(ids == choice.tokens[0]).nonzero()] += 1
            second[(ids == choice.tokens[1]).nonzero()] += 1
    total = seen.sum()
    assert total == second.sum() == 1024
    chi = ((seen - total * expected) ** 2 / (total * expected)).sum()
    assert chi < 70, "33 degrees of freedom: one in 5,000 is above"


def test_what_is_forced_is_read_with_what_comes_before(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and brackets take no step of their own, unless their log-probabilities are wanted."""
    steps = []
    forward = engine._forward

    def counted(outputs: Any, lengths: list[int], *rest: Any, **more: Any) -> Any:
        steps.append(sum(lengths))
        return forward(outputs, lengths, *rest, **more)

    monkeypatch.setattr(engine, "_forward", counted)
    schema = {
        "type": "object",
        "properties": {"a_rather_long_name": {"type": "boolean"}, "another": {"enum": ["xy", "z"]}},
        "required": ["a_rather_long_name", "another"],
        "additionalProperties": False,
    }
    (done,) = asked(engine, Constraint.json(schema), temperature=0)
    check(done, schema)
    few = len(steps)
    assert few < len(done.tokens) / 3
    assert sum(steps) <= 3 + len(done.tokens)
    steps.clear()
    (told,) = asked(engine, Constraint.json(schema), temperature=0, logprobs=0)
    assert told.tokens == done.tokens
    assert len(told.logprobs) == len(told.tokens) == len(steps)
    for most in range(1, len(done.tokens) + 1):
        (cut,) = asked(engine, Constraint.json(schema), temperature=0, max_tokens=most)
        assert cut.tokens == done.tokens[:most]
        assert cut.finish == ("stop" if most == len(done.tokens) else "length")


class Junk(Drafter):
    """Guesses what a constraint allows and then what it forbids."""

    @classmethod
    def of(cls, argument: str, load: Load) -> Draft:
        raise NotImplementedError

    def propose(self, outputs: Sequence[Output], counts: Sequence[int]) -> None:
        for output, count in zip(outputs, counts, strict=True):
            output.guessed += [*byte_tokenizer().encode("ab"), END, END + 2][:count]


@pytest.mark.parametrize("drafter", ["lookup", "junk"])
def test_guesses_that_a_constraint_forbids_are_cut(
    model: StackModule, monkeypatch: pytest.MonkeyPatch, drafter: str
) -> None:
    """With guesses as without, and none is read that could not come."""
    options: dict[str, Any] = {"context": 1024, "budget": 1 << 24, "end_ids": [END]}

    def nothing(name: str) -> Guide:
        raise AssertionError

    draft = drafters["lookup"].of("", nothing) if drafter == "lookup" else lambda target: Junk()
    plain = Engine(model, byte_tokenizer(), **options)
    quick = Engine(model, byte_tokenizer(), draft=draft, **options)
    forward, read = quick._forward, []

    def checked(outputs: list[Output], *rest: Any, **more: Any) -> Any:
        for output in outputs:
            assert output.possible(output.guessed) == output.guessed
            read.append(len(output.guessed))
        return forward(outputs, *rest, **more)

    monkeypatch.setattr(quick, "_forward", checked)
    try:
        for wanted in (Constraint.regex("[ab]{1,60}"), Constraint.json(PERSON)):
            for temperature in (0.0, 0.5):
                how = {"temperature": temperature, "ignore_eos": True}
                found = [asked(e, wanted, **how)[0] for e in (plain, quick)]
                assert found[0].tokens == found[1].tokens
                assert found[1].finish == "stop"
        assert sum(read) > 0
    finally:
        plain.close()
        quick.close()


def test_an_empty_text_may_be_all_that_is_allowed(engine: Engine) -> None:
    (done,) = asked(engine, Constraint.choice([""]), min_tokens=5)
    assert (done.text, done.finish) == ("", "stop")


def test_alone_as_among_others(engine: Engine) -> None:
    """The same seed gives the same output beside neighbours, constrained and not."""
    wanted = Constraint.json(PERSON)
    alone = asked(engine, wanted, seed=5, n=2)
    free = engine.submit([9, 8, 7], Sampling(max_tokens=40, seed=3)).result().text
    others = [
        engine.submit([9, 8, 7], Sampling(max_tokens=40, seed=3)),
        engine.submit([4], Sampling(max_tokens=80, constraint=Constraint.regex("[xy]{80}"))),
    ]
    among = asked(engine, wanted, seed=5, n=2)
    assert [c.tokens for c in among] == [c.tokens for c in alone]
    assert alone[0].tokens != alone[1].tokens
    assert others[0].result().text == free
    assert re.fullmatch("[xy]{80}", others[1].result().text)


def test_a_preempted_output_goes_on_in_its_grammar(model: StackModule) -> None:
    """A pool that holds one of two: the younger gives way, is read again, and stays valid."""
    made = Engine(model, byte_tokenizer(), context=200, parallel=2, budget=1 << 16, end_ids=[END])
    try:
        room = made.pool.capacity
        length = 150
        wanted = Constraint.regex(f"[a-d]{{{length}}}")
        sampling = [
            Sampling(constraint=wanted, max_tokens=length, seed=s, temperature=1.5) for s in (1, 2)
        ]
        dropped: list[object] = []
        drop = made._queue.drop

        def noted(output: Any, **how: Any) -> None:
            dropped.append(output)
            drop(output, **how)

        made._queue.drop = noted  # type: ignore[method-assign, assignment]
        streams = [made.submit([1, 2, 3], s) for s in sampling]
        together = [s.result().text for s in streams]
        alone = [made.submit([1, 2, 3], s).result().text for s in sampling]
    finally:
        made.close()
    assert together == alone
    assert all(re.fullmatch(f"[a-d]{{{length}}}", text) for text in together)
    assert 2 * (length + 3) > room
    assert len(dropped) > 4, "each of four outputs is dropped once at its end"


def test_beams_follow_a_constraint(engine: Engine) -> None:
    wanted = Constraint.json(PERSON)
    found = asked(engine, wanted, beams=3, n=3, seed=None)
    assert len({choice.text for choice in found}) == 3
    for choice in found:
        check(choice, PERSON)


def test_cut_off_is_never_whole(engine: Engine) -> None:
    """The room ends before the text does: "length", also where what is there could stand alone."""
    for most in range(1, 12):
        (done,) = asked(engine, Constraint.json(PERSON), max_tokens=most)
        assert done.finish == "length"
        with pytest.raises(json.JSONDecodeError):
            json.loads(done.text)
    (number,) = asked(engine, Constraint.regex("[0-9]{5,9}"), max_tokens=6, ignore_eos=True)
    assert number.finish == "length"
    (whole,) = asked(engine, Constraint.regex("[0-9]{6}"), max_tokens=6)
    assert whole.finish == "stop"


def test_logprobs_are_the_models_own(engine: Engine) -> None:
    """A forced token's log-probability is what the model gave it, not the constraint's zero."""
    (done,) = asked(engine, Constraint.choice(["abc"]), logprobs=1)
    told = [t.logprob for t in done.logprobs]
    assert "".join(t.token for t in done.logprobs) == "abc"
    assert all(p is not None and p < -0.01 for p in told)


@pytest.fixture(scope="module")
def lm(smollm2: Path) -> Iterator[LM]:
    made = keifu.load("smollm2-135m", ctx=1024, parallel=10)
    yield made
    made.close()


def run(lm: LM, schemas: tuple[Schema, ...], seeds: range) -> list[tuple[Choice, Schema]]:
    streams = [
        (
            lm.chat_stream(
                [{"role": "user", "content": "Fill in the form, as creatively as you can."}],
                constraint=Constraint.json(schema),
                max_tokens=longest(schema),
                temperature=1.5,
                seed=seed,
            ),
            schema,
        )
        for schema in schemas
        for seed in seeds
    ]
    return [(stream.result().choices[0], schema) for stream, schema in streams]


def test_a_real_model_writes_valid_json(lm: LM) -> None:
    found = run(lm, SCHEMAS, range(1))
    assert len(found) == 50
    for choice, schema in found:
        check(choice, schema)
        assert json.dumps(json.loads(choice.text), ensure_ascii=False) or choice.text


@pytest.mark.slow
def test_a_thousand_of_a_thousand(lm: LM) -> None:
    found = run(lm, SCHEMAS, range(100, 120))
    assert len(found) == 1000
    for choice, schema in found:
        check(choice, schema)
    assert len({choice.text for choice, _ in found}) > 300


def test_a_real_models_kinds(lm: LM) -> None:
    best = lm.chat(
        [{"role": "user", "content": "What is the capital of France?"}],
        constraint=Constraint.choice(["Berlin", "Paris", "Rome"]),
        temperature=0,
    )
    assert best.text in ("Berlin", "Paris", "Rome")
    assert best.finish == "stop"
    form = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}
    done = lm.chat([{"role": "user", "content": "Who?"}], response_format=form, max_tokens=200)
    check(done.choices[0], PERSON)
    with pytest.raises(KeifuError, match="choose one"):
        lm.chat(
            [{"role": "user", "content": "Who?"}],
            response_format=form,
            constraint=Constraint.regex("a"),
        )

"""`--speculate` as a user meets it: library, terminal and server, refusals, grammars, real text."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import keifu
from keifu.cli.main import main
from keifu.core.errors import KeifuError
from keifu.inference.constraint import Constraint
from keifu.inference.request import Completion
from keifu.lm.local import LocalLM
from keifu.nn.kernels import native
from tests.lm.test_window import tiny
from tests.server.harness import running
from tests.server.test_serve_command import serve

Capture = pytest.CaptureFixture[str]
CODE = "\n".join(
    f"def read_{name}(path):\n    return [line for line in open(path) if {name!r} in line]\n"
    for name in ("users", "orders")
)
ASKED = (
    f"Repeat this code with every `path` renamed to `name`:\n\n{CODE}",
    "Quote this: Maria Rossi was born in Turin in 1958 and studied physics at Padua. In 1985 she "
    "moved to the observatory of Arcetri near Florence.",
    "List the numbers from one to ten in words, then list them again.",
    "Tell me a story about a lighthouse keeper who finds a door in the sea.",
    "What is the capital of France, and what is the capital of Italy?",
)
NEW = 40
TIE = 0.1
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "milk"]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("speculating"), "llama")


@pytest.fixture(scope="module")
def plain(smollm2: Path) -> Iterator[LocalLM]:
    yield from opened(smollm2, "none")


@pytest.fixture(scope="module")
def guessing(smollm2: Path) -> Iterator[LocalLM]:
    yield from opened(smollm2, "lookup")


@pytest.fixture(autouse=True)
def _nothing_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))


def opened(path: Path, how: str, **options: Any) -> Iterator[LocalLM]:
    lm = keifu.load(str(path), ctx=512, speculate=how, **options)
    assert isinstance(lm, LocalLM)
    yield lm
    lm.close()


def answer(lm: LocalLM, text: str, **options: Any) -> Completion:
    asked = {"max_tokens": NEW, "temperature": 0.0, "ignore_eos": True} | options
    return lm.chat([{"role": "user", "content": text}], **asked)


def near_ties(lm: LocalLM, other: LocalLM, asked: tuple[str, ...]) -> list[bool]:
    """Whether each answer is the same; where it is not, its first difference is a near tie.

    A tie of the run without guesses: the two tokens that it finds likeliest there.
    """
    found = []
    for text in asked:
        told = answer(lm, text, logprobs=2).choices[0]
        ours, theirs = told.tokens, answer(other, text).tokens
        same = ours == theirs
        found.append(same)
        if not same:
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            best, second = (t.logprob or 0.0 for t in told.logprobs[at].top)
            assert best - second < TIE, (text, at)
    return found


def test_real_text_is_the_same_but_for_near_ties(plain: LocalLM, guessing: LocalLM) -> None:
    """On a plan even those: its steps of several tokens have the bits of steps of one."""
    speculation = guessing.engine.speculation
    assert speculation is not None
    before = speculation.accepted
    found = near_ties(plain, guessing, ASKED)
    assert speculation.accepted > before + 20
    assert all(found) or not native.available()


@pytest.mark.slow
def test_real_text_in_exact_precision(smollm2: Path) -> None:
    """PyTorch's products of several rows round otherwise than those of one."""
    (none,) = opened_once(smollm2, "none")
    (lookup,) = opened_once(smollm2, "lookup")
    near_ties(none, lookup, ASKED[:1])
    speculation = lookup.engine.speculation
    assert speculation is not None
    assert speculation.accepted > 5
    for lm in (none, lookup):
        lm.close()


def opened_once(path: Path, how: str) -> list[LocalLM]:
    return [next(iter(opened(path, how, precision="exact", threads=2)))]


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize(
    "wanted", [Constraint.json(PERSON), Constraint.regex(r"(red, |green, |blue, ){9}end\.")]
)
def test_a_grammar_holds_and_guesses_change_nothing(
    plain: LocalLM, guessing: LocalLM, wanted: Constraint, temperature: float
) -> None:
    text = f"{ASKED[1]}\nNow as JSON, three times over: {json.dumps(PERSON)} red, green, blue, "
    options = {"constraint": wanted, "temperature": temperature, "seed": 3, "max_tokens": 120}
    ours = answer(guessing, text, **options)
    theirs = answer(plain, text, **options)
    if temperature == 0.0:  # drawn: not the same draws, see forced tokens
        assert ours.tokens == theirs.tokens or not native.available()
    assert theirs.finish == "stop"
    assert ours.finish == "stop"
    assert temperature or ours.usage.drafted_tokens > 0
    if wanted.kind == "json":
        assert set(json.loads(ours.text)) == {"name", "age", "likes"}
    else:
        assert ours.text.endswith(", end.")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("lokup", r"no speculation 'lokup'; nearest: lookup"),
        ("lookup:3", "lookup takes no argument"),
        ("draft", "needs its name: draft:MODEL"),
        ("draft:/nowhere/x.gguf", "/nowhere/x.gguf"),
        ("early-exit:two", "a number of layers goes there"),
        ("early-exit:99", "the first 1 to 1 layers can guess"),
        ("none:1", "no speculation 'none:1'"),
    ],
)
def test_what_cannot_guess_is_refused_in_a_line(
    llama: Path, how: str, why: str, capsys: Capture
) -> None:
    with pytest.raises(KeifuError, match=why) as refused:
        keifu.load(str(llama), speculate=how)
    assert "\n" not in str(refused.value)
    assert main(["complete", "-m", str(llama), "--speculate", how, "hello"]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert str(refused.value) in said.err


def test_another_vocabulary_cannot_draft(llama: Path, smollm2: Path) -> None:
    with pytest.raises(KeifuError, match="another vocabulary"):
        keifu.load(str(smollm2), ctx=64, speculate=f"draft:{llama}")


def test_one_way_or_the_other(llama: Path) -> None:
    with pytest.raises(KeifuError, match="leave speculate out"):
        keifu.load(str(llama), speculate="lookup", deterministic=True)


@pytest.mark.parametrize("how", ["lookup", "early-exit:1", "draft"])
def test_the_terminal_says_what_became_of_guesses(llama: Path, how: str, capsys: Capture) -> None:
    words = "a b a b a b a b a b"
    args = ["complete", "-m", str(llama), "--json", "--max-tokens", "20", "--temperature", "0"]
    args += ["--precision", "exact", words]
    assert main(args) == 0
    without = json.loads(capsys.readouterr().out)
    assert without["usage"]["drafted_tokens"] == 0
    given = f"draft:{llama}" if how == "draft" else how
    assert main([*args, "--speculate", given]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == without["text"]
    assert 0 <= found["usage"]["accepted_tokens"] <= found["usage"]["drafted_tokens"]
    if how == "draft":  # as dear as the model itself: it never pays
        assert found["usage"]["drafted_tokens"] == 0


def test_the_server_answers_the_same_and_counts(plain: LocalLM, guessing: LocalLM) -> None:
    speculation = guessing.engine.speculation
    assert speculation is not None
    before = (speculation.drafts, speculation.drafted, speculation.accepted)
    fields = {"max_tokens": NEW, "temperature": 0}
    with running(lambda source: keifu.load("smollm2-135m", ctx=512, speculate="lookup")) as house:
        said = house.chat(ASKED[0], **fields).json()["choices"][0]["message"]["content"]
        engine = house.loaded["fake"][0].engine  # type: ignore[attr-defined]
        drafts, drafted, accepted = (
            getattr(engine.speculation, name) for name in ("drafts", "drafted", "accepted")
        )
    expected = answer(plain, ASKED[0], ignore_eos=False).text
    assert said == expected or not native.available()
    assert 0 < drafts <= drafted
    assert 5 < accepted <= drafted
    assert before == (speculation.drafts, speculation.drafted, speculation.accepted)


def test_the_server_refuses_in_a_line() -> None:
    run = serve("--port", "0", "--speculate", "lokup")
    assert run.returncode == 1
    assert "no speculation 'lokup'" in run.stderr
    assert "Traceback" not in run.stderr

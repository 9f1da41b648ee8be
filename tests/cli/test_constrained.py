"""`keifu chat` and `keifu complete` with flags that say what the answer must be."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import keifu.lm
from keifu.cli import model as models
from keifu.cli.main import main
from keifu.families.llama import Llama
from keifu.inference.engine import Engine
from keifu.lm.local import LocalLM
from keifu.nn.stack import StackModule
from keifu.text.marks import Marks
from keifu.text.tokenizer import Tokenizer
from tests.inference.schemas import PERSON
from tests.inference.test_constrain import END, byte_tokenizer

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SAMPLED = ["--temperature", "1.5", "--seed", "3", "--max-tokens", "400", "-q"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows nothing, over bytes."""
    torch.set_num_threads(1)

    def load(name: str, **options: Any) -> LocalLM:
        made = replace(Llama.tiny(), vocab=END + 3).spec().build()
        assert isinstance(made, StackModule)
        rust = byte_tokenizer()._rust
        tokenizer = Tokenizer(rust, Marks(named={"eos": END}, templates={"default": TEMPLATE}))
        stack = made.initialise(seed=0, std=0.5).eval()
        engine = Engine(stack, tokenizer, context=1024, budget=1 << 24, end_ids=[END])
        return LocalLM("tiny", engine, tokenizer, {})

    monkeypatch.setattr(keifu.lm, "load", load)
    monkeypatch.setattr(models, "find", lambda options, quiet=False: None)


@pytest.mark.parametrize("verb", ["chat", "complete"])
def test_every_flag(verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    schema = tmp_path / "person.json"
    schema.write_text(json.dumps(PERSON))
    grammar = tmp_path / "brackets.gbnf"
    grammar.write_text('root ::= "(" [xy] [xy] ")"')

    def told(*flags: str) -> str:
        assert main([verb, "Go", *SAMPLED, *flags]) == 0
        return capsys.readouterr().out.removesuffix("\n")

    for given in (str(schema), json.dumps(PERSON)):
        jsonschema.validate(json.loads(told("--json-schema", given)), PERSON)
    assert re.fullmatch("[ab]{3}-[0-9]{2}", told("--regex", r"[ab]{3}-\d{2}"))
    assert told("--choice", "yes,no") in ("yes", "no")
    assert re.fullmatch(r"\([xy]{2}\)", told("--grammar", str(grammar)))
    assert re.fullmatch(r"\([xy]{2}\)", told("--grammar", 'start: "(" /[xy]{2}/ ")"'))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--regex", "a", "--choice", "a"], "--regex and --choice both say"),
        (["--regex", "["], "this regex cannot be followed"),
        (["--json-schema", "{"], "not JSON"),
        (["--json-schema", "none.json"], "cannot read none.json"),
        (["--grammar", "start: missing"], "this grammar cannot be followed"),
    ],
)
def test_what_cannot_be_followed_is_said_in_a_line(
    flags: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["complete", "Go", *SAMPLED, *flags]) != 0
    told = capsys.readouterr()
    assert why in told.err.strip().splitlines()[-1]
    assert told.out == ""

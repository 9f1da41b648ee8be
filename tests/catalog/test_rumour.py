"""GPT-4's size was never published: the rumour is a note, and no table here counts the model."""

from __future__ import annotations

import re

import pytest

from keifu.catalog import system, systems
from keifu.cli.main import main
from keifu.families import ARCHITECTURES, families
from keifu.families.published import PUBLISHED
from keifu.lm import cards

SIZE = re.compile(r"\d\s*([BMT]\b|billion|trillion|million)|parameters", re.IGNORECASE)
CLOSED = ("gpt-4", "gpt-4v", "gpt-4o")


def test_a_rumour_is_a_note_without_numbers() -> None:
    row = system("gpt-4-moe-rumour")
    assert (row.kind, row.model) == ("note", None)
    assert "unconfirmed" in row.why.lower()
    assert "never confirmed" in row.source
    assert row.code == "keifu.lm.cards"
    assert cards.find("gpt-4-moe-rumour") is None
    named = [s.id for s in systems().values() if s.id.startswith("gpt-4") and SIZE.search(s.idea)]
    assert named == ["gpt-4-moe-rumour"]  # and there it is called hearsay
    assert row.idea.startswith("It is said")


def test_nothing_of_gpt_4_can_be_counted(capsys: pytest.CaptureFixture[str]) -> None:
    for table in (PUBLISHED, families, ARCHITECTURES.values()):
        assert not [name for name in table if re.search(r"gpt-?4(?!all)", name.lower())]
    for name in (*CLOSED, "gpt-3"):
        assert main(["show", name, "--json"]) == 0
        said = SIZE.search(capsys.readouterr().out)
        assert (said is None) is (name in CLOSED), said

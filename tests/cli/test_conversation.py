"""Saved conversations: whole or not at all, private, by id or its beginning, hostile names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from keifu.cli import conversation as store
from keifu.cli.conversation import Conversation
from keifu.core.errors import KeifuError
from keifu.core.folders import fallback_folder


def made(id: str, *texts: str) -> Conversation:
    talk = Conversation(id=id, model="m", system="s")
    for number, text in enumerate(texts):
        talk.say(("user", "assistant")[number % 2], text)
    return talk


def test_round_trip(home: Path) -> None:
    talk = made("one", "日本 🎉", "answer\0\x1b")
    path, temporary = talk.save()
    assert path == home / "conversations" / "one.json"
    assert not temporary
    assert path.stat().st_mode & 0o777 == 0o600
    assert store.load("one") == talk
    assert [p.name for p in path.parent.iterdir()] == ["one.json"]


def test_ids_do_not_collide() -> None:
    assert len({Conversation(model="m").id for _ in range(50)}) > 45


def test_the_latest_and_the_beginning_of_an_id() -> None:
    for number, id in enumerate(["ab-1", "ab-2", "cd-1"]):
        path, _ = made(id, "q").save()
        os.utime(path, ns=(number, number))
    assert store.load(None).id == "cd-1"
    assert store.load("cd").id == "cd-1"
    with pytest.raises(KeifuError, match="2 conversations begin with ab"):
        store.load("ab")
    with pytest.raises(KeifuError, match="no conversation 'ab-3'; nearest: ab-2"):
        store.load("ab-3")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "", ".", "a" * 65, "a\0", "ａ", "-x"]
)
def test_hostile_names(name: str) -> None:
    with pytest.raises(KeifuError, match="cannot name a conversation"):
        made(name, "q").save()
    with pytest.raises(KeifuError, match="cannot name a conversation"):
        store.load(name)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "[" * 100_000, "\x00", '{"schema_version": 2}',
        json.dumps({"schema_version": 1, "model": "m", "system": None, "messages": [{"a": 1}]}),
        json.dumps({"schema_version": 1, "model": "m", "system": 3, "messages": []}),
    ],
)  # fmt: skip
def test_damaged_files(text: str, home: Path) -> None:
    made("good", "q").save()
    (home / "conversations" / "bad.json").write_text(text)
    with pytest.raises(KeifuError, match=r"bad\.json"):
        store.load("bad")
    rows = {row["id"]: row for row in store.listing()}
    assert rows["good"]["title"] == "q"
    assert rows["bad"]["model"] is None


def test_undo_takes_back_a_question_and_its_answer() -> None:
    talk = made("x", "q1", "a1", "q2", "a2")
    assert talk.undo() == "q2"
    assert [m["content"] for m in talk.messages] == ["q1", "a1"]
    assert talk.undo() == "q1"
    assert talk.undo() is None


def test_a_failed_save_leaves_the_old_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = made("x", "q1")
    path, _ = talk.save()
    before = path.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    talk.say("assistant", "a1")
    with pytest.raises(KeifuError, match="No space left"):
        talk.save()
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_an_unwritable_home_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEIFU_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/nothing-can-be-made-here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path, temporary = made("x", "q").save()
    assert temporary
    assert path.is_relative_to(fallback_folder())
    assert store.load("x").title() == "q"


def test_somebody_elses_fallback_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KEIFU_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/nothing-can-be-made-here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    fallback_folder().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeifuError, match="somebody else"):
        made("x", "q").save()


def test_a_named_home_that_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEIFU_HOME", "/proc/nothing-can-be-made-here")
    with pytest.raises(KeifuError, match="KEIFU_HOME: cannot write"):
        made("x", "q").save()

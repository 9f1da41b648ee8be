"""A model over several processes: how they start, find each other, and end.

`lead` makes the others itself, on this machine. Under `torchrun` they are there already, on as
many machines as it was told of: the first one calls `lead`, all others `join`.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from contextlib import suppress
from datetime import timedelta
from multiprocessing import connection, get_context
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh

from keifu.core import machine
from keifu.core.errors import KeifuError
from keifu.families._load import open_checkpoint
from keifu.inference.leader import Leader, Line, follow
from keifu.nn.kernels import native
from keifu.nn.parallel import attach
from keifu.nn.split import Rank
from keifu.nn.stack import Stack, StackModule

if TYPE_CHECKING:
    from keifu.lm.opening import Opened

PATIENCE = 300.0
"""Seconds without a word after which a process is given up; one that dies is noticed at once."""


def lead(opened: Opened, size: int) -> tuple[StackModule, Leader]:
    """This process's share of a model, and what makes the others run theirs.

    Raises:
        ConfigError: the model does not split over so many.
        KeifuError: it is of a kind that runs in one process alone, or one is split already.
    """
    spec = opened.spec()
    if not isinstance(spec, Stack) or spec.head is None:
        raise KeifuError(f"{opened.name} is no decoder: it runs in one process")
    if opened.gist() is not None:
        raise KeifuError(f"{opened.name} has gist tokens: it runs in one process")
    if opened.options.speculate.partition(":")[0] not in ("none", "lookup"):
        raise KeifuError("several processes guess by lookup alone: --speculate lookup or none")
    for rank in range(size):
        spec.split(Rank(rank, size))
    if dist.is_initialized():
        raise KeifuError("one model at a time runs in several processes: close the other first")
    others = _meet(size)
    line = _line(0)
    try:
        options = {**dataclasses.asdict(opened.options), "tensor_parallel": size}
        line.send({"kind": "load", "ref": opened.ref, "options": options})
        model = _share(opened, Rank(0, size))
    except BaseException:
        others.end()
        dist.destroy_process_group()
        raise
    leader = Leader(line, size, patience=PATIENCE, gone=others.end)
    others.watch(leader)
    return model, leader


def join() -> None:
    """Under torchrun: be one of the others, until the first process ends."""
    _begin(timedelta(seconds=PATIENCE))
    _serve()


def _serve() -> None:
    """Load what the first process says, and follow it."""
    from keifu.lm.opening import LocalOptions, Opened

    rank = Rank(dist.get_rank(), dist.get_world_size())
    line = _line(rank.rank)
    told = line.receive()
    options = LocalOptions(**told["options"])
    checkpoint = open_checkpoint(told["ref"], allow_pickle=options.allow_pickle)
    opened = Opened(ref=told["ref"], checkpoint=checkpoint, options=options)
    model = _share(opened, rank)
    device = _device(options.device)
    follow(line, model, dtype=options.dtype, state=options.kept, device=device)
    dist.destroy_process_group()


def _share(opened: Opened, rank: Rank) -> StackModule:
    """This process's weights, read, and joined with the others'."""
    workers = opened.options.threads or max(1, machine.threads() // rank.size)
    torch.set_num_threads(workers)
    if native.available():
        native.set_threads(workers)
    device = _device(opened.options.device)
    model = opened.build(rank=rank, device=device)
    assert isinstance(model, StackModule)
    mesh = DeviceMesh(torch.device(device).type, list(range(rank.size)))
    attach(model, opened.spec().split(rank), mesh)
    return model


def _device(asked: str) -> str:
    """Each process of a machine has a GPU of its own."""
    if torch.device(asked).type != "cuda":
        return asked
    local = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def _line(rank: int) -> Line:
    return Line(dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE)), rank)


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _begin(timeout: timedelta, **given: Any) -> None:
    dist.init_process_group(_backend(), timeout=timeout, **given)


class Others:
    """The processes that torchrun has started: it ends them itself."""

    def end(self) -> str:
        """End them; what the first to fail said."""
        return ""

    def watch(self, leader: Leader) -> None:
        """Notice when one ends, also while nothing is asked."""


class Children(Others):
    """The processes that this one starts on its machine."""

    def __init__(self, size: int) -> None:
        timeout = timedelta(seconds=PATIENCE)
        self._store = TCPStore("127.0.0.1", 0, size, True, timeout, wait_for_workers=False)
        context = get_context("spawn")
        self._hear, say = context.Pipe(duplex=False)
        self._all = [
            context.Process(target=_child, args=(rank, size, self._store.port, say), daemon=True)
            for rank in range(1, size)
        ]
        for child in self._all:
            child.start()
        say.close()
        until = time.monotonic() + PATIENCE
        while not self._store.check([f"here/{rank}" for rank in range(1, size)]):
            if time.monotonic() > until or not all(child.is_alive() for child in self._all):
                raise KeifuError(f"a process of the model did not start: {self.end()}")
            time.sleep(0.02)
        _begin(timeout, store=self._store, rank=0, world_size=size)

    def end(self) -> str:
        """Wait for those that are ending, kill the others."""
        for child in self._all:
            child.join(1.0)
            if child.is_alive():
                child.kill()
                child.join(5.0)
        with suppress(EOFError):
            return str(self._hear.recv()) if self._hear.poll() else "it was killed"
        return "it was killed"

    def watch(self, leader: Leader) -> None:
        """In a thread that lives as long as they do."""

        def wait() -> None:
            connection.wait([child.sentinel for child in self._all])
            leader.lose(RuntimeError("it ended"))

        threading.Thread(target=wait, daemon=True).start()


def _meet(size: int) -> Others:
    """The other processes, all of them there."""
    if "WORLD_SIZE" not in os.environ:
        return Children(size)
    if int(os.environ["WORLD_SIZE"]) != size:
        raise KeifuError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, and --tensor-parallel is "
            f"{size}: give both the same number"
        )
    _begin(timedelta(seconds=PATIENCE))
    return Others()


def _child(rank: int, size: int, port: int, say: Any) -> None:
    """One of the other processes."""
    try:
        timeout = timedelta(seconds=PATIENCE)
        store = TCPStore("127.0.0.1", port, size, False, timeout)
        store.set(f"here/{rank}", "")
        _begin(timeout, store=store, rank=rank, world_size=size)
        _serve()
    except (KeyboardInterrupt, SystemExit):
        os._exit(1)
    except BaseException as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        with suppress(OSError):  # nobody hears: the first process is gone
            say.send(f"process {rank}: {said}")
            say.close()
        os._exit(1)

"""Several processes that run one function of a test, each with its mesh."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.device_mesh import DeviceMesh

SECONDS = 120


def together(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What a module's function (mesh, *args) returns in each of `size` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    given = (size, port, results, function, args)
    multiprocessing.spawn(_run, given, nprocs=size, join=True)
    found = dict(results.get() for _ in range(size))
    return [found[rank] for rank in range(size)]


def _run(
    rank: int, size: int, port: int, results: Any, function: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, rank == 0)
    timeout = timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        results.put((rank, function(DeviceMesh("cpu", list(range(size))), *args)))
        dist.barrier()
    finally:
        dist.destroy_process_group()

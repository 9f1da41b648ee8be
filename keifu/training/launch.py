"""Starting a run's processes: under torchrun, on this machine, on Ray; one line if that fails."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from keifu.core.errors import KeifuError
from keifu.training.crew import ALONE, Crew
from keifu.training.crew_processes import Processes
from keifu.training.parallel import Parallel

WORDS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def crew(parallel: Parallel = Parallel(), device: str = "cpu") -> Iterator[Crew]:
    """The crew of this process: alone, or with the others that torchrun or Ray started.

    Raises:
        KeifuError: the others cannot be found, or are not as many as the recipe asks for.
    """
    several = "WORLD_SIZE" in os.environ or "RANK" in os.environ
    if not several:
        if parallel.several:
            parallel.shares(1)
        yield ALONE
        return
    missing = [word for word in WORDS if word not in os.environ]
    if missing:
        raise KeifuError(
            f"{', '.join(missing)} not set: start with torchrun --nproc-per-node N -m keifu train, "
            "or keifu train --processes N"
        )
    parallel.shares(int(os.environ["WORLD_SIZE"]))
    where = _device(device)
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=parallel.patience))
    except (RuntimeError, ValueError) as error:
        said = str(error).partition("\n")[0][:160]
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise KeifuError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} found no others at "
            f"{place} ({said}): is the port free, the address right, the number the same for all?"
        ) from error
    try:
        found = Processes(parallel, where)
        with found.guarded():
            yield found
    finally:
        dist.destroy_process_group()


def _device(asked: str) -> torch.device:
    """Each process of a machine has an accelerator of its own."""
    if torch.device(asked).type != "cuda":
        return torch.device(asked)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def here(processes: int, command: Sequence[str]) -> None:
    """Run a Python command in so many processes of this machine, as torchrun does; wait for them.

    When one ends badly the others are ended, too.

    Args:
        command: what comes after `python`: ("-m", "keifu", "train", ...).

    Raises:
        KeifuError: one of them failed; it has said why.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _quiet()
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="keifu", max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint=f"127.0.0.1:{free_port()}", monitor_interval=0.2,
        local_addr="127.0.0.1",
    )  # fmt: skip
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 0:
            end = f"ended with code {failure.exitcode}"
        else:
            end = f"was ended by signal {-failure.exitcode}"
        raise KeifuError(f"process {rank} of {processes} {end}, so the run has ended") from None
    finally:
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)


def _quiet() -> None:
    """torch's launcher says over many lines what is said in one here."""
    import logging

    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def on_ray(
    processes: int, function: Callable[..., Any], *args: Any, gpus: float = 0, cpus: float = 1
) -> list[Any]:
    """Call a function in so many processes of a Ray cluster, each as torchrun would start it.

    Args:
        gpus, cpus: of each process.

    Returns:
        What each returned.

    Raises:
        KeifuError: Ray is not installed, or a process failed.
    """
    try:
        import ray
    except ImportError:
        raise KeifuError("Ray is not installed: pip install 'keifu[ray]'") from None

    @ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
    class Worker:
        def place(self) -> tuple[str, int]:
            return str(ray.util.get_node_ip_address()), free_port()  # type: ignore[no-untyped-call]

        def run(self, rank: int, address: str, port: int) -> Any:
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR=address,
                MASTER_PORT=str(port), LOCAL_RANK="0",
            )  # fmt: skip
            return function(*args)

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    workers = [Worker.remote() for _ in range(processes)]  # type: ignore[attr-defined]
    try:
        address, port = ray.get(workers[0].place.remote())
        waiting = [w.run.remote(rank, address, port) for rank, w in enumerate(workers)]
        found: list[Any] = ray.get(waiting)
        return found
    except ray.exceptions.RayError as error:
        said = str(getattr(error, "cause", None) or error).strip().splitlines()[-1][:200]
        raise KeifuError(f"a process of the run on Ray failed: {said}") from error
    finally:
        for worker in workers:
            ray.kill(worker)

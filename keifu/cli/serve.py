"""keifu serve: an OpenAI- and Anthropic-compatible server for one or several models."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from keifu.cli.model import DEFAULT, REMOTE, ModelOptions, follow
from keifu.cli.options import Fields, Option
from keifu.core.errors import KeifuError

if TYPE_CHECKING:
    from keifu.lm.base import LM
    from keifu.server.endpoint import Service
    from keifu.server.settings import Access, Limits

_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Which models are served, and on how much of the machine."""

    model: tuple[str, ...] = field(default=(DEFAULT,), metadata={"option": Option("-m", "--model")})
    """A model to serve; may be repeated (default: smollm2-135m)"""
    alias: tuple[str, ...] = ()
    """What clients call the model; once for each --model, in order"""
    ctx: int | None = field(default=None, metadata={"option": Option(min=1)})
    """Tokens of context to hold"""
    window: int | None = field(default=None, metadata={"option": Option(min=1)})
    """Tokens to look back on; what is older is forgotten, and a text may have any length"""
    sinks: int = field(default=4, metadata={"option": Option(min=0, max=1024)})
    """First tokens that stay visible beside a window"""
    retrieve: int | None = field(default=None, metadata={"option": Option(min=1)})
    """Let each head of an encoder-decoder read so many places of a source of any length"""
    speculate: str = "none"
    """Guess ahead: none, lookup, draft:MODEL, early-exit[:LAYERS]; same output up to rounding"""
    max_memory: str | None = None
    """Memory for running requests, as 2GB or 512MiB"""
    parallel: int = field(default=4, metadata={"option": Option(min=1, max=256)})
    """Requests that run at once"""
    replicas: int = field(default=1, metadata={"option": Option(min=1, max=256)})
    """Engine processes behind the address, by Ray Serve; each has all the limits to itself"""
    queue: int = field(default=64, metadata={"option": Option(min=0, max=100_000)})
    """Requests that may wait beyond those; one more is told to come again"""
    threads: int | None = field(default=None, metadata={"option": Option(min=1, max=1024)})
    """Threads to compute with"""
    tensor_parallel: int = field(default=1, metadata={"option": Option(min=1, max=64)})
    """Processes that share the model and its state, each with a part of every layer"""
    no_prefix_cache: bool = False
    """Read every text from its beginning, also what begins like an earlier one"""
    deterministic: bool = False
    """Compute the same to the last bit whatever else runs (slower: one request a step)"""
    metrics_compat: Literal["vllm", "none"] = "vllm"
    """Under whose names /metrics has its numbers besides our own"""
    idle_unload: float | None = field(default=None, metadata={"option": Option(min=0)})
    """Free a model after so many seconds without work"""
    offline: bool = False
    """Never use the network"""

    def __post_init__(self) -> None:
        """Refuse a size that is none before anything is loaded."""
        self.memory()

    def memory(self) -> int | None:
        """Bytes for running requests, where a size is given."""
        return None if self.max_memory is None else size(self.max_memory)

    def load(self, source: str) -> LM:
        """The model of that name, fetched first if it is not here."""
        import keifu.lm
        from keifu.cli.model import find
        from keifu.lm.cards import find as card

        if source.partition(":")[0] in REMOTE or card(source):
            return keifu.lm.load(source)
        find(ModelOptions(model=source, offline=self.offline))
        return keifu.lm.load(
            source,
            ctx=self.ctx,
            window=self.window,
            sinks=None if self.window is None else self.sinks,
            retrieve=self.retrieve,
            speculate=None if self.speculate == "none" else self.speculate,
            threads=self.threads,
            max_memory=self.memory(),
            parallel=self.parallel,
            tensor_parallel=None if self.tensor_parallel == 1 else self.tensor_parallel,
            prefixes=False if self.no_prefix_cache else None,
            deterministic=self.deterministic or None,
        )


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where the server listens, and who may come in."""

    host: str = "127.0.0.1"
    """Address to listen on"""
    port: int = field(default=8000, metadata={"option": Option(min=0, max=65535)})
    """Port to listen on; 0 picks a free one"""
    api_key: str | None = None
    """Key that clients must send (better in KEIFU_API_KEY)"""
    insecure: bool = False
    """Listen beyond this machine without a key"""
    allow_host: tuple[str, ...] = ()
    """A further name this server is reached by"""
    allow_origin: tuple[str, ...] = ()
    """A web origin that may call, as http://localhost:3000"""

    def key(self) -> str | None:
        """The key asked for, from the flag or the environment."""
        return self.api_key or os.environ.get("KEIFU_API_KEY") or None

    def access(self) -> Access:
        """Who may talk to the server. Raises KeifuError for an open door without a key."""
        from keifu.server.run import access

        names, origins = list(self.allow_host), list(self.allow_origin)
        return access(self.host, self.key(), self.insecure, names, origins)


def command(
    offer: Annotated[Offer, Fields(Offer)] = Offer(),
    door: Annotated[Door, Fields(Door)] = Door(),
    deadline: Annotated[
        float, Option("--deadline", help="seconds a request may take", min=1)
    ] = 600.0,
    strict: Annotated[
        bool, Option("--strict", help="refuse unknown request fields instead of listing them")
    ] = False,
    verbose: Annotated[bool, Option("-v", "--verbose", help="log every request")] = False,
) -> None:
    """Serve models over HTTP, for clients of OpenAI's and of Anthropic's API.

    The first line printed is the address; a curl and a Python snippet follow. Ctrl-C lets running
    requests end; a second Ctrl-C does not.
    """
    needed = ("uvicorn", "httptools", "starlette", "pydantic", "prometheus_client")
    missing = [module for module in needed if not importlib.util.find_spec(module)]
    if missing:
        raise KeifuError(f"serving needs {', '.join(missing)}: pip install 'keifu[serve]'")
    from keifu.server.models import offers
    from keifu.server.run import greeting, listen, serve
    from keifu.server.settings import Limits

    follow(offer.tensor_parallel)
    if offer.tensor_parallel > 1 and offer.replicas > 1:
        raise KeifuError("--replicas and --tensor-parallel do not go together yet: choose one")
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="keifu: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    access = door.access()
    offered = offers(offer.model, offer.alias)
    limits = Limits(parallel=offer.parallel, queue=offer.queue, deadline=deadline)
    bound = listen(door.host, door.port)
    hello = greeting(bound, offered[0].id, access.key is not None)
    if offer.replicas == 1:
        print(hello, flush=True)
        serve(bound, _service(offer, limits, access, strict))
        return
    from keifu.server.replicas import Fleet, serve_replicas

    host, port = bound.getsockname()[:2]
    bound.close()  # Ray's proxy listens there instead
    cores = offer.threads or max(1, (os.cpu_count() or 1) // offer.replicas)
    make = partial(_service, replace(offer, threads=cores), limits, access, strict)
    fleet = Fleet(
        replicas=offer.replicas, host=host, port=port, make=make, limits=limits, cores=cores
    )
    serve_replicas(fleet, hello)


def _service(offer: Offer, limits: Limits, access: Access, strict: bool) -> Service:
    """What one process serves."""
    from keifu.server.app import service
    from keifu.server.models import Models, offers, quiet_heap

    offered = offers(offer.model, offer.alias)
    models = Models(offered, offer.load, offer.idle_unload, quiet_heap)
    compat = offer.metrics_compat
    return service(models, limits=limits, access=access, strict=strict, compat=compat)


def size(text: str) -> int:
    """Bytes of "2GB", "512MiB", "1000000"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if not found:
        raise KeifuError(f"--max-memory {text!r} is no size: write 2GB or 512MiB")
    number, unit, binary = found.groups()
    scale = 1024 ** " KMGT".index(unit.upper()) if binary and unit else _UNITS[unit.upper()]
    return int(float(number) * scale)

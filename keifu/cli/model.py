"""Opening a model from the command line: which one, on what, fetched first if it is not here."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from keifu.cli.options import Option
from keifu.core.errors import KeifuError

if TYPE_CHECKING:
    from keifu.lm.base import LM

DEFAULT = "smollm2-135m"
REMOTE = ("openai", "anthropic", "gemini", "http", "https")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model runs, and how."""

    model: str = field(default=DEFAULT, metadata={"option": Option("-m", "--model")})
    """Name, path, hub id, or URL of a server; `keifu models list` shows what is here"""
    ctx: int | None = None
    """Tokens of context to hold (default: what the model was made for, as memory allows)"""
    window: int | None = None
    """Tokens to look back on; what is older is forgotten, and a text may have any length"""
    sinks: int = 4
    """First tokens that stay visible beside a window"""
    threads: int | None = None
    """Threads to compute with (default: the cores this process may use)"""
    device: str | None = None
    """Where to run: cpu, cuda, mps (default: the fastest that is there)"""
    precision: Literal["default", "exact"] = "default"
    """`exact` computes in float32 throughout, for comparisons"""
    state: Literal["default", "bf16", "int8"] = "default"
    """How keys and values are kept (default: the faster)"""
    quantize: Literal["none", "int8", "int4", "fp8"] = "none"
    """Pack dense weights in fewer bits once they are read"""
    experts: Literal["resident", "mapped"] = "resident"
    """`mapped` reads a mixture's experts from its files as a text needs them"""
    retrieve: int | None = None
    """Let each head of an encoder-decoder read so many places of a source of any length"""
    speculate: str = "none"
    """Guess ahead: none, lookup, draft:MODEL, early-exit[:LAYERS]; same output up to rounding"""
    tensor_parallel: int = 1
    """Processes that share the model and its state, each with a part of every layer"""
    no_prefix_cache: bool = False
    """Read every text from its beginning, also what begins like an earlier one"""
    deterministic: bool = False
    """Compute the same to the last bit whatever else runs (slower)"""
    offline: bool = False
    """Never use the network"""

    def __post_init__(self) -> None:
        """Refuse what no machine can do."""
        for name, value, least, most in (
            ("ctx", self.ctx, 1, 2**24),
            ("window", self.window, 1, 2**24),
            ("sinks", self.sinks, 0, 1024),
            ("retrieve", self.retrieve, 1, 2**24),
            ("threads", self.threads, 1, 1024),
            ("tensor-parallel", self.tensor_parallel, 1, 64),
        ):
            if value is not None and not least <= value <= most:
                raise KeifuError(f"--{name} {value} is not allowed: from {least} to {most}")


def find(options: ModelOptions, *, quiet: bool = False) -> None:
    """Fetch the model if it is not on this machine, saying so; a remote one needs nothing."""
    if options.offline:
        os.environ["KEIFU_OFFLINE"] = "1"  # whoever would fetch later is bound by it too
    if options.model.partition(":")[0] in REMOTE:
        return
    from keifu.lm.cards import find as card

    if card(options.model):
        return
    from keifu.cli.fetch import fetch

    fetch(options.model, offline=options.offline or None, quiet=quiet)


def load(options: ModelOptions, **more: Any) -> LM:
    """The model, ready to answer; `more` goes to `keifu.load`. Raises KeifuError."""
    import keifu.lm

    follow(options.tensor_parallel)
    return keifu.lm.load(
        options.model,
        ctx=options.ctx,
        window=options.window,
        sinks=None if options.window is None else options.sinks,
        threads=options.threads,
        device=options.device,
        precision=None if options.precision == "default" else options.precision,
        state=None if options.state == "default" else options.state,
        quantize=None if options.quantize == "none" else options.quantize,
        experts=None if options.experts == "resident" else options.experts,
        retrieve=options.retrieve,
        speculate=None if options.speculate == "none" else options.speculate,
        tensor_parallel=None if options.tensor_parallel == 1 else options.tensor_parallel,
        prefixes=False if options.no_prefix_cache else None,
        deterministic=options.deterministic or None,
        **more,
    )


def follow(processes: int) -> None:
    """Where torchrun started this process, and not as the first: run with that one until it ends,
    and leave."""
    if processes > 1 and int(os.environ.get("RANK", "0")) > 0:
        from keifu.lm.processes import join

        join()
        sys.exit(0)


def warn(text: str) -> None:
    """One line on stderr that is no failure."""
    print(f"keifu: {text}", file=sys.stderr, flush=True)

"""Keifu as a subject of benchmarks: `python -m keifu.lm.subject`, and what a token costs at least.

Beside the requests of `peers` it answers:

    {"do": "ceilings", "threads": 2}  ->  what the machine can do at most
    {"do": "meter", "model": "x.gguf", "context": 4096, "threads": 2, "precision": "default"}
    {"do": "cost", "length": 1024, "windows": 3, "window": 16}  ->  what a token costs there
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

from keifu.lm import peers


class Ours:
    """Keifu as a subject: what `keifu.load` gives."""

    def __init__(self) -> None:
        import torch

        import keifu
        import keifu.lm.opening

        self.version = f"{keifu.__version__} (torch {torch.__version__})"
        self._lm: Any = None

    def load(self, model: str, threads: int, context: int, streams: int = 1) -> Mapping[str, Any]:
        """As `keifu chat` does; as `keifu serve --parallel` for several streams."""
        from keifu.lm import load

        many = {"parallel": streams} if streams > 1 else {}
        self._lm = load(model, threads=threads, ctx=context, **many)
        engine = self._lm.engine
        return {
            "weights": "as in the file",
            "path": type(engine.runners[0]).__name__,
            "why_plain": engine.why_plain,
            "vocab": self._lm.tokenizer.vocab_size,
            **work(engine),
        }

    def generate(self, prompt: list[int], new: int) -> Iterable[int]:
        """Through the engine, as any request."""
        options = {"max_tokens": new, "temperature": 0, "ignore_eos": True}
        for delta in self._lm.complete_stream(prompt, **options):
            yield from delta.tokens

    def together(self, prompts: list[list[int]], new: int) -> list[list[float]]:
        """As many requests to the engine, which batches them as it does any."""
        from keifu.inference.request import Delta, Sampling
        from keifu.inference.stream import Stream

        class Clock(Stream):
            """Notes when tokens come, in the engine's own thread."""

            def __init__(self) -> None:
                super().__init__()
                self.times: list[float] = []

            def put(self, delta: Delta) -> None:
                self.times += [time.perf_counter()] * len(delta.tokens)
                super().put(delta)

        options = Sampling(max_tokens=new, temperature=0, ignore_eos=True)
        clocks = [Clock() for _ in prompts]
        for prompt, clock in zip(prompts, clocks, strict=True):
            self._lm.engine.submit(prompt, options, stream=clock)
        for clock in clocks:
            clock.result()
        return [clock.times for clock in clocks]

    def logprobs(self, tokens: list[int]) -> list[float]:
        """Through the engine's prompt log-probabilities."""
        return list(self._lm.score(tokens[:1], tokens[1:]).logprobs)


def work(engine: Any) -> dict[str, int]:
    """What one token costs at least, from the built model.

    `bytes`: weights read (each block use, the head or the tied table once); `state`: bytes of
    state a token of context adds to that; `flops`: products with weights, without the head.
    """
    from keifu.nn.linear import Linear, Weight

    model = engine.model
    uses = [m for i in model.spec.order() for m in model.blocks[i].modules()]
    products = [m for m in uses if isinstance(m, Linear)]
    head = [m for m in model.head.modules() if isinstance(m, Weight)] if model.head else []
    read: list[Weight] = [*products, *(head or [model.input.table])]
    return {
        "bytes": sum(map(_stored, read)),
        "state": engine.pool.token_bytes,
        "flops": 2 * sum(m.inputs * m.outputs for m in products),
    }


def _stored(weight: Any) -> int:
    if weight.weight is not None:
        return int(weight.weight.nbytes)
    return sum(int(piece.data.nbytes) for piece in weight.pieces)


def ceilings(threads: int) -> dict[str, float]:
    """Bytes and bfloat16 operations a second, measured in this process."""
    import torch

    from keifu.inference.ceilings import bandwidth, matrix_peak

    torch.set_num_threads(threads)
    return {"bandwidth": bandwidth(), "bf16": matrix_peak(torch.bfloat16)}


class Metered:
    """The one model whose costs are asked."""

    def __init__(self) -> None:
        self._meter: Any = None

    def open(self, **given: Any) -> Mapping[str, Any]:
        """Load it."""
        from keifu.lm.costs import Meter

        self._meter = Meter(**given)
        return dict(self._meter.facts())

    def cost(self, **given: Any) -> Mapping[str, Any]:
        """At one length."""
        return dataclasses.asdict(self._meter.at(**given))


if __name__ == "__main__":
    metered = Metered()
    peers.serve(Ours, {"ceilings": ceilings, "meter": metered.open, "cost": metered.cost})

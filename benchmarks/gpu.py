"""A 1B-class Llama on a GPU, with random weights made there, beside `transformers` and the limits.

Limits are measured in the same run: bytes copied a second (of decoding, whose floor is the weights
and the state read once a token) and bfloat16 matrix products a second (of prompts). A step is the
runner's alone, with the choice of tokens; the engine's is what a user gets. Without a GPU there is
nothing to compare, and nothing is stored.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keifu.families.llama import Llama
from keifu.inference.ceilings import matrix_peak
from keifu.inference.choosing import Chooser, choose
from keifu.inference.chunks import chunk_of
from keifu.inference.device import DevicePlan
from keifu.inference.engine import Engine
from keifu.inference.plans import runners
from keifu.inference.request import Sampling
from keifu.inference.runner import Feed, TorchRunner
from keifu.nn.kernels.formats_rows import units
from keifu.nn.linear import Weight
from keifu.nn.packing import pack
from keifu.nn.part import build
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool, state_bytes
from keifu.text.tokenizer import Tokenizer

FAMILY = Llama(
    vocab=128256, width=2048, hidden=8192, depth=16, heads=32, kv_heads=8, head_width=64,
    context=8192, rope_base=500000.0, tied=True,
)  # fmt: skip
"""Llama 3.2 1B's shape (its rotary scaling costs nothing once the tables are made)."""
CONTEXT, TOKENS, ROUNDS = 512, 128, 5
BATCHES = (1, 16, 64)
SHARE, TIMES = 0.7, 3.0
"""The bars: of the copy bandwidth, and times `transformers`, at batch 1."""
DTYPE = torch.bfloat16
NONE = {"not comparable": "there is no CUDA device here"}


def measure(path: Path, *, threads: int, python: str | None = None) -> Mapping[str, Any]:
    """All of it: about ten minutes, most of them torch's compiler."""
    if not torch.cuda.is_available():
        return NONE
    device = torch.device("cuda")
    copied, peak = copy_bandwidth(device), matrix_peak(DTYPE, "cuda")
    facts = torch.cuda.get_device_properties(device)
    found: dict[str, Any] = {
        "gpu": f"{facts.name}, torch {torch.__version__}",
        "limits": {"copy GB/s": copied / 1e9, "bf16 TFLOP/s": peak / 1e12},
    }
    model = made(FAMILY, device)
    theirs = timed_generate(FAMILY, device)
    for batch in BATCHES:
        told = decoding(model, FAMILY, batch, device, copied, lambda m, p, c: runners(m, p, c)[0])
        if batch == 1:
            told["times transformers"] = theirs["ms a token"] / told["engine ms a token"]
            told["holds"] = (
                told["engine share of copy"] >= SHARE and told["times transformers"] >= TIMES
            )
        found[f"decode, batch {batch}, {CONTEXT} tokens"] = told
    found["transformers generate, batch 1"] = theirs
    found[f"prefill, {chunk_of(device)} tokens"] = prefill(model, device, peak)
    for kind in ["int8", "int4", *(["fp8"] if units(device) else [])]:
        packed = made(FAMILY, device)
        pack(packed, kind)
        found[f"decode, batch 1, {kind}"] = decoding(
            packed, FAMILY, 1, device, copied, lambda m, p, c: runners(m, p, c)[0]
        )
        del packed
        torch.cuda.empty_cache()
    return found


def made(family: Llama, device: torch.device) -> StackModule:
    """Random weights, drawn on the device."""
    model = build(family.spec(), device=device)
    assert isinstance(model, StackModule)
    model = model.to(DTYPE).eval()
    drawn = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02, generator=drawn)
            else:
                parameter.fill_(1.0)
    return model


def copy_bandwidth(device: torch.device, size: int = 1 << 30) -> float:
    """Bytes read and written a second by a copy within the device."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / best(lambda: target.copy_(source), device)


def best(work: Callable[[], object], device: torch.device, runs: int = 10) -> float:
    """The shortest of several runs in seconds, after two to warm up."""
    times = []
    for _ in range(runs + 2):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return min(times[2:])


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_bytes(model: StackModule, batch: int) -> int:
    """Bytes that one step reads at least: weights as kept, a tied table once, and the state."""
    weights = 0
    for module in model.modules():
        if isinstance(module, Weight) and module.pieces:
            weights += sum(piece.nbytes for piece in module.pieces)
    weights += sum(p.nbytes for p in model.parameters())
    return weights + batch * CONTEXT * state_bytes(model.spec.entries(), DTYPE)[1]


def pool_of(model: StackModule, batch: int, device: torch.device) -> StatePool:
    """Room for so many requests of the context and what follows it."""
    entries = model.spec.entries()
    room = (batch + 1) * (CONTEXT + 2 * TOKENS + 64) * state_bytes(entries, DTYPE)[1]
    return StatePool(entries, budget=room, dtype=DTYPE, device=device)


Fast = Callable[[StackModule, StatePool, int], Sequence[Any]]


def decoding(
    model: StackModule, family: Llama, batch: int, device: torch.device, copied: float, fast: Fast
) -> dict[str, Any]:
    """Milliseconds a step of the runner alone and of the engine, and shares of the limit."""
    began = time.perf_counter()
    step, told = stepper(model, batch, device, fast)
    step(4)
    wait(device)
    ready = time.perf_counter() - began
    seconds = statistics.median(timed(lambda: step(TOKENS // ROUNDS), device)[0] / (
        TOKENS // ROUNDS) for _ in range(ROUNDS))  # fmt: skip
    floor = read_bytes(model, batch) / copied
    engine = of_engine(model, family, batch, device, fast)
    return {
        "step ms": seconds * 1e3,
        "step share of copy": floor / seconds,
        "engine ms a token": engine * 1e3,
        "engine share of copy": floor / engine,
        "tokens/s": batch / engine,
        "GB a step": read_bytes(model, batch) / 1e9,
        "seconds to compile": ready,
        "peak GB": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0,
        "way": told,
    }


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """Seconds of one call, until the device is done."""
    wait(device)
    began = time.perf_counter()
    out = work()
    wait(device)
    return time.perf_counter() - began, out


def stepper(
    model: StackModule, batch: int, device: torch.device, fast: Fast
) -> tuple[Callable[[int], None], str]:
    """What decodes some tokens more of requests that have read CONTEXT random ones."""
    pool = pool_of(model, batch, device)
    ways = [*fast(model, pool, CONTEXT + 2 * TOKENS), TorchRunner(model, pool)]
    states = [pool.open() for _ in range(batch)]
    asks = [(Chooser(Sampling(temperature=0.0)), 0, row) for row in range(batch)]
    last = [1] * batch

    def read(rows: list[int], ids: list[int], lengths: list[int]) -> Tensor:
        chosen = [states[r] for r in rows]
        for state, n in zip(chosen, lengths, strict=True):
            pool.reserve(state, n)
        limits = [CONTEXT + 2 * TOKENS] * len(rows)
        feed = Feed(ids=ids, states=chosen, lengths=lengths, limits=limits, compute=DTYPE)
        runner = next(w for w in ways if w.takes(lengths, chosen))
        ends = [end - 1 for end in accumulate(lengths)]
        with torch.inference_mode():
            logits: Tensor = runner.run(feed, ends)
        for state, n in zip(chosen, lengths, strict=True):
            pool.advance(state, n)
        return logits

    for row in range(batch):
        ids = torch.randint(0, 200, (CONTEXT,), generator=torch.Generator().manual_seed(row))
        read([row], ids.tolist(), [CONTEXT])

    def step(count: int) -> None:
        nonlocal last
        for _ in range(count):
            logits = read(list(range(batch)), last, [1] * batch)
            last = choose(asks, logits)

    return step, type(ways[0]).__name__


def plain_tokenizer() -> Tokenizer:
    """A byte a token: ids beyond have no text."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = Rust(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    return Tokenizer(rust)


def of_engine(
    model: StackModule, family: Llama, batch: int, device: torch.device, fast: Fast
) -> float:
    """Seconds a step while all requests of an engine decode."""
    entries = model.spec.entries()
    room = 2 * (batch + 1) * (CONTEXT + TOKENS + 64) * state_bytes(entries, DTYPE)[1]
    engine = Engine(
        model,
        plain_tokenizer(),
        context=CONTEXT + TOKENS + 8,
        parallel=batch,
        budget=room,
        dtype=DTYPE,
        device=device,
        prefixes=False,
        runners=lambda m, p, c: (list(fast(m, p, c)), ""),
    )
    asked = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    try:
        for _ in range(2):  # the first compiles
            prompts = [
                torch.randint(0, 200, (CONTEXT,), generator=torch.Generator().manual_seed(r))
                for r in range(batch)
            ]
            streams = [engine.submit(p.tolist(), asked) for p in prompts]
            done = [stream.result() for stream in streams]
        # The last request to begin decodes among all the others.
        return min(d.timings.decode for d in done) / (TOKENS - 1)
    finally:
        engine.close()


def prefill(model: StackModule, device: torch.device, peak: float) -> dict[str, Any]:
    """One chunk of a prompt on the plain path."""
    tokens = min(chunk_of(device), FAMILY.context)
    entries = model.spec.entries()
    pool = StatePool(
        entries, budget=(tokens + 64) * state_bytes(entries, DTYPE)[1], dtype=DTYPE, device=device
    )
    runner, state = TorchRunner(model, pool), pool.open()
    ids = torch.randint(0, 200, (tokens,)).tolist()

    def read() -> None:
        pool.restore(state, 0)
        pool.reserve(state, tokens)
        feed = Feed(ids=ids, states=[state], lengths=[tokens], limits=[tokens], compute=DTYPE)
        with torch.inference_mode():
            runner.run(feed, [tokens - 1])

    seconds = best(read, device, runs=5)
    spec: Any = model.spec
    products = sum(p.numel() for b in model.blocks for p in b.parameters() if p.dim() > 1)
    attention = len(spec.blocks) * 2 * tokens * tokens * FAMILY.width  # half of it is masked
    done = 2 * products * tokens + attention
    return {
        "tokens/s": tokens / seconds,
        "TFLOP/s": done / seconds / 1e12,
        "share of peak": done / seconds / peak,
    }


def timed_generate(family: Llama, device: torch.device) -> dict[str, Any]:
    """`transformers`' generate with the same shape, weights of its own, bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{k: v for k, v in family.to_hf().items() if k != "architectures"})
    with torch.device(device):
        other: Any = LlamaForCausalLM(config).to(DTYPE).eval()
    ids = torch.randint(0, 200, (1, CONTEXT), device=device)

    def generate(count: int) -> None:
        with torch.inference_mode():
            other.generate(
                ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
            )

    generate(8)
    seconds = [
        (timed(lambda: generate(16 + TOKENS // 2), device)[0]
         - timed(lambda: generate(16), device)[0]) / (TOKENS // 2)
        for _ in range(ROUNDS)
    ]  # fmt: skip
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {"ms a token": statistics.median(seconds) * 1e3}


def eager(model: StackModule, pool: StatePool, context: int) -> Sequence[Any]:
    """The same plan without a compiler, for tests of this file on a processor."""
    return [DevicePlan(model, pool, context, backend=None)]

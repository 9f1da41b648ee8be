"""Mixers without attention beside transformers' paths without CUDA kernels, and the limits.

Four layers of Mamba 130M's shape with random weights, the same in both: a prompt, and one token
after another; tokens also with four of Mamba-2 130M's and six of a small Griffin's. Subjects take
turns; ratios are taken within a round, then their median. The limit of the prompt is its matrix
products alone, that of a token the time to read the weights once.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from keifu.families import Family
from keifu.families.griffin import Griffin
from keifu.families.mamba import MambaFamily
from keifu.families.mamba2 import Mamba2Family
from keifu.inference.plans import runners
from keifu.inference.runner import Feed, TorchRunner
from keifu.nn.kernels import native, scans
from keifu.nn.linear import Linear
from keifu.nn.stack import StackModule
from keifu.nn.state import StatePool
from keifu.nn.step import fresh_step

TOKENS, DECODED, ROUNDS = 2048, 32, 5
FORWARD_BAR, DECODE_BAR = 5.0, 2.0
FAMILY = MambaFamily(vocab=4096, depth=4)
OTHERS: Mapping[str, Family] = {
    "mamba-2": Mamba2Family(vocab=4096, depth=4, width=768, heads=24, groups=1, tied=True),
    "griffin": Griffin(vocab=4096, depth=6, width=1024, hidden=3072, heads=8, kv_heads=1),
}


def ours(family: Family, dtype: torch.dtype) -> StackModule:
    """Our model."""
    model = family.spec().build()
    assert isinstance(model, StackModule)
    return model.initialise(seed=0).eval().to(dtype)


def theirs(family: Family, model: StackModule) -> Any:
    """Theirs, with the same weights, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from keifu.checkpoints.transfer import empty

    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(family.to_hf()))
        config = AutoConfig.from_pretrained(folder)
    other = AutoModelForCausalLM.from_config(config).eval()
    state = {n: t for n, t in empty(model, family.names()) if isinstance(t, Tensor)}
    told = other.load_state_dict(state, strict=False)
    if told.unexpected_keys or set(told.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"their weights have other names: {told}")
    return other.float()


def forward(model: StackModule, ids: Tensor, compute: torch.dtype | None) -> Tensor:
    """Logits of the last token."""
    step = replace(fresh_step([len(ids)]), compute=compute)
    logits = model.run(ids, step, select=torch.tensor([len(ids) - 1])).logits
    assert logits is not None
    return logits


def reader(model: StackModule, dtype: torch.dtype) -> Callable[[int], Tensor]:
    """What reads one token more, as the engine does in this precision, and gives its logits."""
    pool = StatePool(model.spec.entries(), budget=1 << 26, slots=1, dtype=dtype)
    fast, _ = runners(model, pool, TOKENS)
    compute = None if dtype == torch.float32 else dtype
    runner = TorchRunner(model, pool) if compute is None or not fast else fast[0]
    state = pool.open()

    def read(token: int) -> Tensor:
        if state.length == TOKENS:
            pool.restore(state, 0)
        pool.reserve(state, 1)
        feed = Feed(ids=[token], states=[state], lengths=[1], limits=[TOKENS], compute=compute)
        logits = runner.run(feed, [0])
        pool.advance(state, 1)
        return logits.reshape(-1)

    return read


def other_reader(model: Any) -> Callable[[int], Tensor]:
    """The same with theirs.

    RecurrentGemma gives no cache back: one that is not passed in is forgotten, and each token is
    read as the first.
    """
    from transformers import DynamicCache

    past: dict[str, Any] = {}
    if model.config.model_type == "recurrent_gemma":
        past["past_key_values"] = DynamicCache(config=model.config)

    def read(token: int) -> Tensor:
        out = model(torch.tensor([[token]]), **past, use_cache=True)
        for name in ("cache_params", "past_key_values"):
            if out.get(name) is not None:
                past[name] = out[name]
        logits: Tensor = out.logits[0, -1]
        return logits

    return read


def decoder(read: Callable[[int], Tensor]) -> Callable[[], None]:
    """What decodes DECODED tokens each time it is called."""

    def decode() -> None:
        token = 1
        for _ in range(DECODED):
            token = int(read(token).argmax())

    return decode


def difference(model: StackModule, other: Any) -> float:
    """The largest of float32 logits over DECODED tokens, the same for both, each read alone."""
    ours, theirs = reader(model, torch.float32), other_reader(other)
    ids = torch.randint(
        other.config.vocab_size, (DECODED,), generator=torch.Generator().manual_seed(0)
    )
    return max(float((ours(t) - theirs(t)).abs().max()) for t in ids.tolist())


def products(model: StackModule) -> Callable[[], None]:
    """The prompt's matrix products and nothing else."""
    layers = [m for b in model.blocks for m in b.modules() if isinstance(m, Linear)]
    given = [torch.randn(TOKENS, m.inputs).to(torch.bfloat16) for m in layers]

    def run() -> None:
        for layer, x in zip(layers, given, strict=True):
            layer.project(x)

    return run


def reading(model: StackModule) -> Callable[[], None]:
    """The weights of DECODED tokens, read once each."""
    flat = [p.detach().view(-1).view(torch.int16) for p in model.parameters() if p.dim() > 1]

    def run() -> None:
        for _ in range(DECODED):
            for p in flat:
                p.max()

    return run


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def compared(
    runs: Mapping[str, Callable[[], Any]], limit: str, bar: float | None, each: int = 1
) -> dict[str, Any]:
    """Seconds of each run, `each` things at a time, and ratios to theirs and to the limit."""
    for run in runs.values():
        run()
    rounds = [{n: timed(run) for n, run in runs.items()} for _ in range(ROUNDS)]

    def ratio(a: str, b: str) -> float:
        return statistics.median(r[a] / r[b] for r in rounds)

    seconds = {f"seconds, {n}": statistics.median(r[n] for r in rounds) / each for n in runs}
    found = {**seconds, "default / theirs": ratio("theirs", "default")}
    if "exact" in runs:
        found["float32 / theirs"] = ratio("theirs", "exact")
    found[f"{limit} / default"] = ratio(limit, "default")
    if bar is not None:
        found |= {"bar": bar, "holds": found["default / theirs"] >= bar}
    return found


def decoded(family: Family, bar: float | None) -> dict[str, Any]:
    """One token after another."""
    exact, fast = ours(family, torch.float32), ours(family, torch.bfloat16)
    differ = difference(exact, theirs(family, exact))
    runs: dict[str, Callable[[], Any]] = {
        "theirs": decoder(other_reader(theirs(family, exact))),
        "exact": decoder(reader(exact, torch.float32)),
        "default": decoder(reader(fast, torch.bfloat16)),
        "reading": reading(fast),
    }
    found = compared(runs, "reading", bar, DECODED)
    return {f"largest difference over {DECODED} tokens": differ, **found}


@torch.no_grad()
def measure(path: Path | None, *, threads: int, python: str | None) -> Mapping[str, Any]:
    """Ratios of time to transformers', and to the limits."""
    torch.set_num_threads(threads)
    if native.available():
        native.set_threads(threads)
    exact, fast = ours(FAMILY, torch.float32), ours(FAMILY, torch.bfloat16)
    other = theirs(FAMILY, exact)
    ids = torch.randint(FAMILY.vocab, (TOKENS,), generator=torch.Generator().manual_seed(0))
    differ = (forward(exact, ids, None) - other(ids[None]).logits[0, -1:]).abs().max()
    prompts: dict[str, Callable[[], Any]] = {
        "theirs": lambda: other(ids[None]),
        "exact": lambda: forward(exact, ids, None),
        "default": lambda: forward(fast, ids, torch.bfloat16),
        "products": products(fast),
    }
    return {
        "native kernels": ", ".join(scans.features()) or scans.why(),
        "largest difference of float32 logits": float(differ),
        "2048 tokens": compared(prompts, "products", FORWARD_BAR),
        "one token": decoded(FAMILY, DECODE_BAR),
        **{f"one token, {name}": decoded(family, None) for name, family in OTHERS.items()},
    }

"""What `keifu doctor` looks at: each function looks at one thing and says what it means."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import keifu
from keifu.cli import settings
from keifu.cli.table import size
from keifu.core import machine
from keifu.core.errors import KeifuError
from keifu.core.folders import writable_folder

Level = Literal["ok", "note", "slow", "broken"]


@dataclass(frozen=True)
class Fact:
    """One thing that was found; what is not "ok" says why, and what to do about it."""

    name: str
    value: str
    level: Level = "ok"
    why: str = ""
    remedy: str = ""


def software() -> Iterator[Fact]:
    """Versions."""
    yield Fact("python", ".".join(map(str, sys.version_info[:3])))
    yield Fact("keifu", keifu.__version__)
    for name in ("torch", "numpy", "tokenizers", "safetensors"):
        if found := _version(name):
            yield Fact(name, found)
        else:
            why = "Keifu cannot run without it"
            yield Fact(name, "not installed", "broken", why, f"pip install {name}")


def cores() -> Iterator[Fact]:
    """What may compute."""
    seen, cores, quota = machine.affinity(), machine.physical(), machine.quota()
    parts = [f"{seen} logical"]
    parts += [f"{cores} physical"] if cores else []
    parts += [f"quota {quota:g}"] if quota else []
    why = remedy = ""
    level: Level = "ok"
    if quota and quota < (cores or seen):
        level, why = "note", f"the container grants {quota:g} cores' time of {cores or seen}"
        remedy = "raise its CPU limit; --threads follows it by default"
    if machine.threads() == 1:
        level, why = "slow", why or "one core does all the work"
        remedy = remedy or "a machine or a container with more cores"
    yield Fact("cores", ", ".join(parts), level, why, remedy)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) < machine.threads():
        why = f"OMP_NUM_THREADS={asked} keeps torch below the {machine.threads()} usable cores"
        yield Fact("threads", asked, "slow", why, "unset OMP_NUM_THREADS")
    else:
        yield Fact("threads", str(machine.threads()))
    if os.name == "posix" and (busy := os.getloadavg()[0]) > machine.affinity():
        why = f"{busy:.0f} programs want {machine.affinity()} cores, so everything waits"
        yield Fact("load", f"{busy:.1f}", "slow", why, "let other programs finish first")


def memory() -> Iterator[Fact]:
    """What models may fill."""
    found = machine.memory()
    text = f"{size(found.available)} free of {size(found.limit or found.total)}"
    if found.available < 1 << 30:
        why = "the default model needs about 0.5 GB, a 7B model in 4 bits about 5 GB"
        remedy = "close other programs, or raise the container's memory limit"
        yield Fact("memory", text, "slow", why, remedy)
    elif found.limit and found.limit < found.total // 2:
        why = f"the container may use {size(found.limit)} of {size(found.total)}"
        yield Fact("memory", text, "note", why, "raise its memory limit for larger models")
    else:
        yield Fact("memory", text)


def processor() -> Iterator[Fact]:
    """What arithmetic there is in hardware."""
    yield Fact("processor", machine.processor())
    flags = machine.features()
    names = ", ".join(machine.FEATURES[flag] for flag in flags) or "none known"
    wide = {"avx512f", "asimd"} & set(flags)
    small = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(flags)
    half = {"avx512_bf16", "amx_bf16", "bf16"} & set(flags)
    if not (wide or "avx2" in flags):
        why = "without AVX2 or NEON all arithmetic is several times slower"
        yield Fact("instructions", names, "slow", why, "another processor, or the host's CPU flags")
    elif not small:
        why = "there are no int8 dot products, so 4- and 8-bit weights are unpacked to floats"
        yield Fact("instructions", names, "note", why, "nothing: this processor lacks them")
    elif not half:
        why = "there are no bf16 products, so prompts are read in float32, about half as fast"
        yield Fact("instructions", names, "note", why, "nothing: this processor lacks them")
    else:
        yield Fact("instructions", names)


def kernels() -> Iterator[Fact]:
    """Whether the fast path for packed weights runs."""
    from keifu.nn.kernels import native

    if native.available():
        kinds = f"{native.current()} (of {', '.join(native.features())})"
        yield Fact("native kernels", f"{kinds}; encoder-decoders decode in plain torch")
        return
    reason, _, remedy = native.why().partition(": ")
    why = f"decoding falls back to plain torch: {reason}"
    yield Fact("native kernels", "not available", "slow", why, remedy or "reinstall keifu")


def accelerators() -> Iterator[Fact]:
    """What else could compute, and whether torch can use it."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts, (left, _) = (
                torch.cuda.get_device_properties(index),
                torch.cuda.mem_get_info(index),
            )
            half = "bfloat16" if (facts.major, facts.minor) >= (8, 0) else "float32 is safer"
            eight = ", fp8 products" if (facts.major, facts.minor) >= (8, 9) else ""
            text = f"{facts.name}, {size(facts.total_memory)} ({size(left)} free), {half}{eight}"
            yield from _recorded(f"cuda:{index}", text)
    elif torch.backends.mps.is_available():
        yield Fact("mps", "Apple GPU")
    elif Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists():
        build = torch.version.cuda or torch.version.hip or "for processors only"
        why = f"there is a GPU, but torch (built {build}) cannot use it"
        remedy = "install the torch build for it, from pytorch.org"
        yield Fact("gpu", "unusable", "slow", why, remedy)
    else:
        yield Fact("gpu", "none: models run on the processor")


def _recorded(name: str, text: str) -> Iterator[Fact]:
    """A GPU, and whether its steps are compiled: torch does that with Triton."""
    if _version("triton") or _version("pytorch-triton") or _version("triton-windows"):
        yield Fact(name, f"{text}; steps are compiled and recorded")
        return
    why = "torch compiles for a GPU with Triton, which is not installed"
    yield Fact(name, text, "slow", why, "pip install triton")


def storage() -> Iterator[Fact]:
    """Where models and conversations go."""
    try:
        folder, temporary = writable_folder("models")
    except KeifuError as wrong:
        yield Fact("store", "none", "broken", str(wrong), "set KEIFU_HOME to a writable folder")
        return
    free = shutil.disk_usage(folder).free
    text = f"{folder}, {size(free)} free"
    if temporary:
        why = "the home folder cannot be written, so models vanish with the temporary folder"
        yield Fact("store", text, "note", why, "set KEIFU_HOME to a writable folder")
    elif free < 1 << 30:
        why = "less than 1 GB is free for models"
        yield Fact("store", text, "note", why, "free some space, or set KEIFU_HOME")
    else:
        yield Fact("store", text)


def extras() -> Iterator[Fact]:
    """Which optional parts are installed."""
    try:
        wanted = importlib.metadata.requires("keifu") or []
    except importlib.metadata.PackageNotFoundError:
        return
    names: dict[str, list[str]] = {}
    for line in wanted:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        package = re.match(r"[A-Za-z0-9._-]+", line)
        if extra and package and package[0] != "keifu":
            names.setdefault(extra[1], []).append(package[0])
    for extra_name, packages in sorted(names.items()):
        missing = [package for package in packages if not _version(package)]
        text = "installed" if not missing else f"lacks {', '.join(missing)}"
        if missing and extra_name in ("serve", "text", "constrain"):
            why = {
                "serve": "`keifu serve` needs it",
                "text": "SentencePiece and tiktoken tokenizers need it",
                "constrain": "answers that follow a JSON schema need it",
            }[extra_name]
            yield Fact(
                f"extra {extra_name}", text, "note", why, f"pip install 'keifu[{extra_name}]'"
            )
        else:
            yield Fact(f"extra {extra_name}", text)


def environment() -> Iterator[Fact]:
    """The config file, and the variables that are set and honoured."""
    path = settings.config_path()
    yield Fact("config file", str(path) if path.is_file() else f"none ({path})")
    secret = re.compile(r"KEY|TOKEN|SECRET")
    for name in sorted(os.environ):
        if name in settings.VARIABLES or name.startswith("KEIFU_"):
            value = "(set)" if secret.search(name) else os.environ[name]
            yield Fact(name, value or "(empty)")
    if not (sys.stdout.encoding or "").lower().startswith("utf"):
        why = f"the terminal's encoding is {sys.stdout.encoding}: other characters show as ?"
        yield Fact("encoding", str(sys.stdout.encoding), "note", why, "set LANG to a UTF-8 locale")


def ceilings() -> Iterator[Fact]:
    """The two speed limits, measured."""
    import torch

    from keifu.inference.ceilings import measure

    torch.set_num_threads(machine.threads())
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        found = measure(device)
        default = 98.4e6  # bytes of the default model's weights, read once a token
        yield Fact(
            f"{device} bandwidth",
            f"{found.bandwidth / 1e9:.1f} GB/s: at most {found.bandwidth / default:.0f} tokens/s "
            f"with the default model",
        )
        text = f"{found.bf16 / 1e9:.0f} GFLOP/s in bf16, {found.fp32 / 1e9:.0f} in float32"
        if found.bf16 < 0.8 * found.fp32:
            why = "bf16 products are slower than float32 here"
            yield Fact(f"{device} products", text, "note", why, "use --precision exact and compare")
        else:
            yield Fact(f"{device} products", text)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

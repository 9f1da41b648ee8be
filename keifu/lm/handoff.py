"""Handing a checkpoint to another program: what it can load, in which form, how it is started."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from keifu.checkpoints.gguf import GGUFFile
from keifu.core.errors import KeifuError, unknown
from keifu.families import families
from keifu.families._convert import ConvertOptions, Report, convert
from keifu.families._export import DENSE
from keifu.families._load import Checkpoint, open_checkpoint
from keifu.lm.tools import detect
from keifu.nn.kernels.formats import FORMATS

VLLM = frozenset(
    "BloomForCausalLM FalconForCausalLM FalconMambaForCausalLM GemmaForCausalLM Gemma2ForCausalLM "
    "Gemma3ForCausalLM GPT2LMHeadModel GPTJForCausalLM GPTNeoXForCausalLM LlamaForCausalLM "
    "MambaForCausalLM Mamba2ForCausalLM MistralForCausalLM MixtralForCausalLM MptForCausalLM "
    "OPTForCausalLM PhiForCausalLM Phi3ForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM "
    "Qwen3ForCausalLM Qwen3MoeForCausalLM StableLmForCausalLM".split()
)
"""Of our architectures, those of vLLM's own registry (vllm/model_executor/models/registry.py).

The first Qwen is in it, too, but its configuration and tokenizer are code of the checkpoint's,
which an export never carries. Encoder-decoders left the registry after 0.10.2.
"""
TRANSFORMERS = VLLM | frozenset(
    "BartForConditionalGeneration EncoderDecoderModel GPTNeoXJapaneseForCausalLM "
    "MarianMTModel MBartForConditionalGeneration OpenAIGPTLMHeadModel "
    "PegasusForConditionalGeneration RecurrentGemmaForCausalLM "
    "SwitchTransformersForConditionalGeneration T5ForConditionalGeneration".split()
)
"""Of our architectures with logits, those that are classes of transformers itself."""
PARSERS = {"hermes": "hermes", "mistral": "mistral", "llama": "llama3_json"}
"""Our tool formats -> vLLM's parsers of the same text."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A program that a checkpoint can be handed to."""

    program: str
    """Its name and the version whose list this is."""
    command: Callable[[Path, Checkpoint, str], tuple[str, list[str]]]
    """What starts it on the result (whose tensors are of that type), and what to know before."""
    suffix: str = ""
    """".gguf" for a file; a Hugging Face folder otherwise."""
    architectures: frozenset[str] | None = None
    """Published classes that it has; None: whatever the format can hold."""
    dense: bool = True
    """It wants matrices that are not packed."""


def lacking(target: Target) -> list[str]:
    """Families with logits that the program cannot load, by name."""
    known = target.architectures
    if known is None:
        return []
    return sorted(
        name
        for name, family in families.items()
        if "generate" in family.tasks and family.fields.architecture not in known
    )


def _vllm(folder: Path, made: Checkpoint, kind: str) -> tuple[str, list[str]]:
    words = ["vllm", "serve", str(folder), "--served-model-name", folder.name]
    words += ["--dtype", str(DENSE[kind]).removeprefix("torch.")]
    if not made.family.unlimited:
        words += ["--max-model-len", str(made.family.context)]
    notes = []
    templates = _templates(made)
    if (folder / "chat_template.jinja").is_file():
        words += ["--chat-template", str(folder / "chat_template.jinja")]
    if not templates:
        notes.append("no chat template: vLLM answers /v1/completions alone")
    form = detect("\n".join(templates))
    if form is not None and form.name in PARSERS:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", PARSERS[form.name]]
    elif form is not None:
        notes.append(f"vLLM has no parser of this template's tool calls ({form.name})")
    return shlex.join(words), notes


def _transformers(folder: Path, made: Checkpoint, kind: str) -> tuple[str, list[str]]:
    auto = "AutoModelForSeq2SeqLM" if made.rules else "AutoModelForCausalLM"
    dtype = str(DENSE[kind])
    return (
        f"python -c {shlex.quote(_LOAD.format(auto=auto, path=str(folder), dtype=dtype))}",
        [],
    )


_LOAD = """import torch
from transformers import {auto}, AutoTokenizer
model = {auto}.from_pretrained({path!r}, dtype={dtype})
tokenizer = AutoTokenizer.from_pretrained({path!r})
print(model.config.architectures, model.num_parameters(), len(tokenizer))"""


def _llama_cpp(file: Path, made: Checkpoint, kind: str) -> tuple[str, list[str]]:
    words = ["llama-server", "--model", str(file), "--alias", file.stem]
    if not made.family.unlimited:
        words += ["--ctx-size", str(made.family.context)]
    templates = _templates(made)
    words += ["--jinja"] if templates else []
    return shlex.join(words), [] if templates else ["no chat template: ask /completion"]


def _templates(made: Checkpoint) -> list[str]:
    """The chat templates that were written; none without a tokenizer."""
    try:
        return list(made.tokenizer().marks.templates.values())
    except KeifuError:
        return []


TARGETS = {
    "vllm": Target(program="vLLM 0.14", command=_vllm, architectures=VLLM),
    "transformers": Target(
        program="transformers 5.23", command=_transformers, architectures=TRANSFORMERS
    ),
    "llama.cpp": Target(program="llama.cpp", command=_llama_cpp, suffix=".gguf", dense=False),
}
"""Every program that `keifu export --for` knows."""


@dataclass(frozen=True, kw_only=True)
class Handed:
    """What was written, and how the other program is started on it."""

    report: Report
    program: str
    type: str
    command: str
    notes: tuple[str, ...] = ()


def export(
    source: str | Path,
    target: str | Path,
    program: str,
    options: ConvertOptions = ConvertOptions(),
    *,
    say: Callable[[str], None] = lambda text: None,
) -> Handed:
    """Write a checkpoint as another program loads it, checked as `convert` checks.

    Packed matrices become bf16 where the program wants them dense and no type is asked for.

    Raises:
        KeifuError: the program is not known or lacks the architecture, the type is not one that
            it loads, or the conversion fails; nothing is left behind.
    """
    if program not in TARGETS:
        raise unknown("program to export for", program, TARGETS)
    goal, target = TARGETS[program], Path(target).expanduser()
    if goal.suffix and target.suffix != goal.suffix:
        raise KeifuError(f"{goal.program} loads one file: name it {target}{goal.suffix}")
    if not goal.suffix and target.suffix == ".gguf":
        raise KeifuError(f"{goal.program} loads a folder: choose a name without .gguf")
    if goal.dense and options.type not in (None, *DENSE):
        choice = ", ".join(DENSE)
        raise KeifuError(f"for {goal.program} a matrix is {choice}, not {options.type}: --type")
    checkpoint = open_checkpoint(source, allow_pickle=options.allow_pickle)
    _check(goal, program, checkpoint)
    notes = []
    if goal.dense and options.type is None:
        kind, packed = _type(checkpoint)
        options = replace(options, type=kind)
        if packed:
            notes.append(f"packed matrices were decoded to {kind}; --type {_others(kind)} instead")
    report = convert(source, target, options, say=say)
    made = open_checkpoint(target)
    kind = options.type or max(report.types, key=lambda name: report.types[name])
    command, more = goal.command(target, made, kind)
    return Handed(
        report=report, program=goal.program, type=kind, command=command, notes=(*notes, *more)
    )


def _check(goal: Target, program: str, checkpoint: Checkpoint) -> None:
    known = goal.architectures
    name = checkpoint.family.to_hf().get("architectures", [""])[0]
    if known is None or name in known:
        return
    able = [
        k for k, other in TARGETS.items() if k != program and name in (other.architectures or ())
    ]
    hint = f"; --for {able[0]} takes it" if able else ""
    raise KeifuError(
        f"{goal.program} has no {name or checkpoint.family_name}{hint} (of ours it lacks "
        f"{', '.join(lacking(goal))})"
    )


def _type(checkpoint: Checkpoint) -> tuple[str, bool]:
    """The type that most elements are in (bf16 where those are packed), and whether they are."""
    source, counts = checkpoint.source, dict[str, int]()
    dense = {dtype: word for word, dtype in DENSE.items()}
    for name in source.names():
        size = torch.Size(source.shape(name)).numel()
        packed = isinstance(source, GGUFFile) and source.tensors[name].format in FORMATS
        word = "packed" if packed else dense.get(source.dtype(name), "f32")
        counts[word] = counts.get(word, 0) + size
    most = max(counts, key=lambda word: counts[word])
    return ("bf16", True) if most == "packed" else (most, False)


def _others(kind: str) -> str:
    return " or ".join(word for word in DENSE if word != kind)

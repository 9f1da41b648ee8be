"""Writing a loaded checkpoint: as a Hugging Face folder or as a GGUF file, tensor by tensor."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keifu.checkpoints.download import check_room
from keifu.checkpoints.gguf import GGUFFile, write_gguf
from keifu.checkpoints.names import Names, Rule, Value
from keifu.checkpoints.safetensors import Planned, write_safetensors
from keifu.checkpoints.source import inside
from keifu.checkpoints.transfer import empty, outline, taken
from keifu.core.errors import KeifuError
from keifu.families import _gguf
from keifu.families._fields import GENERIC
from keifu.families._load import Checkpoint
from keifu.nn.kernels.formats import FORMATS, WRITABLE, Packed
from keifu.nn.linear import Weight
from keifu.nn.pair import PairModule
from keifu.nn.part import build
from keifu.nn.stack import StackModule
from keifu.text.tokenizer import Tokenizer

DENSE = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
"""Types that are not packed: GGUF's word -> ours."""
SPELLINGS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "fp16": "f16", "fp32": "f32"}
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q4_k": 14, "q6_k": 18,
              "bf16": 32}  # fmt: skip
"""`general.file_type`, llama.cpp's number of what most tensors are."""
SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
            "repetition_penalty": "penalty_repeat"}  # fmt: skip
"""Our sampling fields -> the tail of `general.sampling.*`."""
_CARRIED = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|"
    r"[\w.-]+\.(model|tiktoken|spm)|(target_)?vocab\.(json|txt)|merges\.txt|chat_template\.(jinja|json)|"
    r"generation_config\.json"
)
_TERMS = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|README)[\w.-]*", re.IGNORECASE)
_LICENSE = re.compile(r"\A---\s*\n(?:.*\n)*?license:[ \t]*[\"']?([\w.+-]+)")
_LOST = frozenset(
    "architectures model_type dtype torch_dtype auto_map transformers_version _name_or_path "
    "name_or_path quantization_config".split()
)
"""Generic keys of a config.json that are not taken over."""
VOCABULARIES = ("tokenizer.json", "*.model", "*.tiktoken", "vocab.json", "vocab.txt")
"""Files of which a folder with a tokenizer has one."""
_HEAD_BITS = ("q4_0", "q4_1", "q4_k")
"""Formats too coarse for the head, which llama.cpp then keeps in six bits."""


@dataclass
class Written:
    """What became of the tensors."""

    types: Counter[str] = field(default_factory=Counter)
    lossless: bool = True
    """Every element that was written is the one that was read."""
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True)
class Job:
    """A checkpoint, its model (matrices as they were read) and what its tensors shall be."""

    checkpoint: Checkpoint
    model: StackModule | PairModule
    tokenizer: Tokenizer | None
    wanted: str | None
    """A type of `DENSE` or `WRITABLE`; None keeps each tensor's."""

    def native(self, ours: str) -> torch.dtype:
        """The type that a parameter of ours is published in."""
        found = self.checkpoint.names.find(ours)
        assert found is not None
        return self.checkpoint.source.dtype(found[1][0][1])


def write_folder(job: Job, folder: Path) -> Written:
    """A Hugging Face folder: config.json, safetensors, the tokenizer, what it is licensed under."""
    if job.wanted in WRITABLE:
        raise KeifuError(f"{job.wanted} is a GGUF type: a folder takes {', '.join(DENSE)}")
    written, family = Written(), job.checkpoint.family
    names = family.names()
    shapes = dict(shapes_of(job, names))
    planned = []
    for ours, rule, piece, theirs in outline(job.model, names):
        dtype = DENSE[job.wanted] if job.wanted else job.native(ours)

        def make(at: tuple[str, Rule, str, str] = (ours, rule, piece, theirs),
                 dtype: torch.dtype = dtype) -> Tensor:  # fmt: skip
            value = _cast(taken(job.model, *at[:3]), dtype, at[3], written)
            return value.contiguous()

        planned.append(Planned(theirs, shapes[theirs], dtype, make))
        written.types[str(dtype).removeprefix("torch.")] += 1
    write_safetensors(folder, planned)
    main = written.types.most_common(1)[0][0]
    _json(folder / "config.json", _config(job) | family.to_hf() | {"torch_dtype": main})
    _accompany(job, folder, written)
    return written


def write_file(job: Job, path: Path) -> Written:
    """A GGUF file: the tensors, the configuration, the tokenizer and its chat template."""
    written, checkpoint = Written(), job.checkpoint
    arch = _gguf.arch_for(checkpoint.family_name)
    names = _gguf.names_of(_gguf.ARCHS[arch], checkpoint.family)
    shapes = dict(shapes_of(job, names))
    metadata, extra = _gguf.metadata_of(checkpoint.family, arch, shapes)
    tied = "output.weight" not in shapes
    types: dict[str, str] = {}
    for ours, _, _, theirs in outline(job.model, names):
        types[theirs] = _type(job, ours, theirs, shapes[theirs], tied, written)
    check_room(path.parent, 2 * sum(_bytes(types[n], shape) for n, shape in shapes.items()))

    def tensors() -> Iterator[tuple[str, Value]]:
        for ours, rule, piece, theirs in outline(job.model, names):
            value = taken(job.model, ours, rule, piece)
            kind = types[theirs] or (value.format.name if isinstance(value, Packed) else "f32")
            written.types[kind] += 1
            yield theirs, _encode(value, kind, theirs, written)
        yield from extra.items()

    general = _general(job) | metadata | _vocabulary(job, shapes["token_embd.weight"][0], written)
    counted = Counter(types[name] or job.wanted or "f32" for name in shapes)
    general["general.file_type"] = FILE_TYPES.get(job.wanted or counted.most_common(1)[0][0], 0)
    if any(kind not in DENSE for kind in types.values()):
        general["general.quantization_version"] = 2
    write_gguf(path, general, tensors())
    return written


def shapes_of(job: Job, names: Names) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what would be written, without computing any of it."""
    with torch.no_grad():
        for theirs, value in empty(build(job.checkpoint.family.spec(), device="meta"), names):
            yield theirs, tuple(value.shape)


def _type(
    job: Job, ours: str, theirs: str, shape: tuple[int, ...], tied: bool, written: Written
) -> str:
    """What a tensor becomes in a GGUF file, as llama.cpp chooses; "" keeps it packed as it is."""
    kept = ("norm", "position_embd", "ffn_gate_inp")  # of which a rounding changes much
    if len(shape) < 2 or any(part in theirs for part in kept):
        return "f32"
    if job.wanted is None:
        owner = job.model.get_submodule(ours.rpartition(".")[0])
        if isinstance(owner, Weight) and owner.pieces:
            return ""
        native = job.native(ours)
        return next((name for name, dtype in DENSE.items() if dtype == native), "f32")
    wanted = job.wanted
    if wanted in _HEAD_BITS and (theirs == "output.weight" or (tied and "token_embd" in theirs)):
        wanted = "q6_k"
    for name in (wanted, "q8_0", "f16"):
        if name in DENSE or shape[-1] % FORMATS[name].block == 0:
            if name != wanted:
                written.note(f"{theirs}: rows of {shape[-1]} do not divide: {name}, not {wanted}")
            return name
    raise AssertionError("f16 has no blocks")


def _bytes(kind: str, shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    if kind in FORMATS:
        return count // FORMATS[kind].block * FORMATS[kind].nbytes
    return count * DENSE[kind].itemsize if kind else count


def _encode(value: Value, kind: str, name: str, written: Written) -> Value:
    """A tensor in a type; packed bytes of that type are taken over."""
    if isinstance(value, Packed) and value.format.name == kind:
        return value
    if kind in DENSE:
        return _cast(value, DENSE[kind], name, written)
    if isinstance(value, Packed):
        written.note(f"{value.format.name} is decoded and packed again as {kind}")
    written.lossless = False
    return Packed.quantize(value.dequantize() if isinstance(value, Packed) else value, kind)


def _cast(value: Value, dtype: torch.dtype, name: str, written: Written) -> Tensor:
    """A dense tensor in a type; one that is out of its range is refused."""
    dense = value.dequantize() if isinstance(value, Packed) else value
    if dense.dtype == dtype:
        return dense
    made = dense.to(dtype)
    if not written.lossless or dtype.itemsize < dense.dtype.itemsize or dtype == torch.float16:
        if made.isinf().any() and not dense.isinf().any():
            most = torch.finfo(dtype).max
            raise KeifuError(f"{name} has values beyond {dtype}'s {most:g}: use bf16 or f32")
        written.lossless = written.lossless and bool((made.to(dense.dtype) == dense).all())
    return made


# --- what goes with the tensors


def _config(job: Job) -> dict[str, Any]:
    """The generic keys of the source's config.json: the tokenizer's ids above all."""
    kept = {k: v for k, v in job.checkpoint.config.items() if k in GENERIC - _LOST}
    if job.tokenizer is not None:
        ids = {
            "bos": job.tokenizer.bos_id,
            "eos": job.tokenizer.eos_id,
            "pad": job.tokenizer.pad_id,
        }
        own = {f"{role}_token_id": i for role, i in ids.items() if i is not None}
        kept = own | kept
    return kept


def _accompany(job: Job, folder: Path, written: Written) -> None:
    """The tokenizer's files, the generation settings, the licence."""
    source = job.checkpoint.path
    copied = {path.name for path in _companions(source, folder)} if source.is_dir() else set()
    if job.tokenizer is None:
        written.note("the source has no tokenizer")
    elif not copied & {"tokenizer.json", "tokenizer_config.json"}:
        job.tokenizer.save(folder)
    # An older encoder-decoder has its settings in config.json, whose keys are kept.
    older = isinstance(job.model, PairModule)
    if "generation_config.json" not in copied and job.tokenizer is not None and not older:
        ends = list(job.tokenizer.eos_ids)
        settings: dict[str, Any] = {"do_sample": True} if job.checkpoint.generation else {}
        settings |= dict(job.checkpoint.generation) | {"eos_token_id": ends}
        settings |= {k: v for k, v in _config(job).items() if k in ("bos_token_id", "pad_token_id")}
        _json(folder / "generation_config.json", settings)
    licence = _general(job).get("general.license")
    if licence and not any(name.lower().startswith("readme") for name in copied):
        _text(folder / "README.md", f"---\nlicense: {licence}\n---\n")


def _companions(source: Path, folder: Path) -> Iterator[Path]:
    """Copy the tokenizer's files, the generation settings and the terms; never code."""
    for path in sorted(source.iterdir()):
        if path.is_file() and (_CARRIED.fullmatch(path.name) or _TERMS.fullmatch(path.name)):
            shutil.copyfile(inside(source, path.name), folder / path.name)
            yield folder / path.name
    more = source / "additional_chat_templates"
    if more.is_dir():
        (folder / more.name).mkdir()
        for path in sorted(more.glob("*.jinja"))[:64]:
            shutil.copyfile(inside(more, path.name), folder / more.name / path.name)


def _general(job: Job) -> dict[str, Any]:
    """The `general.*` keys: what the model is called and under which terms it may be used."""
    source, checkpoint = job.checkpoint.source, job.checkpoint
    # The architecture's value comes with the other keys; it stands first in every file.
    out: dict[str, Any] = {"general.architecture": "", "general.type": "model"}
    if isinstance(source, GGUFFile):
        kept = source.metadata.typed()
        left = ("general.architecture", "general.file_type", "general.quantization_version")
        out |= {k: v for k, v in kept.items() if k.startswith("general.") and k not in left}
        licence = source.metadata.get("general.license")
        return out | ({"general.license": licence} if licence else {})
    out["general.name"] = checkpoint.path.resolve().name
    readme = checkpoint.path / "README.md"
    if readme.is_file():
        with readme.open(encoding="utf-8", errors="replace") as file:
            found = _LICENSE.match(file.read(1 << 16))
        out |= {"general.license": found[1]} if found else {}
    sampling = {
        f"general.sampling.{theirs}": checkpoint.generation[ours]
        for ours, theirs in SAMPLING.items()
        if ours in checkpoint.generation
    }
    whole = "general.sampling.top_k"
    return out | {k: v if k == whole else float(v) for k, v in sampling.items()}


def _vocabulary(job: Job, rows: int, written: Written) -> dict[str, Any]:
    """The `tokenizer.*` keys."""
    source = job.checkpoint.source
    if isinstance(source, GGUFFile):
        typed = source.metadata.typed()
        return {key: value for key, value in typed.items() if key.startswith("tokenizer.")}
    if job.tokenizer is None:
        written.note("the source has no tokenizer: neither has the file")
        return {}
    return job.tokenizer.to_gguf(rows)


def _json(path: Path, value: Mapping[str, Any]) -> None:
    _text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())

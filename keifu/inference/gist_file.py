"""A gist cache on disk: a safetensors file whose header says of which model and prompt it is.

Tensors are "hidden" (an encoder's) and "USE.ENTRY", one for each thing that a layer holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keifu.checkpoints.safetensors import SafetensorsSource
from keifu.checkpoints.source import parse_json
from keifu.core.atomic import written
from keifu.core.errors import FormatError, KeifuError
from keifu.inference.kept import Source
from keifu.nn.linear import Weight
from keifu.nn.past import Past
from keifu.nn.stack import StackModule
from keifu.text.tokenizer import Tokenizer

_FIELD, _FORMAT, _MOST = "keifu.gist", 1, 2**31
_TENSORS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a cache says of itself."""

    model: str
    """`fingerprint` of the model and tokenizer that made it."""
    prompt: str
    """SHA-256 of the prompt's token ids."""
    length: int
    """Positions that the prompt and its gist tokens take."""
    start: int
    """The position of the first gist token: as many tokens as were compressed."""
    dtype: str
    """Of the state it was read from."""
    format: int = _FORMAT


def fingerprint(model: nn.Module, tokenizer: Tokenizer) -> str:
    """SHA-256 over a model's parts, every weight as it is kept, and its vocabulary."""
    made = hashlib.sha256()
    for name, module in model.named_modules():
        if isinstance(module, StackModule):
            made.update(f"{name}={module.spec!r}".encode())
        pieces = module.pieces if isinstance(module, Weight) else ()
        held = [(p.format.name, p.data) for p in pieces]
        held += [(key, p) for key, p in module.named_parameters(recurse=False)]
        for key, tensor in held:
            made.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                made.update(flat.view(torch.uint8).numpy().data)
    for token in range(tokenizer.vocab_size):
        made.update(tokenizer.token(token).encode("utf-8", "surrogatepass") + b"\n")
    return made.hexdigest()


def prompt_hash(ids: list[int]) -> str:
    """SHA-256 of token ids."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def save(path: Path, source: Source, header: Header) -> None:
    """Write a cache; it is there whole or not at all."""
    from safetensors.torch import save as encoded

    tensors = {f"{use}.{name}": t.cpu() for (use, name), t in source.past.values.items()}
    tensors["hidden"] = source.hidden.cpu()
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with written(path) as file:
        file.write(encoded(kept, {_FIELD: json.dumps(asdict(header))}))


def load(path: Path, model: str) -> tuple[Source, Header]:
    """A cache of a model, of which nothing is believed before it is checked.

    Raises:
        FormatError: it is no gist cache, or damaged.
        KeifuError: it is not there, or of another model.
    """
    if not path.is_file():
        raise KeifuError(f"there is no gist cache {path}: make one with keifu gist")
    file = SafetensorsSource(path)
    if _FIELD not in file.metadata:
        raise FormatError(f"{path} is no gist cache: its header lacks {_FIELD}")
    header = _header(parse_json(file.metadata[_FIELD].encode(), f"{_FIELD} of {path}"), path)
    if header.model != model:
        raise KeifuError(
            f"{path} was made by another checkpoint ({header.model[:12]}, this one is "
            f"{model[:12]}): make it again with keifu gist"
        )
    names = file.names()
    if "hidden" not in names or len(names) > _TENSORS:
        raise FormatError(f"{path} is no gist cache: {len(names)} tensors, or no 'hidden'")
    values = {_key(name, path): _finite(file, name, path) for name in names if name != "hidden"}
    past = Past(length=header.length, start=header.start, values=values)
    return Source(past=past, hidden=_finite(file, "hidden", path)), header


def _header(said: Mapping[str, Any], path: Path) -> Header:
    kinds = {name: type(value) for name, value in said.items()}
    wanted = {"model": str, "prompt": str, "length": int, "start": int, "dtype": str, "format": int}
    if kinds != wanted:
        raise FormatError(f"{path}: {_FIELD} has {kinds!s:.200}, not {', '.join(wanted)}")
    header = Header(**said)
    if header.format != _FORMAT:
        raise FormatError(f"{path}: gist caches of format {header.format} are not known")
    if not 0 <= header.start < header.length < _MOST:
        raise FormatError(f"{path}: {header.start} to {header.length} are no gist tokens")
    return header


def _key(name: str, path: Path) -> tuple[int, str]:
    use, _, entry = name.partition(".")
    if not (use.isascii() and use.isdigit() and len(use) < 7 and entry):
        raise FormatError(f"{path}: tensor {name!r:.80} is no layer's entry")
    return int(use), entry


def _finite(file: SafetensorsSource, name: str, path: Path) -> Tensor:
    tensor = file.read(name)
    if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
        raise FormatError(f"{path}: {name} has elements that are no finite numbers")
    return tensor.clone()

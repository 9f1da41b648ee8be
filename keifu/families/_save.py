"""Saving a model that was made or trained here, as a folder in Hugging Face's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from keifu.checkpoints.safetensors import Planned, write_safetensors
from keifu.checkpoints.transfer import empty
from keifu.core.atomic import write_text
from keifu.core.errors import KeifuError
from keifu.families._family import Family
from keifu.text.tokenizer import Tokenizer


def save_model(
    folder: str | Path,
    family: Family,
    model: nn.Module,
    tokenizer: Tokenizer | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write config.json, the tokenizer's files and, last, the weights; each file whole or not.

    Args:
        settings: further keys of config.json, such as `decoder_start_token_id`. Those of the
            tokenizer's bos, eos and pad are written where it has them.

    Raises:
        KeifuError: the folder cannot be written, or a matrix is packed.
    """
    folder = Path(folder)
    marks = {} if tokenizer is None else tokenizer.marks.named
    ids = {f"{role}_token_id": marks[role] for role in ("bos", "eos", "pad") if role in marks}
    tensors = []
    for name, value in empty(model, family.names()):
        if not isinstance(value, Tensor):
            raise KeifuError(f"{name} is packed as {value.format.name}: `keifu convert` writes it")
        tensors.append(Planned.of(name, value.contiguous()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config = {**ids, **(settings or {}), **family.to_hf()}
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        write_text(folder / "config.json", text)
        if tokenizer is not None:
            tokenizer.save(folder)
    except OSError as refused:
        raise KeifuError(f"cannot write {folder}: {refused.strerror or refused}") from refused
    write_safetensors(folder, tensors)
    return folder

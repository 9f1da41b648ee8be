"""Saving a model that was made or trained here, as a folder in Hugging Face's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from keifu.checkpoints.safetensors import Planned, write_safetensors
from keifu.checkpoints.transfer import empty
from keifu.core.atomic import write_text
from keifu.core.errors import KeifuError
from keifu.families._family import Family
from keifu.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Saved:
    """A model about to be a folder: all that is to be written, apart from the model itself."""

    config: Mapping[str, Any]
    tensors: Sequence[tuple[str, Tensor]]
    tokenizer: Tokenizer | None = None

    @classmethod
    def of(
        cls,
        family: Family,
        model: nn.Module,
        tokenizer: Tokenizer | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        copy: bool = False,
    ) -> Self:
        """What `save_model` writes; with `copy` the weights are those of now, in main memory.

        Raises:
            KeifuError: a matrix is packed.
        """
        marks = {} if tokenizer is None else tokenizer.marks.named
        ids = {f"{role}_token_id": marks[role] for role in ("bos", "eos", "pad") if role in marks}
        tensors = []
        for name, value in empty(model, family.names()):
            if not isinstance(value, Tensor):
                raise KeifuError(
                    f"{name} is packed as {value.format.name}: `keifu convert` writes it"
                )
            value = value.detach()
            kept = value.to("cpu", copy=True) if copy else value
            tensors.append((name, kept.contiguous()))
        config = {**ids, **(settings or {}), **family.to_hf()}
        return cls(config=config, tensors=tensors, tokenizer=tokenizer)

    def write(self, folder: Path) -> None:
        """Write config.json, the tokenizer's files and, last, the weights; each whole or not.

        Raises:
            KeifuError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.config, indent=2, ensure_ascii=False) + "\n"
            write_text(folder / "config.json", text)
            if self.tokenizer is not None:
                self.tokenizer.save(folder)
        except OSError as refused:
            raise KeifuError(f"cannot write {folder}: {refused.strerror or refused}") from refused
        write_safetensors(folder, [Planned.of(name, tensor) for name, tensor in self.tensors])


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
    Saved.of(family, model, tokenizer, settings=settings).write(Path(folder))
    return Path(folder)

"""ELMo's `options.json`: what its two halves say, strictly, and such a folder opened and saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from keifu.checkpoints.hdf5 import HDF5Source, write_hdf5
from keifu.checkpoints.source import inside, read_json
from keifu.checkpoints.tensorflow import SplitSource, joined
from keifu.checkpoints.transfer import empty
from keifu.core.atomic import write_text
from keifu.core.errors import ConfigError, KeifuError, nearest

if TYPE_CHECKING:
    from keifu.families.elmo import Elmo

Json = Mapping[str, Any]
OPTIONS, WEIGHTS = "options.json", "weights.hdf5"
"""How AllenNLP's files end: published ones have the model's size before it."""
_BYTES = 1 << 20
_LSTM = {
    "width": "projection_dim",
    "hidden": "dim",
    "depth": "n_layers",
    "cell_clip": "cell_clip",
    "out_clip": "proj_clip",
}
_CNN = {
    "characters": "n_characters",
    "length": "max_characters_per_token",
    "highways": "n_highway",
    "act": "activation",
}
_LEFT = (
    "bidirectional dropout n_train_tokens all_clip_norm_val n_tokens_vocab unroll_steps "
    "n_negative_samples_batch batch_size n_epochs"
)
"""What an options file says of its training."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """`lstm` and `char_cnn`."""

    def names(self) -> frozenset[str]:
        """Both, and what says nothing about the network."""
        return frozenset(("lstm", "char_cnn", *_LEFT.split()))

    def read(self, config: Json) -> dict[str, Any]:
        """Every key is needed, none may be unknown; a clip of null or 0 is none."""
        lstm = _exactly(config, "lstm", {*_LSTM.values(), "use_skip_connections"})
        cnn = _exactly(config, "char_cnn", {*_CNN.values(), "embedding", "filters"})
        if lstm["use_skip_connections"] is not True:
            raise ConfigError("lstm.use_skip_connections=false is not supported, only true")
        if cnn["activation"] not in ("relu", "tanh"):
            raise ConfigError(f"char_cnn.activation={cnn['activation']!r}: relu or tanh")
        out: dict[str, Any] = {ours: lstm[theirs] for ours, theirs in _LSTM.items()}
        out |= {ours: cnn[theirs] for ours, theirs in _CNN.items()}
        for clip in ("cell_clip", "out_clip"):
            out[clip] = float(out[clip]) if out[clip] else None
        out["character_width"] = _exactly(cnn, "embedding", {"dim"})["dim"]
        out["filters"] = tuple((int(seen), int(n)) for seen, n in cnn["filters"])
        return out

    def write(self, values: Json) -> dict[str, Any]:
        """Both."""
        lstm = {theirs: values[ours] for ours, theirs in _LSTM.items()}
        cnn = {theirs: values[ours] for ours, theirs in _CNN.items()}
        cnn |= {
            "embedding": {"dim": values["character_width"]},
            "filters": [list(one) for one in values["filters"]],
        }
        return {"lstm": {**lstm, "use_skip_connections": True}, "char_cnn": cnn}


def _exactly(config: Json, key: str, wanted: set[str]) -> dict[str, Any]:
    """A mapping with just these keys."""
    found = config.get(key)
    if not isinstance(found, Mapping):
        raise ConfigError(f"{OPTIONS} lacks {key}")
    for strange in sorted(set(found) - wanted):
        close = nearest(strange, wanted, 1)
        hint = f" (nearest: {close[0]})" if close else ""
        raise ConfigError(f"{key}.{strange} is not known{hint}")
    if wanted - set(found):
        raise ConfigError(f"{OPTIONS}: {key} lacks {', '.join(sorted(wanted - set(found)))}")
    return dict(found)


def is_elmo(folder: Path) -> bool:
    """Whether a folder has both of AllenNLP's files and no config.json."""
    return (
        folder.is_dir()
        and not (folder / "config.json").exists()
        and bool(list(folder.glob(f"*{OPTIONS}")) and list(folder.glob(f"*{WEIGHTS}")))
    )


def open_files(folder: Path) -> tuple[dict[str, Any], Path]:
    """The options and where the weights are.

    Raises:
        KeifuError: there is more than one of either.
    """
    found = []
    for ending in (OPTIONS, WEIGHTS):
        named = sorted(folder.glob(f"*{ending}"))
        if len(named) != 1:
            raise KeifuError(f"{folder} needs one *{ending}, and has {len(named)}")
        found.append(inside(folder, named[0].name))
    return read_json(found[0], _BYTES), found[1]


def source_of(family: Elmo, weights: Path) -> SplitSource:
    """The weights, with a fresh mix (all layers alike) where the file has none."""
    mix = "scalar_mix_0/"
    fresh: dict[str, Tensor] = {
        f"{mix}scalar_parameters/{i}": torch.zeros(1) for i in range(family.depth + 1)
    }
    return SplitSource(HDF5Source(weights), {**fresh, f"{mix}gamma": torch.ones(1)})


def save_elmo(folder: str | Path, family: Elmo, model: nn.Module) -> Path:
    """Write `options.json` and `weights.hdf5`, which AllenNLP reads; the task's mix beside them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / OPTIONS, json.dumps(family.to_hf(), indent=2) + "\n")
    write_hdf5(folder / WEIGHTS, joined(empty(model, family.names())))
    return folder

"""Opening a checkpoint, whatever its format, and making a model and a tokenizer of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keifu.checkpoints.gguf import GGUFFile
from keifu.checkpoints.names import Names
from keifu.checkpoints.pickled import PickledSource
from keifu.checkpoints.safetensors import SafetensorsSource
from keifu.checkpoints.source import TensorSource, read_json
from keifu.checkpoints.store import pull
from keifu.checkpoints.transfer import fill
from keifu.core.errors import ConfigError, KeifuError, unknown
from keifu.families import ARCHITECTURES, Family, _gguf, _original, families
from keifu.families._classes import split_class
from keifu.families._generation import of_pair, recommended
from keifu.families._options import is_elmo, open_files, source_of
from keifu.families._sentence import is_sentence_folder, open_sentence
from keifu.families.elmo import Elmo
from keifu.families.llama import Llama
from keifu.nn.pair import Pair
from keifu.nn.part import Part, build
from keifu.nn.split import Rank
from keifu.text.from_gguf import load_gguf
from keifu.text.load import load
from keifu.text.tokenizer import Tokenizer

PRECISIONS = {"exact": torch.float32, "default": torch.bfloat16}
"""Names of precisions -> what dense matrices are kept in."""
EXPERTS = ("resident", "mapped")
"""Where experts' matrices are: in memory, or in the file until a text needs them."""
_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint: nothing is read but its headers."""

    path: Path
    family_name: str
    family: Family
    names: Names
    source: TensorSource
    tokenizer: Callable[[], Tokenizer]
    generation: Mapping[str, Any]
    """Sampling fields that it recommends, in our words."""
    config: Mapping[str, Any]
    """The published config."""
    rules: Mapping[str, Any] = field(default_factory=dict)
    """Where an encoder-decoder's output starts and which tokens it must or must not have."""


def open_checkpoint(ref: str | Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Open a folder in Hugging Face's layout, a GGUF file, or anything `keifu models pull` knows.

    Raises:
        KeifuError: it is not there, not understood, or does not fit its configuration.
    """
    path = pull(str(ref))
    if path.suffix == ".gguf" or (path.is_file() and _is_gguf(path)):
        return _open_gguf(path)
    if path.is_dir() and not (path / "config.json").exists():
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return _open_gguf(ggufs[0])
    if is_sentence_folder(path) and not (path / "config.json").exists():
        path = open_sentence(path).transformer
    return _open_elmo(path) if is_elmo(path) else _open_folder(path, allow_pickle)


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _open_gguf(path: Path) -> Checkpoint:
    file = GGUFFile(path)
    _, arch = _gguf.arch_of(file.metadata)
    config = _gguf.config_of(file.metadata, file)
    family_name = _gguf.family_of(file.metadata)
    family = families[family_name].from_hf(config)
    generation = {
        key: file.metadata[f"general.sampling.{theirs}"]
        for theirs, key in (("temp", "temperature"), ("top_k", "top_k"), ("top_p", "top_p"),
                            ("min_p", "min_p"), ("penalty_repeat", "repetition_penalty"))
        if f"general.sampling.{theirs}" in file.metadata
    }  # fmt: skip
    return Checkpoint(
        path=path,
        family_name=family_name,
        family=family,
        names=_gguf.names_of(arch, family),
        source=file,
        tokenizer=lambda: load_gguf(file.metadata),
        generation=generation,
        config=config,
    )


def family_of(config: Mapping[str, Any]) -> str:
    """The family that a published config.json belongs to."""
    published = config.get("architectures") or []
    for name in published:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
        if (found := _with_head(name)) is not None:
            return found
    named = dict.fromkeys(reversed(ARCHITECTURES.values()))  # of one type the first is meant
    by_type = {families[f].fields.model_type: f for f in named}
    if not published and config.get("model_type") in by_type:
        return by_type[str(config["model_type"])]
    remote = " (its remote code is never run)" if "auto_map" in config else ""
    name = ", ".join(map(str, published)) or str(config.get("model_type"))
    raise unknown("architecture", name + remote, ARCHITECTURES)


def _with_head(name: str) -> str | None:
    """The family of a class with a task head, told by its prefix: "Bert" + "ForMaskedLM"."""
    split = split_class(name)
    for known, family in ARCHITECTURES.items():
        own = split_class(known)
        if split and own and own[0] == split[0] and split[1] in families[family].fields.tasks:
            return family
    return None


def _open_folder(path: Path, allow_pickle: bool) -> Checkpoint:
    if (path / "params.json").exists() and not (path / "config.json").exists():
        return _open_original(path, allow_pickle)
    if not (path / "config.json").exists():
        raise KeifuError(f"{path} is no checkpoint: it has neither config.json nor a GGUF file")
    config = read_json(path / "config.json", _CONFIG_BYTES)
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method")
        raise ConfigError(f"quantization_config ({method}) is not supported: use dense weights")
    name = family_of(config)
    family = families[name].from_hf(config)
    pickled = [*path.glob("*.bin"), *path.glob("*.pth"), *path.glob("*.pt")]
    safe = any(path.glob("*.safetensors"))
    source: TensorSource = (
        SafetensorsSource(path)
        if safe or not pickled
        else PickledSource(_pickles(path, pickled), allow_pickle=allow_pickle)
    )
    generation = path / "generation_config.json"
    settings = read_json(generation, _CONFIG_BYTES) if generation.exists() else {}
    rules: dict[str, Any] = {}
    advice = recommended(settings)
    if isinstance(family.spec(), Pair):
        advice, rules = of_pair(settings, config)
    return Checkpoint(
        path=path,
        family_name=name,
        family=family,
        names=family.names(),
        source=source,
        tokenizer=lambda: load(path),
        generation=advice,
        config=config,
        rules=rules,
    )


def _pickles(path: Path, files: Sequence[Path]) -> Path:
    """The folder, or the one file in it that bears a name of its own (fastai's `.pth`)."""
    known = ("pytorch_model", "consolidated.")
    return files[0] if len(files) == 1 and not files[0].name.startswith(known) else path


def _open_elmo(path: Path) -> Checkpoint:
    """AllenNLP's layout of ELMo."""
    options, weights = open_files(path)
    family = Elmo.from_hf(options)

    def characters() -> Tokenizer:
        raise KeifuError("elmo reads words: keifu.text.characters.batch_ids makes its input")

    return Checkpoint(
        path=path,
        family_name="elmo",
        family=family,
        names=family.names(),
        source=source_of(family, weights),
        tokenizer=characters,
        generation={},
        config=options,
    )


def _open_original(path: Path, allow_pickle: bool) -> Checkpoint:
    """Meta's own layout of LLaMA."""
    source = PickledSource(path, allow_pickle=allow_pickle)
    config = _original.config_of(read_json(path / "params.json", _CONFIG_BYTES), source)
    family = Llama.from_hf(config)
    return Checkpoint(
        path=path,
        family_name="llama",
        family=family,
        names=_original.names_of(family),
        source=source,
        tokenizer=lambda: load(path),
        generation={},
        config=config,
    )


def build_model(
    checkpoint: Checkpoint,
    *,
    precision: str = "exact",
    experts: str = "resident",
    device: str | torch.device = "cpu",
    allow_nonfinite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    spec: Part | None = None,
    rank: Rank | None = None,
) -> nn.Module:
    """The checkpoint's model in evaluation mode.

    Args:
        spec: what is built, if it is not the family's own but one with the same weights.
        precision: "exact" (float32 arithmetic, packed weights decoded) or "default" (bfloat16
            products, packed weights kept packed).
        experts: "resident", or "mapped": read from the checkpoint's files as they are used, so
            that a mixture larger than memory runs.
        rank: read this process's share alone, for `keifu.nn.parallel.attach` to join.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if experts not in EXPERTS:
        raise unknown("place for experts", experts, EXPERTS)
    spec = spec or checkpoint.family.spec()
    split = None if rank is None else spec.split(rank)
    if rank is not None and experts == "mapped":
        raise KeifuError("experts that stay in the file are not split: leave one of the two out")
    model = build(spec if split is None else split.part, device="meta")
    fill(
        model,
        checkpoint.names,
        checkpoint.source,
        dtype=PRECISIONS[precision],
        unpack=precision == "exact",
        mapped=experts == "mapped",
        device=device,
        allow_nonfinite=allow_nonfinite,
        progress=progress,
        share=None if split is None or rank is None else (split, rank),
    )
    return model.eval()


def load_model(
    ref: str | Path,
    *,
    precision: str = "exact",
    experts: str = "resident",
    device: str | torch.device = "cpu",
    allow_pickle: bool = False,
    allow_nonfinite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[nn.Module, Tokenizer]:
    """A model and its tokenizer: `model(tokens).logits`.

    Args:
        ref: a folder, a GGUF file, a known name or a hub id.
        precision: "exact" is float32 throughout; "default" is what `keifu.load` runs.
        experts: "resident", or "mapped": read when they are used.
        allow_pickle: read `.bin` and `.pth` weights (with `weights_only`), which are refused
            otherwise.
    """
    checkpoint = open_checkpoint(ref, allow_pickle=allow_pickle)
    model = build_model(
        checkpoint,
        precision=precision,
        experts=experts,
        device=device,
        allow_nonfinite=allow_nonfinite,
        progress=progress,
    )
    return model, checkpoint.tokenizer()

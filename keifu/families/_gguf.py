"""GGUF: which family an architecture is, its metadata as a published config, its tensor names.

Tensor names are nearly the same for every architecture, so one table speaks of our names; an
architecture says only where it departs from it. Metadata keys become the keys of the family's
config.json, so that one reader (`Family.from_hf`) checks both; and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from keifu.checkpoints.names import Names, Value, rules
from keifu.core.errors import ConfigError, unknown
from keifu.families import Family, families
from keifu.families._gguf_arch import STANDARD, Arch, Json, Own, Tensors
from keifu.families._gguf_gpt import GPT_ARCHS
from keifu.families._gguf_llama import LLAMA_ARCHS
from keifu.families._gguf_rope import rope_tensors

ARCHS: Mapping[str, Arch] = {**LLAMA_ARCHS, **GPT_ARCHS}
"""`general.architecture` -> how it is read and written."""
_FACTORS = (r"rope_freqs\.weight", r"rope_factors_(long|short)\.weight")


def arch_of(metadata: Mapping[str, Any]) -> tuple[str, Arch]:
    """The architecture of a file, or an error that lists the known ones."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ConfigError("the GGUF file lacks general.architecture")
    if name not in ARCHS:
        raise unknown("GGUF architecture", name, ARCHS)
    return name, ARCHS[name]


def family_of(metadata: Mapping[str, Any]) -> str:
    """The family that a file belongs to."""
    name, arch = arch_of(metadata)
    found = [f for key, f in arch.relatives.items() if f"{name}.{key}" in metadata]
    return found[0] if found else arch.family


def config_of(metadata: Mapping[str, Any], tensors: Tensors) -> Json:
    """The config.json that a file's metadata (and the names of its tensors) amounts to.

    Raises:
        ConfigError: a key is missing, unknown or has a value that cannot be.
    """
    name, arch = arch_of(metadata)
    own, names = Own(metadata, name), set(tensors.names())
    config: Json = dict(arch.fixed)
    for key, theirs in {**arch.keys, **arch.optional}.items():
        value = own.real(key) if _is_real(key) else own.whole(key)
        if value is not None:
            config[theirs] = value
        elif key in arch.keys:
            raise ConfigError(f"{own.prefix}{key} is missing from the GGUF file")
    for key in ("attention.value_length", *arch.ignore):
        own.raw(key)
    _check_sizes(own, arch, config, len(names))
    width = config[arch.keys["embedding_length"]]
    config["vocab_size"] = _vocab(own, metadata, tensors, names, width)
    config |= {theirs: True for tensor, theirs in arch.present.items() if tensor in names}
    config |= {theirs: True for tensor, theirs in arch.absent.items() if tensor not in names}
    if arch.tied:
        config[arch.tied] = "output.weight" not in names
    for also in arch.also:
        config |= also.read(own, tensors, config)
    if strange := own.left():
        raise ConfigError(f"GGUF keys {', '.join(strange[:8])} are not known for {name}")
    return {key: value for key, value in config.items() if key != "sliding_window" or value}


def _is_real(key: str) -> bool:
    return key.endswith(("epsilon", "softcapping", "scale", "clamp_kqv", "max_alibi_bias"))


def _check_sizes(own: Own, arch: Arch, config: Json, tensors: int) -> None:
    """Sizes that contradict each other, by the names of their keys."""
    theirs = {**arch.keys, **arch.optional}
    depth, heads, width = (
        config[theirs[key]] for key in ("block_count", "attention.head_count", "embedding_length")
    )
    if depth > tensors:
        raise own.wrong("block_count", depth, f"at most the file's {tensors} tensors")
    groups = config.get(theirs.get("attention.head_count_kv", ""), heads)
    if heads % groups:
        raise own.wrong(
            "attention.head_count_kv", groups, f"a divisor of attention.head_count={heads}"
        )
    head = config.get(theirs.get("attention.key_length", ""))
    if head is None and width % heads:
        raise own.wrong("attention.head_count", heads, f"a divisor of embedding_length={width}")
    value = own.whole("attention.value_length")
    if value not in (None, head or width // heads):
        raise own.wrong("attention.value_length", value, "the same as attention.key_length")


def _vocab(
    own: Own, metadata: Mapping[str, Any], tensors: Tensors, names: set[str], width: int
) -> int:
    """Rows of the embedding, which what the metadata says must equal."""
    said = own.whole("vocab_size")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if "token_embd.weight" not in names:
        raise ConfigError("the GGUF file has no token_embd.weight")
    shape = tensors.shape("token_embd.weight")
    if len(shape) != 2 or shape[1] != width:
        raise own.wrong("embedding_length", width, f"token_embd.weight has shape {list(shape)}")
    if said not in (None, shape[0]):
        raise own.wrong("vocab_size", said, f"token_embd.weight has {shape[0]} rows")
    if tokens is not None and len(tokens) != shape[0]:
        raise ConfigError(
            f"tokenizer.ggml.tokens has {len(tokens)} entries, but token_embd.weight "
            f"{shape[0]} rows"
        )
    return shape[0]


def names_of(arch: Arch, family: Family) -> Names:
    """The table between a file's tensors and the family's parameters."""
    return Names(rules(STANDARD), drop=_FACTORS).replaced(arch.rules(family))


def arch_for(family_name: str) -> str:
    """The architecture that a family is written as.

    Raises:
        ConfigError: GGUF has none.
    """
    for name, arch in ARCHS.items():
        if family_name in (arch.family, *arch.relatives.values()):
            return name
    known = sorted({f for a in ARCHS.values() for f in (a.family, *a.relatives.values())})
    raise ConfigError(f"GGUF has no architecture for {family_name}; known: {', '.join(known)}")


@dataclass(frozen=True)
class _Shapes:
    """Names and shapes of tensors that are yet to be written, and the few that are there."""

    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, Tensor]

    def names(self) -> list[str]:
        """All names."""
        return [*self.shapes, *self.values]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self.values[name].shape) if name in self.values else self.shapes[name]

    def read(self, name: str) -> Value:
        """One that is there."""
        return self.values[name]


def metadata_of(
    family: Family, arch_name: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The keys of a family's configuration as an architecture's, and the tensors they need.

    Args:
        shapes: names (GGUF's) and shapes of the tensors that will be written.

    Raises:
        ConfigError: what this reader would make of the keys is another model: names the fields.
    """
    arch, config = ARCHS[arch_name], family.to_hf()
    own: dict[str, Any] = {"vocab_size": config["vocab_size"]}
    for key, theirs in {**arch.keys, **arch.optional}.items():
        if config.get(theirs) is not None:
            own[key] = float(config[theirs]) if _is_real(key) else config[theirs]
    if "attention.key_length" in own:
        own["attention.value_length"] = own["attention.key_length"]
    for also in arch.also:
        own |= also.write(config)
    metadata = {"general.architecture": arch_name}
    metadata |= {f"{arch_name}.{key}": value for key, value in own.items()}
    extra = rope_tensors(config)
    implied = config_of(metadata, _Shapes(shapes, extra))
    again = families[family_of(metadata)].from_hf(implied)
    if again.spec() != family.spec() or again.context != family.context:
        kept = {f.name: getattr(again, f.name) for f in fields(again)}
        mine = {f.name: getattr(family, f.name) for f in fields(family)}
        lost = [f"{k}={v!r:.60}" for k, v in mine.items() if k not in kept or kept[k] != v]
        raise ConfigError(f"GGUF's {arch_name} cannot express {', '.join(lost)}")
    return metadata, extra

"""A tokenizer as the metadata of a GGUF file: the way back of `from_gguf`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tokenizers

from keifu.core.errors import KeifuError
from keifu.text import from_sentencepiece as spm
from keifu.text.from_gguf import PREFIX, ROLES
from keifu.text.marks import Marks
from keifu.text.pieces import SPACE
from keifu.text.pretokenize import DIGITS, GPT2, RULES, Rule

Json = Mapping[str, Any]


def to_gguf(rust: tokenizers.Tokenizer, marks: Marks, rows: int) -> dict[str, Any]:
    """The `tokenizer.*` keys for a vocabulary whose embedding has `rows` rows.

    Rows beyond the vocabulary get names that no text can spell. Raises KeifuError for a tokenizer
    that GGUF has no words for (a normaliser or word splitter that none of its programs knows).
    """
    whole: Json = json.loads(rust.to_str())
    size = rust.get_vocab_size(with_added_tokens=True)
    if size > rows:
        raise KeifuError(f"the tokenizer has {size} tokens, but the embedding {rows} rows")
    tokens = [rust.id_to_token(i) for i in range(rows)]
    kinds = [spm.NORMAL if token is not None else spm.UNUSED for token in tokens]
    for i, token in rust.get_added_tokens_decoder().items():
        kinds[i] = spm.CONTROL if token.special else spm.USER
    named = [f"[PAD{i}]" if token is None else str(token) for i, token in enumerate(tokens)]
    model = whole["model"]
    if model["type"] == "BPE" and not model.get("byte_fallback"):
        kind = _byte_level(whole)
    elif model["type"] in ("BPE", "Unigram"):
        kind = _sentencepiece(whole, named, kinds)
    else:
        raise KeifuError(f"a {model['type']} tokenizer is not written to GGUF: only BPE, Unigram")
    out = {
        **kind,
        f"{PREFIX}tokens": named,
        f"{PREFIX}token_type": kinds,
    }
    return out | _marks(marks)


def _byte_level(whole: Json) -> dict[str, Any]:
    """The pre-tokenizer by its published name, and the merges."""
    merges = whole["model"]["merges"]
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return {
        f"{PREFIX}model": "gpt2",
        f"{PREFIX}pre": _name(whole),
        f"{PREFIX}merges": lines,
    }


def _name(whole: Json) -> str:
    """Which published rule cuts words as this tokenizer does."""
    normalizer = whole.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":  # which GGUF programs leave out
        raise KeifuError(f"GGUF has no word for the {normalizer['type']} normaliser")
    first = whole.get("pre_tokenizer") or {"type": "none"}
    steps = first["pretokenizers"] if first["type"] == "Sequence" else [first]
    patterns: list[str] = []
    for step in steps:
        if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
            patterns += [GPT2] if step.get("use_regex", True) else []
        elif step["type"] == "Digits" and step.get("individual_digits"):
            patterns.append(DIGITS)
        elif step["type"] == "Split" and step["behavior"] in ("Isolated", "Removed"):
            patterns.append(next(iter(step["pattern"].values())))
        else:
            raise KeifuError(f"GGUF has no word for the pre-tokenizer {step['type']}")
    ignore = bool(whole["model"].get("ignore_merges"))
    found = [name for name, rule in RULES.items() if _same(rule, tuple(patterns), ignore)]
    if not found:
        raise KeifuError(f"GGUF has no name for a pre-tokenizer of the patterns {patterns!r:.200}")
    return found[0]


def _same(rule: Rule, patterns: tuple[str, ...], ignore_merges: bool) -> bool:
    return rule.patterns == patterns and rule.ignore_merges == ignore_merges


def _sentencepiece(whole: Json, tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """Scores and kinds of pieces; `kinds` is completed in place."""
    model = whole["model"]
    unigram = model["type"] == "Unigram"
    if unigram:
        listed = [float(score) for _, score in model["vocab"]]
        unk: int | None = model["unk_id"]
    else:  # ids are in the order of merging
        listed = [-float(i) for i in range(len(model["vocab"]))]
        unk = model["vocab"].get(model.get("unk_token"))
    scores = [listed[i] if i < len(listed) else -1000.0 for i in range(len(tokens))]
    for i, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and kinds[i] == spm.NORMAL:
            kinds[i] = spm.BYTE
    if unk is not None:
        kinds[unk] = spm.UNKNOWN
    return {
        f"{PREFIX}model": "t5" if unigram else "llama",
        f"{PREFIX}pre": "default",
        f"{PREFIX}scores": scores,
        f"{PREFIX}add_space_prefix": _begins_with_space(whole),
    }


def _begins_with_space(whole: Json) -> bool:
    """Whether a space is put before a text."""
    steps: list[Json] = []
    for part in ("normalizer", "pre_tokenizer"):
        found = whole.get(part) or {"type": "none"}
        steps += found.get("normalizers") or found.get("pretokenizers") or [found]
    return any(
        (step["type"] == "Prepend" and step["prepend"] == SPACE)
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _marks(marks: Marks) -> dict[str, Any]:
    """Named tokens, what stands round a text, chat templates."""
    out: dict[str, Any] = {
        f"{PREFIX}{ROLES[role]}_token_id": i for role, i in marks.named.items() if role in ROLES
    }
    further = [end for end in marks.ends if end != marks.named.get("eos")]
    for key, end in zip(("eot", "eom"), further, strict=False):
        out[f"{PREFIX}{key}_token_id"] = end
    bos, eos = marks.named.get("bos"), marks.named.get("eos")
    out[f"{PREFIX}add_bos_token"] = bool(marks.prefix) and marks.prefix == (bos,)
    out[f"{PREFIX}add_eos_token"] = bool(marks.suffix) and marks.suffix == (eos,)
    for name, source in marks.templates.items():
        tail = "" if name == "default" else f".{name}"
        out[f"tokenizer.chat_template{tail}"] = source
    others = sorted(name for name in marks.templates if name != "default")
    return out | ({"tokenizer.chat_templates": others} if others else {})

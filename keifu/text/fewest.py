"""A number of tokens that no encoding of a text undercuts, without encoding it.

Encoding ten million characters takes seconds; that they do not fit a context of a few thousand
tokens can be said at once, where a vocabulary loses nothing: its tokens' strings, one after the
other, are the normalised text, so there are at least its length over the longest string's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from keifu.text.pieces import CHAR_OF

_NORMAL = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend"}
_SPACED = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_WHOLE = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", *_SPACED}
_CONTINUING = set(range(0x80, 0xC0))
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}


@dataclass(frozen=True, kw_only=True)
class Fewest:
    """What is needed of a vocabulary to say it."""

    longest: int
    """Characters of its longest token's string."""
    normalizer: Any
    spaces: bool
    """Whether white space may be lost, so that only the rest counts."""
    dropped: str
    """ASCII characters that the vocabulary lacks and so leaves out."""

    def tokens(self, text: str) -> int:
        """No encoding of this text has fewer."""
        if self.normalizer is not None:
            text = self.normalizer.normalize_str(text)
        if self.spaces:
            text = "".join(text.split())
        length = len(text) - sum(map(text.count, self.dropped))
        return math.ceil(length / self.longest)


def fewest(rust: tokenizers.Tokenizer) -> Fewest | None:
    """The bound of a vocabulary; None where text may be lost, and so none is known."""
    parts = json.loads(rust.to_str())
    before, model = _flat(parts["normalizer"]), parts["model"]
    splits, vocabulary = _flat(parts["pre_tokenizer"]), rust.get_vocab(with_added_tokens=True)
    if not all(map(_kept, before)) or not all(map(_undropped, splits)):
        return None
    dropped = _dropped(model, vocabulary, any(step["type"] == "ByteLevel" for step in splits))
    if dropped is None:
        return None
    added = [token["content"] for token in parts["added_tokens"]]
    if rust.normalizer is not None:
        added += [rust.normalizer.normalize_str(content) for content in added]
    return Fewest(
        longest=max(map(len, [*vocabulary, *added])),
        normalizer=rust.normalizer,
        spaces=any(step["type"] == "Strip" for step in before)
        or any(step["type"] in _SPACED for step in splits)
        or any(token["lstrip"] or token["rstrip"] for token in parts["added_tokens"]),
        dropped=dropped,
    )


def _flat(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    inner = step.get("normalizers", step.get("pretokenizers", ()))
    return [each for one in inner for each in _flat(one)]


def _kept(step: Mapping[str, Any]) -> bool:
    """Whether a normaliser cannot make the parts of a text shorter than it makes the whole."""
    if step["type"] == "Replace":
        return len(step["pattern"].get("String", "")) == 1
    return step["type"] in _NORMAL or step["type"] == "Strip"


def _undropped(step: Mapping[str, Any]) -> bool:
    """Whether a pre-tokeniser drops nothing but white space."""
    if step["type"] in ("Split", "Punctuation"):
        return bool(step["behavior"] != "Removed")
    return step["type"] in _WHOLE


def _dropped(model: Mapping[str, Any], vocabulary: Mapping[str, int], in_bytes: bool) -> str | None:
    """The ASCII characters that yield no token; None if others do not either, or share one."""
    if model["type"] not in ("BPE", "Unigram"):
        return None
    if in_bytes:
        lacking = {byte for byte, char in CHAR_OF.items() if char not in vocabulary}
        # The rest of a character of many bytes counts for it: those bytes must be there.
        return None if lacking & _CONTINUING else "".join(chr(b) for b in lacking if b < 0x80)
    if model.get("byte_fallback"):
        return "" if vocabulary.keys() >= _BYTES else None
    unknown = model.get("unk_token")  # of BPE: one for each character, unless they are fused
    return "" if unknown in vocabulary and not model.get("fuse_unk") else None

"""The tokenizer that a GGUF file carries in its metadata."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from keifu.core.errors import FormatError
from keifu.text import from_sentencepiece as spm
from keifu.text.marks import Marks
from keifu.text.pieces import SPACE
from keifu.text.pretokenize import byte_level_bpe, rule
from keifu.text.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml."
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",  # so spelt in the format
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}


def load_gguf(metadata: Mapping[str, Any], *, pre: str | None = None) -> Tokenizer:
    """Build the tokenizer from a GGUF file's key-value pairs.

    pre: the pre-tokenizer's name, where the file is older than the key. Raises FormatError for
    what is missing or contradictory, and KeifuError for a pre-tokenizer nobody has added yet.
    """
    kind = metadata.get(PREFIX + "model")
    tokens = _tokens(metadata)
    kinds = _list(metadata, "token_type", len(tokens), int) or [spm.NORMAL] * len(tokens)
    add_bos = add_eos = False
    if kind == "gpt2":
        rust, add_bos = _bpe(metadata, tokens, kinds, pre)
    elif kind in ("llama", "t5"):
        rust = _sentencepiece(metadata, tokens, kinds, unigram=kind == "t5")
        add_bos, add_eos = kind == "llama", kind == "t5"
    elif kind == "bert":
        rust, add_bos, add_eos = _wordpiece(metadata, tokens, kinds), True, True
    else:
        raise FormatError(f"{PREFIX}model is {kind!r}: known are gpt2, llama, t5, bert")
    return Tokenizer(rust, _marks(metadata, len(tokens), kind, add_bos, add_eos))


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    """The vocabulary; a token that is not UTF-8 gets a name that no text can spell."""
    raw = metadata.get(PREFIX + "tokens")
    if not isinstance(raw, Sequence) or not raw:
        raise FormatError(f"{PREFIX}tokens is missing: the file has no tokenizer")
    tokens = [
        t if isinstance(t, str) else f"<not utf-8: {bytes(t).hex()} at {i}>"
        for i, t in enumerate(raw)
    ]
    if len(set(tokens)) != len(tokens):
        twice = [token for token, count in Counter(tokens).items() if count > 1]
        raise FormatError(f"{PREFIX}tokens has duplicates: {twice[:5]}")
    return tokens


def _list(metadata: Mapping[str, Any], key: str, size: int, kind: type) -> list[Any] | None:
    value = metadata.get(PREFIX + key)
    if value is None:
        return None
    if len(value) != size:
        raise FormatError(f"{PREFIX}{key} has {len(value)} entries for {size} tokens")
    return [kind(item) for item in value]


def _bpe(
    metadata: Mapping[str, Any], tokens: list[str], kinds: list[int], pre: str | None
) -> tuple[tokenizers.Tokenizer, bool]:
    name = pre or metadata.get(PREFIX + "pre")
    if not name:
        raise FormatError(f"{PREFIX}pre is missing: name the pre-tokenizer (gpt-2, llama-bpe, ...)")
    how = rule(name)
    merges = metadata.get(PREFIX + "merges")
    if merges is None:
        raise FormatError(f"{PREFIX}merges is missing")
    vocab = {token: i for i, token in enumerate(tokens)}
    with _no_collection():
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        rust = byte_level_bpe(vocab, pairs, how.patterns, ignore_merges=how.ignore_merges)
        del pairs
    rust.add_tokens(_added(tokens, kinds))
    return rust, how.add_bos


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: it would walk all of torch several times while 50,000 pairs are made.

    (Half of the 150 ms that a vocabulary took; nothing made here is a cycle.)
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _added(tokens: list[str], kinds: list[int]) -> list[AddedToken]:
    return [
        AddedToken(token, special=kind != spm.USER, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (spm.CONTROL, spm.USER)
    ]


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], kinds: list[int], unigram: bool
) -> tokenizers.Tokenizer:
    scores = _list(metadata, "scores", len(tokens), float)
    if scores is None:
        raise FormatError(f"{PREFIX}scores is missing")
    spec = spm.Pieces(
        tokens=tokens,
        scores=scores,
        kinds=kinds,
        unigram=unigram,
        dummy_prefix=bool(metadata.get(PREFIX + "add_space_prefix", True)),
        collapse_spaces=bool(metadata.get(PREFIX + "remove_extra_whitespaces", False)),
        charsmap=bytes(metadata.get(PREFIX + "precompiled_charsmap") or b""),
    )
    return spm.build(spec)


def _wordpiece(
    metadata: Mapping[str, Any], tokens: list[str], kinds: list[int]
) -> tokenizers.Tokenizer:
    """GGUF marks the beginnings of words, where BERT's own files mark what is not one."""
    vocab = {}
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        begins = token.startswith(SPACE)
        plain = kind in (spm.CONTROL, spm.USER, spm.UNKNOWN) or (token[:1] + token[-1:] == "[]")
        vocab[token[1:] if begins else token if plain else "##" + token] = i
    unk = metadata.get(PREFIX + "unknown_token_id")
    rust = tokenizers.Tokenizer(
        models.WordPiece(vocab, unk_token=tokens[unk] if unk is not None else "[UNK]")
    )
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece()
    rust.add_tokens(_added(tokens, kinds))
    return rust


def _marks(
    metadata: Mapping[str, Any], size: int, kind: str, add_bos: bool, add_eos: bool
) -> Marks:
    named = {}
    for role, key in ROLES.items():
        value = metadata.get(f"{PREFIX}{key}_token_id")
        if value is not None:
            if not 0 <= int(value) < size:
                raise FormatError(f"{PREFIX}{key}_token_id is {value}, of {size} tokens")
            named[role] = int(value)
    ends = [metadata.get(f"{PREFIX}{key}_token_id") for key in ("eot", "eom")]
    first = named.get("cls", named.get("bos")) if kind == "bert" else named.get("bos")
    last = named.get("sep", named.get("eos")) if kind == "bert" else named.get("eos")
    add_bos = bool(metadata.get(PREFIX + "add_bos_token", add_bos))
    add_eos = bool(metadata.get(PREFIX + "add_eos_token", add_eos))
    templates = {}
    for key in metadata:  # not items(): that would decode every array of the file
        name = key.removeprefix("tokenizer.chat_template")
        if name != key and name[:1] in ("", ".") and isinstance(metadata[key], str):
            templates[name[1:] or "default"] = metadata[key]
    return Marks(
        named=named,
        ends=tuple(int(end) for end in ends if end is not None and 0 <= int(end) < size),
        prefix=(first,) if add_bos and first is not None else (),
        suffix=(last,) if add_eos and last is not None else (),
        templates=templates,
    )

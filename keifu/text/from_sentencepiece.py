"""SentencePiece models: the `.model` file (a protocol buffer) and the tokenizer it describes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from keifu.core.errors import FormatError
from keifu.text.marks import Marks
from keifu.text.pieces import SPACE

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of piece, as SentencePiece and GGUF both number them."""
MAX_PIECES = 4_000_000
Prefix = Literal["always", "first", "never"]


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What a SentencePiece model says, whatever file it came in."""

    tokens: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    unigram: bool
    dummy_prefix: bool = True
    """A space is put before a text."""
    collapse_spaces: bool = False
    """Spaces at the ends go, and runs become one."""
    charsmap: bytes = b""
    """The compiled normalisation rules."""
    byte_fallback: bool = False


def load_sentencepiece(path: Path, *, legacy: bool = True) -> tokenizers.Tokenizer:
    """Read a `.model` file. Not legacy: no space is put after a special token."""
    return build(read_model(path.read_bytes(), path), legacy=legacy)


def read_model(data: bytes, path: Path | str) -> Pieces:
    """Parse the protocol buffer; unknown fields are skipped, as its format asks."""
    tokens: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, Any] = {}
    norm: dict[int, Any] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(value))
                tokens.append(piece.get(1, b"").decode())
                scores.append(struct.unpack("<f", piece.get(2, b"\0\0\0\0"))[0])
                kinds.append(piece.get(3, NORMAL))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                norm = dict(_fields(value))
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        raise FormatError(f"{path}: not a SentencePiece model ({error})") from None
    kind = trainer.get(3, 1)
    if not tokens or kind not in (1, 2):
        raise FormatError(f"{path}: a SentencePiece model of type {kind} with {len(tokens)} pieces")
    return Pieces(
        tokens=tokens,
        scores=scores,
        kinds=kinds,
        unigram=kind == 1,
        dummy_prefix=bool(norm.get(3, 1)),
        collapse_spaces=bool(norm.get(4, 1)),
        charsmap=norm.get(2, b""),
        byte_fallback=bool(trainer.get(35, 0)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The (number, value) pairs of one message; lengths are checked against what is left."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if size > len(data) - at:
            raise ValueError(f"a field of {size} bytes at byte {at}, of {len(data)}")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"a number that does not end at byte {at}")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def build(spec: Pieces, *, legacy: bool = True) -> tokenizers.Tokenizer:
    """The tokenizer that yields the ids SentencePiece does."""
    ids = {token: i for i, token in enumerate(spec.tokens)}
    if len(ids) != len(spec.tokens) or len(ids) > MAX_PIECES:
        raise FormatError(f"{len(spec.tokens)} pieces, of which {len(ids)} different")
    unk = next((i for i, kind in enumerate(spec.kinds) if kind == UNKNOWN), None)
    fallback = spec.byte_fallback or BYTE in spec.kinds
    if spec.unigram:
        if unk is None:
            raise FormatError("a Unigram model needs an unknown piece")
        model: Any = models.Unigram(list(zip(spec.tokens, spec.scores, strict=True)), unk, fallback)
    else:
        normal = {
            t: s
            for t, s, k in zip(spec.tokens, spec.scores, spec.kinds, strict=True)
            if k in (NORMAL, UNUSED)
        }
        model = models.BPE(
            ids,
            merges_by_rank(normal, {token: -score for token, score in normal.items()}),
            unk_token=None if unk is None else spec.tokens[unk],
            fuse_unk=True,
            byte_fallback=fallback,
        )
    rust = tokenizers.Tokenizer(model)
    user = any(kind == USER for kind in spec.kinds)
    scheme: Prefix = "never"
    if spec.dummy_prefix:
        scheme = "always" if legacy and not user else "first"
    _add_spaces(rust, spec, scheme)
    rust.add_tokens(
        [
            AddedToken(token, special=kind != USER, normalized=False)
            for token, kind in zip(spec.tokens, spec.kinds, strict=True)
            if kind in (CONTROL, USER, UNKNOWN)
        ]
    )
    return rust


def _add_spaces(rust: tokenizers.Tokenizer, spec: Pieces, scheme: Prefix) -> None:
    """Normaliser, word splitter and decoder: all of them are about spaces."""
    steps: list[Any] = []
    if spec.charsmap:
        try:
            steps.append(normalizers.Precompiled(spec.charsmap))
        except Exception as error:
            raise FormatError(f"the normalisation rules: {error}") from None
    if spec.collapse_spaces:
        steps += [
            normalizers.Replace(Regex("^ +| +$"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    words = spec.unigram and not any(
        SPACE in token[1:]
        for token, kind in zip(spec.tokens, spec.kinds, strict=True)
        if kind in (NORMAL, USER)
    )
    if scheme == "always" and not spec.collapse_spaces:
        # Unlike Metaspace, SentencePiece adds its space even before a space.
        steps += [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    else:
        rust.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=words)
    if steps:
        rust.normalizer = normalizers.Sequence(steps)
    undo: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.dummy_prefix:
        undo.append(decoders.Strip(" ", 1, 0))
    rust.decoder = decoders.Sequence(undo)


def merges_by_rank(vocab: Mapping[Any, Any], rank: Mapping[Any, float]) -> list[tuple[Any, Any]]:
    """Every pair that joins to a token, best first: how SentencePiece and tiktoken choose merges.

    The tokens are strings or bytes. Of the pairs for one token, the longest left part goes first.
    """
    found = [
        (rank[token], -cut, token[:cut], token[cut:])
        for token in vocab
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    found.sort(key=lambda pair: pair[:2])
    return [(left, right) for _, _, left, right in found]


def marks(spec: Pieces) -> Marks:
    """The named tokens of a bare `.model` file; SentencePiece itself puts nothing round a text."""
    named = {}
    for role, names in (("bos", ("<s>", "<bos>")), ("eos", ("</s>", "<eos>")), ("pad", ("<pad>",))):
        for i, (token, kind) in enumerate(zip(spec.tokens, spec.kinds, strict=True)):
            if kind == CONTROL and token in names:
                named[role] = i
    if UNKNOWN in spec.kinds:
        named["unk"] = list(spec.kinds).index(UNKNOWN)
    return Marks(named=named)

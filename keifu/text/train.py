"""Learning a vocabulary from texts: byte-level BPE, SentencePiece-style BPE, Unigram, WordPiece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from keifu.core.errors import KeifuError, unknown
from keifu.text.marks import Marks, Pairing
from keifu.text.pieces import SPACE
from keifu.text.pretokenize import rule, splitter
from keifu.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a vocabulary is learned."""

    size: int = 8192
    """How many tokens, special ones included; fewer if the texts give no more."""
    min_frequency: int = 2
    """A pair seen less often than this is not merged."""
    bos: str | None = None
    """Special token before a text; None leaves the role out. Special ones get the first ids."""
    eos: str | None = "<|endoftext|>"
    """Special token after a text."""
    unk: str | None = None
    """Needed by Unigram and WordPiece, which cannot write every character."""
    pad: str | None = None
    """Special token that fills up rows."""
    mask: str | None = None
    """WordPiece always has [MASK]"""
    special: tuple[str, ...] = ()
    """Further special tokens, such as those of a chat format."""
    pre: str = "gpt-2"
    """Byte-level BPE: how words are cut, by the names of `pretokenize`."""
    lowercase: bool = False
    """WordPiece: fold case and accents, as uncased BERT does."""


def _bert_pair(cls: int, sep: int) -> Pairing:
    """[CLS] A [SEP] B [SEP], the second text in the second segment."""
    return Pairing(before=((cls, 0),), between=((sep, 0),), after=((sep, 1),))


def train(kind: str, texts: Iterable[str], options: TrainOptions | None = None) -> Tokenizer:
    """Learn a tokenizer: kind is `byte-bpe`, `spm-bpe`, `unigram` or `wordpiece`."""
    options = options or TrainOptions()
    if kind not in _KINDS:
        raise unknown("kind of tokenizer", kind, _KINDS)
    roles = {"unk": options.unk, "pad": options.pad, "bos": options.bos, "eos": options.eos}
    roles["mask"] = options.mask
    if kind == "wordpiece":
        roles |= {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    if kind in ("unigram", "wordpiece") and not options.unk:
        roles["unk"] = "[UNK]" if kind == "wordpiece" else "<unk>"
    names = list(dict.fromkeys([*(name for name in roles.values() if name), *options.special]))
    if options.size <= len(names):
        raise KeifuError(f"size={options.size} leaves no room beside {len(names)} special tokens")
    rust, trainer = _KINDS[kind](options, names, roles["unk"])
    rust.train_from_iterator(texts, trainer)
    rust = _without_added(rust)
    rust.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    ids: dict[str, int] = rust.get_vocab(with_added_tokens=True)
    named = {role: ids[name] for role, name in roles.items() if name}
    around = kind == "wordpiece"
    marks = Marks(
        named=named,
        prefix=(named["cls"],) if around else (),
        suffix=(named["sep"],) if around else (),
        pair=_bert_pair(named["cls"], named["sep"]) if around else None,
    )
    return Tokenizer(rust, marks)


def _without_added(rust: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The trained tokenizer without its list of added tokens: bytes are no special tokens."""
    bare = tokenizers.Tokenizer(rust.model)
    bare.pre_tokenizer, bare.decoder = rust.pre_tokenizer, rust.decoder
    if rust.normalizer is not None:
        bare.normalizer = rust.normalizer
    return bare


Maker = Callable[[TrainOptions, list[str], str | None], tuple[tokenizers.Tokenizer, Any]]


def _byte_bpe(
    options: TrainOptions, names: list[str], unk: str | None
) -> tuple[tokenizers.Tokenizer, Any]:
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = splitter(rule(options.pre).patterns)
    rust.decoder = decoders.ByteLevel()
    return rust, trainers.BpeTrainer(
        vocab_size=options.size,
        min_frequency=options.min_frequency,
        special_tokens=names,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )


def _spm_bpe(
    options: TrainOptions, names: list[str], unk: str | None
) -> tuple[tokenizers.Tokenizer, Any]:
    """Gemma's kind: spaces are characters, unknown ones are bytes; any text comes back exactly."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    if options.size <= len(names) + 256:
        raise KeifuError(f"size={options.size} leaves no room beside the 256 bytes")
    rust = tokenizers.Tokenizer(models.BPE(unk_token=unk, fuse_unk=True, byte_fallback=True))
    rust.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=True)
    rust.decoder = _spaces(strip=False)
    return rust, trainers.BpeTrainer(
        vocab_size=options.size,
        min_frequency=options.min_frequency,
        special_tokens=[*names, *bytes_],
        limit_alphabet=max(256, options.size // 2),
        show_progress=False,
    )


def _unigram(
    options: TrainOptions, names: list[str], unk: str | None
) -> tuple[tokenizers.Tokenizer, Any]:
    """T5's kind: the likeliest split; NFKC, runs of spaces become one."""
    rust = tokenizers.Tokenizer(models.Unigram())
    rust.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    rust.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=True)
    rust.decoder = _spaces(strip=True)
    return rust, trainers.UnigramTrainer(
        vocab_size=options.size, special_tokens=names, unk_token=unk, show_progress=False
    )


def _wordpiece(
    options: TrainOptions, names: list[str], unk: str | None
) -> tuple[tokenizers.Tokenizer, Any]:
    """BERT's kind."""
    rust = tokenizers.Tokenizer(models.WordPiece(unk_token=unk))
    rust.normalizer = normalizers.BertNormalizer(lowercase=options.lowercase)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece()
    return rust, trainers.WordPieceTrainer(
        vocab_size=options.size,
        min_frequency=options.min_frequency,
        special_tokens=names,
        show_progress=False,
    )


def _spaces(*, strip: bool) -> Any:
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])


_KINDS: dict[str, Maker] = {
    "byte-bpe": _byte_bpe,
    "spm-bpe": _spm_bpe,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}
KINDS: Sequence[str] = tuple(_KINDS)
"""What `train` can learn."""

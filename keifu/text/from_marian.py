"""Marian's folders: a SentencePiece model for each language, whose pieces vocab.json numbers.

The ids are not the models' own: a piece of either model is looked up by its text, and one that
vocab.json lacks is unknown. A language code such as ">>fra<<" at the start of a text is one token.
With `separate_vocabs` the target has a vocabulary of its own, target_vocab.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models

from keifu.core.errors import FormatError
from keifu.text import from_sentencepiece as spm
from keifu.text.encoder import Encoder
from keifu.text.marks import Marks
from keifu.text.template import Segment
from keifu.text.tokenizer import Tokenizer

SOURCE, TARGET = "source.spm", "target.spm"
MAX_BYTES = 96 << 20
"""Of one file."""
_CODE = re.compile(r">>.*?<<", re.DOTALL)
_NAMED = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}


def is_marian(folder: Path) -> bool:
    """Whether a folder's vocabulary is Marian's."""
    return all((folder / name).is_file() for name in (SOURCE, TARGET, "vocab.json"))


def load_marian(folder: Path, *, separate: bool = False, source: bool = False) -> Tokenizer:
    """The tokenizer of what is written, or of what is read.

    Args:
        separate: the target has a vocabulary of its own.

    Raises:
        FormatError: a file is damaged, or vocab.json lacks </s>, <unk> or <pad>.
    """
    numbers = folder / ("target_vocab.json" if separate and not source else "vocab.json")
    vocab = _vocabulary(numbers)
    path = folder / (SOURCE if source else TARGET)
    pieces = spm.read_model(_read(path), path)
    inner = Tokenizer(spm.build(pieces), spm.marks(pieces))
    rust = tokenizers.Tokenizer(models.WordLevel(dict(vocab), unk_token=_NAMED["unk"]))
    rust.add_special_tokens(list(_NAMED.values()))
    rust.decoder = decoders.Metaspace()
    named = {role: vocab[token] for role, token in _NAMED.items()}
    encoder = ByName(spm.build(pieces), inner.control_ids, vocab)
    return Tokenizer(rust, Marks(named=named, suffix=(named["eos"],)), encoder=encoder)


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        found = json.loads(_read(path))
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict) or not all(type(i) is int for i in found.values()):
        raise FormatError(f"{path} does not map pieces to numbers")
    if sorted(found.values()) != list(range(len(found))):
        raise FormatError(f"{path} must number its {len(found)} pieces from 0 without a gap")
    if missing := [token for token in _NAMED.values() if token not in found]:
        raise FormatError(f"{path} lacks {', '.join(missing)}")
    return found


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FormatError(f"{path} is missing")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise FormatError(f"{path} has {size} bytes; a tokenizer file has at most {MAX_BYTES}")
    return path.read_bytes()


class ByName(Encoder):
    """Cuts a text as one model does, and numbers the pieces as a vocabulary does."""

    def __init__(
        self, rust: tokenizers.Tokenizer, control: frozenset[int], vocab: Mapping[str, int]
    ) -> None:
        super().__init__(rust, {}, control)
        self._vocab, self._unk = vocab, vocab[_NAMED["unk"]]
        self._named = frozenset(_NAMED.values())
        self._written = {alias: text for text, alias in self._aliases.items()}

    def encode(self, segments: Sequence[Segment]) -> list[int]:
        """The ids of trusted and untrusted texts in a row; a language code may come first."""
        text = "".join(
            self._pattern.sub(self._alias, s.text) if s.trusted else s.text for s in segments
        )
        code = _CODE.match(text)
        first = [] if code is None else [self._vocab.get(code[0], self._unk)]
        return first + self._numbered(self._safe(text[code.end() :] if code else text))

    def many(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many untrusted texts."""
        return [self.encode([Segment(text, trusted=False)]) for text in texts]

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of an untrusted text, and which characters each stands for."""
        encoding = self._safe(text)
        return self._numbered(encoding), list(encoding.offsets)

    def _numbered(self, encoding: tokenizers.Encoding) -> list[int]:
        found = []
        for piece in encoding.tokens:
            # A control token stands under an alias where we wrote it; typed, it is nothing known.
            typed = _NAMED["unk"] if piece in self._named else piece
            found.append(self._vocab.get(self._written.get(piece, typed), self._unk))
        return found

"""What bytes a vocabulary's token strings stand for: byte-level, SentencePiece, WordPiece, `</w>`.

Every published tokenizer writes its tokens as printable strings, in one of five styles. Decoding is
then the joining of bytes, which is what lets text be streamed without ever splitting a character.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from keifu.core.errors import FormatError

Style = Literal["bytes", "spaces", "wordpiece", "suffix", "words"]

SPACE = "\u2581"
"""SentencePiece's visible space."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_GLUED = re.compile(r"^ ([.?!,]|n't|'m|'s|'ve|'re)$")


def _alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte: itself if printable, else 256 and upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(printable)]
    table = {chr(b): b for b in printable}
    table |= {chr(256 + n): b for n, b in enumerate(rest)}
    return table


BYTE_OF = _alphabet()
CHAR_OF = {byte: char for char, byte in BYTE_OF.items()}


def byte_level(data: bytes) -> str:
    """Bytes written in GPT-2's printable alphabet."""
    return "".join(CHAR_OF[b] for b in data)


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """One style of token strings, and what is dropped at the two ends of a whole text."""

    style: Style
    marker: str = ""
    """WordPiece's continuation prefix or BPE's end-of-word suffix."""
    byte_tokens: bool = False
    """Whether `<0xNN>` stands for one byte."""
    strip_first: bool = False
    """One leading space of a text belongs to the encoding, not to the text."""
    tidy: bool = False
    """WordPiece: no space before punctuation."""

    @property
    def strip_last(self) -> bool:
        """One trailing space of a text belongs to the encoding."""
        return self.style == "suffix"

    def to_bytes(self, piece: str, *, added: bool = False) -> bytes:
        """The bytes that a token adds in the middle of a text; an added one is written as it is."""
        if added and self.style not in ("wordpiece", "words"):
            return piece.encode()
        if self.style == "bytes":
            if all(char in BYTE_OF for char in piece):
                return bytes(BYTE_OF[char] for char in piece)
            return piece.encode()
        if self.style == "spaces":
            byte = _BYTE.fullmatch(piece) if self.byte_tokens else None
            return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()
        if self.style == "wordpiece":
            if piece.startswith(self.marker) and piece != self.marker:
                return piece[len(self.marker) :].encode()
            glued = _GLUED.match(" " + piece) if self.tidy else None
            return (piece if glued else " " + piece).encode()
        if self.style == "suffix":
            return piece.replace(self.marker, " ").encode()
        return (" " + piece).encode()

    def join(self, parts: list[bytes], start: bool = True) -> bytes:
        """A text's bytes; `start`: it begins a document, and so may have a space to drop."""
        data = b"".join(parts)
        if start and self.strip_first and data.startswith(b" "):
            data = data[1:]
        return data[:-1] if self.strip_last and data.endswith(b" ") else data


def pieces_of(decoder: str | None) -> Pieces:
    """The style that a `tokenizers` decoder (as JSON) undoes."""
    if decoder is None:
        return Pieces(style="words", strip_first=True)
    steps = list(_flatten(json.loads(decoder)))
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds:
        return Pieces(style="bytes")
    for step in steps:
        if step["type"] == "WordPiece":
            return Pieces(
                style="wordpiece",
                marker=step.get("prefix", "##"),
                strip_first=True,
                tidy=bool(step.get("cleanup", True)),
            )
        if step["type"] == "BPEDecoder":
            return Pieces(style="suffix", marker=step.get("suffix", "</w>"))
    known = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
    if set(kinds) - known:
        raise FormatError(
            f"the tokenizer's decoder {sorted(set(kinds) - known)} is not supported: known are "
            "ByteLevel, WordPiece, BPEDecoder, Metaspace, Replace, ByteFallback, Fuse, Strip"
        )
    strip = any(
        (step["type"] == "Strip" and step.get("start", 0) > 0 and step.get("content") == " ")
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    return Pieces(style="spaces", byte_tokens="ByteFallback" in kinds, strip_first=strip)


def _flatten(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [inner for each in step["decoders"] for inner in _flatten(each)]

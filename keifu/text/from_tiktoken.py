"""tiktoken vocabularies: a file of base64 tokens and ranks, and the special tokens beside it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken

from keifu.core.errors import FormatError
from keifu.text.from_sentencepiece import merges_by_rank
from keifu.text.pieces import byte_level
from keifu.text.pretokenize import GPT2, GPT4O, LLAMA3, QWEN2, byte_level_bpe

_LLAMA3 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{n}|>" for n in range(2)),
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{n}|>" for n in range(3, 248)),
]
_QWEN = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{n}|>" for n in range(205)),
]
FORMATS: dict[str, tuple[str, Sequence[str]]] = {
    "llama-3": (LLAMA3, _LLAMA3),
    "qwen": (QWEN2, _QWEN),
    "cl100k_base": (LLAMA3, []),
    "o200k_base": (GPT4O, []),
    "r50k_base": (GPT2, ["<|endoftext|>"]),
    "gpt2": (GPT2, ["<|endoftext|>"]),
}
"""Pattern and special tokens (their ids follow the ranks) of the published vocabularies."""


def is_tiktoken(head: bytes) -> bool:
    """Whether a file begins with a line `base64 rank`."""
    token, _, rank = head.split(b"\n", 1)[0].strip().partition(b" ")
    try:
        return bool(base64.b64decode(token, validate=True)) and rank.isdigit()
    except binascii.Error:
        return False


def load_tiktoken(path: Path, *, pattern: str, special: Sequence[str] = ()) -> tokenizers.Tokenizer:
    """Read a vocabulary; the special tokens get the ids after its last rank, in order."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise FormatError(f"{path}: line {number} is not `base64 rank`") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise FormatError(f"{path}: the ranks are not 0 to {len(ranks) - 1}, each once")
    names = {token: byte_level(token) for token in ranks}
    merges = [(names[a], names[b]) for a, b in merges_by_rank(ranks, ranks)]
    vocab = {names[token]: rank for token, rank in ranks.items()}
    rust = byte_level_bpe(vocab, merges, (pattern,), ignore_merges=True)
    rust.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return rust

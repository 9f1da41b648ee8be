"""Builds GGUF files byte by byte, good and bad, without the code under test.

`tiny_llama` is a whole small model that llama.cpp loads too; `changes` replaces keys (None takes
one away). The rest are the pieces of a file, each of which may be wrong on purpose.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?"} | {
    U64: "Q",
    I64: "q",
    F64: "d",
}
Tensor = tuple[int, tuple[int, ...], bytes]
"""ggml type, shape (outermost first), bytes."""


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def payload(kind: int, value: Any) -> bytes:
    return string(value) if kind == STRING else struct.pack(f"<{CODES[kind]}", value)


def array(kind: int, values: Iterable[Any], count: int | None = None) -> bytes:
    """An array's element kind, count (or the count it claims) and elements."""
    values = list(values)
    body = b"".join(payload(kind, v) if kind != ARRAY else v for v in values)
    return struct.pack("<IQ", kind, len(values) if count is None else count) + body


def key(name: str | bytes, kind: int, body: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + body


def entry(name: str, value: Any) -> bytes:
    """A key of the kind that llama.cpp expects of such a value."""
    kinds = {bool: BOOL, int: U32, float: F32, str: STRING, bytes: STRING}
    if isinstance(value, list):
        kind = I32 if type(value[0]) is int else kinds[type(value[0])]
        return key(name, ARRAY, array(kind, value))
    return key(name, kinds[type(value)], payload(kinds[type(value)], value))


def info(
    name: str | bytes,
    shape: Iterable[int],
    kind: int = 0,
    offset: int = 0,
    rank: int | None = None,
) -> bytes:
    """A tensor's entry; `rank` is the dimension count it claims."""
    dims = list(shape)[::-1]
    count = len(dims) if rank is None else rank
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def build(
    keys: Iterable[bytes] = (),
    infos: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    key_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these pieces; counts may lie."""
    keys, infos = list(keys), list(infos)
    tensor_count = len(infos) if tensor_count is None else tensor_count
    key_count = len(keys) if key_count is None else key_count
    head = magic + struct.pack("<IQQ", version, tensor_count, key_count)
    head += b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


def model(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], version: int = 3) -> bytes:
    """A valid file."""
    infos, data = [], b""
    for name, (kind, shape, raw) in tensors.items():
        infos.append(info(name, shape, kind, len(data)))
        data += raw + bytes(-len(raw) % 32)
    return build([entry(k, v) for k, v in metadata.items()], infos, data, version=version)


def dense(values: np.ndarray[Any, Any]) -> Tensor:
    return 0, values.shape, values.astype("<f4").tobytes()


def q8_0(values: np.ndarray[Any, Any]) -> Tensor:
    """Rows in blocks of 32: a float16 scale and 32 signed bytes."""
    blocks = values.reshape(-1, 32)
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
    codes = np.rint(blocks / scale).astype("i1")
    return 8, values.shape, np.hstack((scale.view("u1"), codes.view("u1"))).tobytes()


def tiny_llama_metadata() -> dict[str, Any]:
    """Two layers of width 64, four heads over two, 259 tokens (bytes, two words, an end)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    tokens = [chr(b if b in printable else next(spare)) for b in range(256)]
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 7,
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 16,
        "llama.vocab_size": 259,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, "he", "hel", "<|end|>"],
        "tokenizer.ggml.token_type": [1] * 258 + [3],
        "tokenizer.ggml.merges": ["h e", "he l"],
        "tokenizer.ggml.bos_token_id": 258,
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.add_bos_token": False,
    }


def tiny_llama_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Matrices in q8_0, norms in f32; the head is tied to the embedding."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, cols: int) -> Tensor:
        return q8_0(random.standard_normal((rows, cols)).astype("f4") / 8)

    norm = dense(np.ones(64, "f4"))
    tensors = {"token_embd.weight": matrix(259, 64), "output_norm.weight": norm}
    for i in range(2):
        shapes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64)}
        shapes |= {"attn_output": (64, 64), "ffn_gate": (96, 64), "ffn_up": (96, 64)}
        shapes |= {"ffn_down": (64, 96)}
        for name, shape in shapes.items():
            tensors[f"blk.{i}.{name}.weight"] = matrix(*shape)
        tensors[f"blk.{i}.attn_norm.weight"] = tensors[f"blk.{i}.ffn_norm.weight"] = norm
    return tensors


def tiny_llama(
    changes: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor | None] | None = None,
    *,
    version: int = 3,
    seed: int = 0,
) -> bytes:
    """A valid small model, with keys and tensors replaced, added or (None) taken away."""
    metadata = tiny_llama_metadata() | dict(changes or {})
    weights = tiny_llama_tensors(seed) | dict(tensors or {})
    return model(
        {name: value for name, value in metadata.items() if value is not None},
        {name: value for name, value in weights.items() if value is not None},
        version,
    )

"""Mutated and random GGUF files: they open or are a FormatError, quickly and in little memory."""

from __future__ import annotations

import os
import struct
import tempfile
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keifu.checkpoints.gguf import GGUFFile, write_gguf
from keifu.core.errors import FormatError, KeifuError
from keifu.nn.kernels.formats import Packed
from tests import gguf_builder as build

SEED = build.tiny_llama()
HEADER = len(SEED) - sum(len(t[2]) + -len(t[2]) % 32 for t in build.tiny_llama_tensors().values())
QUICK = settings(
    deadline=None, max_examples=300, suppress_health_check=list(HealthCheck), database=None
)
ODD = st.sampled_from(
    [0, 1, 2, 4, 9, 31, 32, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**60, 2**63, 2**64 - 1]
)


@pytest.fixture(scope="module")
def path():
    handle, name = tempfile.mkstemp(suffix=".gguf")
    os.close(handle)
    yield Path(name)
    os.unlink(name)


def survives(path: Path, content: bytes, size: int | None = None, seconds: float = 1) -> bool:
    """Open the file and use all of it if it opens; whether it did. `size` pads it with a hole."""
    path.write_bytes(content)
    if size:
        os.truncate(path, size)
    tracemalloc.start()
    start = time.process_time()  # not the wall: the machine may be busy
    said = None
    try:
        with GGUFFile(path) as file:
            assert len({**file.metadata}) == len(file.metadata)
            tensors = [(name, file.read(name)) for name in file.names()]
    except FormatError as refused:
        said = str(refused)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - start < seconds
    assert peak < (1 << 20) + 100 * len(content)
    assert said is None or (said.startswith(str(path)) and "\n" not in said and len(said) < 1000)
    if said is None and not size:
        use(file, tensors)
    return said is None


def use(file: GGUFFile, tensors: list) -> None:
    """What can be read can be decoded, written and then read as the same."""
    for name, tensor in tensors:
        dense = tensor.dequantize() if isinstance(tensor, Packed) else tensor
        assert dense.shape == file.shape(name)
    copy, said = file.path.with_suffix(".copy"), ""
    try:
        write_gguf(copy, file.metadata, tensors)
    except KeifuError as refused:  # an alignment below 8, or nested lists of mixed kinds
        said = str(refused)
    assert said == "" or "alignment" in said or " is not " in said
    if not said:
        with GGUFFile(copy) as again:
            assert repr({**again.metadata}) == repr({**file.metadata})
            assert again.names() == file.names()
        copy.unlink()


def test_the_seed_is_good(path):
    assert survives(path, SEED)


@QUICK
@given(st.lists(st.tuples(st.integers(0, HEADER - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_bytes_changed(path, changes):
    content = bytearray(SEED)
    for at, byte in changes:
        content[at] = byte
    survives(path, bytes(content))


FIELDS = [i for i in range(HEADER - 8) if SEED[i + 1 : i + 8] == bytes(7)]
"""Where a small 64-bit number, a count, length, dimension or offset, may be."""


@QUICK
@given(st.lists(st.tuples(st.sampled_from(FIELDS), ODD), min_size=1, max_size=3))
def test_numbers_changed(path, changes):
    content = bytearray(SEED)
    for at, number in changes:
        content[at : at + 8] = struct.pack("<Q", number)
    survives(path, bytes(content))


@QUICK
@given(st.data())
def test_pieces_cut_copied_and_put_in(path, data):
    a, b, c = sorted(data.draw(st.integers(0, HEADER)) for _ in range(3))
    if data.draw(st.booleans()):
        content = SEED[:a] + SEED[b:]
    else:
        content = SEED[:b] + SEED[a:b] + data.draw(st.binary(max_size=40)) + SEED[c:]
    survives(path, content)


@settings(QUICK, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 1 << 21), st.binary(min_size=1, max_size=9)), max_size=3))
def test_default_model_changed(path, smollm2, changes):
    """The real header (a 49,152-token vocabulary), its tensors a hole of the right size."""
    with open(smollm2, "rb") as file:
        content = bytearray(file.read(1 << 21))
    for at, piece in changes:
        content[at : at + len(piece)] = piece
    survives(path, bytes(content[: 1 << 21]), smollm2.stat().st_size, seconds=5)


KINDS = st.integers(0, 14)
COUNTS = st.one_of(st.none(), st.integers(0, 40), ODD)
TEXTS = st.one_of(
    st.sampled_from([b"a", b"b", b"", b"general.alignment", b"split.count"]), st.binary()
)


@st.composite
def arrays(draw, depth: int = 0) -> bytes:
    kind, count = draw(KINDS), draw(COUNTS)
    if kind == build.ARRAY and depth < 6:
        body = b"".join(draw(st.lists(arrays(depth + 1), max_size=3)))
    elif kind == build.STRING:
        body = b"".join(build.string(t) for t in draw(st.lists(TEXTS, max_size=6)))
    else:
        body = draw(st.binary(max_size=64))
    return struct.pack("<IQ", kind, len(body) if count is None else count) + body


@st.composite
def keys(draw) -> bytes:
    kind = draw(KINDS)
    if kind == build.ARRAY:
        return build.key(draw(TEXTS), kind, draw(arrays()))
    if kind == build.STRING:
        return build.key(draw(TEXTS), kind, build.string(draw(TEXTS)))
    size = struct.calcsize(build.CODES.get(kind, "I"))
    return build.key(draw(TEXTS), kind, draw(st.binary(min_size=size, max_size=size)))


@st.composite
def infos(draw) -> bytes:
    dims = draw(st.lists(st.one_of(st.sampled_from([1, 2, 32, 256]), ODD), max_size=5))
    offset = draw(st.one_of(st.sampled_from([0, 32, 64, 96, 128, 2048]), ODD))
    rank = draw(st.one_of(st.none(), st.none(), st.none(), ODD))
    kind = draw(st.one_of(st.integers(0, 42), ODD)) & 0xFFFFFFFF
    return build.info(draw(TEXTS), dims, kind, offset, rank and rank & 0xFFFFFFFF)


@QUICK
@given(st.data())
def test_random_structure(path, data):
    content = build.build(
        data.draw(st.lists(keys(), max_size=4)),
        data.draw(st.lists(infos(), max_size=3)),
        bytes(data.draw(st.sampled_from([0, 32, 4096]))),
        version=data.draw(st.sampled_from([2, 3, 3, 3, 1, 99])),
        key_count=data.draw(st.one_of(st.none(), st.none(), ODD)),
        tensor_count=data.draw(st.one_of(st.none(), st.none(), ODD)),
        alignment=data.draw(st.sampled_from([1, 32, 32, 64])),
    )
    survives(path, content)

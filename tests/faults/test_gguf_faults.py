"""Bad GGUF files (rows 1 to 5 of the table of faults): one hand-built file a field.

Each must be refused when it is opened, quickly, with an error that names the file and what in it
is wrong; afterwards a good file opens as ever.
"""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from keifu.checkpoints.gguf import GGUFFile
from keifu.core.errors import FormatError, KeifuError
from tests import gguf_builder as build

F4 = bytes(4)


def one(**claims: object) -> bytes:
    """A file of one key and one tensor of eight floats, with some claims about them wrong."""
    kind, rank, offset = (claims.pop(n, d) for n, d in (("kind", 0), ("rank", None), ("offset", 0)))
    shape = claims.pop("shape", (8,))
    info = build.info("weight", shape, kind, offset, rank)
    return build.build([build.entry("a", 1)], [info], bytes(32), **claims)


def two(first: int, second: int, names: tuple[str, str] = ("a", "b"), size: int = 128) -> bytes:
    """Two tensors of sixteen floats at these offsets."""
    infos = [
        build.info(name, (16,), 0, at) for name, at in zip(names, (first, second), strict=True)
    ]
    return build.build([], infos, bytes(size))


def array(kind: int, claimed: int, body: bytes = b"") -> bytes:
    return build.build([build.key("list", 9, struct.pack("<IQ", kind, claimed) + body)])


def keyed(kind: int, body: bytes, name: str = "key") -> bytes:
    return build.build([build.key(name, kind, body)])


def nested(depth: int) -> bytes:
    return array(9, 1, struct.pack("<IQ", 9, 1) * depth + build.array(4, [1]))


def aligned(value: object, kind: int = 4) -> bytes:
    key = build.key("general.alignment", kind, build.payload(kind, value))
    return build.build([key], [build.info("weight", (8,))], bytes(32))


FAULTS = {
    # row 1: what is not a GGUF file at all
    "empty": (b"", "offset 0: 0 bytes are no GGUF header"),
    "four bytes": (b"GGUF", "offset 0: 4 bytes are no GGUF header"),
    "magic": (one(magic=b"GGML"), "offset 0: not a GGUF file: it begins with b'GGML'"),
    "version 0": (one(version=0), "offset 4: GGUF version 0; versions 2 and 3"),
    "version 1": (one(version=1), "offset 4: GGUF version 1; versions 2 and 3"),
    "version 99": (one(version=99), "offset 4: GGUF version 99; versions 2 and 3"),
    "big-endian": (one(version=3 << 24), "offset 4: a big-endian GGUF file"),
    # row 2: counts that the bytes left cannot hold
    "tensor count": (one(tensor_count=1 << 40), r"offset 24: 1099511627776 tensors needs"),
    "key count": (one(key_count=1 << 40), r"offset 24: 1099511627776 keys needs"),
    "all ones": (one(key_count=2**64 - 1), "18446744073709551615 keys needs"),
    "one key more": (one(key_count=2), "unknown kind|truncated|no name"),
    "one tensor more": (one(tensor_count=2), "no name|truncated"),
    "key length": (
        build.build([struct.pack("<Q", 1 << 60) + bytes(9)]),
        "key 0 has .* at most 65535",
    ),
    "long key": (keyed(7, b"\1", "k" * 65536), "key 0 has 65536 bytes, at most 65535"),
    "string length": (keyed(8, struct.pack("<Q", 1 << 60)), "key 'key' needs 1152921504606846976"),
    "bytes array": (array(0, 1 << 33), "key 'list', 8589934592 elements, needs"),
    "number array": (array(10, 1 << 61), "key 'list', 2305843009213693952 elements, needs"),
    "string array": (array(8, 1 << 33), "key 'list', 8589934592 elements, needs"),
    "string in array": (array(8, 2, build.string("a") + b"\xff" * 8), "string 1 of key 'list'"),
    "last in array": (array(8, 1, struct.pack("<Q", 99)), "string 0 of key 'list' ends beyond"),
    "array of arrays": (array(9, 1 << 33), "key 'list', 8589934592 elements, needs"),
    "array in array": (array(9, 1, struct.pack("<IQ", 0, 1 << 33)), "8589934592 elements, needs"),
    "many arrays": (array(9, 5_000_000, bytes(60_000_000)), "more than 4000000 strings, arrays"),
    "name length": (build.build([], [struct.pack("<Q", 1 << 60) + bytes(32)]), "a tensor name has"),
    # row 3
    "nested 5 deep": (nested(5), "key 'list': arrays nested more than 4 deep"),
    "nested 3000 deep": (nested(3000), "key 'list': arrays nested more than 4 deep"),
    # row 4: fields that contradict each other or the file
    "kind of key": (keyed(13, F4), "key 'key' has the unknown kind 13"),
    "kind of elements": (array(13, 1, F4), "key 'list' has elements of the unknown kind 13"),
    "bool": (keyed(7, b"\2"), "key 'key' is a bool of value 2"),
    "bool array": (array(7, 3, b"\0\1\2"), "key 'list' has a bool that is neither 0 nor 1"),
    "unnamed key": (keyed(7, b"\1", ""), "key 0 of 1 has no name"),
    "key twice": (build.build([build.entry("k", 1)] * 2), "key 1 of 2 comes twice: 'k'"),
    "rank 5": (one(rank=5), "tensor 'weight' has 5 dimensions"),
    "rank 2^31": (one(rank=1 << 31), "tensor 'weight' has 2147483648 dimensions"),
    "overflow to 0": (one(shape=(1 << 32, 1 << 32)), r"tensor 'weight', .* takes 73786976294838"),
    "overflow to 32": (one(shape=(2**62 + 8,)), r"tensor 'weight', .* more than the file"),
    "overflow of four": (one(shape=(1 << 16,) * 4), r"tensor 'weight', .* more than the file"),
    "dimension 0": (one(shape=(0, 8)), r"tensor 'weight' is empty: dimensions \(8, 0\)"),
    "dimension -1": (one(shape=(2**64 - 1,)), r"tensor 'weight', .* more than the file"),
    "blocks": (one(kind=2, shape=(2, 16)), "tensor 'weight': rows of 16 are not blocks of 32 q4_0"),
    "type 4": (one(kind=4), r"tensor 'weight' has the type 4 \(unknown\)"),
    "type 16": (one(kind=16), r"tensor 'weight' has the type 16 \(iq2_xxs\), which is not read"),
    "type -1": (one(kind=2**32 - 1), "tensor 'weight' has the type 4294967295"),
    "past the end": (one(offset=32), "tensor 'weight' ends at byte .*: truncated"),
    "far past the end": (one(offset=2**64 - 32), "tensor 'weight' ends at byte"),
    "larger than file": (one(shape=(16,)), "tensor 'weight' ends at byte .*: truncated"),
    "misaligned": (two(0, 65), "tensor 'b' is misaligned: 32 does not divide 65"),
    "overlapping": (two(0, 32), "tensor 'b' begins at byte .*, inside tensor 'a'"),
    "same place": (two(0, 0), "tensor 'b' begins at byte .*, inside tensor 'a'"),
    "tensor twice": (two(0, 64, ("a", "a")), "tensor 'a' comes twice"),
    "unnamed tensor": (two(0, 64, ("a", "")), "a tensor has no name"),
    "alignment 0": (aligned(0), "general.alignment is 0, not a power of two"),
    "alignment 3": (aligned(3), "general.alignment is 3, not a power of two"),
    "alignment 2^31": (aligned(1 << 31), "tensor 'weight' ends at byte .*: truncated"),
    "alignment -8": (aligned(-8, 5), "general.alignment is -8, not a power of two"),
    "alignment 8.0": (aligned(8.0, 6), "general.alignment is float, not a power of two"),
    "alignment true": (aligned(True, 7), "general.alignment is bool, not a power of two"),
}


def refused(path: Path, message: str) -> None:
    """Opening fails in a second with this message, and leaves the next file readable."""
    start = time.process_time()
    with pytest.raises(FormatError, match=message) as caught:
        GGUFFile(path)
    assert time.process_time() - start < 1
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    assert len(said) < 1000 + len(str(path))
    good = path.with_name("good.gguf")
    good.write_bytes(build.tiny_llama())
    with GGUFFile(good) as file:
        assert file.read("output_norm.weight").shape == (64,)


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_field(tmp_path, fault):
    content, message = FAULTS[fault]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    refused(path, message)


@pytest.mark.parametrize("fault", FAULTS)
def test_claims_are_not_allocated(tmp_path, fault):
    """What a bad header makes us hold stays near the size of the file itself."""
    content, _ = FAULTS[fault]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            GGUFFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sixteenth", range(16))
def test_truncated_model(tmp_path, smollm2, sixteenth):
    """Row 5: the default model cut anywhere is refused when it opens, not at the first token."""
    size = smollm2.stat().st_size * sixteenth // 16
    path = tmp_path / "cut.gguf"
    with open(smollm2, "rb") as whole, open(path, "wb") as cut:
        cut.write(whole.read(min(size, 1 << 22)))  # the header; the rest is a hole
        cut.truncate(size)
    refused(path, "truncated" if sixteenth else "0 bytes are no GGUF header")


def test_truncated_header(tmp_path):
    """Cut at every byte of its header and at each end of a tensor, a small model is refused."""
    content = build.tiny_llama()
    path = tmp_path / "cut.gguf"
    header = content.index(b"output_norm.weight")
    for size in [*range(0, header, 7), *range(header, len(content) - 32, 997), len(content) - 33]:
        path.write_bytes(content[:size])
        with pytest.raises(FormatError):
            GGUFFile(path)


def test_what_is_no_file(tmp_path):
    """A folder, a pipe and a missing file are errors, at once."""
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(FormatError, match="not a regular file"):
        GGUFFile(tmp_path / "pipe.gguf")
    with pytest.raises(KeifuError, match=r"cannot open .*Is a directory"):
        GGUFFile(tmp_path)
    with pytest.raises(KeifuError, match=r"cannot open .*No such file"):
        GGUFFile(tmp_path / "none.gguf")

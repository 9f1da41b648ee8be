"""GGUF files read and written, against the gguf package, llama.cpp and files built by hand."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize

from keifu.checkpoints.gguf import GGUFFile, Metadata, Value, write_gguf
from keifu.checkpoints.gguf_header import DENSE, TYPE_IDS, UNREAD
from keifu.checkpoints.gguf_metadata import KINDS
from keifu.checkpoints.names import Value as TensorValue
from keifu.core.errors import FormatError, KeifuError
from keifu.nn.kernels.formats import FORMATS, Packed
from tests import gguf_builder as build


def saved(tmp_path: Path, content: bytes, name: str = "m.gguf") -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def values(tensor: TensorValue) -> np.ndarray:
    dense = tensor.dequantize() if isinstance(tensor, Packed) else tensor
    return dense.float().numpy()


def same_as_reference(path: Path, step: int = 1) -> None:
    """Every key, and every `step`-th tensor, as the gguf package reads them."""
    theirs = GGUFReader(path)
    with GGUFFile(path) as ours:
        keys = {name for name in theirs.fields if not name.startswith("GGUF.")}
        assert set(ours.metadata) == keys
        for name in keys:
            assert ours.metadata[name] == theirs.fields[name].contents(), name
        assert ours.names() == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors[::step]:
            name, shape = tensor.name, tuple(int(n) for n in tensor.shape[::-1])
            assert ours.shape(name) == shape
            assert ours.tensors[name].format == tensor.tensor_type.name.lower()
            assert ours.tensors[name].offset == tensor.data_offset
            raw = tensor.data  # numbers, or bytes of a packed format or of bf16
            want = dequantize(raw, tensor.tensor_type) if raw.dtype == np.uint8 else raw
            assert np.array_equal(values(ours.read(name)), want.reshape(shape).astype("f4")), name


def test_the_numbers_of_types_and_kinds_are_those_of_ggml():
    numbers = {t.name.lower(): int(t) for t in GGMLQuantizationType}
    assert {**TYPE_IDS, **{name: number for number, name in UNREAD.items()}} == numbers
    assert set(TYPE_IDS) == set(FORMATS) | set(DENSE)
    assert len(KINDS) == build.F64 + 1


def test_default_model_is_read_as_the_reference_reads_it(smollm2):
    same_as_reference(smollm2, step=9)
    with GGUFFile(smollm2) as file:
        formats = [info.format for info in file.tensors.values()]
        assert {kind: formats.count(kind) for kind in set(formats)} == {
            "q4_1": 210,
            "f32": 61,
            "q8_0": 1,
        }


def test_default_model_opens_at_once(smollm2):
    """Header checked and all 272 tensors viewed in 40 ms; the vocabulary not yet decoded."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        file = GGUFFile(smollm2)
        tensors = [file.read(name) for name in file.names()]
        times.append(time.perf_counter() - start)
        assert len(tensors) == 272
    assert min(times) < 0.040


def test_default_model_is_written_byte_for_byte(smollm2, tmp_path):
    file = GGUFFile(smollm2)
    write_gguf(tmp_path / "copy.gguf", file.metadata, ((n, file.read(n)) for n in file.names()))
    assert (tmp_path / "copy.gguf").read_bytes() == smollm2.read_bytes()


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_and_a_hand_built_file(tmp_path, version):
    path = saved(tmp_path, build.tiny_llama(version=version))
    same_as_reference(path)


def test_views_are_private_and_outlive_the_file(tmp_path):
    path = saved(tmp_path, build.tiny_llama())
    before = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with GGUFFile(path) as file:
            norm, tokens = file.read("output_norm.weight"), file.metadata["tokenizer.ggml.tokens"]
            same = file.read("output_norm.weight")
    assert isinstance(norm, torch.Tensor)
    assert norm.data_ptr() == same.data_ptr()
    norm.add_(1)
    assert (norm == 2).all()
    assert len(tokens) == 259
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="is closed"):
        file.read("output_norm.weight")
    with pytest.raises(KeyError, match=r"nearest: output_norm\.weight"):
        GGUFFile(path).read("output_norm.wieght")


def test_no_tensor_is_copied(smollm2):
    """Reading all tensors adds no memory worth naming: they are pages of the file."""
    code = (
        "import resource, sys; from keifu.checkpoints.gguf import GGUFFile\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "file, before = GGUFFile(sys.argv[1]), peak()\n"
        "tensors = [file.read(name) for name in file.names()]\n"
        "print(len(tensors), peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(smollm2)], capture_output=True, text=True, check=True
    )
    count, grown = map(int, done.stdout.split())
    assert count == 272
    assert grown < 2048  # KiB


def all_kinds() -> dict[str, Value]:
    numbers = {kind: Value(kind, 7) for kind in ("u8", "i8", "u16", "i16", "u32", "i32")}
    return {
        "general.architecture": Value("string", "test"),
        **numbers,
        "u64": Value("u64", 2**64 - 1),
        "i64": Value("i64", -(2**63)),
        "f32": Value("f32", 0.5),
        "f64": Value("f64", 0.1),
        "bool": Value("bool", True),
        "string": Value("string", "系譜\n"),
        "empty": Value("string", ""),
        **{f"list.{kind}": Value(kind, [1, 0, 1]) for kind in KINDS if kind[0] in "uif"},
        "list.bool": Value("bool", [True, False]),
        "list.string": Value("string", ["a", "", "系譜", "\0", "x" * 300]),
        "list.none": Value("u16", []),
    }


def test_every_kind_of_value_survives_writing(tmp_path):
    wanted = all_kinds()
    write_gguf(tmp_path / "a.gguf", wanted, [])
    file = GGUFFile(tmp_path / "a.gguf")
    assert {**file.metadata} == {name: value.value for name, value in wanted.items()}
    assert file.metadata.typed() == wanted
    assert file.metadata.kind("list.bool") == "array"
    write_gguf(tmp_path / "b.gguf", file.metadata, [])
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    theirs = GGUFReader(tmp_path / "a.gguf")
    for name, value in wanted.items():
        if value.value != []:  # the package does not read a list of nothing
            assert theirs.fields[name].contents() == value.value, name


def test_plain_values_take_the_kinds_that_readers_expect(tmp_path):
    plain = {
        "count": 5,
        "below": -5,
        "wide": 2**40,
        "widest": 2**64 - 1,
        "ratio": 0.5,
        "flag": False,
        "text": "x",
        "ids": [1, 2],
        "big ids": [1, 2**40],
        "scores": [1, 0.5],
        "tokens": ["a", b"\xff"],
        "nested": [[1, 2], [3]],
    }
    write_gguf(tmp_path / "a.gguf", plain, [])
    metadata = GGUFFile(tmp_path / "a.gguf").metadata
    assert {**metadata} == plain
    kinds = [value.kind for value in metadata.typed().values()]
    expected = ["u32", "i32", "u64", "u64", "f32", "bool", "string", "i32", "i64", "f32"]
    assert kinds == [*expected, "string", "i32"]


def test_a_file_of_the_reference_writer(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"] * 40)
    writer.add_custom_alignment(128)
    random = np.random.default_rng(0)
    for i, dtype in enumerate(["f4", "f2", "f8", "i1", "i2", "i4", "i8"]):
        writer.add_tensor(f"t{i}", (random.standard_normal((3, i + 1)) * 50).astype(dtype))
    writer.add_tensor("four", random.standard_normal((2, 3, 4, 5)).astype("f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    same_as_reference(tmp_path / "m.gguf")


@pytest.mark.parametrize("alignment", [1, 2, 64])
def test_alignments(tmp_path, alignment):
    """A tensor that an alignment of 1 puts on an odd byte is copied to an even one."""
    numbers = np.arange(6, dtype="f4").reshape(2, 3)
    infos = [
        build.info("a", (3,), 24, 0),
        build.info("b", (2, 3), 0, max(alignment, 3 if alignment == 1 else 4)),
    ]
    data = b"\1\2\3".ljust(max(alignment, 3 if alignment == 1 else 4), b"\0") + numbers.tobytes()
    keys = [build.entry("general.alignment", alignment)]
    file = GGUFFile(saved(tmp_path, build.build(keys, infos, data, alignment=alignment)))
    assert torch.equal(file.read("a"), torch.tensor([1, 2, 3], dtype=torch.int8))
    assert torch.equal(file.read("b"), torch.from_numpy(numbers))


def test_string_arrays_of_every_shape(tmp_path):
    """Long, empty, not UTF-8 and zero-filled strings among many short ones."""
    plain = [f"token {i}" for i in range(9000)]
    odd = [
        "",
        "\0\0\0\0\0\0\0\0\0",
        "x" * 255,
        "y" * 256,
        "z" * 70000,
        "系" * 90,
        b"\xe7\xb3",
        "\0",
    ]
    cases = {
        "plain": plain,
        "odd": odd,
        "odd first": odd + plain,
        "odd last": plain + odd,
        "odd within": [s for i in range(900) for s in (*plain[:10], odd[i % 8])],
        "empty ones": [""] * 5000,
        "none": [],
        "windows": ["w" * 247] * 3000,
    }
    keys = [build.key(n, 9, build.array(8, strings)) for n, strings in cases.items()]
    metadata = GGUFFile(saved(tmp_path, build.build([*keys, build.entry("end", 1)]))).metadata
    assert {**metadata} == {**cases, "end": 1}


def test_names_need_not_be_ascii_but_text_must_be_utf8(tmp_path):
    path = saved(
        tmp_path, build.build([build.entry("名", "値")], [build.info("重み", ())], bytes(4))
    )
    file = GGUFFile(path)
    assert (dict(file.metadata), file.names()) == ({"名": "値"}, ["重み"])
    assert file.read("重み") == torch.tensor(0.0)
    for bad in (
        build.build([build.key("k", 8, build.string(b"\xff"))]),
        build.build([build.key(b"\xff", 7, b"\1")]),
        build.build([], [build.info(b"\xff", (1,))], bytes(4)),
    ):
        with pytest.raises(FormatError, match="not UTF-8"):
            GGUFFile(saved(tmp_path, bad))


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q4_k", "q6_k"])
def test_written_tensors_are_read_back_by_the_reference(tmp_path, name):
    x = torch.randn(4, 512)
    packed = Packed.quantize(x, name)
    stack = Packed.quantize(torch.randn(2, 3, 256), name)
    tensors = {"half": x.half(), "brain": x.bfloat16(), "whole": x.t(), "p": packed, "e": stack}
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, iter(tensors.items()))
    same_as_reference(tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.dtype("brain") == torch.bfloat16
    assert torch.equal(file.read("brain"), tensors["brain"])
    read = file.read("e")
    assert isinstance(read, Packed)
    assert torch.equal(read.data, stack.data)


def test_writing_is_whole_or_nothing(tmp_path):
    path = saved(tmp_path, b"before")

    def broken():
        yield "a", torch.ones(4)
        raise RuntimeError("the next tensor cannot be made")

    with pytest.raises(RuntimeError):
        write_gguf(path, {}, broken())
    for metadata, tensors, message in [
        ({}, [("a", torch.ones(2)), ("a", torch.ones(2))], "comes twice"),
        ({}, [("a", torch.ones(2, dtype=torch.complex64))], "cannot hold 'a', torch.complex64"),
        ({}, [("a", torch.ones(1, 1, 1, 1, 1))], "up to four dimensions"),
        ({}, [("a", torch.ones(3, 0))], "none empty"),
        ({"general.alignment": 3}, [], "general.alignment is 3"),
        ({"k": []}, [], "an empty list has no kind"),
        ({"k": [1, "a"]}, [], "no kind for int, str"),
        ({"k": None}, [], "no kind for NoneType"),
        ({"k": Value("u8", 300)}, [], "300 is not u8"),
        ({"k": Value("u9", 3)}, [], "'u9' is no kind of value"),
        ({"": 1}, [], "is empty or longer"),
    ]:
        with pytest.raises(KeifuError, match=message):
            write_gguf(path, metadata, tensors)
    with pytest.raises(KeifuError, match=r"cannot write .*No such file"):
        write_gguf(tmp_path / "no" / "m.gguf", {}, [])
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["m.gguf"]
    write_gguf(path, {}, [("a", torch.ones(2))])
    assert GGUFFile(path).names() == ["a"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def split(folder: Path, changes: dict[int, dict[str, object]] | None = None) -> list[Path]:
    """A tiny model cut into three parts; `changes` to the keys of some."""
    tensors = list(build.tiny_llama_tensors().items())
    paths = []
    for i in range(3):
        keys = {"split.no": i, "split.count": 3, "split.tensors.count": len(tensors)}
        keys |= build.tiny_llama_metadata() if i == 0 else {}
        content = build.model(keys | (changes or {}).get(i, {}), dict(tensors[i::3]))
        paths.append(saved(folder, content, f"m-{i + 1:05d}-of-00003.gguf"))
    return paths


def test_split_models_are_joined(tmp_path):
    whole = GGUFFile(saved(tmp_path, build.tiny_llama()))
    for path in split(tmp_path):
        file = GGUFFile(path)
        assert file.metadata["general.name"] == "tiny"
        assert sorted(file.names()) == sorted(whole.names())
        for name in file.names():
            assert np.array_equal(values(file.read(name)), values(whole.read(name)))


def test_split_models_that_do_not_fit_together(tmp_path):
    paths = split(tmp_path, {1: {"split.no": 2}})
    with pytest.raises(FormatError, match=r"m-00002-of-00003.*split.no and split.count"):
        GGUFFile(paths[0])
    paths = split(tmp_path, {0: {"split.tensors.count": 99}})
    with pytest.raises(FormatError, match=r"split\.tensors\.count is 99, the parts hold 20"):
        GGUFFile(paths[2])
    paths = split(tmp_path)
    paths[1].rename(tmp_path / "other.gguf")
    with pytest.raises(FormatError, match=r"m-00002-of-00003.gguf is missing: .* one of 3 parts"):
        GGUFFile(paths[0])
    with pytest.raises(FormatError, match=r"must end in -00001-of-00003.gguf"):
        GGUFFile(tmp_path / "other.gguf")
    for i, path in enumerate(split(tmp_path)):
        path.write_bytes(build.tiny_llama({"split.no": i, "split.count": 3}))
    with pytest.raises(FormatError, match=r"tensor 'blk.0.attn_k.weight' is in two parts"):
        GGUFFile(path)


def test_llama_cpp_loads_what_we_write(tmp_path):
    """The tiny model, rewritten by us in other formats, answers as its own file does."""
    llama_cpp = pytest.importorskip("llama_cpp")
    source = GGUFFile(saved(tmp_path, build.tiny_llama()))
    write_gguf(
        tmp_path / "copy.gguf", source.metadata, [(n, source.read(n)) for n in source.names()]
    )
    dense = [(n, torch.from_numpy(values(source.read(n)))) for n in source.names()]
    write_gguf(tmp_path / "dense.gguf", source.metadata.typed(), dense)
    said = []
    for name in ("m", "copy", "dense"):
        model = llama_cpp.Llama(str(tmp_path / f"{name}.gguf"), n_ctx=64, verbose=False)
        said.append(model("hello", max_tokens=8, temperature=0)["choices"][0]["text"])
    assert said[0] == said[1] == said[2]


def test_nested_arrays(tmp_path):
    """Lists of lists, also empty ones at the very end of the file, are read and written again."""
    inner = [build.array(5, [1, 2]), build.array(5, [3])]
    keys = [build.key("rows", 9, build.array(9, inner)), build.key("none", 9, build.array(9, []))]
    file = GGUFFile(saved(tmp_path, build.build(keys, alignment=1)))
    assert {**file.metadata} == {"rows": [[1, 2], [3]], "none": []}
    assert file.metadata.typed()["rows"] == Value("i32", [[1, 2], [3]])
    write_gguf(tmp_path / "again.gguf", file.metadata, [])
    assert {**GGUFFile(tmp_path / "again.gguf").metadata} == {**file.metadata}


def test_metadata_is_a_mapping(tmp_path):
    metadata = GGUFFile(saved(tmp_path, build.tiny_llama())).metadata
    assert isinstance(metadata, Metadata)
    assert metadata.get("llama.rope.scaling.type") is None
    assert "llama.block_count" in metadata
    assert metadata["tokenizer.ggml.merges"] is metadata["tokenizer.ggml.merges"]
    with pytest.raises(KeyError):
        metadata["llama.nothing"]

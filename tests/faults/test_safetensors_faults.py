"""Damaged and hostile checkpoint folders (faults 7, 8 and 10): refused, and why."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from keifu.checkpoints.pickled import PickledSource
from keifu.checkpoints.safetensors import SafetensorsSource, read_header
from keifu.core.errors import FormatError, KeifuError

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(header: object, data: int = 8, length: int | None = None) -> bytes:
    """A safetensors file of this header (JSON text or a value) and so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * data


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too few"),
    "four bytes": (b"abcd", "too few"),
    "header of 2^63": (file_of({"a": F32}, length=2**63), "header is said to have"),
    "header past the end": (file_of({"a": F32}, length=10**6), "header is said to have"),
    "header of 200 MB": (file_of({"a": F32}, length=200 * 10**6), "header is said to have"),
    "header of nothing": (file_of(b""), "header is said to have"),
    "bad JSON": (file_of(b"{'a': 1}"), "not JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "not JSON"),
    "a list": (file_of([F32]), "does not begin with"),
    "nested 50,000 deep": (file_of(b'{"a":' + b"[" * 50_000), "not JSON"),
    "a number of 10,000 digits": (file_of(b'{"a":' + b"1" * 10_000 + b"}"), "not JSON"),
    "NaN": (file_of(b'{"a": NaN}'), "NaN is not JSON"),
    "duplicate tensor": (
        file_of(b'{"a":%b,"a":%b}' % (json.dumps(F32).encode(), json.dumps(F32).encode())),
        "'?a'? comes twice",
    ),
    "duplicate field": (
        file_of(b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}'),
        "dtype comes twice",
    ),
    "hole": (file_of({"a": {**F32, "data_offsets": [4, 12]}}, 12), "a hole"),
    "overlap": (file_of({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, 12), "an overlap"),
    "same bytes twice": (file_of({"a": F32, "b": F32}), "an overlap"),
    "truncated": (file_of({"a": F32}, 7), "truncated"),
    "trailing bytes": (file_of({"a": F32}, 9), "belong to no tensor"),
    "no tensor but data": (file_of({}, 8), "belong to no tensor"),
    "unknown dtype": (file_of({"a": {**F32, "dtype": "F99"}}), "'F99' is not one of"),
    "dtype is a list": (file_of({"a": {**F32, "dtype": []}}), "is not one of"),
    "shape overflows": (file_of({"a": {**F32, "shape": [2**62, 2**62]}}), "takes"),
    "shape times size wraps to 8": (file_of({"a": {**F32, "shape": [2**62 + 2]}}), "takes"),
    "negative dimension": (file_of({"a": {**F32, "shape": [-2]}}), "is no shape"),
    "a dimension is true": (file_of({"a": {**F32, "shape": [True, 2]}}), "is no shape"),
    "a dimension is 2.0": (file_of({"a": {**F32, "shape": [2.0]}}), "is no shape"),
    "65 dimensions": (file_of({"a": {**F32, "shape": [2] + [1] * 64}}), "is no shape"),
    "offsets backwards": (file_of({"a": {**F32, "data_offsets": [8, 0]}}), "do not"),
    "one offset": (file_of({"a": {**F32, "data_offsets": [8]}}), "are no data_offsets"),
    "offset past the end": (file_of({"a": {**F32, "data_offsets": [0, 2**62]}}), "do not"),
    "missing field": (file_of({"a": {"dtype": "F32", "shape": [2]}}), "expected dtype"),
    "field too many": (file_of({"a": {**F32, "code": "x"}}), "expected dtype"),
    "tensor is a number": (file_of({"a": 1}), "expected dtype"),
    "metadata is a list": (file_of({"__metadata__": [], "a": F32}), "__metadata__"),
    "metadata of numbers": (file_of({"__metadata__": {"x": 1}, "a": F32}), "__metadata__"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_before_anything_is_allocated(tmp_path: Path, case: str) -> None:
    content, expected = BAD_FILES[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(FormatError, match=expected) as refused:
        SafetensorsSource(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(refused.value)
    assert peak < 4e6
    path.write_bytes(file_of({"a": F32}))
    assert SafetensorsSource(tmp_path).read("a").tolist() == [0, 0]


def test_the_library_itself_takes_duplicate_keys(tmp_path: Path) -> None:
    """Why there is a check of our own; when this fails, the library has learned it."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(BAD_FILES["duplicate tensor"][0])
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["a"]


def write_shards(folder: Path, change: Callable[[dict[str, str]], object] = lambda m: None) -> None:
    """Two good shards and an index, changed."""
    weight_map = {}
    for k in (1, 2):
        name = f"model-0000{k}-of-00002.safetensors"
        save_file({f"t{k}": torch.full((2,), float(k))}, folder / name)
        weight_map[f"t{k}"] = name
    change(weight_map)
    index = {"metadata": {"total_size": 16}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


SECOND = "model-00002-of-00002.safetensors"
BAD_INDEXES: dict[str, tuple[Callable[[dict], object], str]] = {
    "missing shard": (lambda m: m.update(t3="model-00003-of-00003.safetensors"), "is missing from"),
    "tensor that the shard lacks": (lambda m: m.update(t3=SECOND), f"t3 is not in {SECOND}"),
    "tensor that the index lacks": (lambda m: m.update(t2=m["t1"]), "t2 is not in model-00001"),
    "extra tensor": (lambda m: m.update(t1=m.pop("t2")), "is not in"),
    "parent folder": (lambda m: m.update(t1="../../x.safetensors"), "no plain name"),
    "absolute": (lambda m: m.update(t1="/etc/x.safetensors"), "no plain name"),
    "backslash": (lambda m: m.update(t1="..\\x.safetensors"), "no plain name"),
    "drive": (lambda m: m.update(t1="C:x.safetensors"), "no plain name"),
    "NUL": (lambda m: m.update(t1="a\0.safetensors"), "no plain name"),
    "dots": (lambda m: m.update(t1=".."), "no plain name"),
    "300 characters": (lambda m: m.update(t1="a" * 300 + ".safetensors"), "no plain name"),
    "not safetensors": (lambda m: m.update(t1="config.json"), "no plain name"),
    "a number": (lambda m: m.update(t1=1), "no plain name"),
    "a list": (lambda m: m.update(t1=["x"]), "no plain name"),
    "empty": (lambda m: m.clear(), "missing or empty"),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_a_bad_index_is_refused(tmp_path: Path, case: str) -> None:
    change, expected = BAD_INDEXES[case]
    write_shards(tmp_path, change)
    with pytest.raises(FormatError, match=expected):
        SafetensorsSource(tmp_path)
    write_shards(tmp_path)
    assert SafetensorsSource(tmp_path).read("t2").tolist() == [2, 2]


def test_an_index_that_is_no_json_or_names_a_tensor_twice(tmp_path: Path) -> None:
    write_shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for text, expected in (
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "a comes twice"),
        ('{"weight_map": []}', "missing or empty"),
    ):
        index.write_text(text)
        with pytest.raises(FormatError, match=expected):
            SafetensorsSource(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path)
    save_file({"t1": torch.zeros(2), "t2": torch.zeros(2)}, tmp_path / SECOND)
    with pytest.raises(FormatError, match="t1 is in another shard"):
        SafetensorsSource(tmp_path)


def test_links_lead_only_into_the_hub_caches_own_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    snapshot, blobs = repository / "snapshots" / ("c" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": torch.ones(2)}, blobs / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert SafetensorsSource(snapshot).read("a").tolist() == [1, 1]

    secret = tmp_path / "secret.safetensors"
    save_file({"a": torch.ones(2)}, secret)
    for folder in (snapshot, tmp_path / "plain"):
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").unlink(missing_ok=True)
        (folder / "model.safetensors").symlink_to(secret)
        with pytest.raises(FormatError, match="outside its folder"):
            SafetensorsSource(folder)


def test_a_dangling_link_is_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("nowhere")
    with pytest.raises(KeifuError, match="has neither"):
        SafetensorsSource(tmp_path)


def good_file() -> bytes:
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.ones(4, dtype=torch.bfloat16),
        "c": torch.zeros(0, 2),
    }
    from safetensors.torch import save

    return save(tensors, metadata={"format": "pt"})


GOOD = good_file()


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=0, max_size=4
    ),
    cut=st.integers(0, 16),
    extra=st.binary(max_size=16),
)
def test_fuzz_what_we_accept_the_library_reads(
    tmp_path: Path, edits: list[tuple[int, int]], cut: int, extra: bytes
) -> None:
    """Any file is either refused with a FormatError or read the same by the library."""
    content = bytearray(GOOD)
    for at, byte in edits:
        content[at] = byte
    agree(tmp_path / "model.safetensors", bytes(content[: len(content) - cut]) + extra)


NUMBER = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64, -1]))
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "BOOL", "I64", "F8_E4M3", "F4", "X", ""]),
        "shape": st.lists(NUMBER, max_size=3),
        "data_offsets": st.lists(NUMBER, min_size=1, max_size=3),
    }
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(header=st.dictionaries(st.text(max_size=4), ENTRY, max_size=3), data=st.integers(0, 64))
def test_fuzz_headers(tmp_path: Path, header: dict[str, object], data: int) -> None:
    """The same for headers that are JSON but lie."""
    agree(tmp_path / "model.safetensors", file_of(header, data))


def agree(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        header = read_header(path)
    except FormatError:
        return
    try:
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == set(header.tensors)
            for name, info in header.tensors.items():
                assert tuple(file.get_slice(name).get_shape()) == info.shape
    except SafetensorError as refused:
        pytest.fail(f"we accept what the library refuses: {refused}")
    source = SafetensorsSource(path.parent)
    for name in source.names():
        assert source.read(name).shape == source.shape(name)


class Canary:
    """Unpickled without restriction, this would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_that_runs_code_is_never_run(tmp_path: Path, allow: bool, zipped: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "pytorch_model.bin"
    torch.save({"w": Canary(canary)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(KeifuError, match="more than tensors" if allow else "--allow-pickle"):
        PickledSource(tmp_path, allow_pickle=allow)
    path.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(KeifuError):
        PickledSource(tmp_path, allow_pickle=allow)
    assert not canary.exists()


def packed(entries: list[tuple[zipfile.ZipInfo | str, bytes]], method: int) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return made.getvalue()


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x/data/0")
    info.external_attr = 0o120777 << 16
    return info


BAD_ARCHIVES = {
    "zip bomb": (packed([("x/data.pkl", b"\0" * 10**7)], zipfile.ZIP_DEFLATED), "compressed"),
    "link": (packed([(link(), b"/etc/passwd")], zipfile.ZIP_STORED), "is a link"),
    "not torch's": (packed([("readme", b"hello")], zipfile.ZIP_STORED), "damaged"),
    "cut": (packed([("x/data.pkl", b"\x80\x02}.")], zipfile.ZIP_STORED)[:-5], "damaged"),
    "empty": (b"", "damaged"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_is_refused(tmp_path: Path, case: str) -> None:
    content, expected = BAD_ARCHIVES[case]
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(FormatError, match=expected):
        PickledSource(tmp_path / "w.pt", allow_pickle=True)


def test_a_tensor_that_its_storage_does_not_hold_is_refused(tmp_path: Path) -> None:
    """A view with stride 0 would need terabytes once it is copied."""
    torch.save({"w": torch.zeros(1).expand(10**12)}, tmp_path / "w.pt")
    with pytest.raises(FormatError, match="w is not a plain tensor"):
        PickledSource(tmp_path / "w.pt", allow_pickle=True)


@pytest.mark.parametrize(
    "content",
    [[1, 2], {}, {"w": 1}, {1: torch.ones(1)}, {"w": torch.ones(2, 2).to_sparse()}, torch.ones(2)],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(FormatError):
        PickledSource(tmp_path / "w.pt", allow_pickle=True)

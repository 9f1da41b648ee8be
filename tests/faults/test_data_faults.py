"""Data that is broken: one line with file:line, or left out and counted; nothing is guessed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from keifu.core.errors import FormatError, KeifuError
from keifu.data import files
from keifu.data.bad import Bad
from keifu.data.read import documents, records

GOOD = b'{"text": "fine"}'
BAD_ROWS = {
    "cut": (b'{"text": "a', "bad JSON"),
    "words": (b"hello", "bad JSON"),
    "column": (b'{"txt": "a", "url": "b"}', "no column 'text': it has txt"),
    "array": (b"[1, 2]", "must be an object: list"),
    "number": (b'{"text": 3}', "holds no text: int"),
    "null": (b'{"text": null}', "holds no text: NoneType"),
    "nan": (b'{"text": "a", "x": NaN}', "NaN is no number of JSON"),
    "deep": (b'{"text": ' + b"[" * 100_000, "bad JSON"),
    "digits": (b'{"text": "a", "x": ' + b"9" * 5000 + b"}", "bad JSON"),
    "bytes": (b'{"text": "\xff"}', "no UTF-8"),
    "surrogate": (rb'{"text": "\ud800"}', "surrogate"),
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_45_a_bad_row_is_named(tmp_path: Path, row: str) -> None:
    raw, message = BAD_ROWS[row]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([GOOD, raw, GOOD]))
    with pytest.raises(FormatError) as told:
        list(documents(path))
    assert str(told.value).startswith(f"{path}:2: ")
    assert message in str(told.value)
    assert "--skip-bad" in str(told.value)
    bad = Bad(skip=True)
    assert [d.text for d in documents(path, bad)] == ["fine", "fine"]
    assert (bad.count, bad.examples[0][0]) == (1, f"{path}:2")


@pytest.mark.parametrize("raw", [b"[{}, ", b'[{"text": "a"}, nope]', b'{"text": "a"} }', b"[" * 99])
def test_45_broken_json_ends_there(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"JSON|object"):
        list(records(path))
    bad = Bad(skip=True)
    list(records(path, bad))
    assert bad.count == 1


def test_45_bad_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,url\na,b\nonly\nc,d,e\nf,g\n")
    bad = Bad(skip=True)
    assert [d.text for d in documents(path, bad)] == ["a", "f"]
    assert [place for place, _ in bad.examples] == [f"{path}:3", f"{path}:4"]
    path.write_text("text,text\na,b\n")
    with pytest.raises(FormatError, match="twice"):
        list(documents(path))
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"PAR1 is not enough" * 5)
        with pytest.raises(FormatError, match="damaged"):
            list(documents(tmp_path / name))


def test_45_cut_and_damaged_streams(tmp_path: Path) -> None:
    import pyarrow

    raw = (GOOD + b"\n") * 50_000
    for name, packed in {
        "a.jsonl.gz": gzip.compress(raw),
        "a.jsonl.zst": pyarrow.compress(raw, codec="zstd", asbytes=True),
    }.items():
        path = tmp_path / name
        for broken in (packed[: len(packed) // 2], b"garbage " * 9):
            path.write_bytes(broken)
            with pytest.raises(FormatError, match="damaged"):
                list(documents(path))


def test_45_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n\xff\xfe\nbin\0ary\n")
    with pytest.raises(FormatError, match=r"a.txt:2: no UTF-8"):
        list(documents(path))
    bad = Bad(skip=True)
    (one,) = documents(path, bad)
    assert (one.text, bad.count) == ("fine\n", 2)


def test_45_endless_lines_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("files", "json_rows", "read"):
        monkeypatch.setattr(f"keifu.data.{module}.LONGEST", 1 << 20)
    assert files.LONGEST == 1 << 20
    for name in ("a.jsonl", "a.json", "a.txt", "a.jsonl.gz"):
        raw = b'{"text": "' + b"a" * (3 << 20)
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        with pytest.raises(FormatError, match="more than 1 MB"):
            list(documents(tmp_path / name, Bad(skip=True)))


def test_45_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeifuError, match="no file, folder or hub data set"):
        list(documents(tmp_path / "none.jsonl"))
    with pytest.raises(KeifuError, match="has no data"):
        list(documents(tmp_path))
    (tmp_path / "a.xyz").write_text("")
    with pytest.raises(KeifuError, match=r"no reader of files that end in '.xyz'"):
        list(documents(tmp_path / "a.xyz"))

"""Every format that is read gives the same documents, with places; splits, cards, the hub cache."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from keifu.core.errors import KeifuError
from keifu.data.bad import Bad
from keifu.data.read import Reading, documents, records

ROWS: list[dict[str, Any]] = [
    {"text": "Ein Satz.", "url": "a"},
    {"text": '二つ目の文。\nwith, commas "and" quotes', "url": "b"},
    {"text": "", "url": "c"},
]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """The rows in the format of the file's suffixes, written by other libraries than ours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
        return path
    if name.endswith((".arrow", ".feather")):
        table = pa.Table.from_pylist(rows)
        kind = pa.ipc.new_file if name.endswith(".feather") else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, kind(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        return path
    if ".csv" in name or ".tsv" in name:
        import io

        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if ".tsv" in name else ",")
        writer.writeheader()
        writer.writerows(rows)
        raw = text.getvalue().encode()
    elif ".jsonl" in name:
        raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        raw = json.dumps(rows, indent=1).encode()
    if name.endswith(".gz"):
        raw = gzip.compress(raw)
    if name.endswith(".zst"):
        raw = pa.compress(raw, codec="zstd", asbytes=True)
    path.write_bytes(raw)
    return path


KINDS = [
    "a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow", "a.feather", "a.jsonl.gz",
    "a.jsonl.zst", "a.json.gz", "a.csv.zst",
]  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    found = list(documents(path))
    assert [d.text for d in found] == [row["text"] for row in ROWS]
    assert [dict(d.meta) for d in found] == [{"url": row["url"]} for row in ROWS]
    assert all(d.place.startswith(f"{path}:") for d in found)


def test_places_are_lines(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl")
    rows.write_bytes(b"\xef\xbb\xbf" + rows.read_bytes().replace(b"\n", b"\n\n"))
    assert [r.place.rpartition(":")[2] for r in records(rows)] == ["1", "3", "5"]
    array = tmp_path / "b.json"
    array.write_text('[\n {"text": "a"},\n\n {"text":\n "b"}, {"text": "c"}\n]')
    assert [r.place.rpartition(":")[2] for r in records(array)] == ["2", "4", "5"]
    table = tmp_path / "c.csv"
    table.write_text('text\n"two\nlines"\nthird\n')
    assert [r.place.rpartition(":")[2] for r in records(table)] == ["2", "4"]


def test_large_json_is_read_piece_by_piece(tmp_path: Path) -> None:
    """Rows far larger than a block, and cut in the middle of characters and numbers."""
    rows = [{"text": "日本語" * n, "n": [1.5, n, 10**n % 10**40]} for n in (400_000, 3, 200_001)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    assert [r.fields for r in records(path)] == rows
    path.write_text("\n".join(json.dumps(row, indent=2) for row in rows), "utf-8")
    assert [r.fields for r in records(path)] == rows


def test_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\nthree\n")
    (whole,) = documents(path)
    assert (whole.text, whole.place) == ("one\ntwo\n\n\nthree\n", f"{path}:1")
    lines = documents(path, options=Reading(unit="line"))
    assert [(d.text, d.place[-1]) for d in lines] == [("one", "1"), ("two", "2"), ("three", "5")]
    parts = documents(path, options=Reading(unit="paragraph"))
    assert [(d.text, d.place[-1]) for d in parts] == [("one\ntwo", "1"), ("three", "5")]


def test_redpajama_slices(tmp_path: Path) -> None:
    """Rows as the published slices have them: `meta` an object, or one written as text."""
    path = tmp_path / "arxiv.jsonl"
    meta = {"timestamp": "2021-01-01T00:00:00", "yymm": "2101", "arxiv_id": "2101.00001",
            "language": "en", "url": "https://arxiv.org/abs/2101.00001"}  # fmt: skip
    rows = [
        {"text": "\\section{A}", "meta": meta},
        {"text": "b", "meta": json.dumps(meta), "red_pajama_subset": "arxiv"},
        {"text": "c", "meta": {}},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third = documents(path)
    assert first.meta == meta
    assert second.meta == meta | {"red_pajama_subset": "arxiv"}
    assert third.meta == {}


def test_folder_splits(tmp_path: Path) -> None:
    for name in ("train-00001-of-00002", "train-00000-of-00002", "validation-00000-of-00001"):
        write(tmp_path / f"{name}.parquet", [{"text": name}])
    (tmp_path / "README.md").write_text("# Card\n")
    (tmp_path / "dataset_info.json").write_text("{}")
    first = [d.text for d in documents(tmp_path)]
    assert first == ["train-00000-of-00002", "train-00001-of-00002"]
    (dev,) = documents(tmp_path, options=Reading(split="validation"))
    assert dev.text.startswith("validation")
    with pytest.raises(KeifuError, match="no split 'test'"):
        list(documents(tmp_path, options=Reading(split="test")))


def test_card_and_saved_data_sets(tmp_path: Path) -> None:
    """The folders that `datasets` itself writes, and a card that names its files."""
    import datasets

    saved = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    )
    saved.save_to_disk(tmp_path / "saved")
    assert [d.text for d in documents(tmp_path / "saved")] == [row["text"] for row in ROWS]
    (one,) = documents(tmp_path / "saved", options=Reading(split="test"))
    assert one.text == ROWS[0]["text"]
    card = tmp_path / "card"
    (card / "x").mkdir(parents=True)
    write(card / "x/1.jsonl")
    write(card / "other.jsonl", ROWS[:1])
    head = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: x/*\n"
    (card / "README.md").write_text(head + "---\n# Card\n")
    assert len(list(documents(card))) == 3
    (card / "README.md").write_text(head.replace("x/*", "../*") + "---\n")
    with pytest.raises(KeifuError, match="outside its folder"):
        list(documents(card))


def test_hub_cache_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = tmp_path / "datasets--acme--tales"
    snapshot = root / "snapshots/0123abc"
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs/main").write_text("0123abc")
    (root / "blobs").mkdir()
    write(root / "blobs/f00.jsonl")
    (snapshot / "train.jsonl").symlink_to(root / "blobs/f00.jsonl")
    (snapshot / "gone.jsonl").symlink_to(root / "blobs/gone")
    assert len(list(documents("acme/tales"))) == 3
    with pytest.raises(KeifuError, match=r"acme/other is not in .*downloads are off"):
        list(documents("acme/other"))


def test_dataset_info(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    entries = {"tales": {"file_name": "a.jsonl", "num_samples": 2, "columns": {"prompt": "url"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    found = list(documents(f"{tmp_path}/dataset_info.json:tales"))
    assert [d.text for d in found] == ["a", "b"]
    with pytest.raises(KeifuError, match="no data set 'tale'; nearest: tales"):
        list(documents(f"{tmp_path}/dataset_info.json:tale"))
    entries["tales"]["file_name"] = "../a.jsonl"
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    with pytest.raises(KeifuError, match="outside its folder"):
        list(documents(f"{tmp_path}/dataset_info.json:tales"))


def test_reading_streams(tmp_path: Path) -> None:
    """The first document is there before the file is read, and a bad end is not looked at."""
    path = write(tmp_path / "a.jsonl")
    path.write_text(path.read_text() + "no json\n")
    assert next(documents(path)).text == ROWS[0]["text"]
    bad = Bad(skip=True)
    assert len(list(documents(path, bad))) == 3
    assert (bad.count, bad.examples[0][0]) == (1, f"{path}:4")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    """Sixteen megabytes of rows pass through at most six, blocks of text and of rows included."""
    import tracemalloc

    path = write(tmp_path / name, [{"text": "word " * 800, "n": n} for n in range(4000)])
    assert next(documents(path)).text.startswith("word")  # what is imported is not counted
    tracemalloc.start()
    assert sum(len(document.text) for document in documents(path)) == 4000 * 4000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 << 20

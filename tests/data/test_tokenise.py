"""From texts to shards: every token once, the same bytes whoever wrote them, honest failures."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from keifu.core.errors import FormatError, KeifuError
from keifu.data import job, work
from keifu.data.corpus import Corpus
from keifu.data.job import Encoding
from keifu.data.shards import read_manifest, width
from keifu.data.tokenise import begin, tokenise
from tests.data.shard_texts import jsonl, texts, tokenizer


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of a few kilobytes."""
    monkeypatch.setattr(job, "_LEAST", 4096)


def digest(folder: Path) -> dict[str, str]:
    """Every file's hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def every(corpus: Corpus, source: str, split: str = "train") -> list[list[int]]:
    """All documents' ids."""
    stream = corpus.stream(source, split)
    return [stream.document(n).ids.tolist() for n in range(stream.documents)]


def read_all(folder: Path) -> None:
    """Whatever can be read of a folder, hashes last."""
    corpus = Corpus(folder)
    corpus.stream("a").document(0)
    assert corpus.tokenizer
    corpus.verify()


def test_documents_are_what_the_tokenizer_says(tmp_path: Path, small: None) -> None:
    """In order, each with its end; from lines divided at bytes, folders, compressed files."""
    rows = texts(300)
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "code").mkdir()
    for n in range(3):
        (tmp_path / "code" / f"{n}.txt").write_text(texts(1, seed=n)[0])
    with gzip.open(tmp_path / "z.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts(9, seed=5))
    given = {"a": [tmp_path / "a.jsonl"], "b": [tmp_path / "code", tmp_path / "z.jsonl.gz"]}
    tok = tokenizer()
    manifest = tokenise(tmp_path / "out", given, tok, workers=1)
    corpus = Corpus(tmp_path / "out")
    corpus.verify()
    assert corpus.sources() == ("a", "b")
    assert sum(s.source == "a" for s in manifest.shards) > 3
    end = [tok.eos_id]
    assert every(corpus, "a") == [tok.encode(text) + end for text in rows]
    others = [texts(1, seed=n)[0] for n in range(3)] + texts(9, seed=5)
    assert every(corpus, "b") == [tok.encode(text) + end for text in others]
    counts = manifest.count()
    assert counts["a"]["documents"] == 300
    assert counts["a"]["tokens"] == sum(len(tok.encode(text)) + 1 for text in rows)
    assert corpus.tokenizer.encode(rows[0]) == tok.encode(rows[0])


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, small: None) -> None:
    """One in this process, three beside it."""
    path = jsonl(tmp_path / "a.jsonl", texts(400))
    one = Encoding(held_out=0.2)
    tokenise(tmp_path / "1", {"a": [path]}, tokenizer(), one, workers=1, shard_tokens=500)
    tokenise(tmp_path / "3", {"a": [path]}, tokenizer(), one, workers=3, shard_tokens=500)
    assert digest(tmp_path / "1") == digest(tmp_path / "3")
    assert len(digest(tmp_path / "1")) > 10


def test_a_killed_job_goes_on_to_the_same_bytes(tmp_path: Path, small: None) -> None:
    """SIGKILL while units are being done; what was done is not done again."""
    path = jsonl(tmp_path / "a.jsonl", texts(4000))
    tokenise(tmp_path / "whole", {"a": [path]}, tokenizer(), workers=1)
    cut = tmp_path / "cut"
    total = len(begin(cut, {"a": [path]}, tokenizer(), Encoding(), 1 << 24).units)
    program = (
        "import sys; from pathlib import Path; from keifu.data.work import work\n"
        f"for n in range({total}): work(Path(sys.argv[1]), n)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(cut)])
    try:
        deadline = time.monotonic() + 60
        while len(list((cut / ".work").glob("unit-*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    done = sorted((cut / ".work").glob("unit-*.json"))
    assert 2 <= len(done) < total
    with pytest.raises(KeifuError, match="not finished"):
        Corpus(cut)
    before = {p.name: p.stat().st_mtime_ns for p in cut.glob("*-00000[01]-*")}
    seen: list[tuple[int, int]] = []
    tokenise(cut, {"a": [path]}, tokenizer(), workers=1, show=lambda a, b: seen.append((a, b)))
    assert seen[0] == (len(done), total)
    assert seen[-1] == (total, total)
    assert before == {p.name: p.stat().st_mtime_ns for p in cut.glob("*-00000[01]-*")}
    assert digest(cut) == digest(tmp_path / "whole")


def test_a_begun_folder_wants_the_same_job(tmp_path: Path) -> None:
    """Other options, other data, a finished folder: refused in one line."""
    path = jsonl(tmp_path / "a.jsonl", texts(5))
    begin(tmp_path / "out", {"a": [path]}, tokenizer(), Encoding(), 1000)
    with pytest.raises(KeifuError, match="other data, options"):
        tokenise(tmp_path / "out", {"a": [path]}, tokenizer(), Encoding(held_out=0.5))
    with pytest.raises(KeifuError, match="other data, options"):
        tokenise(tmp_path / "out", {"a": [path]}, tokenizer("unigram"), shard_tokens=1000)
    tokenise(tmp_path / "out", {"a": [path]}, tokenizer(), shard_tokens=1000)
    with pytest.raises(KeifuError, match="is finished"):
        tokenise(tmp_path / "out", {"a": [path]}, tokenizer(), shard_tokens=1000)


def test_a_folder_is_not_its_own_source(tmp_path: Path) -> None:
    """What is written there would be read again."""
    jsonl(tmp_path / "a.jsonl", texts(5))
    with pytest.raises(KeifuError, match="its own source"):
        tokenise(tmp_path / "out", {"a": [tmp_path]}, tokenizer())
    assert not (tmp_path / "out").exists()


def test_held_out_texts_are_the_same_wherever_they_stand(tmp_path: Path) -> None:
    """By the text itself, so that a duplicate is never on both sides."""
    rows = texts(500)
    a = jsonl(tmp_path / "a.jsonl", rows + rows[:100])
    b = jsonl(tmp_path / "b.jsonl", rows[::-1])
    out = tmp_path / "out"
    tokenise(out, {"a": [a], "b": [b]}, tokenizer(), Encoding(held_out=0.1), workers=1)
    corpus = Corpus(out)
    sides = {
        split: {tuple(ids) for source in ("a", "b") for ids in every(corpus, source, split)}
        for split in ("train", "held-out")
    }
    assert not sides["train"] & sides["held-out"]
    assert 0.05 < len(every(corpus, "a", "held-out")) / 600 < 0.15


def test_prompts_targets_and_labels_are_kept(tmp_path: Path) -> None:
    """What is not learnt, what is to be written, the class."""
    tok = tokenizer()
    path = jsonl(tmp_path / "a.jsonl", ["the river.", "a stone."], q="sees", to="house", y=3)
    encoding = Encoding(prompt="q", target="to", label="y")
    tokenise(tmp_path / "out", {"a": [path]}, tok, encoding, workers=1)
    found = Corpus(tmp_path / "out").stream("a").document(1)
    asked, said = tok.encode("sees"), [*tok.encode("a stone."), tok.eos_id]
    assert found.ids.tolist() == asked + said
    assert found.keep is not None
    assert found.keep.tolist() == [False] * len(asked) + [True] * len(said)
    assert found.target is not None
    assert found.target.tolist() == [*tok.encode("house"), tok.eos_id]
    assert (found.label, found.source) == (3, "a")


def test_wordpiece_documents_have_marks_round_them(tmp_path: Path) -> None:
    """[CLS] and [SEP], as the tokenizer puts them."""
    tok = tokenizer("wordpiece")
    path = jsonl(tmp_path / "a.jsonl", ["the river"])
    manifest = tokenise(tmp_path / "out", {"a": [path]}, tok, workers=1)
    assert every(Corpus(tmp_path / "out"), "a") == [tok.encode("the river")]
    assert (manifest.begin, manifest.end) == ((tok.id("[CLS]"),), (tok.id("[SEP]"),))


def test_text_never_yields_a_special_token(tmp_path: Path) -> None:
    """What a page says is text, the end token only stands at ends."""
    tok = tokenizer()
    path = jsonl(tmp_path / "a.jsonl", ["the <|endoftext|> river"])
    tokenise(tmp_path / "out", {"a": [path]}, tok, workers=1)
    (ids,) = every(Corpus(tmp_path / "out"), "a")
    assert ids.count(tok.eos_id or 0) == 1
    assert tok.decode(ids) == "the <|endoftext|> river"


def test_many_texts_are_encoded_as_one_is() -> None:
    """`encode_many` against `encode`, with marks written in the text."""
    for kind in ("byte-bpe", "spm-bpe", "unigram", "wordpiece"):
        tok = tokenizer(kind)
        rows = [*texts(20), "", "<|endoftext|> </s> [SEP] [MASK]", "漢字"]
        alone = [tok.encode(row, add_bos=False, add_eos=False) for row in rows]
        assert tok.encode_many(rows) == alone


def test_long_texts_are_encoded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ids of the whole; a text without a line's end is cut anywhere."""
    rows = ["".join(texts(60)).replace(".\n", "\n\n  "), "river" * 300, "the river " * 50]
    path = jsonl(tmp_path / "a.jsonl", rows)
    monkeypatch.setattr(work, "_LONGEST", 256)
    tokenise(tmp_path / "out", {"a": [path]}, tokenizer(), workers=1)
    first, second, third = every(Corpus(tmp_path / "out"), "a")
    assert first[:-1] == tokenizer().encode(rows[0])
    assert tokenizer().decode(second) == rows[1]
    assert third[:-1] == tokenizer().encode(rows[2])


def test_a_vocabulary_decides_the_width() -> None:
    """65536 ids are 0 to 65535."""
    assert width(1 << 16) == np.uint16
    assert width((1 << 16) + 1) == np.uint32


def test_bad_rows_are_named_or_counted(tmp_path: Path, small: None) -> None:
    """The place in the file, from a process beside this one, too."""
    path = jsonl(tmp_path / "a.jsonl", texts(200))
    path.write_text(path.read_text() + "{broken\n")
    for workers in (1, 2):
        with pytest.raises(KeifuError, match=r"a\.jsonl at byte"):
            tokenise(tmp_path / "out", {"a": [path]}, tokenizer(), workers=workers)
    encoding = Encoding(skip_bad=True)
    manifest = tokenise(tmp_path / "skipped", {"a": [path]}, tokenizer(), encoding, workers=1)
    assert manifest.dropped == {"bad": 1}
    assert manifest.count()["a"]["documents"] == 200


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("short", "bytes, not"), ("gone", "missing"), ("flipped", "not what was written"),
        ("header", "header|tensor"), ("manifest", "no JSON"), ("name", "no name of a shard"),
        ("kind", "documents is"), ("tokenizer", "not the tokenizer"),
    ],
)  # fmt: skip
def test_damaged_folders_are_one_line(tmp_path: Path, fault: str, said: str) -> None:
    """Nothing a file says is believed before it is checked."""
    path = jsonl(tmp_path / "a.jsonl", texts(50))
    out = tmp_path / "out"
    tokenise(out, {"a": [path]}, tokenizer(), workers=1)
    (file,) = out.glob("*.safetensors")
    data, manifest = file.read_bytes(), (out / "manifest.json").read_text()
    if fault == "short":
        file.write_bytes(data[:-8])
    elif fault == "gone":
        file.unlink()
    elif fault == "flipped":
        file.write_bytes(data[:-200] + bytes([data[-200] ^ 1]) + data[-199:])
    elif fault == "header":
        file.write_bytes(b"\xff" * 8 + data[8:])
    elif fault == "manifest":
        (out / "manifest.json").write_text(manifest[:-20])
    elif fault == "name":
        (out / "manifest.json").write_text(manifest.replace(file.name, "../x.safetensors"))
    elif fault == "kind":
        (out / "manifest.json").write_text(manifest.replace('"documents": 50', '"documents": "5"'))
    elif fault == "tokenizer":
        tokenizer("unigram").save(out / "tokenizer")
    with pytest.raises(FormatError, match=said):
        read_all(out)


def test_ids_and_ends_of_hostile_shards_are_checked(tmp_path: Path) -> None:
    """An id beyond the vocabulary, ends that go back: an error, no wrong read."""
    from safetensors.numpy import load_file, save_file

    path = jsonl(tmp_path / "a.jsonl", texts(50))
    tokenise(tmp_path / "out", {"a": [path]}, tokenizer(), workers=1)
    (file,) = (tmp_path / "out").glob("*.safetensors")
    good = load_file(file)
    for name, at, value in (("ids", 3, 60000), ("ends", 1, 10**9), ("ends", 0, 0)):
        arrays = {key: array.copy() for key, array in good.items()}
        arrays[name][at] = value
        save_file(arrays, file)
        with pytest.raises(FormatError, match=r"vocabulary|one after another"):
            every(Corpus(tmp_path / "out"), "a")


def test_an_unknown_source_names_the_nearest(tmp_path: Path) -> None:
    """And a split that there is not."""
    path = jsonl(tmp_path / "a.jsonl", texts(5))
    tokenise(tmp_path / "out", {"books": [path]}, tokenizer(), workers=1)
    corpus = Corpus(tmp_path / "out")
    with pytest.raises(KeifuError, match="books"):
        corpus.stream("book")
    with pytest.raises(KeifuError, match="held-out"):
        corpus.sources("test")
    with pytest.raises(KeifuError, match="cannot be called"):
        tokenise(tmp_path / "x", {"../a": [path]}, tokenizer())


@pytest.mark.slow
def test_ray_writes_the_same_bytes(tmp_path: Path, small: None) -> None:
    """Units done by Ray's workers."""
    path = jsonl(tmp_path / "a.jsonl", texts(300))
    tokenise(tmp_path / "1", {"a": [path]}, tokenizer(), workers=1)
    tokenise(tmp_path / "ray", {"a": [path]}, tokenizer(), ray=True)
    assert digest(tmp_path / "1") == digest(tmp_path / "ray")


def test_a_manifest_has_an_identity(tmp_path: Path) -> None:
    """That changes with a document."""
    found = []
    for n in (5, 6):
        path = jsonl(tmp_path / "a.jsonl", texts(n))
        tokenise(tmp_path / str(n), {"a": [path]}, tokenizer(), workers=1)
        found.append(read_manifest(tmp_path / str(n)).identity)
    assert found[0] != found[1]
    assert work.record_of(tmp_path, 3).name == "unit-000003.json"

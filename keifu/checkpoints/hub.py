"""Repositories of the Hugging Face hub: found in its cache without network, fetched if asked."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from keifu.checkpoints.download import check_room
from keifu.checkpoints.home import Entry
from keifu.core.errors import KeifuError, unknown

_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?:@(?P<revision>[\w.][\w./-]{0,95}))?(?:/(?P<file>[\w./-]{1,200}\.gguf))?",
    re.ASCII,
)
_SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".md")
_INDEX_BYTES = 64 * 2**20
_PROBE_SECONDS = 4.0


def is_id(ref: str) -> bool:
    """Whether a reference may be a hub repository, with a revision or a .gguf file of it."""
    return bool(_ID.fullmatch(ref)) and ".." not in ref


def cache_root() -> Path:
    """The hub's cache folder, as its own library finds it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def find(ref: str) -> Path | None:
    """The snapshot folder (or .gguf file) of a repository if the cache has all of it; no network.

    Layout: models--org--name/refs/<revision> names a commit; snapshots/<commit>/* link to blobs.
    """
    match = _ID.fullmatch(ref)
    if not match:
        return None
    folder = cache_root() / f"models--{match['repo'].replace('/', '--')}"
    commit = match["revision"] or "main"
    pointer = folder / "refs" / commit
    if pointer.is_file() and pointer.stat().st_size <= 100:
        commit = pointer.read_text(errors="replace").strip()
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", commit) or commit.startswith("."):
        return None
    snapshot = folder / "snapshots" / commit
    if match["file"]:
        return snapshot / match["file"] if (snapshot / match["file"]).is_file() else None
    if (snapshot / "config.json").is_file() and _weights(snapshot):
        return snapshot
    models = [path for path in snapshot.glob("*.gguf") if path.is_file()]
    return models[0] if len(models) == 1 else None


def cached() -> list[Entry]:
    """Every whole model of the hub's cache; what is half there, dangling or foreign is left out."""
    found = []
    root = cache_root()
    for folder in sorted(root.glob("models--*--*")) if root.is_dir() else []:
        ref = folder.name.removeprefix("models--").replace("--", "/", 1)
        path = find(ref) if is_id(ref) else None
        if path:
            files = [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else [path]
            size = sum(file.stat().st_size for file in files)
            found.append(Entry(name=ref, path=path, source="hub", size=size))
    return found


def fetch(ref: str, announce: Callable[[str | None, int, Path], None]) -> Path:
    """Download a repository into the hub's cache with the hub's own library; its path.

    Of a repository's weights it takes the safetensors, or else the pickles, or else its one GGUF.
    `announce` is told the licence, the bytes and the cache folder before the first file. Raises
    KeifuError, within five seconds where there is no network.
    """
    match = _ID.fullmatch(ref)
    if not match:
        raise KeifuError(f"{ref!r} is no hub repository: write org/name, org/name@revision")
    if offline():
        raise KeifuError(f"{ref} is not in {cache_root()}, and HF_HUB_OFFLINE is set")
    if not find_spec("huggingface_hub"):
        raise KeifuError(f"fetching {ref} needs the hub's library: pip install 'keifu[hub]'")
    import huggingface_hub
    from huggingface_hub import constants

    probe(constants.ENDPOINT, ref)
    repository, revision = match["repo"], match["revision"] or "main"
    try:
        info = huggingface_hub.HfApi().model_info(
            repository, revision=revision, files_metadata=True, timeout=10
        )
    except Exception as failed:  # requests, httpx or httpx2, as the library's version has it
        raise _refused(ref, failed) from failed
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    names = _chosen(ref, list(sizes), match["file"])
    size = sum(sizes[name] for name in names)
    root = cache_root()
    announce(info.card_data.license if info.card_data else None, size, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        check_room(root, size)
        huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=names, etag_timeout=10, cache_dir=root
        )
    except KeifuError:
        raise
    except Exception as failed:
        raise _refused(ref, failed) from failed
    found = find(ref)
    if not found:
        raise KeifuError(f"{ref} was fetched but has no whole model: {', '.join(names)[:300]}")
    return found


def _refused(ref: str, failed: Exception) -> KeifuError:
    """What the hub's library said, in one line."""
    said = str(failed).strip().splitlines() or [type(failed).__name__]
    return KeifuError(
        f"cannot fetch {ref} from the hub: {said[0][:300]} (check the name, the network, and for a "
        "gated model HF_TOKEN)"
    )


def _chosen(ref: str, names: list[str], file: str | None) -> list[str]:
    """The files of a repository that a model needs: one kind of weights, and the small ones."""
    outside = [name for name in names if not {".", "..", ""}.isdisjoint(name.split("/"))]
    if outside:
        raise KeifuError(
            f"cannot fetch {ref} from the hub: it lists {outside[0][:80]!r}, outside its folder"
        )
    names = [name for name in names if re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name, re.ASCII)]
    if file:
        if file not in names:
            raise unknown("file", file, [n for n in names if n.endswith(".gguf")], f"of {ref}")
        return [file]
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    weights = weights or [name for name in top if re.fullmatch(r"pytorch_model.*\.bin", name)]
    if not weights:
        weights = [name for name in top if name.endswith(".gguf")]
        if len(weights) != 1:
            raise unknown("weights in", ref, weights, f"name one of them: {ref}/<file>.gguf")
    if "modules.json" in top:  # a dense layer after the pooling has weights of its own
        weights += _of_modules(names)
    return weights + [name for name in names if name.endswith(_SMALL)]


def _of_modules(names: list[str]) -> list[str]:
    """The weights of sentence-transformers' modules, each in a folder such as `2_Dense`."""
    found = {}
    for ending in ("pytorch_model.bin", "model.safetensors"):
        for name in names:
            if re.fullmatch(rf"\d+_\w+/{re.escape(ending)}", name, re.ASCII):
                found[name.split("/")[0]] = name
    return list(found.values())


def _weights(snapshot: Path) -> bool:
    """Whether every file of the weights is there (a link into the void is not)."""
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        if (snapshot / f"{stem}.{ending}").is_file():
            return True
        index = snapshot / f"{stem}.{ending}.index.json"
        if index.is_file() and index.stat().st_size <= _INDEX_BYTES:
            try:
                shards = set(json.loads(index.read_bytes())["weight_map"].values())
                return all((snapshot / str(shard)).is_file() for shard in shards)
            except (ValueError, KeyError, TypeError, AttributeError):
                return False
    return False


def offline() -> bool:
    """Whether the environment says that no network is to be used."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def probe(endpoint: str, ref: str) -> None:
    """Fail soon where the hub cannot be reached: in a thread, since name look-ups know no limit."""
    import httpx

    fault: list[str] = ["no answer"]

    def ask() -> None:
        try:
            httpx.head(endpoint, timeout=_PROBE_SECONDS)
            fault.clear()
        except httpx.HTTPError as error:
            fault[:] = [str(error) or type(error).__name__]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    if fault:
        raise KeifuError(
            f"{ref} is not on this machine and the hub at {endpoint} cannot be reached "
            f"({fault[0][:200]}): name a local path, or one of `keifu models list`"
        )

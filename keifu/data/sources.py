"""What a source names: a file, a folder, a hub data set, an entry of a dataset_info.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from keifu.checkpoints import hub
from keifu.checkpoints.download import check_room
from keifu.core.errors import FormatError, KeifuError, unknown
from keifu.data.files import kind

_SMALL = 4 * 2**20
"""Bytes of a folder's own description (README.md, state.json, dataset_info.json)."""
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_DESCRIPTIONS = {
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "readme.md",
    "license.md", "license.txt",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One file to read."""

    path: Path
    rows: int | None = None
    """At most so many rows."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Roles of columns as a dataset_info.json gives them: {"prompt": "question"}."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What a dataset_info.json says that the parts of a conversation's turns are called."""


def find(
    source: str | Path,
    rows: Sequence[str],
    texts: Sequence[str],
    *,
    split: str | None = None,
    offline: bool = False,
) -> Sequence[Source]:
    """The files of a source, in the order in which they are read.

    Args:
        rows: suffixes of files with rows; a folder that has none of them is searched for `texts`.

    Raises:
        KeifuError: there is nothing of that name, or nothing in it that can be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [Source(path)]
    if path.is_dir():
        return [Source(file) for file in _of_folder(path, rows, texts, split)]
    head, colon, name = str(source).rpartition(":")
    if colon and Path(head).name == "dataset_info.json" and Path(head).is_file():
        return _of_info(Path(head), name, rows, texts, split)
    if hub.is_id(str(source)):
        folder = _hub(str(source), offline)
        return [Source(file) for file in _of_folder(folder, rows, texts, split)]
    raise KeifuError(f"no file, folder or hub data set {str(source)!r}")


def info(path: Path) -> dict[str, Any] | None:
    """The entries of a LLaMA-Factory `dataset_info.json`; None if it is `datasets`' own."""
    told = _json(path)
    entries = isinstance(told, dict) and all(
        isinstance(entry, dict)
        and {"file_name", "hf_hub_url", "ms_hub_url", "script_url"} & entry.keys()
        for entry in told.values()
    )
    return told if entries and told else None


def _of_info(
    path: Path, name: str, rows: Sequence[str], texts: Sequence[str], split: str | None
) -> list[Source]:
    entries = info(path)
    if entries is None:
        raise FormatError(f"{path} is no list of data sets: each entry needs a file_name")
    if name not in entries:
        raise unknown("data set", name, entries, f"of {path}")
    entry = entries[name]
    limit, columns = entry.get("num_samples"), entry.get("columns") or {}
    tags = entry.get("tags") or {}
    if not (limit is None or (isinstance(limit, int) and limit > 0)) or not all(
        isinstance(named, dict) and all(isinstance(v, str) for v in named.values())
        for named in (columns, tags)
    ):
        raise FormatError(f"{path}: {name}: num_samples is a number, columns and tags are names")
    if "file_name" in entry:
        target = _inside(path.parent, str(entry["file_name"]), path)
        files = find(target, rows, texts, split=split or entry.get("split"))
    else:
        files = find(str(entry.get("hf_hub_url")), rows, texts, split=split or entry.get("split"))
    return [Source(file.path, limit, columns, tags) for file in files]


def _of_folder(
    folder: Path, rows: Sequence[str], texts: Sequence[str], split: str | None
) -> list[Path]:
    """The data files of a folder: as it says itself, or all, or those of a split by name."""
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        chosen = split or ("train" if "train" in splits else (splits or [""])[0])
        if chosen not in splits:
            raise unknown("split", chosen, splits, f"of {folder}")
        folder = _inside(folder, chosen, folder)
    if (folder / "state.json").is_file():
        named = _json(folder / "state.json").get("_data_files", [])
        return [_inside(folder, str(file["filename"]), folder) for file in named]
    declared = list(_declared(folder))
    if declared:
        named_splits = [name for name, _ in declared]
        chosen = split or ("train" if "train" in named_splits else named_splits[0])
        if chosen not in named_splits:
            raise unknown("split", chosen, named_splits, f"of {folder}")
        files = [file for name, pattern in declared if name == chosen
                 for file in sorted(folder.glob(pattern)) if file.is_file()]  # fmt: skip
        if files:
            return files
    return _by_name(folder, rows, texts, split)


def _by_name(
    folder: Path, rows: Sequence[str], texts: Sequence[str], split: str | None
) -> list[Path]:
    every = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.name.lower() not in _DESCRIPTIONS
    ]
    files = [path for path in every if kind(path) in rows]
    splits = {path: _split(path.relative_to(folder)) for path in files}
    if split and any(splits.values()):
        files = [path for path in files if splits[path] == split]
        if not files:
            raise unknown("split", split, {s for s in splits.values() if s}, f"of {folder}")
    elif "train" in splits.values():
        files = [path for path in files if splits[path] == "train"]
    files = files or [path for path in every if kind(path) in texts]
    if not files:
        raise KeifuError(f"{folder} has no data: files end in {', '.join([*rows, '.txt'])}")
    return files


def _split(path: Path) -> str:
    """The split that a file's name or folder says; "" for none."""
    words = re.split(r"[^a-z]+", str(path).lower())
    return next((name for name, spelt in _SPLITS.items() if set(spelt) & set(words)), "")


def _declared(folder: Path) -> Iterator[tuple[str, str]]:
    """(split, pattern) of the default configuration in a data set card's head."""
    card = folder / "README.md"
    if not card.is_file() or card.stat().st_size > _SMALL:
        return
    head = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text("utf-8", "replace"), re.S)
    try:
        told = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as broken:
        raise FormatError(f"{card}: its head is no YAML: {str(broken)[:100]}") from None
    configs = told.get("configs") if isinstance(told, dict) else None
    for config in (configs or [])[:1]:
        files = config.get("data_files", []) if isinstance(config, dict) else []
        for entry in files if isinstance(files, list) else [files]:
            one = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
            paths = one.get("path", [])
            for pattern in paths if isinstance(paths, list) else [paths]:
                if Path(str(pattern)).is_absolute() or ".." in Path(str(pattern)).parts:
                    raise FormatError(f"{card} names files outside its folder: {pattern}")
                yield str(one.get("split", "train")), str(pattern)


def _inside(folder: Path, name: str, told: Path) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts or not name:
        raise FormatError(f"{told} names a file outside its folder: {name!r}")
    return folder / name


def _json(path: Path) -> Any:
    if path.stat().st_size > _SMALL:
        raise FormatError(f"{path} is larger than {_SMALL >> 20} MB")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as broken:
        raise FormatError(f"{path} is no JSON: {str(broken)[:100]}") from None


def _hub(ref: str, offline: bool) -> Path:
    """The folder of a hub data set: of the hub's cache, or downloaded into it."""
    repository, _, revision = ref.partition("@")
    root = hub.cache_root() / f"datasets--{repository.replace('/', '--')}"
    pointer = root / "refs" / (revision or "main")
    commit = revision
    if pointer.is_file() and pointer.stat().st_size <= 100:
        commit = pointer.read_text(errors="replace").strip()
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", commit or ""):
        snapshot = root / "snapshots" / commit
        if snapshot.is_dir():
            return snapshot
    here = f"no file or folder {ref!r}, and the data set {ref} is not in {hub.cache_root()}"
    if offline or hub.offline():
        raise KeifuError(f"{here}; downloads are off")
    if not find_spec("huggingface_hub"):
        raise KeifuError(f"{here}; fetching it needs the hub's library: pip install 'keifu[hub]'")
    return _fetched(repository, revision or "main")


def _fetched(repository: str, revision: str) -> Path:
    import huggingface_hub
    from huggingface_hub import constants

    hub.probe(constants.ENDPOINT, f"the data set {repository}")
    try:
        told = huggingface_hub.HfApi().dataset_info(
            repository, revision=revision, files_metadata=True, timeout=10
        )
        root = hub.cache_root()
        root.mkdir(parents=True, exist_ok=True)
        check_room(root, sum(file.size or 0 for file in told.siblings or []))
        return Path(
            huggingface_hub.snapshot_download(
                repository, repo_type="dataset", revision=revision, cache_dir=root, etag_timeout=10
            )
        )
    except KeifuError:
        raise
    except Exception as failed:  # whatever the library's version raises
        said = str(failed).strip().splitlines() or [type(failed).__name__]
        raise KeifuError(f"cannot fetch the data set {repository}: {said[0][:300]}") from failed

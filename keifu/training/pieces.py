"""Tensors of which every process has a part, saved by all and read by any number of processes.

`torch.distributed.checkpoint` plans who writes and reads what; the bytes are in safetensors, one
file a process, and pieces.json says where every piece lies in its whole. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from keifu.checkpoints.safetensors import DTYPES, Planned, read_header, write_safetensors
from keifu.checkpoints.source import read_json
from keifu.core.atomic import write_text
from keifu.core.errors import FormatError, KeifuError
from keifu.training.place import Place

INDEX = "pieces.json"
_INDEX_BYTES = 1 << 30
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, eq=False)
class Piece:
    """What a process has of a tensor."""

    place: Place
    tensor: Tensor

    def chunks(self) -> dict[tuple[int, ...], tuple[ChunkStorageMetadata, Tensor]]:
        """Its boxes by their offsets in the whole, each with its part of the tensor."""
        return {
            offsets: (
                ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes)),
                self.tensor[here],
            )
            for (offsets, sizes), here in self.place.boxes()
        }


def save_pieces(
    folder: Path, pieces: Mapping[str, Piece], group: dist.ProcessGroup | None = None
) -> None:
    """Write all processes' pieces into one folder; every process of the group calls this.

    Raises:
        KeifuError: the disk is full, or another process could not write.
    """
    alone = not dist.is_initialized()
    with _failures(f"cannot write {folder}"):
        save(
            dict(pieces), storage_writer=_Writer(folder, 0 if alone else dist.get_rank()),
            planner=_Saving(flatten_state_dict=False),
            process_group=group, no_dist=alone,
        )  # fmt: skip


def load_pieces(
    folder: Path, pieces: Mapping[str, Piece], group: dist.ProcessGroup | None = None
) -> None:
    """Fill the tensors of pieces, cut in whatever way, from a folder; every process calls this.

    Raises:
        FormatError: the folder is damaged, or of another model.
    """
    said = read_index(folder)
    for name, piece in pieces.items():
        if name not in said.state_dict_metadata:
            raise FormatError(f"{folder} has no {name}: it is of another model or optimizer")
        size = said.state_dict_metadata[name].size  # type: ignore[union-attr]
        if tuple(size) != piece.place.whole:
            raise FormatError(f"{folder}: {name} is {tuple(size)} there, not {piece.place.whole}")
    wanted = {name: piece for name, piece in pieces.items() if not piece.place.zero}
    with _failures(f"cannot read {folder}"):
        load(
            dict(wanted), storage_reader=_Reader(folder, said), planner=_Loading(),
            process_group=group, no_dist=not dist.is_initialized(),
        )  # fmt: skip


class _failures:
    """Turns torch's report of all processes' failures into one line of the first."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CheckpointException):
            first = next(iter(error.failures.values()))[0]
            if isinstance(first, KeifuError):
                raise type(first)(str(first)) from error
            raise KeifuError(f"{self.what}: {first}") from error


class _Saving(DefaultSavePlanner):
    """Who writes what: the first of the processes that hold a box."""

    def create_local_plan(self) -> SavePlan:
        """This process's boxes."""
        items = []
        for name, piece in self.state_dict.items():
            if not piece.place.first or piece.place.zero:
                continue
            for chunk, part in piece.chunks().values():
                data = TensorWriteData(
                    chunk=chunk, properties=TensorProperties.create_from_tensor(part),
                    size=torch.Size(piece.place.whole),
                )  # fmt: skip
                index = MetadataIndex(name, chunk.offsets)
                items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        """A box's tensor."""
        assert index.offset is not None
        return self.state_dict[index.fqn].chunks()[tuple(index.offset)][1]


class _Loading(DefaultLoadPlanner):
    """What of each saved box falls into this process's boxes."""

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Keep what was given: torch's own would look for tensors in it."""
        self.state_dict, self.metadata = state_dict, metadata
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> LoadPlan:
        """All of them."""
        assert self.metadata is not None
        items = []
        for name, piece in self.state_dict.items():
            said = self.metadata.state_dict_metadata[name]
            assert isinstance(said, TensorStorageMetadata)
            chunks = [chunk for chunk, _ in piece.chunks().values()]
            items += create_read_items_for_chunk_list(name, said, chunks)
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """A box's tensor."""
        assert index.offset is not None
        found: Tensor = self.state_dict[index.fqn].chunks()[tuple(index.offset)][1]
        return found


class _Writer(StorageWriter):
    """A safetensors file a process; the index is the first one's."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept between two saves."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """As they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """This process's file."""
        stem, planned, results = f"pieces-{self.rank:05d}", list[Planned](), list[WriteResult]()
        for number, item in enumerate(plan.items):
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor)
            planned.append(Planned.of(str(number), tensor.contiguous()))
            where = (f"{stem}.safetensors", str(number), _CODES[tensor.dtype])
            results.append(WriteResult(item.index, tensor.nbytes, where))
        if planned:
            write_safetensors(self.folder, planned, stem=stem, max_shard_bytes=1 << 62)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """What lies where."""
        where = {result.index: result.storage_data for some in results for result in some}
        said: dict[str, Any] = {}
        for name, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            found = []
            for chunk in tensor.chunks:
                file, key, code = where[MetadataIndex(name, chunk.offsets)]
                found.append([file, key, list(chunk.offsets), list(chunk.sizes)])
            said[name] = {"dtype": code, "shape": list(tensor.size), "pieces": found}
        text = json.dumps({"schema_version": 1, "tensors": said})
        write_text(self.folder / INDEX, text + "\n")

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Folders are given to the class itself."""
        return False


def read_index(folder: Path) -> Metadata:
    """What is in a folder of pieces, checked.

    Raises:
        FormatError: it is missing, damaged, or leaves a part of a tensor out.
    """
    if not (folder / INDEX).is_file():
        raise FormatError(f"{folder} holds no pieces: {INDEX} is missing")
    said = read_json(folder / INDEX, _INDEX_BYTES).get("tensors")
    if not isinstance(said, dict):
        raise FormatError(f"{folder / INDEX} lists no tensors")
    tensors: dict[str, Any] = {}
    where: dict[MetadataIndex, tuple[str, str]] = {}
    for name, facts in said.items():
        try:
            dtype, shape = DTYPES[facts["dtype"]], torch.Size(facts["shape"])
            chunks, covered = [], 0
            for file, key, offsets, sizes in facts["pieces"]:
                if Path(file).name != file or not (folder / file).is_file():
                    raise FormatError(f"{folder}: {file!r:.80} is missing")
                chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
                ends = zip(offsets, sizes, shape, strict=True)
                if any(o < 0 or n < 0 or o + n > whole for o, n, whole in ends):
                    raise ValueError("a piece lies outside")
                chunks.append(chunk)
                covered += chunk.sizes.numel()
                where[MetadataIndex(name, chunk.offsets)] = (file, str(key))
        except (KeyError, TypeError, ValueError, RuntimeError) as bad:
            raise FormatError(f"{folder / INDEX}: {name!r:.80} is damaged: {bad}") from bad
        if covered != shape.numel():
            raise FormatError(f"{folder}: {name} has {covered} of {shape.numel()} numbers")
        properties = TensorProperties(dtype=dtype)
        tensors[name] = TensorStorageMetadata(properties, shape, chunks)
    return Metadata(state_dict_metadata=tensors, storage_data=where)


class _Reader(StorageReader):
    """Reads boxes, mapped, a file at a time."""

    def __init__(self, folder: Path, said: Metadata) -> None:
        self.folder, self.said = folder, said

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What `read_index` found."""
        return self.said

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what the plan asks for."""
        by_file: dict[str, list[tuple[str, Any]]] = {}
        for item in plan.items:
            file, key = self.said.storage_data[item.storage_index]
            by_file.setdefault(file, []).append((key, item))
        for file, items in by_file.items():
            header = read_header(self.folder / file)
            with safe_open(self.folder / file, framework="pt") as opened:
                for key, item in items:
                    _check(header, key, item, self.folder / file)
                    self._copy(opened.get_slice(key), item, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _copy(self, there: Any, item: Any, planner: LoadPlanner) -> None:
        """A part of a saved box into a part of one of this process's."""
        spans = zip(item.storage_offsets, item.lengths, strict=True)
        part = there[tuple(slice(o, o + n) for o, n in spans)] if item.lengths else there[...]
        target = planner.resolve_tensor(item)
        target.copy_(part.view_as(target))
        planner.commit_tensor(item, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Folders are given to the class itself."""
        return False


def _check(header: Any, key: str, item: Any, path: Path) -> None:
    """A saved box is as large as the index says."""
    found: Sequence[int] | None = header.tensors[key].shape if key in header.tensors else None
    ends = zip(item.storage_offsets, item.lengths, found or (), strict=False)
    if found is None or len(found) != len(item.lengths) or any(o + n > s for o, n, s in ends):
        raise FormatError(f"{path} does not hold what {INDEX} says")

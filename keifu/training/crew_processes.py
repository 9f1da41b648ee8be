"""A run in several processes: copies or shards of the weights, tensors and experts apart.

What is differentiated is the sum of all processes' losses (see nn/parallel.py), so a parameter's
gradient is the sum over the processes that hold the same part of it: one rule for copies, for
shards, for matrices and experts that lie apart. The optimizer works on the plain tensors that are
here; `shard` is FSDP2's (Zhao et al. 2023), which brings a block's weights together while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from keifu.core.errors import ConfigError, KeifuError
from keifu.nn.exchange import spread
from keifu.nn.experts import Bank
from keifu.nn.pair import PairModule
from keifu.nn.parallel import parallelize, share
from keifu.nn.split import Cut, Rank, Split
from keifu.nn.stack import StackModule
from keifu.training.crew_state import filled, own_state, put_together, skeleton, whole_state
from keifu.training.objective import Loss, Objective
from keifu.training.optimizer import Optimization
from keifu.training.parallel import Parallel
from keifu.training.pieces import Piece
from keifu.training.place import Place

T = TypeVar("T")
B = TypeVar("B")
BUCKET = 32 << 20
"""Bytes of gradients that are summed in one call."""


class Lost(KeifuError):
    """Another process of the run has ended."""


class Processes:
    """One of a run's processes. `torch.distributed` is initialised; see launch.py.

    Args:
        device: of this process.
    """

    def __init__(self, parallel: Parallel, device: torch.device | str = "cpu") -> None:
        self.parallel, self.device = parallel, torch.device(device)
        self.world_size, self.number = dist.get_world_size(), dist.get_rank()
        self.world = parallel.shares(self.world_size)
        """Processes, or groups of them, with batches of their own."""
        tensor, expert = parallel.tensor, parallel.expert
        sizes = (self.world // expert, expert, tensor)
        names = ("replica", "expert", "tensor")
        self.mesh = init_device_mesh(self.device.type, sizes, mesh_dim_names=names)
        outer = init_device_mesh(
            self.device.type, (self.world, tensor), mesh_dim_names=("data", "tensor")
        )
        self.data = outer["data"]
        self.rank = self.data.get_local_rank()
        """Which of the batches are this process's."""
        self.first = self.number == 0
        """Whether this process prints, logs and writes what is written once."""
        patience = timedelta(seconds=parallel.patience)
        ranks = [list(range(t, self.world_size, tensor)) for t in range(tensor)]
        self._words, _ = dist.new_subgroups_by_enumeration(ranks, timeout=patience, backend="gloo")
        self.places: dict[str, Place] = {}
        """Where the parameters that are here lie in the whole, by name."""
        self._shared: dict[str, frozenset[str]] = {}
        self._task: Task | None = None
        self._line = dist.new_group(backend="gloo", timeout=patience)
        self._everyones: list[dict[str, Place]] = []
        self._held: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}

    # Before training

    def prepare(self, model: nn.Module) -> nn.Module:
        """This process's part of a model that all have built alike; the first one's values count.

        Raises:
            ConfigError: the model does not split so.
        """
        for value in [*model.parameters(), *model.buffers()]:
            dist.broadcast(value.detach(), 0)
        self._bones = skeleton(model)
        split: Split | None = None
        apart: dict[str, Cut] = {}
        if self.parallel.tensor > 1:
            model, split = self._tensor(model)
        model.to(self.device)
        if self.parallel.expert > 1:
            apart = spread(model, self.mesh["expert"])
        self._find(model, split, apart)
        if self.parallel.shard and self.world > 1:
            self._task = self._shard(model)
        for name, parameter in model.named_parameters():
            own = parameter
            if isinstance(parameter, DTensor):
                own = nn.Parameter(parameter.to_local().detach(), parameter.requires_grad)
            self._held[name] = (parameter, own)
        self._everyones = [{} for _ in range(self.world_size)]
        dist.all_gather_object(self._everyones, self.places, group=self._line)
        return model

    def _tensor(self, model: nn.Module) -> tuple[nn.Module, Split]:
        """A share of every matrix."""
        if not isinstance(model, StackModule | PairModule):
            raise ConfigError(f"a {type(model).__name__} has no matrices to split: tensor 1")
        mesh = self.mesh["tensor"]
        split = share(model.spec, mesh)
        parts = [model.spec.split(Rank(rank, mesh.size())) for rank in range(mesh.size())]
        for name, cut in split.cuts.items():
            taken = sum(b - a for part in parts for a, b in part.cuts[name].runs)
            if taken > cut.total:
                raise ConfigError(
                    f"{name} cannot be split over {mesh.size()} processes without some having the "
                    "same kv heads: in training parallel.tensor may be the kv heads at most"
                )
        return parallelize(model, mesh, train=True), split

    def _find(self, model: nn.Module, split: Split | None, apart: dict[str, Cut]) -> None:
        """Where parameters lie in the whole, and over which dimensions they are alike."""
        tensor = self.mesh["tensor"].get_local_rank()
        by_tensor = {} if split is None else split.cuts
        once = frozenset[str]() if split is None else split.once
        for name, parameter in model.named_parameters():
            shape, cuts = parameter.shape, [by_tensor.get(name), apart.get(name)]
            for cut in reversed([cut for cut in cuts if cut is not None]):
                shape = cut.whole(shape)
            place = Place.all_of(shape)
            for cut in (cut for cut in cuts if cut is not None):
                place = place.cut(cut)
            alike = {"replica", "expert", "tensor"}
            alike -= {"tensor"} if cuts[0] is not None or name in once else set()
            alike -= {"expert"} if cuts[1] is not None else set()
            self.places[name] = replace(
                place,
                zero=name in once and tensor > 0,
                first=all(self.mesh[dim].get_local_rank() == 0 for dim in alike),
            )
            self._shared[name] = frozenset(alike)

    def _shard(self, model: nn.Module) -> Task:
        """Shards over the processes with other batches, a block at a time."""
        banks = {m for m in model.modules() if isinstance(m, Bank)}
        if self.parallel.expert > 1:
            for bank in banks:
                fully_shard(bank, mesh=self.mesh["replica"])
        for stack in model.modules():
            if isinstance(stack, StackModule):
                for block in stack.blocks:
                    fully_shard(block, mesh=self.data)
        task = Task(model)
        fully_shard(task, mesh=self.data)
        for module in task.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # sums, not means
                module.set_force_sum_reduction_for_comms(True)
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor)
            mesh, place = parameter.device_mesh, self.places[name]
            rows = parameter.shape[0]
            each = -(-rows // mesh.size())
            start = min(mesh.get_local_rank() * each, rows)
            alike = self._shared[name] & {"tensor"}
            self.places[name] = replace(
                place.chunk(start, min(start + each, rows)),
                first=all(self.mesh[dim].get_local_rank() == 0 for dim in alike),
            )
            self._shared[name] = alike
        return task

    def optimizer(self, optimization: Optimization, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer of what is here of the parameters, as plain tensors.

        Raises:
            ConfigError: it looks at whole matrices, and these lie apart.
        """
        apart = [name for name, p in self.places.items() if p.shape() != p.whole]
        if apart and not optimization.elementwise:
            raise ConfigError(
                f"{type(optimization).__name__} looks at whole matrices, and {apart[0]} lies in "
                "shards: use adamw, adam, sgd or lion, or copies (parallel: tensor 1, expert 1, "
                "shard false)"
            )
        own = {id(theirs): mine for theirs, mine in self._held.values()}
        for group in groups:
            group["params"] = [own[id(p)] for p in group["params"]]
        return optimization.build(groups)

    def loss(self, objective: Objective[B], model: nn.Module, batch: B) -> Loss:
        """The objective on the prepared model, all of which is there while it runs."""
        if self._task is None:
            return objective(model, batch)

        def told(model: nn.Module) -> tuple[Tensor, int, Any]:
            loss = objective(model, batch)
            return loss.total.clone(), loss.count, loss.metrics  # FSDP2 warns of views

        total, count, metrics = self._task(told)
        if not torch.is_grad_enabled():  # what is left together would not hear of changed weights
            assert isinstance(self._task, FSDPModule)
            self._task.reshard()
        return Loss(total=total, count=count, metrics=metrics)

    # While training

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Leave on `own` parameters the gradient of the loss summed over all batches of a step."""
        self._agree()
        by_group: dict[frozenset[str], list[Tensor]] = {}
        for name, (theirs, mine) in self._held.items():
            if mine is not theirs:
                grad, theirs.grad = theirs.grad, None
                mine.grad = grad.to_local() if isinstance(grad, DTensor) else grad
            if mine.grad is None:
                continue
            if self.places[name].zero:
                mine.grad.zero_()
            if self._shared[name]:
                by_group.setdefault(self._shared[name], []).append(mine.grad)
        for dims, gradients in by_group.items():
            group = self._group(dims)
            if dist.get_world_size(group) > 1:
                for some in _buckets(gradients):
                    _summed(some, group)
        if self.parallel.tensor > 1:
            every = [mine.grad for _, mine in self._held.values() if mine.grad is not None]
            torch._foreach_div_(every, float(self.parallel.tensor))

    def _agree(self) -> None:
        """A parameter that had a part in some process's loss has a gradient in all."""
        if self._task is not None:
            return
        pairs = list(self._held.values())
        had = torch.tensor([p.grad is not None for p, _ in pairs], dtype=torch.int32)
        any_ = had.to(self.device)
        dist.all_reduce(any_, dist.ReduceOp.MAX)
        for here, anywhere, (parameter, _) in zip(had.tolist(), any_.tolist(), pairs, strict=True):
            if anywhere and not here:
                parameter.grad = torch.zeros_like(parameter)

    def _group(self, dims: frozenset[str]) -> dist.ProcessGroup:
        """The processes that differ in these dimensions of the mesh alone."""
        if dims == {"replica", "expert", "tensor"}:
            assert dist.group.WORLD is not None
            return dist.group.WORLD
        if dims == {"replica", "expert"}:
            return self.data.get_group()
        if dims == {"replica", "tensor"} and self.parallel.tensor == 1:
            dims = frozenset({"replica"})
        (dim,) = dims
        return self.mesh[dim].get_group()

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Length of the whole gradient, the same to the bit in every process."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for name, (_, mine) in self._held.items():
            if mine.grad is not None and self.places[name].first and not self.places[name].zero:
                total += mine.grad.detach().float().pow(2).sum().double()
        dist.all_reduce(total)
        return total.sqrt().float()

    def gather(self, value: T) -> list[T]:
        """Everybody's plain value, in the order of their batches."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._words)
        return found

    # What is saved

    def together(
        self, parts: Mapping[str, Tensor], like: Mapping[str, str] | None = None
    ) -> dict[str, Tensor]:
        """Whole tensors, in the first process, of parts by parameter name; all call this."""
        names = like or {name: name for name in parts}
        return put_together(parts, self._everyones, names, self._line)

    def apart(self, wholes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is here of whole tensors by parameter name."""
        return {name: self.places[name].own(value) for name, value in wholes.items()}

    def whole(self, model: nn.Module) -> nn.Module | None:
        """In the first process a model as it was given, with the weights of now; all call this."""
        parts = {name: mine for name, (_, mine) in self._held.items()}
        found = self.together(parts)
        return filled(self._bones, found) if self.first else None

    def state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state as one process alone would have it, in the first; all call this."""
        shapes = {name: tuple(mine.shape) for name, (_, mine) in self._held.items()}
        names = self._names(optimizer)
        return whole_state(optimizer.state_dict(), names, shapes, self.together, self.places)

    def load_state(self, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Take the parts that are here of what `state` gave, in whatever crew."""
        optimizer.load_state_dict(own_state(state, self._names(optimizer), self.places))

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Parameters' names in the optimizer's order."""
        by_own = {id(mine): name for name, (_, mine) in self._held.items()}
        return [by_own[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def pieces(self) -> dict[str, Piece]:
        """What is here of the weights, to be saved by all processes at once (pieces.py)."""
        return {
            name: Piece(self.places[name], mine.detach()) for name, (_, mine) in self._held.items()
        }

    def barrier(self) -> None:
        """Wait for all others."""
        self.gather(None)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Within this, the end of another process is a `Lost`, one line."""
        try:
            yield
        except KeifuError:
            raise
        except (RuntimeError, dist.DistError) as error:
            if not lost(error):
                raise
            why = str(error).partition("\n")[0].rpartition("] ")[2][:120]
            raise Lost(
                f"process {self.number} of {self.world_size} has lost another one, which was "
                f"ended or hangs ({why}): go on from the last checkpoint with --resume"
            ) from error


class Task(nn.Module):
    """What runs while a sharded model is together: everything that reads its weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module], T]) -> T:
        """Call a function with the model."""
        return function(self.model)


def lost(error: BaseException) -> bool:
    """Whether an error of torch's says that another process is gone."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return "gloo" in text or "NCCL" in text or "Connection closed by peer" in text


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type each, some megabytes together."""
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        found, size = list[Tensor](), 0
        for tensor in (t for t in tensors if t.dtype == dtype):
            found.append(tensor)
            size += tensor.nbytes
            if size >= BUCKET:
                yield found
                found, size = [], 0
        if found:
            yield found


def _summed(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Add up tensors over a group in one call, in place."""
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))

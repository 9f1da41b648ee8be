"""How a run is shared out over processes: a value of the recipe, checked against what is there."""

from __future__ import annotations

from dataclasses import dataclass

from keifu.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Processes are data x tensor. The same recipe runs on one of them with all of this at 1."""

    data: int | None = None
    """Shares of every step's batches; none: as many as there are processes for"""
    tensor: int = 1
    """Processes that have each matrix together (Shoeybi et al. 2019); they see the same batches"""
    expert: int = 1
    """Processes, of those with different batches, that have the experts together"""
    shard: bool = False
    """Weights, gradients and optimizer state in shards over `data` (FSDP), not copies (DDP)"""
    patience: float = 600.0
    """Seconds without a word after which a process is given up"""

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "expert"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"parallel.{name} {value} is not allowed: 1 or more")
        if not self.patience > 0:
            raise ConfigError(f"parallel.patience {self.patience} is not allowed: seconds above 0")
        if self.data is not None and self.data % self.expert:
            raise ConfigError(
                f"parallel.expert {self.expert} must divide parallel.data {self.data}"
            )

    @property
    def several(self) -> bool:
        """Whether it asks for more than one process."""
        return (self.data or 1) * self.tensor > 1 or self.expert > 1

    def shares(self, world: int) -> int:
        """`data` for so many processes.

        Raises:
            ConfigError: they do not fit.
        """
        if self.data is not None and self.data * self.tensor != world:
            raise ConfigError(
                f"parallel asks for data {self.data} x tensor {self.tensor} = "
                f"{self.data * self.tensor} processes, and there are {world}: start as many "
                "(--processes, torchrun --nproc-per-node), or leave out parallel.data"
            )
        if world % self.tensor:
            raise ConfigError(
                f"{world} processes cannot be shared out by parallel.tensor {self.tensor}"
            )
        if (world // self.tensor) % self.expert:
            raise ConfigError(
                f"parallel.expert {self.expert} does not divide the {world // self.tensor} "
                "processes with different batches"
            )
        return world // self.tensor

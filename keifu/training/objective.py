"""The objective: what a model learns from a batch, as a loss summed over items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor, nn

from keifu.core.errors import KeifuError, unknown
from keifu.nn.linear import Embedding
from keifu.nn.losses import IGNORE, cross_entropy, linear_cross_entropy, z_loss
from keifu.nn.part import Part
from keifu.nn.projection import Projecting
from keifu.nn.stack import StackModule
from keifu.nn.step import Emit, Step, ignore

if TYPE_CHECKING:
    from keifu.data.vocabulary import Vocabulary
    from keifu.training.reading import Reader

B = TypeVar("B")


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """What a batch says. Sums, not means: the loop divides by the count of a whole step."""

    total: Tensor
    """Scalar: the loss summed over items."""
    count: int
    """Items: tokens for language models, rows where a row has one label."""
    metrics: Mapping[str, tuple[Tensor | float, float]] = field(default_factory=dict)
    """Name -> (sum, count), to be added up over batches and divided once."""


@dataclass(frozen=True, kw_only=True)
class Objective(Generic[B]):
    """Base of the objectives: a frozen dataclass of options, called with a model and a batch.

    The loss must be a sum over items that do not know of each other's batch, so that one batch of
    eight, two of four and eight of one are the same step.
    """

    def __call__(self, model: nn.Module, batch: B) -> Loss:
        """The loss of a batch, with a gradient."""
        raise NotImplementedError

    def reader(self, vocabulary: Vocabulary) -> Reader[B]:
        """How examples become its batch; what is drawn for one follows from its own chance alone.

        Examples with nothing to learn (no token left, or all masked) are left out and counted.
        """
        raise KeifuError(f"{type(self).__name__} takes batches that the caller makes")

    def fitted(self, spec: Part, vocabulary: Vocabulary) -> Part:
        """The parts of a model that learns by it: a mask, a head; most need nothing."""
        return spec


class Auxiliary:
    """Losses that layers emit (experts' "balance", "router_z"), to be added with weights by name.

    `emit` goes to the model's step; `added` then joins what was heard to the objective's own loss.
    Such a loss is of a whole batch (experts are in balance over one), so with it two batches of
    four are not quite the step that one of eight is.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights
        self.heard: dict[str, list[Tensor]] = {}

    @property
    def emit(self) -> Emit:
        """What listens; nothing is computed for it where no weight is given."""
        return self._hear if self.weights else ignore

    def _hear(self, name: str, value: Tensor) -> None:
        self.heard.setdefault(name, []).append(value)

    def added(self, loss: Loss) -> Loss:
        """Per item, the loss plus weight * the sum over layers; the means over layers as metrics.

        Raises:
            KeifuError: a name that no layer emits.
        """
        total, metrics = loss.total, dict(loss.metrics)
        for name, weight in self.weights.items():
            if name not in self.heard:
                raise unknown("auxiliary loss", name, self.heard)
            total = total + weight * loss.count * torch.stack(self.heard[name]).sum()
        for name, values in self.heard.items():
            mean = torch.stack(values).detach().mean()
            metrics[name] = (mean * loss.count, loss.count)
        return replace(loss, total=total, metrics=metrics)


def stack_of(model: nn.Module, objective: str) -> StackModule:
    """The model as a stack, or a KeifuError that says what the objective needs."""
    if not isinstance(model, StackModule):
        raise KeifuError(f"{objective} trains one stack of blocks, not {type(model).__name__}")
    return model


def noting(loss: Loss, dropped: int, rows: int) -> Loss:
    """The loss with the share of examples that were left out, where any were."""
    if not dropped:
        return loss
    lost = {"dropped": (float(dropped), float(dropped + rows))}
    return replace(loss, metrics={**loss.metrics, **lost})


def check_labels(labels: Tensor, size: int) -> None:
    """Raise KeifuError if a label is neither below `size` nor IGNORE."""
    wrong = labels[(labels != IGNORE) & ((labels < 0) | (labels >= size))]
    if wrong.numel():
        raise KeifuError(f"label {int(wrong[0])} is outside the head: 0 to {size - 1} are allowed")


def token_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Loss:
    """Cross-entropy of logits (items, classes) against labels (items,), all of them kept."""
    check_labels(labels, logits.shape[-1])
    right = (logits.detach().argmax(-1) == labels).sum()
    count = labels.numel()
    return Loss(
        total=cross_entropy(logits, labels, smoothing=smoothing),
        count=count,
        metrics={"accuracy": (right, count)},
    )


def head_loss(
    stack: StackModule, hidden: Tensor, labels: Tensor, *, smoothing: float = 0.0, z: float = 0.0
) -> Loss:
    """Cross-entropy of the head's logits of hidden states (items, width), and z * log(Z)^2 of each.

    The logits are made a chunk at a time where the head is a product at its end, and are never
    whole in memory; other heads (packed, adapted) give theirs.
    """
    product, table = None, stack.input.table
    if isinstance(stack.head, Projecting) and isinstance(table, Embedding):
        product = stack.head.projection(hidden, table)
    if product is None:
        logits = stack.logits(hidden)
        if logits is None:
            raise KeifuError("this objective needs a model with a language-model head")
        own = token_loss(logits, labels, smoothing)
        extra = z_loss(logits, weight=z) * own.count
        return own if not z else replace(
            own, total=own.total + extra, metrics={**own.metrics, "z": (extra.detach(), own.count)}
        )  # fmt: skip
    size = product.weight.shape[0] if product.spread is None else product.spread.total
    check_labels(labels, size)
    found, count = linear_cross_entropy(product, labels, smoothing=smoothing, z=z), labels.numel()
    metrics: dict[str, tuple[Tensor | float, float]] = {"accuracy": (found.right, count)}
    if z:
        metrics["z"] = (found.z.detach(), count)
    return Loss(total=found.total, count=count, metrics=metrics)


def states(stack: StackModule, ids: Tensor, step: Step) -> Tensor:
    """The last hidden states (tokens, width), no logits made."""
    return stack.run(ids, step, select=ids.new_zeros(0)).hidden

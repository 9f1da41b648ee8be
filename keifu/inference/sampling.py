"""What changes one row of logits before a token is chosen, in the order Hugging Face has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from keifu.inference.request import Sampling

NEVER = float("-inf")


class History:
    """How often each token was seen: the prompt and the output count apart."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = set(prompt)
        self.output: dict[int, int] = {}

    def add(self, token: int) -> None:
        """Count one generated token."""
        self.output[token] = self.output.get(token, 0) + 1

    def copy(self) -> History:
        """The same, to be counted on apart."""
        other = History(())
        other.prompt, other.output = self.prompt, dict(self.output)
        return other

    def seen(self) -> list[int]:
        """Every token of prompt and output, once."""
        return list(self.prompt | self.output.keys())


def penalise(logits: Tensor, sampling: Sampling, history: History) -> Tensor:
    """Biases and penalties on logits (vocab,): a new tensor where anything changes."""
    out = logits
    if sampling.repetition_penalty != 1.0 and (seen := history.seen()):
        out = out.clone()
        at = torch.tensor(seen)
        old = out[at]
        rate = sampling.repetition_penalty
        out[at] = torch.where(old < 0, old * rate, old / rate)
    if (sampling.presence_penalty or sampling.frequency_penalty) and history.output:
        out = out.clone() if out is logits else out
        counts = torch.tensor(list(history.output.values()), dtype=out.dtype)
        drop = sampling.presence_penalty + sampling.frequency_penalty * counts
        out[torch.tensor(list(history.output))] -= drop
    if sampling.logit_bias:
        out = out.clone() if out is logits else out
        _bias(out, sampling.logit_bias)
    return out


def changes(sampling: Sampling) -> bool:
    """Whether `penalise` has anything to do, now or later."""
    penalties = sampling.presence_penalty or sampling.frequency_penalty
    return bool(sampling.repetition_penalty != 1.0 or penalties or sampling.logit_bias)


def _bias(logits: Tensor, bias: Mapping[int, float]) -> None:
    ids = [i for i in bias if 0 <= i < logits.shape[0]]
    logits[torch.tensor(ids, dtype=torch.long)] += torch.tensor([bias[i] for i in ids])


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest and what equals the smallest of them."""
    if k <= 0 or k >= logits.shape[0]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[-1], NEVER)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens whose probability reaches p, the likeliest one always, and what
    equals the least likely of them."""
    if p >= 1.0:
        return logits
    rising = logits.sort().values
    gone = int((rising.softmax(-1).cumsum(-1) <= 1.0 - p).sum())
    return logits.masked_fill(logits < rising[min(gone, len(rising) - 1)], NEVER)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens with at least p times the highest probability."""
    if p <= 0.0:
        return logits
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.max(), NEVER)


def typical(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens whose surprise is nearest the entropy, until their mass reaches p."""
    if p >= 1.0:
        return logits
    log = logits.log_softmax(-1)
    entropy = -(log.exp() * log).nansum()
    order = (-log - entropy).abs().argsort()
    mass = log.exp()[order].cumsum(-1)
    last = int((mass < p).sum().clamp(max=logits.shape[0] - 1))
    shift = (-log - entropy).abs()
    return logits.masked_fill(shift > shift[order[last]], NEVER)


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (vocab,) at the temperature, with those that are not kept at -inf."""
    logits = logits / sampling.temperature
    logits = top_p(top_k(logits, sampling.top_k), sampling.top_p)
    return typical(min_p(logits, sampling.min_p), sampling.typical_p)


def forbid(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Logits (vocab,) with some ids made impossible."""
    return logits.index_fill(0, torch.tensor(list(ids), dtype=torch.long), NEVER) if ids else logits

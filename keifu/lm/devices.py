"""Devices: where a model of this machine runs."""

from __future__ import annotations

import torch

from keifu.core.errors import KeifuError

KINDS = ("cpu", "cuda", "mps")


def placed(name: str | None) -> torch.device:
    """The device of a name ("cuda", "cuda:1"); None: a GPU that torch can use, else the processor.

    Raises:
        KeifuError: it is not here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise KeifuError(f"device={name!r} is not known: {', '.join(KINDS)}") from None
    here = {"cpu": 1, "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
            "mps": int(torch.backends.mps.is_available()), "meta": 1}  # fmt: skip
    if (device.index or 0) >= here.get(device.type, 0):
        raise KeifuError(f"device={name!r} is not here: see `keifu doctor`, or leave it out")
    return device

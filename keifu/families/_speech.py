"""What families that label sound share: the frames they read, and the label that is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keifu.families._family import Family
from keifu.families._learns import Learns
from keifu.media.mel import MelSpectrogram


@dataclass(frozen=True, kw_only=True)
class Labelling(Family):
    """A model of one class a frame, read by CTC."""

    tasks: ClassVar[tuple[str, ...]] = ("transcribe",)
    blank: int = 0
    """The class that is no label."""

    def learns(self) -> Learns:
        """Labels without saying which frame is which."""
        return Learns(objective="ctc", options={"blank": self.blank})

    def mel(self) -> MelSpectrogram:
        """What becomes of a sound before the model sees it."""
        raise NotImplementedError

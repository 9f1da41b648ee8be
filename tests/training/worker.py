"""A process of a run: python -m tests.training.worker FOLDER STEPS KILL [SHARD], under torchrun.

Saves after every step; process 1 kills itself in step KILL. Goes on from what is there.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from keifu.cli.main import _line
from keifu.core.errors import KeifuError
from keifu.training.launch import crew as found
from keifu.training.parallel import Parallel
from keifu.training.saved_state import read_state, write_state
from tests.training.crews import batch, trainer


def main(folder: Path, steps: int, kill: int, shard: bool) -> None:
    with found(Parallel(shard=shard, patience=60)) as crew:
        made = trainer("llama", crew, steps=steps)
        if (folder / "state.json").exists():
            state = read_state(folder)
            weights = state.pop("weights")
            with torch.no_grad():
                for name, parameter in made.model.named_parameters():
                    local = parameter.to_local() if shard and crew.world > 1 else parameter
                    place = (
                        crew.places[name].own(weights[name]) if crew.world > 1 else weights[name]
                    )
                    local.copy_(place)
            made.load_state_dict(state)

        def save(record: Any) -> None:
            if record.step + 1 == kill and crew.rank:
                os.kill(os.getpid(), signal.SIGKILL)
            whole, state = crew.whole(made.model), made.state_dict()
            if whole is not None:
                weights = {n: p.detach().clone() for n, p in whole.named_parameters()}
                write_state(folder, {**state, "weights": weights})

        made.on_step = (save,)
        made.fit(batch)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "shard" in sys.argv)
    except KeifuError as error:
        print(f"keifu: {_line(error)}", file=sys.stderr)
        sys.exit(1)

"""Read two million tokens in constant memory: a BERT and a GPT-2 in segments, with memory tokens.

    python recipes/two_million_tokens.py

4,096 segments of 512 places: ten for memory, three for CLS and SEP, 499 for the text (Bulatov et
al. 2023, arXiv 2304.11062, section 4): 2,043,904 tokens. The weights are random, for only the
memory of the process is looked at: a text never costs more than one segment of it. Expected: less
than 8 MiB more after all segments than after the first sixteenth of them. Two minutes on one core.
"""

from __future__ import annotations

from dataclasses import replace

import psutil
import torch

from keifu.families.bert import Bert
from keifu.families.gpt_2 import GPT2
from keifu.inference.runner import step_of
from keifu.nn.segments import Segments, SegmentsModule
from keifu.nn.state import StatePool

SEGMENTS, VOCAB = 4096, 128
_ENCODER = Bert(vocab=VOCAB, width=32, hidden=64, depth=1, heads=2, context=512).spec()
_DECODER = GPT2(vocab=VOCAB, width=32, hidden=64, depth=1, heads=2, context=1024).spec()
SPECS = {
    # CLS, memory, SEP, text, SEP: 512 places
    "encoder": Segments.of(
        replace(_ENCODER, heads=(), head=None),
        memory=10,
        segment=512 - 10 - 3,
        appended=False,
        around=((1,), (2,), (2,)),
    ),
    # memory, text, memory
    "decoder": Segments.of(_DECODER, memory=10, segment=499),
}


@torch.inference_mode()
def read(name: str, segments: int = SEGMENTS) -> tuple[int, int, int]:
    """Tokens read; bytes of the process after a sixteenth of the segments, and the most later on.

    The decoder reads as an engine feeds it: 512 tokens at a time, across the segments' borders.
    """
    spec = SPECS[name]
    model = spec.build()
    assert isinstance(model, SegmentsModule)
    model.initialise(seed=0, std=0.1).eval()
    pool = StatePool(spec.entries(), budget=1 << 20, slots=1)
    state, process = pool.open(), psutil.Process()
    total = segments * spec.segment
    at_once = spec.segment if name == "encoder" else 512
    made = torch.Generator().manual_seed(0)
    early = most = 0
    while state.length < total:
        n = min(at_once, total - state.length)
        ids = torch.randint(3, VOCAB, (n,), generator=made)
        step = step_of([state], [n], [total], ids.device)
        model.run(ids, step, pool.handles([state], [n]), select=torch.tensor([n - 1]))
        pool.advance(state, n)
        if state.length < total // 16:
            early = max(early, process.memory_info().rss)
        most = max(most, process.memory_info().rss)
    return state.length, early, most


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in SPECS:
        tokens, early, most = read(name)
        print(f"{name}: {tokens:,} tokens, {early >> 20} MiB, then at most {most >> 20} MiB")

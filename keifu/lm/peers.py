"""Subjects of a benchmark: each runs in a process of its own and answers JSON lines.

The file runs by itself (`python -P peers.py llama-cpp-python`), so that a peer may live in another
Python than Keifu; it needs the standard library and that peer. Two peers are in `peers_compiled`;
Keifu's own subject is in `subject`. A request is one line, its answer is one line:

    {"do": "load", "model": "x.gguf", "threads": 2, "context": 2048}  ->  {"seconds": 0.3, ...}
    {"do": "run", "prompt": [1, 2, 3], "new": 64}  ->  {"first": 0.1, "decode": 0.9, "tokens": 64}
    {"do": "together", "prompts": [[1, 2], [3, 4]], "new": 64}  ->  {"times": [[0.1, ...], ...]}
    {"do": "greedy", "prompt": [1, 2, 3], "new": 64}  ->  {"tokens": [4, 5]}
    {"do": "logprobs", "tokens": [1, 2, 3]}        ->  {"logprobs": [-4.2, -1.3]}
    {"do": "memory"}                               ->  {"peak": 123456789, "cpu": 1.5}
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast


class Subject(Protocol):
    """A runtime that can be measured. Its constructor imports it; `version` names it."""

    version: str

    def load(self, model: str, threads: int, context: int, streams: int = 1) -> Mapping[str, Any]:
        """Load a checkpoint, ready to answer `streams` requests of `context` tokens at once.

        Returns facts about how it will run.
        """

    def generate(self, prompt: list[int], new: int) -> Iterable[int]:
        """The `new` likeliest tokens after the prompt, one by one, past any end token."""

    def together(self, prompts: list[list[int]], new: int) -> list[list[float]]:
        """Continue all prompts at once by `new` tokens each.

        Returns the `time.perf_counter()` at which each token of each of them was there.
        """

    def logprobs(self, tokens: list[int]) -> list[float]:
        """Natural-log probability of each token but the first, given those before it."""


class LlamaCpp:
    """llama-cpp-python, with its own defaults."""

    def __init__(self) -> None:
        import llama_cpp

        self.version: str = llama_cpp.__version__
        self._package: Any = llama_cpp
        self._model: Any = None
        self._path, self._threads = "", 1
        self._streams, self._context = 1, 0
        self._many: Any = None

    def load(self, model: str, threads: int, context: int, streams: int = 1) -> Mapping[str, Any]:
        """Memory-mapped, as it does by default."""
        self._path, self._threads = model, threads
        self._streams, self._context = streams, context
        self._model = self._open(context if streams == 1 else 256, every=False)
        return {"weights": "as in the file"}

    def _open(self, context: int, *, every: bool) -> Any:
        return self._package.Llama(
            self._path,
            n_ctx=context,
            n_threads=self._threads,
            n_threads_batch=self._threads,
            logits_all=every,
            verbose=False,
        )

    def generate(self, prompt: list[int], new: int) -> Iterable[int]:
        """Greedy."""
        for count, token in enumerate(self._model.generate(prompt, temp=0.0), 1):
            yield int(token)
            if count == new:
                return

    def together(self, prompts: list[list[int]], new: int) -> list[list[float]]:
        """One sequence a prompt, each read alone, then all of them a token a step in one batch."""
        import ctypes

        import numpy as np

        cpp, model = self._package, self._model._model
        width, times = cpp.llama_vocab_n_tokens(model.vocab), [[0.0] * 0 for _ in prompts]
        if self._many is None:
            wanted = cpp.llama_context_default_params()
            room = -(-self._context // 256) * 256  # it rounds so itself
            wanted.n_ctx, wanted.n_seq_max = room * self._streams, self._streams
            wanted.n_threads = wanted.n_threads_batch = self._threads
            self._many = cpp.llama_init_from_model(model.model, wanted)
            if not self._many:
                raise MemoryError(f"no context of {self._streams} sequences")
        many, batch = self._many, cpp.llama_batch_init(2048, 0, 1)
        cpp.llama_memory_clear(cpp.llama_get_memory(many), True)

        def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
            """Run (token, position, sequence, wanted) and take the likeliest where wanted."""
            batch.n_tokens = len(rows)
            for i, (token, place, owner, wants) in enumerate(rows):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, place, 1
                batch.seq_id[i][0], batch.logits[i] = owner, wants
            if code := cpp.llama_decode(many, batch):
                raise RuntimeError(f"llama_decode gave {code}")
            found = []
            for i in (i for i, row in enumerate(rows) if row[3]):
                row = ctypes.cast(cpp.llama_get_logits_ith(many, i), ctypes.c_void_p).value
                floats = (ctypes.c_float * width).from_address(row)
                found.append(int(np.frombuffer(floats, np.float32).argmax()))
                times[rows[i][2]].append(time.perf_counter())
            return found

        last = []
        for owner, prompt in enumerate(prompts):
            rows = [(t, i, owner, i + 1 == len(prompt)) for i, t in enumerate(prompt)]
            for start in range(0, len(rows), 2048):
                last += decode(rows[start : start + 2048])
        for step in range(new - 1):
            last = decode([(t, len(prompts[o]) + step, o, True) for o, t in enumerate(last)])
        cpp.llama_batch_free(batch)
        return times

    def logprobs(self, tokens: list[int]) -> list[float]:
        """From the logits of every position, which only a context of its own keeps."""
        import numpy as np

        model = self._open(len(tokens), every=True)
        model.eval(tokens)
        rows = np.asarray(model.scores[: len(tokens) - 1], dtype=np.float64)
        model.close()
        rows -= rows.max(-1, keepdims=True)
        chosen = rows[np.arange(len(rows)), tokens[1:]]
        found: list[float] = (chosen - np.log(np.exp(rows).sum(-1))).tolist()
        return found


class Transformers:
    """transformers in bfloat16; a GGUF file is decoded, since it has no kernels for packed rows."""

    def __init__(self) -> None:
        import torch
        import transformers

        self._torch, self._package = torch, cast(Any, transformers)
        self._package.logging.disable_progress_bar()
        self.version = f"{transformers.__version__} (torch {torch.__version__})"
        self._model: Any = None

    def load(self, model: str, threads: int, context: int, streams: int = 1) -> Mapping[str, Any]:
        """Decoded weights, in memory."""
        self._torch.set_num_threads(threads)
        path = Path(model)
        file = {"gguf_file": path.name} if path.is_file() else {}
        folder = path.parent if path.is_file() else path
        kind = self._package.AutoModelForCausalLM
        self._model = kind.from_pretrained(folder, dtype=self._torch.bfloat16, **file).eval()
        return {"weights": "bfloat16"}

    def generate(self, prompt: list[int], new: int) -> Iterable[int]:
        """Greedy with the key-value cache: what its own `generate` does, without its checks."""
        torch = self._torch
        ids, past = torch.tensor([prompt]), None
        for _ in range(new):
            with torch.inference_mode():
                out = self._model(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
            ids, past = out.logits[:, -1:].argmax(-1), out.past_key_values
            yield int(ids)

    def together(self, prompts: list[list[int]], new: int) -> list[list[float]]:
        """One batch of prompts of one length, which need no padding."""
        torch, times = self._torch, [[0.0] * 0 for _ in prompts]
        ids, past = torch.tensor(prompts), None
        for _ in range(new):
            with torch.inference_mode():
                out = self._model(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
            ids, past = out.logits[:, -1:].argmax(-1), out.past_key_values
            for each in times:
                each.append(time.perf_counter())
        return times

    def logprobs(self, tokens: list[int]) -> list[float]:
        """From one pass."""
        torch = self._torch
        with torch.inference_mode():
            rows = self._model(torch.tensor([tokens])).logits[0, :-1].float().log_softmax(-1)
        found: list[float] = rows[torch.arange(len(rows)), torch.tensor(tokens[1:])].tolist()
        return found


def _compiled(kind: str) -> Subject:
    """A subject of the file beside this one, which is in no package where this runs by itself."""
    here = Path(__file__).with_name("peers_compiled.py")
    spec = importlib.util.spec_from_file_location(here.stem, here)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    subject: Subject = getattr(module, kind)()
    return subject


PEERS: Mapping[str, Callable[[], Subject]] = {
    "llama-cpp-python": LlamaCpp,
    "transformers": Transformers,
    "openvino-genai": lambda: _compiled("OpenVino"),
    "onnxruntime-genai": lambda: _compiled("OnnxRuntime"),
}
"""What Keifu is compared with, by package name."""


def usage() -> dict[str, float]:
    """Most memory this process has held (bytes), and processor seconds of all its threads.

    Linux hands the resource counter of memory down to children, so its own file is read there.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = int(line.split()[1]) * 1024
    return {"peak": peak, "cpu": used.ru_utime + used.ru_stime}


def timed_run(subject: Subject, prompt: list[int], new: int) -> dict[str, float]:
    """Generate; seconds to the first token, and from there to the last."""
    start = time.perf_counter()
    first = last = start
    count = 0
    for count, _ in enumerate(subject.generate(prompt, new), 1):
        last = time.perf_counter()
        first = last if count == 1 else first
    return {"first": first - start, "decode": last - first, "tokens": count}


def timed_together(subject: Subject, prompts: list[list[int]], new: int) -> dict[str, Any]:
    """Continue prompts at once; for each the seconds from the start to each of its tokens."""
    start = time.perf_counter()
    return {"times": [[t - start for t in each] for each in subject.together(prompts, new)]}


def serve(
    make: Callable[[], Subject],
    extra: Mapping[str, Callable[..., Mapping[str, Any]]] | None = None,
) -> None:
    """Answer requests until the input ends; standard output is kept for answers alone."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    start = time.perf_counter()
    try:
        subject = make()
    except ImportError as missing:
        say({"absent": str(missing)})
        return
    say({"version": subject.version, "import": time.perf_counter() - start})

    def load(**options: Any) -> dict[str, Any]:
        start = time.perf_counter()
        facts = subject.load(**options)
        return {"seconds": time.perf_counter() - start, **facts}

    actions: dict[str, Callable[..., Mapping[str, Any]]] = {
        "load": load,
        "run": lambda prompt, new: timed_run(subject, prompt, new),
        "together": lambda prompts, new: timed_together(subject, prompts, new),
        "greedy": lambda prompt, new: {"tokens": list(subject.generate(prompt, new))},
        "logprobs": lambda tokens: {"logprobs": subject.logprobs(tokens)},
        "memory": usage,
        **(extra or {}),
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say(actions[request.pop("do")](**request))
        except Exception as error:  # told to whoever measures
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve(PEERS[sys.argv[1]])

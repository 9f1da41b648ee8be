"""Peers that compile a model for this processor: OpenVINO GenAI and ONNX Runtime GenAI.

As `peers`, the file needs the standard library and those packages, which have types for nobody.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class OpenVino:
    """OpenVINO GenAI, which reads GGUF files of some architectures itself.

    Its pipeline of continuous batches is what its `LLMPipeline` runs on processors; it is used
    with that one's setting for a single request.
    """

    def __init__(self) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._numpy, self._base, self._package = numpy, openvino, openvino_genai
        self.version: str = openvino_genai.get_version()
        self._model: Any = None
        self._asked = 0

    def load(self, model: str, threads: int, context: int, streams: int = 1) -> Mapping[str, Any]:
        """Compiled for the processor, packed weights as they are."""
        settings = self._package.SchedulerConfig()
        if streams == 1:
            settings.max_num_batched_tokens = 2**31 - 1
        options = {"INFERENCE_NUM_THREADS": threads}
        self._model = self._package.ContinuousBatchingPipeline(model, settings, "CPU", options)
        return {"weights": "as in the file"}

    def _submit(self, prompt: list[int], new: int, **settings: Any) -> Any:
        wanted = self._package.GenerationConfig(
            max_new_tokens=new, ignore_eos=True, do_sample=False, **settings
        )
        ids = self._base.Tensor(self._numpy.array([prompt], dtype=self._numpy.int64))
        self._asked += 1
        return self._model.add_request(self._asked, ids, wanted)

    @staticmethod
    def _read(handle: Any) -> list[int]:
        if not handle.can_read():
            return []
        return [int(t) for output in handle.read().values() for t in output.generated_ids]

    def generate(self, prompt: list[int], new: int) -> Iterable[int]:
        """Greedy."""
        handle = self._submit(prompt, new)
        while self._model.has_non_finished_requests():
            self._model.step()
            yield from self._read(handle)

    def together(self, prompts: list[list[int]], new: int) -> list[list[float]]:
        """Its scheduler batches them."""
        handles = [self._submit(prompt, new) for prompt in prompts]
        times = [[0.0] * 0 for _ in prompts]
        while self._model.has_non_finished_requests():
            self._model.step()
            now = time.perf_counter()
            for handle, mine in zip(handles, times, strict=True):
                mine += [now] * len(self._read(handle))
        return times

    def logprobs(self, tokens: list[int]) -> list[float]:
        """What it tells of a prompt that it repeats; the first one is none."""
        handle = self._submit(tokens, 1, echo=True, logprobs=1)
        while self._model.has_non_finished_requests():
            self._model.step()
        (output,) = handle.read_all()
        return [float(p) for p in output.generated_log_probs[1 : len(tokens)]]


class OnnxRuntime:
    """ONNX Runtime GenAI, with four-bit weights that its own builder makes of the decoded ones.

    Blocks of 32 with a smallest value each, as in Q4_0 and Q4_1, activations in 8 bits: the
    builder's defaults for processors but for that value. The head is packed alike; the table of
    inputs stays apart in float32, since sharing it (the builder's default) gives a graph that the
    runtime refuses.
    """

    def __init__(self) -> None:
        import gguf  # noqa: F401 (transformers needs it to read the file)
        import numpy
        import onnx_ir  # noqa: F401 (the builder needs it)
        import onnxruntime_genai
        import transformers  # noqa: F401

        onnxruntime_genai.disable_telemetry_events()
        self._numpy, self._package = numpy, onnxruntime_genai
        self.version: str = onnxruntime_genai.__version__
        self._model: Any = None

    def load(self, model: str, threads: int, context: int, streams: int = 1) -> Mapping[str, Any]:
        """Converted first, in a process of its own, so that its memory does not count."""
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-P", __file__, model, folder], capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"its builder failed: {done.stderr.strip()[-300:]}")
            settings = self._package.Config(str(Path(folder, "onnx")))
            session = {"session_options": {"intra_op_num_threads": threads}}
            settings.overlay(json.dumps({"model": {"decoder": session}}))
            self._model = self._package.Model(settings)
        return {"weights": "int4 of its own"}

    def _begin(self, prompts: list[list[int]], new: int) -> Any:
        """A generator that has read the prompts and runs past any end token."""
        end = len(prompts[0]) + new
        wanted = self._package.GeneratorParams(self._model)
        wanted.set_search_options(
            batch_size=len(prompts), max_length=end, min_length=end, do_sample=False
        )
        made = self._package.Generator(self._model, wanted)
        made.append_tokens(self._numpy.array(prompts, dtype=self._numpy.int32))
        return made

    def generate(self, prompt: list[int], new: int) -> Iterable[int]:
        """Greedy."""
        made = self._begin([prompt], new)
        for _ in range(new):
            made.generate_next_token()
            yield int(made.get_next_tokens()[0])

    def together(self, prompts: list[list[int]], new: int) -> list[list[float]]:
        """One batch of prompts of one length, which need no padding."""
        made, times = self._begin(prompts, new), [[0.0] * 0 for _ in prompts]
        for _ in range(new):
            made.generate_next_token()
            now = time.perf_counter()
            for each in times:
                each.append(now)
        return times

    def logprobs(self, tokens: list[int]) -> list[float]:
        """From one pass."""
        numpy = self._numpy
        rows = numpy.asarray(self._begin([tokens], 1).get_output("logits"), dtype=numpy.float64)[0]
        rows = rows[: len(tokens) - 1] - rows[: len(tokens) - 1].max(-1, keepdims=True)
        chosen = rows[numpy.arange(len(rows)), tokens[1:]]
        found: list[float] = (chosen - numpy.log(numpy.exp(rows).sum(-1))).tolist()
        return found


def convert(model: Path, folder: Path) -> None:
    """Decode a checkpoint by transformers into `folder`/source, and build `folder`/onnx of it."""
    import safetensors.torch
    import torch
    import transformers

    # The package that is named has types, its members are made when asked for.
    package: Any = transformers
    source = model
    if model.is_file():
        source = folder / "source"
        file = {"gguf_file": model.name}
        kind = package.AutoModelForCausalLM
        read = kind.from_pretrained(model.parent, dtype=torch.float32, **file)
        # transformers does not write what it read from GGUF: it holds that to be packed still.
        read.config.architectures = [type(read).__name__]
        del read.config.quantization_config
        read.config.save_pretrained(source)
        read.generation_config.save_pretrained(source)
        safetensors.torch.save_model(read, str(source / "model.safetensors"), {"format": "pt"})
        package.AutoTokenizer.from_pretrained(model.parent, **file).save_pretrained(source)
        del read
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    where = ["-i", str(source), "-o", str(folder / "onnx"), "-c", str(folder / "cache")]
    extra = ["--extra_options", "is_symmetric=false", "shared_embeddings=false"]
    subprocess.run([*builder, *where, *extra], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))

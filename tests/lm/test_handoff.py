"""keifu export: what other programs load of ours, and how they are started on it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from keifu.cli.main import main
from keifu.core.errors import KeifuError
from keifu.families import families, load_model
from keifu.families._convert import ConvertOptions
from keifu.lm.handoff import TARGETS, TRANSFORMERS, VLLM, export, lacking
from keifu.nn.stack import StackModule
from tests.families.parity import same_logits, tokens
from tests.families.test_convert import folder
from tests.gguf_builder import tiny_llama

WHOLE = {"mpt": {"ratio": 4, "qk_norm": False}}
"""Options without which transformers has no such model: it knows one ratio, and no norm of q, k."""
QUICK = ("bloom", "gemma3", "gpt-2", "llama", "mamba", "qwen3-moe")
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name, family in sorted(families.items())
    if family.fields.architecture in VLLM
]


def held(path: Path) -> dict[str, list[int]]:
    """Names and shapes of a folder's tensors."""
    with safe_open(path / "model.safetensors", "pt") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_for_vllm_is_what_transformers_expects(name: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "source", name, **WHOLE.get(name, {}))
    made = export(source, tmp_path / "made", "vllm")
    config = AutoConfig.from_pretrained(tmp_path / "made")
    assert config.architectures == [families[name].fields.architecture]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    assert held(tmp_path / "made") == held(tmp_path / "theirs")
    ours, _ = load_model(source, precision="exact")
    assert isinstance(ours, StackModule)
    same_logits(ours, theirs, tokens(256, 2, 9), padded=False)
    assert made.report.lossless
    words = shlex.split(made.command)
    assert words[:3] == ["vllm", "serve", str(tmp_path / "made")]
    assert words[words.index("--dtype") + 1] == "float32"
    limit = getattr(config, "max_position_embeddings", None)
    if "--max-model-len" in words and limit:
        assert int(words[words.index("--max-model-len") + 1]) <= limit


def test_the_lists_are_transformers_own() -> None:
    ours = {f.fields.architecture for f in families.values() if "generate" in f.tasks}
    assert {name for name in ours if hasattr(transformers, name)} == TRANSFORMERS
    assert ours >= VLLM
    assert "lamda" in lacking(TARGETS["vllm"])
    assert "bart" in lacking(TARGETS["vllm"])
    assert "llama" not in lacking(TARGETS["vllm"])


def test_packed_matrices_are_decoded_and_it_is_said(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    source.write_bytes(tiny_llama())
    made = export(source, tmp_path / "b", "vllm")
    assert made.report.types == {"bfloat16": 20}
    assert any("decoded to bf16; --type f32 or f16 instead" in note for note in made.notes)
    assert "--dtype bfloat16" in made.command
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    again = export(source, tmp_path / "c", "vllm", ConvertOptions(type="f16"))
    assert again.report.types == {"float16": 20}
    assert not any("decoded" in note for note in again.notes)
    with pytest.raises(KeifuError, match="f32, bf16, f16, not q4_0"):
        export(source, tmp_path / "d", "vllm", ConvertOptions(type="q4_0"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b", "c"]


@pytest.mark.parametrize(
    ("taught", "parser"),
    [
        ("<tool_call>{}</tool_call>", "hermes"),
        ("[TOOL_CALLS]", "mistral"),
        ("Environment: ipython", "llama3_json"),
    ],
)
def test_the_template_and_the_parser_of_its_tools(taught: str, parser: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "source")
    template = "{% if tools %}{{ tools }}" + taught + "{% endif %}{{ messages[0].content }}"
    for path in source.glob("chat_template.*"):
        path.unlink()
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["chat_template"] = template
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    words = shlex.split(export(source, tmp_path / "made", "vllm").command)
    assert words[words.index("--tool-call-parser") + 1] == parser
    assert "--enable-auto-tool-choice" in words
    theirs = AutoTokenizer.from_pretrained(tmp_path / "made")
    told = theirs.apply_chat_template([{"role": "user", "content": "hey"}], tokenize=False)
    assert told == "hey"


def test_without_a_template_it_says_so(tmp_path: Path) -> None:
    source = folder(tmp_path / "source")
    for path in source.glob("chat_template.*"):
        path.unlink()
    file = source / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("chat_template", None)
    file.write_text(json.dumps(settings))
    made = export(source, tmp_path / "made", "vllm")
    assert any("no chat template" in note for note in made.notes)
    assert "--chat-template" not in made.command


def test_what_a_program_lacks_is_refused_in_one_line(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", "lamda")
    lacks = r"vLLM 0\.14 has no LaMDAForCausalLM.*it lacks .*lamda"
    with pytest.raises(KeifuError, match=lacks):
        export(source, tmp_path / "made", "vllm")
    with pytest.raises(KeifuError, match="nearest: vllm"):
        export(source, tmp_path / "made", "vlm")
    with pytest.raises(KeifuError, match=r"name it .*made\.gguf"):
        export(source, tmp_path / "made", "llama.cpp")
    with pytest.raises(KeifuError, match=r"without \.gguf"):
        export(source, tmp_path / "made.gguf", "transformers")
    japanese = folder(tmp_path / "japanese", "gpt-neox-japanese")
    with pytest.raises(KeifuError, match="--for transformers takes it"):
        export(japanese, tmp_path / "made", "vllm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["japanese", "source"]


def test_for_llama_cpp_and_for_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "source")
    made = export(source, tmp_path / "a.gguf", "llama.cpp", ConvertOptions(type="q8_0"))
    assert made.command.startswith(f"llama-server --model {tmp_path / 'a.gguf'}")
    assert "--jinja" in made.command
    field = gguf.GGUFReader(tmp_path / "a.gguf").get_field("general.architecture")
    assert field is not None
    assert field.contents() == "llama"
    back = export(tmp_path / "a.gguf", tmp_path / "b", "transformers")
    _, _, code = shlex.split(back.command)
    exec(code, {})
    assert "['LlamaForCausalLM'] " in capsys.readouterr().out


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "source")
    assert main(["export", str(source), str(tmp_path / "a"), "--for", "vllm"]) == 0
    out = capsys.readouterr().out
    assert "vLLM 0.14 runs it with\nvllm serve " in out
    assert main(["export", "-q", str(source), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.startswith("vllm serve ")
    assert main(["export", "--json", str(source), str(tmp_path / "c"), "--for", "vllm"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["program"], told["lossless"]) == ("vLLM 0.14", True)
    assert main(["export", str(source), str(tmp_path / "d"), "--for", "tgi"]) == 1
    assert "no program to export for 'tgi'" in capsys.readouterr().err

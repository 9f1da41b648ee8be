"""Converting checkpoints: formats, types, tokenizer and terms; the result is checked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from keifu.checkpoints.gguf import GGUFFile, write_gguf
from keifu.core.errors import KeifuError
from keifu.families import Family, families, load_model
from keifu.families._convert import ConvertOptions, Report, convert
from keifu.families._load import open_checkpoint
from keifu.nn.rotary import Llama3
from keifu.nn.stack import StackModule
from keifu.text.marks import Marks
from keifu.text.pretokenize import RULES, byte_level_bpe
from keifu.text.tokenizer import Tokenizer
from tests.families.parity import export, tokens
from tests.gguf_builder import tiny_llama

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"


def vocabulary() -> Tokenizer:
    """256 bytes, a merge, three control tokens, one user's: 261 tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    signs = [chr(b if b in printable else next(spare)) for b in range(256)]
    vocab = {sign: i for i, sign in enumerate([*signs, "he"])}
    rust = byte_level_bpe(vocab, [("h", "e")], RULES["qwen2"].patterns)
    plain = Tokenizer(rust).extend(["<|im_start|>", "<|im_end|>", "<s>"], special=True)
    whole = plain.extend(["keifu"])
    marks = Marks(
        named={"bos": 259, "eos": 258}, ends=(257,), prefix=(259,), templates={"default": TEMPLATE}
    )
    return Tokenizer(whole._rust, marks)


def folder(path: Path, family_name: str = "llama", **changes: Any) -> Path:
    """A tiny checkpoint of a family as a Hugging Face folder, with all that goes with one."""
    tiny = families[family_name].tiny()
    family: Family = dataclasses.replace(tiny, **{"vocab": 264, **changes})  # type: ignore[arg-type]
    model = family.spec().build()
    assert isinstance(model, StackModule)
    model.initialise(seed=2, std=0.3)
    ids = {"bos_token_id": 259, "eos_token_id": 258, "pad_token_id": 257, "use_cache": True}
    export(family, model, path, ids)
    vocabulary().save(path)
    settings = {"do_sample": True, "temperature": 0.5, "top_k": 7, "eos_token_id": [258, 257]}
    (path / "generation_config.json").write_text(json.dumps(settings))
    (path / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nA model.\n")
    (path / "LICENSE").write_text("terms")
    (path / "modeling_x.py").write_text("raise SystemExit")
    return path


def made(source: Path, target: Path, type: str | None = None, **options: Any) -> Report:
    return convert(source, target, ConvertOptions(type=type, **options))


@torch.no_grad()
def logits(path: Path) -> torch.Tensor:
    found = load_model(path)[0](tokens(256, 2, 20)).logits
    assert found is not None
    return found


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "qwen", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "stablelm"]
)
def test_folder_to_gguf_and_back_is_the_same_model(name: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "a", name)
    there = made(source, tmp_path / "b.gguf")
    assert there.lossless
    assert there.agreement.greedy
    assert there.agreement.top1 == 1.0
    back = made(tmp_path / "b.gguf", tmp_path / "c")
    assert back.lossless
    assert back.family == name
    torch.testing.assert_close(logits(tmp_path / "c"), logits(source), atol=2e-5, rtol=1e-5)
    read = open_checkpoint(tmp_path / "c").family
    assert read.spec() == open_checkpoint(source).family.spec()


def test_what_goes_with_the_tensors(tmp_path: Path) -> None:
    source = folder(tmp_path / "a")
    made(source, tmp_path / "b.gguf")
    file = GGUFFile(tmp_path / "b.gguf")
    said = file.metadata
    assert said["general.architecture"] == "llama"
    assert said["general.license"] == "apache-2.0"
    assert said["general.sampling.temp"] == 0.5
    assert said["general.sampling.top_k"] == 7
    assert said["tokenizer.ggml.pre"] == "qwen2"
    assert said["tokenizer.ggml.tokens"][256:] == [
        *("he", "<|im_start|>", "<|im_end|>", "<s>", "keifu"),
        *("[PAD261]", "[PAD262]", "[PAD263]"),
    ]
    assert said["tokenizer.ggml.token_type"][256:] == [1, 3, 3, 3, 4, 5, 5, 5]
    assert said["tokenizer.ggml.merges"] == ["h e"]
    assert said["tokenizer.ggml.bos_token_id"] == 259
    assert said["tokenizer.ggml.eos_token_id"] == 258
    assert said["tokenizer.ggml.eot_token_id"] == 257
    assert said["tokenizer.ggml.add_bos_token"] is True
    assert said["tokenizer.chat_template"] == TEMPLATE
    made(tmp_path / "b.gguf", tmp_path / "c")
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        "chat_template.jinja",
    }
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (259, 258)
    settings = json.loads((tmp_path / "c" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [257, 258]
    assert (settings["temperature"], settings["top_k"]) == (0.5, 7)
    assert "license: apache-2.0" in (tmp_path / "c" / "README.md").read_text()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "c")
    text = "hehe keifu <|im_start|> 漢字 123"
    assert theirs(text)["input_ids"] == vocabulary().encode(text, special=True)
    chat = [{"role": "user", "content": "x"}]
    assert theirs.apply_chat_template(chat, tokenize=False) == "<|im_start|>x"


def test_folder_to_folder_keeps_its_files_but_no_code(tmp_path: Path) -> None:
    source = folder(tmp_path / "a")
    report = made(source, tmp_path / "b", "bf16")
    assert report.types == {"bfloat16": 21}
    assert not report.lossless
    for name in ("tokenizer.json", "LICENSE", "README.md", "generation_config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "b" / "modeling_x.py").exists()
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (config["torch_dtype"], config["pad_token_id"]) == ("bfloat16", 257)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "b", dtype="auto")
    assert theirs.dtype == torch.bfloat16
    same = made(tmp_path / "b", tmp_path / "c", "float32")
    assert same.lossless
    assert same.agreement.identical


WIDE = {
    "width": 256,
    "hidden": 256,
    "depth": 1,
    "heads": 4,
    "kv_heads": 2,
    "head_width": 64,
    "tied": False,
}
NUMBER = {"q4_k": 12, "q6_k": 14, "q8_0": 8, "q4_0": 2, "q4_1": 3, "f16": 1, "bf16": 30, "f32": 0}
HEAD = {"q4_k": "q6_k", "q4_0": "q6_k", "q4_1": "q6_k"}


@pytest.mark.parametrize("kind", NUMBER)
def test_types_as_llama_cpp_chooses_them_and_values_as_gguf_reads_them(
    kind: str, tmp_path: Path
) -> None:
    source = folder(tmp_path / "a", **WIDE)
    report = made(source, tmp_path / "b.gguf", kind, max_kl=50.0)
    reader = gguf.GGUFReader(tmp_path / "b.gguf")
    number = gguf.GGUFReader.get_field(reader, "general.file_type")
    assert number is not None
    assert number.contents() == int(gguf.LlamaFileType[f"{_file_type(kind)}"])
    model, _ = load_model(tmp_path / "b.gguf")
    weights = dict(model.named_parameters())
    for tensor in reader.tensors:
        expected = "f32" if "norm" in tensor.name else kind
        expected = HEAD.get(kind, kind) if tensor.name == "output.weight" else expected
        assert int(tensor.tensor_type) == NUMBER[expected], tensor.name
        value = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if tensor.name == "blk.0.ffn_down.weight":
            assert torch.equal(weights["blocks.0.mlp.down.weight"], value)
        if tensor.name == "output.weight":
            assert torch.equal(weights["head.out.weight"], value)
    assert report.lossless == (kind == "f32")
    assert report.agreement.kl <= {"f32": 0.0, "f16": 1e-3, "bf16": 0.05, "q8_0": 0.1}.get(kind, 50)


def _file_type(kind: str) -> str:
    return {"f32": "ALL_F32", "q4_k": "MOSTLY_Q4_K_S"}.get(kind, f"MOSTLY_{kind.upper()}")


def test_rows_that_do_not_divide_fall_back_with_a_note(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", width=32, hidden=48, tied=True)
    report = made(source, tmp_path / "b.gguf", "q4_k", max_kl=50.0)
    assert report.types == {"q8_0": 13, "f32": 5, "f16": 2}
    assert any("rows of 48 do not divide: f16, not q4_k" in note for note in report.notes)
    assert any("rows of 32 do not divide: q8_0, not q4_k" in note for note in report.notes)
    assert any("token_embd.weight" in note and "q6_k" in note for note in report.notes)


def test_gguf_to_gguf_keeps_packed_bytes_and_every_key(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(tiny_llama({"general.license": "mit"}))
    report = made(tmp_path / "a.gguf", tmp_path / "b.gguf")
    before, after = GGUFFile(tmp_path / "a.gguf"), GGUFFile(tmp_path / "b.gguf")
    assert report.lossless
    assert report.agreement.identical
    for name in before.names():
        a, b = before.read(name), after.read(name)
        left, right = (t if isinstance(t, torch.Tensor) else t.data for t in (a, b))
        assert torch.equal(left, right)
    kept = {k: v for k, v in before.metadata.typed().items() if k.startswith("tokenizer.")}
    assert kept.items() <= after.metadata.typed().items()
    assert after.metadata["general.license"] == "mit"
    requantised = made(tmp_path / "a.gguf", tmp_path / "c.gguf", "q4_0", max_kl=50.0)
    assert "q8_0 is decoded and packed again as q4_0" in requantised.notes


def test_llama_3_scaling_goes_through_the_factors(tmp_path: Path) -> None:
    scaling = Llama3(8.0, 1.0, 4.0, 32)
    source = folder(tmp_path / "a", scaling=scaling, head_width=32, rope_base=5e5)
    made(source, tmp_path / "b.gguf")
    assert GGUFFile(tmp_path / "b.gguf").shape("rope_freqs.weight") == (16,)
    made(tmp_path / "b.gguf", tmp_path / "c")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype=torch.float32).eval()
    ids = tokens(256, 2, 20)
    torch.testing.assert_close(theirs(ids).logits, logits(source), atol=1e-4, rtol=1e-4)


def test_original_llama_pickles(tmp_path: Path) -> None:
    """Two model-parallel ranks, as Meta's files are cut; queries and keys in pairs."""
    source = folder(tmp_path / "a")
    theirs = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    state = theirs.state_dict()

    def paired(w: torch.Tensor, heads: int) -> torch.Tensor:
        return w.view(heads, 2, 4, 32).transpose(1, 2).reshape(w.shape)

    whole = {
        "tok_embeddings.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
        "rope.freqs": torch.ones(4),
    }
    names = {"wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj"}
    names |= {"wo": "self_attn.o_proj"}
    for i in range(2):
        for short, long in names.items():
            w = state[f"model.layers.{i}.{long}.weight"]
            w = paired(w, 4 if short == "wq" else 2) if short in ("wq", "wk") else w
            whole[f"layers.{i}.attention.{short}.weight"] = w
        for short, long in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            key = f"layers.{i}.feed_forward.{short}.weight"
            whole[key] = state[f"model.layers.{i}.mlp.{long}_proj.weight"]
        for short, long in (("attention", "input"), ("ffn", "post_attention")):
            key = f"model.layers.{i}.{long}_layernorm.weight"
            whole[f"layers.{i}.{short}_norm.weight"] = state[key]
    original = tmp_path / "meta"
    original.mkdir()
    rows, columns = ("wq", "wk", "wv", "w1", "w3", "output"), ("wo", "w2", "tok_embeddings")
    for rank in range(2):
        mine = {}
        for name, w in whole.items():
            last = name.split(".")[-2]
            dim = 0 if last in rows else 1 if last in columns else None
            mine[name] = w.clone() if dim is None else w.chunk(2, dim)[rank].clone()
        torch.save(mine, original / f"consolidated.{rank:02d}.pth")
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-6}
    (original / "params.json").write_text(json.dumps({**params, "vocab_size": -1}))
    with pytest.raises(KeifuError, match="allow-pickle"):
        made(original, tmp_path / "b")
    report = made(original, tmp_path / "b", allow_pickle=True)
    assert report.lossless
    again = LlamaForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32).eval()
    ids = tokens(256, 2, 20)
    torch.testing.assert_close(again(ids).logits, theirs(ids).logits, atol=1e-6, rtol=1e-6)
    (original / "params.json").write_text(json.dumps({**params, "experts": 8}))
    with pytest.raises(KeifuError, match="unknown keys experts"):
        made(original, tmp_path / "d", allow_pickle=True)


def test_refusals_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path / "a")
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for target, type, words in (
        (tmp_path / "there", None, "exists already"),
        (source, None, "is the source itself"),
        (tmp_path / "no" / "b", None, "there is no folder"),
        (tmp_path / "b", "q4_0", "q4_0 is a GGUF type"),
        (tmp_path / "b", "q4_x", "nearest: q4_k|nearest: q4_"),
        (tmp_path / "b.gguf", "q5_0", "no type 'q5_0'"),
    ):
        with pytest.raises(KeifuError, match=words):
            made(source, target, type)
    with pytest.raises(KeifuError, match="does not agree with the source"):
        made(source, tmp_path / "b.gguf", "q4_0", max_kl=0.0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    for name in ("b", "b.gguf"):
        with pytest.raises(KeifuError, match="free some space"):
            made(source, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "a")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(KeifuError, match=r"up_proj.weight has values beyond torch.float16"):
        made(source, tmp_path / "b", "f16")
    with pytest.raises(KeifuError, match="cannot hold 100000"):
        made(source, tmp_path / "b.gguf", "q8_0")


def test_a_tokenizer_that_gguf_cannot_say_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "a")
    whole = json.loads((source / "tokenizer.json").read_text())
    whole["normalizer"] = {"type": "Lowercase"}
    (source / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(KeifuError, match="no word for the Lowercase normaliser"):
        made(source, tmp_path / "b.gguf")


def test_without_a_tokenizer(tmp_path: Path) -> None:
    source = folder(tmp_path / "a")
    (source / "tokenizer.json").unlink()
    report = made(source, tmp_path / "b.gguf")
    assert not report.tokenizer
    assert report.lossless
    assert "tokenizer.ggml.model" not in GGUFFile(tmp_path / "b.gguf").metadata


@torch.no_grad()
def same_in_transformers(path: Path, target: Path) -> None:
    """Greedy tokens of our exact mode on a GGUF file = transformers' on our folder of it."""
    report = made(path, target)
    assert report.lossless
    assert report.agreement.identical
    theirs = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(target)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    said = theirs.generate(ids, max_new_tokens=16, do_sample=False)[0].tolist()
    model, _ = load_model(path)
    logits = model(torch.tensor(said[:-1])).logits
    assert logits is not None
    assert said[len(ids[0]) :] == logits.argmax(-1)[len(ids[0]) - 1 :].tolist()


def test_real_weights_as_a_folder_are_the_same_in_transformers(
    smollm2: Path, tmp_path: Path
) -> None:
    """The first two layers of the default model, with its packed weights and its vocabulary."""
    file = GGUFFile(smollm2)
    kept = [n for n in file.names() if not n.startswith("blk.") or int(n.split(".")[1]) < 2]
    metadata = file.metadata.typed() | {"llama.block_count": 2}
    write_gguf(tmp_path / "m.gguf", metadata, ((name, file.read(name)) for name in kept))
    same_in_transformers(tmp_path / "m.gguf", tmp_path / "hf")


@pytest.mark.slow
def test_the_default_model_as_a_folder_is_the_same_in_transformers(
    smollm2: Path, tmp_path: Path
) -> None:
    same_in_transformers(smollm2, tmp_path / "hf")

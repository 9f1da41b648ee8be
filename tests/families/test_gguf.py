"""GGUF architectures: our writer's files in our reader and in transformers' own GGUF loading."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM

from keifu.checkpoints.gguf import GGUFFile, write_gguf
from keifu.checkpoints.transfer import empty
from keifu.core.errors import ConfigError, KeifuError
from keifu.families import Family, families
from keifu.families._convert import ConvertOptions, convert
from keifu.families._gguf import ARCHS, arch_for, metadata_of, names_of
from keifu.families._gguf_llama import LLAMA_ARCHS
from keifu.families._gguf_rope import recover
from keifu.families._load import build_model, open_checkpoint
from keifu.families.llama import Llama
from keifu.nn.kernels.formats import Packed
from keifu.nn.linear import Weight
from keifu.nn.rotary import DynamicNTK, LinearScaling, Llama3, LongRope, YaRN, frequencies
from keifu.nn.stack import StackModule
from tests.families.parity import export, tokens

LLAMA3 = Llama3(8.0, 1.0, 4.0, 32)
FACTORS = tuple(1.0 + i / 2 for i in range(4))
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-wide": ("llama", {"head_width": 16, "tied": True}),
    "llama-biases": ("llama", {"bias": True, "mlp_bias": True}),
    "llama-linear": ("llama", {"scaling": LinearScaling(4.0)}),
    "llama-yarn": ("llama", {"scaling": YaRN(4.0, 16)}),
    "llama-yarn-all": ("llama", {"scaling": YaRN(4.0, 16, beta_fast=16.0, beta_slow=2.0)}),
    "llama-3.1": ("llama", {"scaling": LLAMA3, "head_width": 32, "rope_base": 5e5}),
    "mistral": ("mistral", {}),
    "mixtral": ("mixtral", {"window": None}),
    "mixtral-slides": ("mixtral", {"tied": True}),
    "qwen": ("qwen", {}),
    "qwen2": ("qwen2", {"window": None, "local": (False, False)}),
    "qwen2-slides": ("qwen2", {}),
    "qwen2-yarn": (
        "qwen2",
        {"window": None, "local": (False, False), "scaling": YaRN(4.0, 16), "tied": True},
    ),
    "qwen2-moe": ("qwen2-moe", {"dense": ()}),
    "qwen2-moe-full": ("qwen2-moe", {"dense": (), "window": None, "local": (False,) * 3}),
    "qwen3-moe": ("qwen3-moe", {"every": 1}),
    "qwen3": ("qwen3", {"window": None, "local": (False, False), "head_width": 16}),
    "qwen3-128": ("qwen3", {"window": None, "local": (False, False), "head_width": 128}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_scale": 256}),
    "gemma2-scale": ("gemma2", {"local": (False, True)}),
    "gemma3": ("gemma3", {"query_scale": 256, "scaling": LinearScaling(8.0)}),
    "phi3": ("phi3", {}),
    "phi3-full": ("phi3", {"rotary": 1.0, "window": None}),
    "phi3-longrope": (
        "phi3",
        {"rotary": 1.0, "scaling": LongRope(FACTORS, FACTORS[::-1], 16, 1.25)},
    ),
    "stablelm": ("stablelm", {}),
    "stablelm-plain": (
        "stablelm",
        {"bias": False, "head_norms": False, "tied": True, "rotary": 0.25},
    ),
    "stablelm-parallel": ("stablelm", {"parallel": True, "head_norms": False, "rotary": 0.25}),
}
READ_BY_TRANSFORMERS = (
    *("llama", "llama-wide", "qwen2", "qwen3-128", "gemma2", "phi3-full"),
    *("stablelm-plain", "stablelm-parallel"),
)
"""What its tables can say: no scaling, no partial rotary, no window but Gemma's, no q/k norms."""


def made(name: str, **more: Any) -> tuple[Family, StackModule]:
    """A family's tiny configuration with changes, and its model with random weights."""
    family_name, changes = CHANGES[name]
    tiny = families[family_name].tiny()
    if "head_width" in changes or family_name == "llama":
        changes = {"head_width": 8, **changes}
    family = dataclasses.replace(tiny, **{**changes, **more})
    model = family.spec().build()
    assert isinstance(model, StackModule)
    return family, model.initialise(seed=5, std=0.3).eval()


def write(
    path: Path, family: Family, model: StackModule, changes: Mapping[str, Any] | None = None
) -> Path:
    """Our file; `changes` replaces keys (None takes one away)."""
    module = type(family).__module__.rpartition(".")[2]
    arch = arch_for(module.replace("_", "-"))
    tensors = dict(empty(model, names_of(ARCHS[arch], family)))
    shapes = {n: tuple(t.shape) for n, t in tensors.items()}
    metadata, extra = metadata_of(family, arch, shapes)
    changed = {k: v for k, v in {**metadata, **(changes or {})}.items() if v is not None}
    write_gguf(path, changed, [*tensors.items(), *extra.items()])
    return path


@torch.no_grad()
@pytest.mark.parametrize("name", CHANGES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    family, model = made(name)
    read = open_checkpoint(write(tmp_path / "m.gguf", family, model))
    assert read.family.spec() == family.spec()
    assert read.family.context == family.context
    ids = tokens(96)
    got, expected = build_model(read)(ids).logits, model(ids).logits
    assert got is not None
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_same_model(name: str, tmp_path: Path) -> None:
    family, model = made(name)
    write(tmp_path / "m.gguf", family, model, {"tokenizer.ggml.padding_token_id": 0})
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = tokens(96)
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2-moe-full", "qwen3-moe"])
def test_transformers_reads_the_same_experts(name: str, tmp_path: Path) -> None:
    """Given the config: its GGUF tables know no width of experts."""
    family, model = made(name)
    config = AutoConfig.for_model(**{**family.to_hf(), "pad_token_id": 0})
    write(tmp_path / "m.gguf", family, model)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", config=config, dtype=torch.float32
    ).eval()
    ids = tokens(96)
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_every_architecture_is_tried() -> None:
    assert set(LLAMA_ARCHS) == {arch_for(family) for family, _ in CHANGES.values()}


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "qwen3-moe"])
def test_tensors_of_experts_have_llama_cpps_names_and_shapes(name: str, tmp_path: Path) -> None:
    """The names of the gguf package's tables; shapes as llama.cpp wants them."""
    family, model = made(name)
    found = {
        t.name: t.shape.tolist() for t in GGUFReader(write(tmp_path / "m", family, model)).tensors
    }
    arch = gguf.MODEL_ARCH[arch_for(CHANGES[name][0]).upper()]
    known = {gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[arch]}
    assert {re.sub(r"^blk\.\d+", "blk.{bid}", n.rpartition(".")[0]) for n in found} <= known
    sizes = vars(family)
    width, experts = sizes["width"], sizes["experts"]
    hidden = sizes.get("expert_hidden", sizes["hidden"])
    wanted = {
        "ffn_gate_inp": [width, experts],
        "ffn_gate_exps": [width, hidden, experts],
        "ffn_up_exps": [width, hidden, experts],
        "ffn_down_exps": [hidden, width, experts],
    }
    if shared := sizes.get("shared_hidden"):
        wanted |= {"ffn_gate_inp_shexp": [width], "ffn_down_shexp": [shared, width]}
        wanted |= {"ffn_gate_shexp": [width, shared], "ffn_up_shexp": [width, shared]}
    assert {key: found[f"blk.1.{key}.weight"] for key in wanted} == wanted
    keys = GGUFFile(tmp_path / "m").metadata
    prefix = keys["general.architecture"]
    assert (keys[f"{prefix}.expert_count"], keys[f"{prefix}.expert_used_count"]) == (
        experts, sizes["top"],
    )  # fmt: skip
    for key, ours in (
        (gguf.Keys.LLM.EXPERT_FEED_FORWARD_LENGTH, "expert_hidden"),
        (gguf.Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH, "shared_hidden"),
    ):
        assert keys.get(key.format(arch=prefix)) == sizes.get(ours)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe-full"])
def test_a_folder_becomes_a_packed_file_and_a_file_a_folder(name: str, tmp_path: Path) -> None:
    """`keifu convert`: experts in 8 bits, routers not, as llama.cpp has it; and back, unchanged."""
    wide = {"hidden": 64} if name == "mixtral" else {"expert_hidden": 32, "shared_hidden": 64}
    family, model = made(name, **wide)
    folder = export(family, model, tmp_path / "m")
    convert(folder, tmp_path / "m.gguf", ConvertOptions(type="q8_0"))
    kinds = {n: i.format for n, i in GGUFFile(tmp_path / "m.gguf").tensors.items()}
    assert {kinds[f"blk.1.ffn_{kind}_exps.weight"] for kind in ("gate", "up", "down")} == {"q8_0"}
    assert kinds["blk.1.ffn_gate_inp.weight"] == "f32"
    convert(folder, tmp_path / "whole.gguf", ConvertOptions(type="f32"))
    convert(tmp_path / "whole.gguf", tmp_path / "again", ConvertOptions(type="f32"))
    again, expected = (
        build_model(open_checkpoint(tmp_path / "again")).state_dict(),
        model.state_dict(),
    )
    assert list(again) == list(expected)
    assert all(torch.equal(again[key], expected[key]) for key in expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe-full"])
def test_packed_experts_are_read_as_gguf_decodes_them(name: str, tmp_path: Path) -> None:
    """Experts in 8 bits: packed or decoded, each is what the gguf package's decoder makes of it."""
    wide = {"hidden": 64} if name == "mixtral" else {"expert_hidden": 32, "shared_hidden": 64}
    family, model = made(name, **wide)
    file = GGUFFile(write(tmp_path / "m.gguf", family, model))
    tensors = [
        (n, Packed.quantize(v, "q8_0") if "_exps" in n and isinstance(v, torch.Tensor) else v)
        for n, v in ((n, file.read(n)) for n in file.names())
    ]
    assert sum(isinstance(v, Packed) and len(v.shape) == 3 for _, v in tensors) >= 6
    write_gguf(tmp_path / "q.gguf", file.metadata, tensors)
    read = open_checkpoint(tmp_path / "q.gguf")
    exact, packed = build_model(read), build_model(read, precision="default")
    for t in GGUFReader(tmp_path / "q.gguf").tensors:
        if "_exps" in t.name:
            block, kind = t.name.split(".")[1], t.name.split("_")[1]
            ours = f"blocks.{block}.mlp.experts.{kind}"
            theirs = torch.from_numpy(gguf.dequantize(t.data, t.tensor_type)).flatten(0, 1)
            for each in (exact, packed):
                owner = each.get_submodule(ours)
                assert isinstance(owner, Weight)
                torch.testing.assert_close(owner.dense(), theirs, atol=0, rtol=0)
            assert packed.get_submodule(ours).weight is None, "it stays packed, in the file"
    again = dict(empty(packed, names_of(ARCHS[arch_for(CHANGES[name][0])], family)))
    assert all(
        torch.equal(again[n].data, v.data) and again[n].shape == v.shape  # type: ignore[union-attr]
        for n, v in tensors
        if isinstance(v, Packed)
    )
    ids = tokens(96)
    away = (packed(ids).logits - exact(ids).logits).abs()
    assert away.median() < 0.05, "all but tokens whose experts bfloat16 chooses otherwise"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"expert_count": 4},
            r"ffn_gate_inp.weight has shape \[\(5, 32\)\], but .* needs \(4, 32\)",
        ),
        ({"expert_count": 0}, r"expert_count=0 is not allowed: a whole number from 1"),
        ({"expert_count": None}, r"qwen2moe.expert_count is missing"),
        ({"expert_used_count": 9}, r"9"),
        ({"expert_feed_forward_length": 24}, r"=24 is not allowed: blk.0.ffn_gate_exps.weight has"),
        ({"expert_shared_feed_forward_length": 1}, r"=1 is not allowed: blk.0.ffn_gate_shexp"),
    ],
)
def test_experts_that_contradict_their_tensors_are_refused(
    change: dict[str, Any], why: str, tmp_path: Path
) -> None:
    family, model = made("qwen2-moe")
    keys = {f"qwen2moe.{key}": value for key, value in change.items()}
    path = write(tmp_path / "m.gguf", family, model, keys)
    with pytest.raises(KeifuError, match=why) as told:
        build_model(open_checkpoint(path))
    assert "\n" not in str(told.value)


@torch.no_grad()
def test_older_files_say_the_experts_widths_by_their_tensors(tmp_path: Path) -> None:
    family, model = made("qwen2-moe")
    keys = ("expert_feed_forward_length", "expert_shared_feed_forward_length")
    path = write(tmp_path / "m.gguf", family, model, {f"qwen2moe.{key}": None for key in keys})
    read = open_checkpoint(path)
    assert read.family.spec() == family.spec()
    ids = tokens(96)
    torch.testing.assert_close(build_model(read)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("width", [64, 96, 128, 256])
@pytest.mark.parametrize(
    "scaling",
    [
        Llama3(8.0, 1.0, 4.0, 8192),
        Llama3(32.0, 1.0, 4.0, 8192),
        Llama3(16.0, 1.0, 3.0, 4096),
        Llama3(4.0, 1.0, 8.0, 16384),
    ],
    ids=str,
)
def test_llama_3_scaling_is_recovered_from_its_factors(scaling: Llama3, width: int) -> None:
    """The factors as llama.cpp's converter makes them, pair by pair from the published formula."""
    factors = []
    for turn in frequencies(width, 5e5).double().tolist():
        wave = 2 * math.pi / turn
        if wave < scaling.original / scaling.high:
            factors.append(1.0)
        elif wave > scaling.original / scaling.low:
            factors.append(scaling.factor)
        else:
            smooth = (scaling.original / wave - scaling.low) / (scaling.high - scaling.low)
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    assert recover(factors, width, 5e5) == scaling


def test_other_factors_are_kept_as_numbers(tmp_path: Path) -> None:
    family, model = made("llama")
    factors = [1.0, 3.0, 2.0, 5.0]
    path = write(tmp_path / "m.gguf", family, model)
    file = GGUFFile(path)
    tensors = [(name, file.read(name)) for name in file.names()]
    extra = ("rope_freqs.weight", torch.tensor(factors))
    write_gguf(tmp_path / "n.gguf", file.metadata, [*tensors, extra])
    read = open_checkpoint(tmp_path / "n.gguf").family
    assert isinstance(read, Llama)
    turn, factor = read.scaling.frequencies(8, 1e4, 999)
    torch.testing.assert_close(turn, frequencies(8, 1e4) / torch.tensor(factors))
    assert factor == 1.0


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("llama", {"scaling": DynamicNTK(2.0, 32)}, "scaling"),
        ("llama", {"act": "gelu_tanh"}, "act"),
        ("qwen", {"logn": False}, "logn"),
        ("gemma2", {"softcap": None}, "softcap"),
        ("qwen2-moe", {"renormalise": True}, "renormalise"),
        ("qwen2-moe", {"qkv_bias": False}, "qkv_bias"),
        ("qwen2-moe", {"dense": (0,)}, "dense"),
        ("qwen3-moe", {"renormalise": False}, "renormalise"),
        ("qwen3-moe", {"every": 2}, "every"),
    ],
)
def test_what_gguf_cannot_say_is_refused(
    name: str, change: dict[str, Any], word: str, tmp_path: Path
) -> None:
    family, model = made(name, **change)
    with pytest.raises(ConfigError, match=f"cannot express {word}"):
        write(tmp_path / "m.gguf", family, model)
    assert not list(tmp_path.iterdir())


def test_keys_have_the_kinds_that_llama_cpp_writes(tmp_path: Path) -> None:
    """As gguf.GGUFWriter's own methods write them, read by the gguf package."""
    family, model = made("llama-yarn")
    write(tmp_path / "ours.gguf", family, model)
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(96)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(16)
    writer.add_rope_scaling_yarn_beta_fast(32.0)
    writer.add_rope_scaling_yarn_beta_slow(1.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    def fields(name: str) -> dict[str, Any]:
        found = gguf.GGUFReader(tmp_path / name).fields.values()
        return {f.name: (f.types, f.contents()) for f in found if not f.name.startswith("GGUF.")}

    assert fields("ours.gguf") == fields("theirs.gguf")

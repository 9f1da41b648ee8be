"""Gist caches of checkpoints: compress, save, open, complete; the command line; hostile files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Rust

import keifu
from keifu.cli.main import cli
from keifu.core.errors import KeifuError
from keifu.families.llama import Llama
from keifu.families.t5 import T5
from keifu.inference.engine import Engine
from keifu.lm.base import LM
from keifu.lm.gist import compress, open_gist
from keifu.lm.local import LocalLM
from keifu.nn.masks import Causal, Gist
from keifu.nn.part import build
from keifu.nn.stack import StackModule
from tests.families.parity import export, randomise

PROMPT = " ".join(str(2 + (7 * i) % 90) for i in range(26))
TEXT = "11 12 13"
SAID: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}


def folder(where: Path, family: Any, seed: int = 0, token: str = "<GIST>") -> Path:
    """A checkpoint whose texts are numbers, and whose last token is the gist token."""
    made: Any = build(family.spec())
    if isinstance(made, StackModule):
        made.initialise(seed)
    randomise(made, seed)
    path = export(family, made, where, {"decoder_start_token_id": 0, "eos_token_id": 1})
    vocab = {str(i): i for i in range(95)} | {token: 95}
    rust = Rust(models.WordLevel(vocab, unk_token="0"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.add_special_tokens([AddedToken(token, special=True)])
    rust.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("gist")
    return {
        "llama": folder(where / "llama", Llama.tiny()),
        "other": folder(where / "other", Llama.tiny(), seed=1),
        "t5": folder(where / "t5", T5.tiny()),
        "none": folder(where / "none", Llama.tiny(), token="<OTHER>"),
    }


def opened(path: Path, **more: Any) -> LocalLM:
    lm = keifu.load(str(path), threads=1, **{"precision": "exact", **more})
    assert isinstance(lm, LocalLM)
    return lm


@pytest.fixture(scope="module")
def lms(paths: dict[str, Path]) -> Iterator[dict[str, LocalLM]]:
    made = {name: opened(path) for name, path in paths.items()}
    yield made
    for lm in made.values():
        lm.close()


def saved(lm: LM, file: Path) -> None:
    with compress(lm, PROMPT) as cache:
        cache.save(file)


def engine_of(lm: LM) -> Engine:
    assert isinstance(lm, LocalLM)
    return lm.engine


def test_a_gist_token_in_the_vocabulary_masks_attention(lms: dict[str, LocalLM]) -> None:
    def masks(name: str) -> set[Any]:
        return {vars(block.mixer)["mask"] for block in engine_of(lms[name]).model.spec.blocks}

    assert masks("llama") == {Causal() & Gist()}
    assert masks("none") == {Causal()}
    with pytest.raises(KeifuError, match="none has no gist token"):
        compress(lms["none"], PROMPT)
    with pytest.raises(KeifuError, match="0 gist tokens are not allowed"):
        compress(lms["llama"], PROMPT, tokens=0)


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("precision", ["exact", "default"])
def test_a_saved_cache_says_what_the_whole_prompt_says(
    paths: dict[str, Path], name: str, precision: str, tmp_path: Path
) -> None:
    lm, file = opened(paths[name], precision=precision), tmp_path / "cache.gist"
    try:
        cache = compress(lm, PROMPT)
        assert (cache.prompt_tokens, cache.kept.tokens, cache.ratio) == (26, 1, 26)
        report = cache.report()
        assert report["cache_bytes"] * 25 == report["saved_bytes"]
        cache.save(file)
        assert [p.name for p in tmp_path.iterdir()] == [file.name]
        held = lm.complete(TEXT, past=cache.kept, **SAID)
        one = lm.complete([*lm.encode(PROMPT, special=False), 95, *lm.ids(TEXT)], **SAID)
        if precision == "exact":
            assert held.tokens == one.tokens
        assert held.usage.cached_tokens == 1
        assert len(held.tokens) == 8
    finally:
        lm.close()
    again = opened(paths[name], precision=precision)
    try:
        cache = open_gist(again, file)
        assert cache.report() == report
        assert again.complete(TEXT, past=cache.kept, **SAID).tokens == held.tokens
        cache.close()
        with pytest.raises(KeifuError, match="is released"):
            again.complete(TEXT, past=cache.kept)
    finally:
        again.close()


def test_another_checkpoint_precision_or_vocabulary_is_refused(
    lms: dict[str, LocalLM], paths: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "cache.gist"
    saved(lms["llama"], file)
    rounded, renamed = opened(paths["llama"], precision="default"), opened(paths["llama"])
    words = {str(i): (i + 1) % 95 for i in range(95)} | {"<GIST>": 95}
    rust = Rust(models.WordLevel(words, unk_token="0"))
    renamed.tokenizer = type(renamed.tokenizer)(rust)
    try:
        for lm in (lms["other"], lms["t5"], lms["none"], rounded, renamed):
            with pytest.raises(KeifuError, match="was made by another checkpoint") as refused:
                open_gist(lm, file)
            assert "\n" not in str(refused.value)
    finally:
        rounded.close()
        renamed.close()


FAULTS: dict[str, tuple[Callable[[dict[str, Any], dict[str, torch.Tensor]], None], str]] = {
    "no header": (lambda head, _: head.clear(), "has {}, not model"),
    "a kind": (lambda head, _: head.update(length="9"), "not model, prompt, length"),
    "a field more": (lambda head, _: head.update(more=1), "not model, prompt, length"),
    "backwards": (lambda head, _: head.update(start=99), "99 to 27 are no gist tokens"),
    "negative": (lambda head, _: head.update(start=-1), "-1 to 27 are no gist tokens"),
    "format": (lambda head, _: head.update(format=9), "of format 9"),
    "endless": (lambda head, _: head.update(length=2**40), "are no gist tokens"),
    "too many": (lambda head, _: head.update(start=3), "1 places in the past, not 24"),
    "beyond": (lambda head, _: head.update(start=2000, length=2001), "beyond the context"),
    "a nan": (lambda _, t: t["0.mixer.k"].fill_(float("nan")), "no finite numbers"),
    "a name": (lambda _, t: t.update({"x.y": torch.zeros(1)}), "is no layer's entry"),
    "one less": (lambda _, t: t.__delitem__("1.mixer.v"), "which keeps 4"),
    "a shape": (lambda _, t: t.update({"0.mixer.k": torch.zeros(1, 9, 9)}), r"\(9, 9\)"),
    "a type": (lambda _, t: t.update({"0.mixer.k": t["0.mixer.k"].half()}), "float16"),
    "integers": (lambda _, t: t.update({"0.mixer.k": t["0.mixer.k"].long()}), "no finite"),
    "hidden": (lambda _, t: t.__delitem__("hidden"), "no 'hidden'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_cache_is_one_line(lms: dict[str, LocalLM], fault: str, tmp_path: Path) -> None:
    file, (change, why) = tmp_path / "cache.gist", FAULTS[fault]
    saved(lms["llama"], file)
    with safe_open(file, framework="pt") as read:
        tensors = {name: read.get_tensor(name) for name in read.keys()}  # noqa: SIM118
        header = json.loads(read.metadata()["keifu.gist"])
    change(header, tensors)
    kept = {name: t.contiguous() for name, t in tensors.items()}
    save_file(kept, file, {"keifu.gist": json.dumps(header)})
    free = lms["llama"].engine.pool.free_tokens
    with pytest.raises(KeifuError, match=why) as refused:
        open_gist(lms["llama"], file)
    assert "\n" not in str(refused.value)
    assert lms["llama"].engine.pool.free_tokens == free


def test_other_files_are_refused(lms: dict[str, LocalLM], tmp_path: Path) -> None:
    file = tmp_path / "cache.gist"
    with pytest.raises(KeifuError, match="there is no gist cache"):
        open_gist(lms["llama"], file)
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(KeifuError, match="header"):
        open_gist(lms["llama"], file)
    save_file({"hidden": torch.zeros(1)}, file)
    with pytest.raises(KeifuError, match="is no gist cache"):
        open_gist(lms["llama"], file)
    saved(lms["llama"], file)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(KeifuError, match="truncated"):
        open_gist(lms["llama"], file)
    with pytest.raises(KeifuError, match="cannot write"):
        saved(lms["llama"], tmp_path / "no" / "where")
    with pytest.raises(KeifuError, match="past is a str"):
        lms["llama"].complete(TEXT, past="cache.gist")


def test_the_command_line(paths: dict[str, Path], tmp_path: Path) -> None:
    prompt, file = tmp_path / "prompt.txt", tmp_path / "cache.gist"
    prompt.write_text(PROMPT)
    common = ["--threads", "1", "--precision", "exact"]

    def run(verb: str, name: str, *words: str, given: str = "") -> Any:
        where = ["--model", str(paths[name]), *common]
        return CliRunner().invoke(cli, [verb, *where, *words], input=given)

    done = run("gist", "llama", "-o", str(file), given=PROMPT)
    assert done.exit_code == 0, done.output
    assert "26 tokens -> 1, 26x, " in done.stdout
    told = json.loads(run("gist", "llama", "-o", str(file), "--json", PROMPT).stdout)
    assert (told["prompt_tokens"], told["cache_tokens"], told["ratio"]) == (26, 1, 26)
    most = ["--max-tokens", "5", "--temperature", "0", "--json"]
    said = json.loads(run("complete", "llama", "--gist", str(file), *most, TEXT).stdout)
    lm = opened(paths["llama"])
    try:
        expected = lm.complete(
            [*lm.encode(PROMPT), 95, *lm.encode(TEXT)], max_tokens=5, temperature=0
        )
    finally:
        lm.close()
    assert said["text"] == expected.text
    assert said["usage"]["cached_tokens"] == 1
    refused = run("complete", "other", "--gist", str(file), TEXT)
    assert "was made by another checkpoint" in str(refused.exception)
    assert "no gist token" in str(run("gist", "none", "-o", str(file), PROMPT).exception)

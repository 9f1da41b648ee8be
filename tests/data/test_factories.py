"""Recipes of published factories: Ziya2's five steps, RedPajama's slices and their shares."""

from __future__ import annotations

import json
import random
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keifu.cli.main import main
from keifu.data.document import Document, Dropped
from keifu.data.pipeline import BuildOptions, Pipeline
from keifu.data.published import LLAMA, REDPAJAMA, REDPAJAMA_TOKENS
from keifu.data.read import documents
from keifu.data.recipe import read_recipe
from keifu.data.step import name_of
from tests.data import corpus

RECIPES = Path(__file__).parents[2] / "recipes"


def judge() -> Any:
    """A stand-in for a model: text with a word that nobody writes is unlikely."""
    return lambda text: 5000.0 if "qzxv" in text else 40.0


def test_ziya2_s_five_steps(tmp_path: Path) -> None:
    planted = [p for p in corpus.planted() if p[0] not in ("near", "shared", "contaminated")]
    planted += [("unlikely", "qzxv " + corpus.prose(600)), ("chinese", CHINESE)]
    # SimHash needs texts that differ in more than a few words of one sentence's frame
    source = corpus.write(tmp_path / "web.jsonl", planted)
    recipe = read_recipe(RECIPES / "ziya2_data.yaml")
    names = [name_of(step) for step in recipe.steps]
    assert names[:3] == ["normalise", "language", "boilerplate"]
    assert names[3] == "perplexity"
    assert names[4:7] == ["toxic", "gopher", "gopher-repetition"]
    assert names[7:10] == ["exact", "simhash", "minhash"]
    pipeline = Pipeline(steps=[*recipe.steps[:6], *recipe.steps[7:8], recipe.steps[9]], judge=judge)
    report = pipeline.build([source], tmp_path / "out", BuildOptions(sample=10))
    rows = [json.loads(s) for s in (tmp_path / "out/documents.jsonl").read_text().splitlines()]
    kinds = Counter(row["meta"]["kind"] for row in rows)
    assert kinds == {"clean": 40, "trimmed": 10, "toxic line": 5, "repeating": 1, "chinese": 1}
    reasons = {reason for _, reason in report.dropped}
    assert reasons == {"other language", "too unlikely", "toxic", "too few words", "duplicate"}
    sample = [json.loads(s) for s in (tmp_path / "out/sample.jsonl").read_text().splitlines()]
    assert len([row for row in sample if "dropped" not in row]) == 10
    assert len([row for row in sample if "dropped" in row]) == 10


def test_ziya2_whole_on_one_text() -> None:
    recipe = read_recipe(RECIPES / "ziya2_data.yaml")
    good, again, bad = Pipeline(steps=recipe.steps, judge=judge).clean(
        Document(text) for text in (CHINESE, CHINESE + " ", "qzxv " + CHINESE)
    )
    assert isinstance(good, Document)
    assert good.meta["language"] == "zh"
    assert again == Dropped("duplicate")
    assert isinstance(bad, Dropped)


CHINESE = (
    "孩子们穿过森林走向学校,老师已经在门口等着他们了。 他答应今天给大家讲星星的故事, "
    "冬天的夜里在港口上空能看见它们。 谁也不想迟到。 最后一个学生走进院子的时候, 钟声响了, "
    "大家轻轻地坐到自己的位子上, 开始认真地听。 外面下着小雪, 屋里很暖和。 "
    "河边的老桥上没有人, 只有一只猫慢慢地走过去, 留下一行脚印。 晚上, 母亲问起学校的事, "
    "孩子说他记住了三颗星的名字, 明天还要再看一次天空, 把它们画在本子里, 送给远方的朋友。"
)


def test_redpajama_s_shares() -> None:
    """1.21 trillion tokens in seven slices; LLaMA's shares sum to one."""
    assert sum(REDPAJAMA_TOKENS.values()) == 1210e9
    assert sum(REDPAJAMA.values()) == pytest.approx(1)
    assert sum(LLAMA.values()) == pytest.approx(1)
    assert set(LLAMA) == set(REDPAJAMA)
    assert REDPAJAMA["common_crawl"] == pytest.approx(0.7256, abs=1e-4)


def test_redpajama_recipe(tmp_path: Path) -> None:
    for name in REDPAJAMA:
        folder = tmp_path / name
        folder.mkdir()
        rows = ({"text": corpus.prose(n), "meta": {"source": name}} for n in range(3))
        (folder / "part.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {d.meta["source"] for d in documents(tmp_path)} == set(REDPAJAMA)
    recipe = read_recipe(RECIPES / "redpajama_data.yaml")
    assert [name_of(step) for step in recipe.steps][-2:] == ["exact", "minhash"]
    steps = [step for step in recipe.steps if name_of(step) != "gopher-repetition"]
    report = Pipeline(steps=steps).build([tmp_path], tmp_path / "out")
    assert (report.read, report.kept) == (21, 3)  # every slice says the same


def test_redpajama_s_mixture() -> None:
    """Numbered examples come from the slices in the published shares."""
    from keifu.data.example import Example
    from keifu.data.mixture import Mixture, Part

    class Slice:
        epoch = 1000

        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, number: int) -> Example:
            return Example(ids=np.arange(4), source=self.name)

    parts = [Part(name=name, examples=Slice(name), tokens=4000, weight=share)
             for name, share in REDPAJAMA.items()]  # fmt: skip
    mixture = Mixture(parts=tuple(parts))
    drawn = Counter(mixture(number).source for number in range(20_000))
    for name, share in REDPAJAMA.items():
        assert drawn[name] / 20_000 == pytest.approx(share, abs=0.012)


@pytest.mark.slow
def test_on_ray(tmp_path: Path) -> None:
    """A small Ray cluster of this machine gives the bytes that one process gives."""
    source = corpus.write(tmp_path / "web.jsonl", corpus.planted())
    steps = read_recipe(RECIPES / "redpajama_data.yaml").steps
    for folder, options in (
        ("here", BuildOptions(chunk=16)), ("ray", BuildOptions(chunk=16, on="ray", processes=2)),
    ):  # fmt: skip
        Pipeline(steps=steps).build([source], tmp_path / folder, options)
    for name in ("documents.jsonl", "report.json", "sample.jsonl"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()


@pytest.mark.slow
def test_real_text(tmp_path: Path) -> None:
    """recipes/clean_text.py: what was planted into Python's documentation goes, the rest stays."""
    found = runpy.run_path(str(RECIPES / "clean_text.py"))["main"](tmp_path)
    every, left = found["every"], found["left"]
    assert (left["copy"], left["question"], found["lines_left"]) == (0, 0, 0)
    assert left["near copy"] <= every["near copy"] / 10
    assert left["furniture"] == every["furniture"]
    assert left["toxic line"] == every["toxic line"]
    assert found["same"] > 0.9 * every["real"]


@pytest.mark.slow
def test_a_real_model_judges(tmp_path: Path, smollm2: Path) -> None:
    """Prose is far more likely to a language model than the same words in any order."""
    good = [corpus.GERMAN, *(corpus.prose(n, 4) for n in range(3))]
    rng = random.Random(0)
    rows = [("prose", text) for text in good]
    for text in good:
        words = text.split()
        rows.append(("shuffled", " ".join(rng.sample(words, len(words)))))
    source, recipe = corpus.write(tmp_path / "a.jsonl", rows), tmp_path / "r.yaml"
    recipe.write_text("steps: [perplexity: {most: 1.0e+9}]")
    words = ["build", tmp_path / "out", source, "--recipe", recipe, "--judge", smollm2, "-q"]
    assert main(["data", *map(str, words)]) == 0
    kept = (tmp_path / "out/documents.jsonl").read_text().splitlines()
    found = [json.loads(line)["meta"]["perplexity"] for line in kept]
    assert all(2 * a < b for a, b in zip(found[:4], found[4:], strict=True))

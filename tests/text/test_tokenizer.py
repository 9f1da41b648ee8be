"""The tokenizer as a whole: named ids, saving, extending, training, and the default model's own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import transformers

from keifu.checkpoints.gguf import GGUFFile
from keifu.core.errors import KeifuError
from keifu.text.from_gguf import load_gguf
from keifu.text.load import load
from keifu.text.marks import Marks
from keifu.text.tokenizer import Tokenizer
from keifu.text.train import KINDS, TrainOptions, train
from tests.text.samples import CORPUS, HARD

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hi 👍"}]


@pytest.fixture(scope="module")
def default(smollm2: Path) -> Tokenizer:
    with GGUFFile(smollm2) as file:
        return load_gguf(file.metadata)


def test_default_model_equals_llama_cpp(smollm2: Path, default: Tokenizer) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    theirs = llama_cpp.Llama(str(smollm2), vocab_only=True, verbose=False)
    for text in [*HARD, "hi <|im_end|>"]:
        want = theirs.tokenize(text.encode(), add_bos=False, special=False)
        assert default.encode(text) == want
        marked = f"<|im_start|>{text}<|im_end|>"
        want = theirs.tokenize(marked.encode(), add_bos=False, special=True)
        assert default.encode(marked, special=True) == want


def test_default_model_equals_transformers(smollm2: Path, default: Tokenizer) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    for text in HARD:
        # Its GGUF reader knows no `pre`, so other digits than 0-9 are cut as GPT-2 cuts them.
        if not any(c.isnumeric() and not c.isascii() for c in text):
            assert default.encode(text) == theirs(text, split_special_tokens=True).input_ids
        assert default.decode(default.encode(text)) == text
    want = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert default.encode_chat(MESSAGES) == want


def test_default_model_published_ids(default: Tokenizer) -> None:
    """The system message of its template, by the ids its own tokenizer gives."""
    text = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert default.encode(text) == [
        *(2683, 359, 253, 5356, 5646, 11173, 3365, 3511),
        *(308, 34519, 28, 7018, 411, 407, 19712, 8182),
    ]
    assert (default.bos_id, default.eos_id, default.unk_id, default.pad_id) == (1, 2, 0, 2)
    assert default.eos_ids == (0, 2)
    assert len(default) == 49152


def test_default_model_loads_fast(smollm2: Path) -> None:
    """The budget is 120 ms of an idle machine; processor time and the best of five shield it."""
    times = []
    for _ in range(5):
        with GGUFFile(smollm2) as file:
            metadata = dict(file.metadata)
        start = time.process_time()
        load_gguf(metadata)
        times.append(time.process_time() - start)
    assert min(times) < 0.24


@pytest.mark.parametrize("name", ["hf_folder", "spm_bpe", "spm_unigram", "wordpiece_folder"])
def test_what_is_saved_transformers_loads(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ours = load(request.getfixturevalue(name))
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.marks == ours.marks or again.marks.named == ours.marks.named
    for text in HARD:
        ids = ours.encode(text)
        assert theirs(text, split_special_tokens=True).input_ids == ids
        assert again.encode(text) == ids
    if ours.marks.templates:
        want = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
        assert ours.encode_chat(MESSAGES) == want == again.encode_chat(MESSAGES)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_gguf_saved_and_loaded(default: Tokenizer, tmp_path: Path) -> None:
    default.save(tmp_path)
    again = load(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in HARD:
        assert again.encode(text) == default.encode(text) == theirs(text).input_ids
    assert again.encode_chat(MESSAGES) == default.encode_chat(MESSAGES)
    assert again.special_ids == default.special_ids


def test_named_templates_are_kept(hf_folder: Path, tmp_path: Path) -> None:
    ours = load(hf_folder)
    both = {"default": "{{ 'plain' }}", "tool_use": "{{ 'tools' }}"}
    Tokenizer(ours._rust, Marks(named=ours.marks.named, templates=both)).save(tmp_path)
    again = load(tmp_path)
    assert again.marks.templates == both
    assert again.decode(again.encode_chat(MESSAGES)) == "plain"
    assert again.decode(again.encode_chat(MESSAGES, tools=[{"a": "b"}])) == "tools"
    with pytest.raises(KeifuError, match="tool_use"):
        again.template("tool_uses")


def test_extending(hf_folder: Path) -> None:
    ours = load(hf_folder)
    more = ours.extend(["<new>", "漢字", "<td>"]).extend(["<|x|>"], special=True)
    size = ours.vocab_size
    assert [more.id(t) for t in ("<new>", "漢字", "<|x|>")] == [size, size + 1, size + 2]
    assert more.id("<td>") == ours.id("<td>")
    assert more.encode("a漢字b") == [*ours.encode("a"), size + 1, *ours.encode("b")]
    assert size + 2 not in more.encode("<|x|>")
    assert more.decode(more.encode("<|x|>a", special=True)) == "a"


def test_a_miss_names_the_nearest(hf_folder: Path) -> None:
    ours = load(hf_folder)
    with pytest.raises(KeifuError, match=r"<\|im_end\|>"):
        ours.id("<|im_ned|>")
    with pytest.raises(KeifuError, match="not in a vocabulary"):
        ours.decode([10**6])
    with pytest.raises(KeifuError, match="not in a vocabulary"):
        ours.token(-1)


def test_bos_and_eos_on_request(hf_folder: Path, gpt1_folder: Path) -> None:
    ours = load(hf_folder)
    assert ours.encode("a", add_bos=True, add_eos=True) == [1, *ours.encode("a"), 2]
    with pytest.raises(KeifuError, match="no bos token"):
        load(gpt1_folder).encode("a", add_bos=True)


@pytest.mark.parametrize("kind", KINDS)
def test_training(kind: str, tmp_path: Path) -> None:
    options = TrainOptions(size=900, special=("<|im_start|>", "<|im_end|>"))
    ours = train(kind, CORPUS, options)
    assert len(ours) <= 900
    text = "The quick brown fox, and the dog"
    assert ours.decode(ours.encode(text)) == text
    if kind in ("byte-bpe", "spm-bpe"):
        for hard in HARD:
            assert ours.decode(ours.encode(hard)) == hard
    typed = ours.encode("<|im_start|>", add_bos=False, add_eos=False)
    assert (ours.control_ids - {ours.unk_id}).isdisjoint(typed)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text).input_ids == ours.encode(text)


def test_training_options() -> None:
    with pytest.raises(KeifuError, match="wordpiece"):
        train("wordpice", CORPUS)
    with pytest.raises(KeifuError, match="size=2"):
        train("byte-bpe", CORPUS, TrainOptions(size=2, special=("a", "b")))


def test_bytes_per_token() -> None:
    """A vocabulary learned from Japanese carries more of it in a token than an English one."""
    english = train("byte-bpe", [t for t in CORPUS if t.isascii()], TrainOptions(size=600))
    mixed = train("byte-bpe", CORPUS, TrainOptions(size=600))
    texts = {"en": CORPUS[0], "ja": CORPUS[4], "zh": CORPUS[5]}
    one, two = english.bytes_per_token(texts), mixed.bytes_per_token(texts)
    assert one["ja"] == one["zh"] == 1.0
    assert two["ja"] > 2
    assert two["zh"] > 2
    assert one["en"] == pytest.approx(len(CORPUS[0]) / len(english.encode(CORPUS[0])))

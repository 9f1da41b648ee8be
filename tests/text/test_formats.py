"""Ids equal the reference libraries' on a hard corpus, for every format a vocabulary comes in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
import tokenizers
import transformers

from keifu.core.errors import FormatError, KeifuError
from keifu.text.from_gguf import load_gguf
from keifu.text.from_sentencepiece import read_model
from keifu.text.from_tiktoken import load_tiktoken
from keifu.text.load import load
from keifu.text.pretokenize import LLAMA3
from keifu.text.tokenizer import Tokenizer
from tests.text.samples import HARD, SPECIAL

LONG = "ab" * 50_000


def reference(folder: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", [*HARD, LONG], ids=range(len(HARD) + 1))
def test_tokenizer_json_equals_transformers(hf_folder: Path, text: str) -> None:
    ours, theirs = load(hf_folder), reference(hf_folder)
    assert ours.encode(text) == theirs(text, split_special_tokens=True).input_ids
    marked = "<|im_start|>" + text + "<|im_end|>\n<tool_call>    <td>"
    assert ours.encode(marked, special=True) == theirs(marked).input_ids
    ids = ours.encode(text, special=True)
    assert ours.decode(ids) == text == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_prefix_of_a_post_processor(hf_folder: Path, tmp_path: Path) -> None:
    whole = json.loads((hf_folder / "tokenizer.json").read_text())
    whole["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    (tmp_path / "tokenizer_config.json").write_text(
        (hf_folder / "tokenizer_config.json").read_text()
    )
    ours, theirs = load(tmp_path), reference(tmp_path)
    assert ours.encode("hello") == theirs("hello").input_ids
    assert ours.encode("hello")[0] == 1
    assert (
        ours.encode("hello", add_bos=False) == theirs("hello", add_special_tokens=False).input_ids
    )


@pytest.mark.parametrize("text", [*HARD, LONG], ids=range(len(HARD) + 1))
def test_sentencepiece_bpe(spm_bpe: Path, text: str) -> None:
    ours = load(spm_bpe)
    theirs = sentencepiece.SentencePieceProcessor(str(spm_bpe / "tokenizer.model"))
    assert ours.encode(text, add_bos=False) == theirs.encode(text)
    assert ours.decode(theirs.encode(text)) == text


@pytest.mark.parametrize("text", [*HARD, LONG], ids=range(len(HARD) + 1))
def test_sentencepiece_unigram(spm_unigram: Path, text: str) -> None:
    ours = load(spm_unigram)
    theirs = sentencepiece.SentencePieceProcessor(str(spm_unigram / "tokenizer.model"))
    assert ours.encode(text) == theirs.encode(text)


def gguf_of(model_file: Path) -> dict[str, object]:
    """What llama.cpp writes for a SentencePiece model, by sentencepiece's own reader."""
    theirs = sentencepiece.SentencePieceProcessor(str(model_file))
    n = range(theirs.vocab_size())

    def kind(i: int) -> int:
        tests = (theirs.is_unknown, theirs.is_control, theirs.is_byte)
        return next((k for test, k in zip(tests, (2, 3, 6), strict=True) if test(i)), 1)

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in n],
        "tokenizer.ggml.scores": [theirs.get_score(i) for i in n],
        "tokenizer.ggml.token_type": [kind(i) for i in n],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_gguf_llama_vocabulary(spm_bpe: Path) -> None:
    ours = load_gguf(gguf_of(spm_bpe / "tokenizer.model"))
    theirs = sentencepiece.SentencePieceProcessor(str(spm_bpe / "tokenizer.model"), add_bos=True)
    for text in HARD:
        assert ours.encode(text) == theirs.encode(text)


def test_llama_as_transformers_reads_it(spm_bpe: Path) -> None:
    """Not legacy: no space is put after a special token."""
    from keifu.text.from_sentencepiece import load_sentencepiece, marks

    path = spm_bpe / "tokenizer.model"
    theirs = transformers.LlamaTokenizer.from_pretrained(spm_bpe, legacy=False)
    spec = read_model(path.read_bytes(), path)
    ours = Tokenizer(load_sentencepiece(path, legacy=False), marks(spec))
    for text in ("Hello world", "<s>[INST] hi [/INST] yes </s><s>[INST] a", "<s> x </s>"):
        want = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, special=True) == want


@pytest.mark.parametrize("text", [*HARD, LONG], ids=range(len(HARD) + 1))
def test_tiktoken(tiktoken_file: Path, text: str) -> None:
    import base64

    ranks = {}
    for line in tiktoken_file.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    theirs = tiktoken.Encoding("t", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    ours = Tokenizer(load_tiktoken(tiktoken_file, pattern=LLAMA3))
    assert ours.encode(text) == theirs.encode(text, disallowed_special=())


def test_llama_3_special_tokens_follow_the_ranks(tiktoken_file: Path) -> None:
    ours = load(tiktoken_file.parent)
    base = ours.id("<|begin_of_text|>")
    published = {"<|end_of_text|>": 1, "<|start_header_id|>": 6, "<|eom_id|>": 8, "<|eot_id|>": 9}
    assert {name: ours.id(name) - base for name in published} == published
    assert ours.vocab_size == base + 256
    assert ours.id("<|eot_id|>") in ours.eos_ids


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_wordpiece(wordpiece_folder: Path, text: str) -> None:
    theirs = transformers.BertTokenizer.from_pretrained(wordpiece_folder)
    assert load(wordpiece_folder).encode(text) == theirs(text).input_ids


def test_gguf_bert_vocabulary(wordpiece_folder: Path) -> None:
    theirs = transformers.BertTokenizer.from_pretrained(wordpiece_folder)
    words = (wordpiece_folder / "vocab.txt").read_text().splitlines()
    special = [w.startswith("[") and w.endswith("]") and len(w) > 2 for w in words]
    tokens = [
        w if s else w[2:] if w.startswith("##") else "\u2581" + w
        for w, s in zip(words, special, strict=True)
    ]
    ours = load_gguf(
        {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3 if s else 1 for s in special],
            "tokenizer.ggml.cls_token_id": words.index("[CLS]"),
            "tokenizer.ggml.seperator_token_id": words.index("[SEP]"),
            "tokenizer.ggml.unknown_token_id": words.index("[UNK]"),
        }
    )
    for text in HARD:
        assert ours.encode(text) == theirs(text).input_ids


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_gpt_1(gpt1_folder: Path, text: str) -> None:
    theirs = transformers.OpenAIGPTTokenizer.from_pretrained(gpt1_folder)
    assert load(gpt1_folder).encode(text) == theirs(text).input_ids


def test_gpt_2_vocab_and_merges(tmp_path: Path) -> None:
    rust = tokenizers.ByteLevelBPETokenizer()
    rust.train_from_iterator(HARD, vocab_size=400, special_tokens=["<|endoftext|>"])
    rust.save_model(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    ours = load(tmp_path)
    for text in HARD:
        assert ours.encode(text) == theirs(text).input_ids
    assert ours.encode("a<|endoftext|>", special=True) == theirs("a<|endoftext|>").input_ids
    assert ours.eos_ids == (0,)


def gguf_bpe(rust: tokenizers.Tokenizer, pre: str) -> dict[str, object]:
    """The metadata of a byte-level vocabulary."""
    vocab = sorted(rust.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(rust.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [token for token, _ in vocab],
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token, _ in vocab],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.chat_template.tool_use": "{{ tools }}",
    }


def test_gguf_byte_level(byte_bpe: tokenizers.Tokenizer) -> None:
    ours = load_gguf(gguf_bpe(byte_bpe, "dbrx"))
    for text in [*HARD, LONG]:
        assert ours.encode(text) == byte_bpe.encode(text).ids
    assert set(ours.marks.templates) == {"default", "tool_use"}
    assert ours.marks.prefix == ()
    assert load_gguf(gguf_bpe(byte_bpe, "llama-bpe")).encode("a")[0] == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer.ggml.pre": "smolm"}, "smollm"),
        ({"tokenizer.ggml.pre": None}, "pre is missing"),
        ({"tokenizer.ggml.model": "rwkv"}, "rwkv"),
        ({"tokenizer.ggml.merges": None}, "merges is missing"),
        ({"tokenizer.ggml.merges": ["zzz qqq"]}, "merges do not fit"),
        ({"tokenizer.ggml.merges": ["zzz"]}, "merges"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "duplicates"),
        ({"tokenizer.ggml.tokens": []}, "no tokenizer"),
        ({"tokenizer.ggml.token_type": [1]}, "1 entries"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "1000000"),
        ({"tokenizer.ggml.bos_token_id": -1}, "-1"),
    ],
)
def test_gguf_damaged(byte_bpe: tokenizers.Tokenizer, change: dict[str, object], says: str) -> None:
    with pytest.raises(KeifuError, match=says):
        load_gguf({**gguf_bpe(byte_bpe, "dbrx"), **change})


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(KeifuError, match="no tokenizer in"):
        load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xff\xff\xff\xff\xff\xff\x01abc")
    with pytest.raises(FormatError, match="not a SentencePiece model"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "before", "after"), [("LlamaTokenizer", 1, 0), ("T5Tokenizer", 0, 1)]
)
def test_what_a_class_puts_round_a_text(
    spm_bpe: Path, tmp_path: Path, name: str, before: int, after: int
) -> None:
    (tmp_path / "tokenizer.model").write_bytes((spm_bpe / "tokenizer.model").read_bytes())
    names = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    plain = load(spm_bpe).encode("hello")
    assert load(tmp_path).encode("hello") == [1] * before + plain + [2] * after


PUBLISHED_CUTS = {
    # Cut by hand after each published pattern.
    "gpt-2": ["don", "'t", " stop", " 1234", "!!", "\n", " x"],
    "smollm": ["don", "'t", " stop", " ", "1", "2", "3", "4", "!!", "\n", " x"],
    "llama-bpe": ["don", "'t", " stop", " ", "123", "4", "!!\n", " x"],
    "qwen2": ["don", "'t", " stop", " ", "1", "2", "3", "4", "!!\n", " x"],
    "falcon": ["don", "'", "t", " stop", " ", "123", "4", "!!", "\n", " x"],
    "gpt-4o": ["don't", " stop", " ", "123", "4", "!!\n", " x"],
    "bloom": ["don't", " stop", " 1234", "!!\n", " x"],
    "deepseek-coder": ["don", "'", "t", " stop", " ", "1", "2", "3", "4", "!!", "\n", " x"],
    "deepseek-v3": ["don", "'t", " stop", " ", "123", "4", "!!\n", " x"],
}


@pytest.mark.parametrize("name", PUBLISHED_CUTS)
def test_published_patterns_cut_words(name: str) -> None:
    from keifu.text.pieces import BYTE_OF
    from keifu.text.pretokenize import rule, splitter

    cut = splitter(rule(name).patterns).pre_tokenize_str("don't stop 1234!!\n x")
    words = [bytes(BYTE_OF[c] for c in word).decode() for word, _ in cut]
    assert words == PUBLISHED_CUTS[name]

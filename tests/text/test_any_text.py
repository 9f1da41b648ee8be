"""Ids equal the reference libraries' on any text, for every kind of vocabulary; bytes a token."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe

from keifu.text.load import load
from keifu.text.pretokenize import LLAMA3, QWEN2
from keifu.text.tokenizer import Tokenizer

Encode = Callable[[str], list[int]]
LANGUAGES = Path(__file__).parent / "languages"

WORDS = "The don't 12 3.14 東京 です 。 ｶﾞ 人工智能 모델 é e\u0301 👍🏽 👩‍👩‍👧 �".split(" ")
TEXT = st.lists(
    st.sampled_from([*WORDS, " ", "   ", "\t", "\n", "\r\n", "\u3000", "\u200b", "\x00"])
    | st.characters(exclude_categories=["Cs"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
).map("".join)


@pytest.fixture(scope="module")
def pairs(
    hf_folder: Path, wordpiece_folder: Path, spm_bpe: Path, spm_unigram: Path, tiktoken_file: Path
) -> dict[str, tuple[Tokenizer, Encode]]:
    """Each kind of vocabulary as Keifu reads it, and the reference library's `encode`."""
    qwen = tiktoken_file.parents[1] / "qwen-1" / "qwen.tiktoken"
    qwen.parent.mkdir()
    qwen.write_bytes(tiktoken_file.read_bytes())
    ranks = load_tiktoken_bpe(str(qwen))

    def rust(theirs: tokenizers.Tokenizer) -> Encode:
        theirs.encode_special_tokens = True
        return lambda text: theirs.encode(text, add_special_tokens=False).ids

    def spm(folder: Path) -> Encode:
        return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).encode

    def tik(pattern: str) -> Encode:
        return tiktoken.Encoding(
            "t", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        ).encode

    plain = tokenizers.Tokenizer.from_file(str(hf_folder / "tokenizer.json"))
    bert = tokenizers.BertWordPieceTokenizer(str(wordpiece_folder / "vocab.txt"))._tokenizer
    return {
        "byte-level BPE": (load(hf_folder), rust(plain)),
        "WordPiece": (load(wordpiece_folder), rust(bert)),
        "SentencePiece BPE": (load(spm_bpe), spm(spm_bpe)),
        "SentencePiece Unigram": (load(spm_unigram), spm(spm_unigram)),
        "tiktoken": (load(tiktoken_file.parent), tik(LLAMA3)),
        # Qwen composes characters first (tokenization_qwen.py, tokenize).
        "qwen.tiktoken": (
            load(qwen.parent),
            lambda text: tik(QWEN2)(unicodedata.normalize("NFC", text)),
        ),
    }


EXTENDS = {"\u200d", *map(chr, range(0x1F3FB, 0x1F400)), *map(chr, range(0x1160, 0x1200))}
"""What belongs to the character before it besides marks: joiner, skin tones, Hangul's parts."""


def clusters(text: str) -> Iterator[str]:
    """Characters of several code points."""
    run = ""
    for char in text:
        if unicodedata.category(char)[0] == "M" or char in EXTENDS:
            run += char
            continue
        if len(run) > 1:
            yield run
        run = char
    if len(run) > 1:
        yield run


def mapped_otherwise(text: str) -> bool:
    """Whether `tokenizers` maps a character of several code points otherwise than sentencepiece.

    Sentencepiece replaces the longest prefix that its table has, anywhere in the text. The
    `Precompiled` normaliser of `tokenizers` walks over characters: one of fewer than six bytes
    becomes as a whole what its shortest known prefix maps to (a superscript a with an accent loses
    the accent), a longer one is mapped code point by code point (a kana with a voicing mark of its
    own, a syllable in jamo, an e with an accent and a skin tone are not composed). Texts composed
    beforehand (NFC), as nearly all are, have no such characters. Models with such a table differ
    there in transformers too. A walk of our own would have to be Python, could not be written into
    tokenizer.json, and would have to replace `Precompiled`, not precede it: its answers are not
    fixed points of it.
    """

    def nfkc(part: str) -> str:
        return unicodedata.normalize("NFKC", part)

    for run in clusters(text):
        if len(run.encode()) >= 6:
            if nfkc(run) != "".join(map(nfkc, run)):
                return True
        elif any(nfkc(run[:end]) != run[:end] for end in range(1, len(run))):
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_ids_equal_the_libraries(text: str, pairs: dict[str, tuple[Tokenizer, Encode]]) -> None:
    for name, (ours, theirs) in pairs.items():
        if name == "SentencePiece Unigram" and mapped_otherwise(text):
            continue
        assert ours.encode(text, add_bos=False, add_eos=False) == theirs(text), name


@pytest.mark.parametrize("text", ["か\u3099", "\u1112\u1161\u11ab", "ª\u0301", "e\u0301👍🏽"])
def test_what_is_composed_beforehand_has_the_libraries_ids(
    text: str, pairs: dict[str, tuple[Tokenizer, Encode]]
) -> None:
    ours, theirs = pairs["SentencePiece Unigram"]
    whole = unicodedata.normalize("NFKC", text)
    assert ours.encode(whole, add_bos=False, add_eos=False) == theirs(whole) == theirs(text)


def test_bytes_per_token_by_language(pairs: dict[str, tuple[Tokenizer, Encode]]) -> None:
    """The compression of each vocabulary in each language, from the libraries' own counts."""
    texts = {path.stem: path.read_text("utf-8") for path in sorted(LANGUAGES.glob("*.txt"))}
    assert set(texts) == {"en", "ja", "zh"}
    for name, (ours, theirs) in pairs.items():
        report = ours.bytes_per_token(texts)
        assert report == {k: len(t.encode()) / len(theirs(t)) for k, t in texts.items()}, name

"""How many tokens a text has at least: true of every vocabulary, told at once of a long text."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from keifu.checkpoints.gguf import GGUFFile
from keifu.core.errors import ContextLengthError
from keifu.text.fewest import fewest
from keifu.text.from_gguf import load_gguf
from keifu.text.load import load
from keifu.text.template import Segment
from keifu.text.tokenizer import Tokenizer
from tests.text.samples import HARD, SPECIAL

BOUND = ("hf_folder", "tiktoken_file", "spm_bpe")
LOSSY = ("spm_unigram", "wordpiece_folder", "gpt1_folder")  # collapse spaces, or words into <unk>


@pytest.fixture(scope="module")
def every(request: pytest.FixtureRequest) -> dict[str, Tokenizer]:
    found = {name: request.getfixturevalue(name) for name in BOUND + LOSSY}
    return {name: load(path if path.is_dir() else path.parent) for name, path in found.items()}


def test_never_more_than_there_are(every: dict[str, Tokenizer]) -> None:
    for name, tokenizer in every.items():
        for text in [*HARD, *SPECIAL, "    " * 9, "<td>" * 9, "e\u0301" * 9]:
            least = tokenizer.fewest(text)
            assert least <= len(tokenizer.encode(text, add_bos=False, add_eos=False)), (name, text)
            assert (least > 0) == (name in BOUND and text != "")


SOME = st.lists(
    st.sampled_from(
        [" ", "    ", "\n", "a", "ab", "é", "e\u0301", "한", "漢字", "👍", "<td>", *SPECIAL]
    )
    | st.text(max_size=3)
).map("".join)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=SOME, trusted=st.booleans())
def test_never_more_by_chance(text: str, trusted: bool, every: dict[str, Tokenizer]) -> None:
    for tokenizer in every.values():
        ids = tokenizer.encode_segments([Segment(text, trusted=trusted)])
        assert tokenizer.fewest(text) <= len(ids)


def _rust(
    normalizer: object, token: tokenizers.AddedToken, **model: object
) -> tokenizers.Tokenizer:
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "▁": 3, "Å": 4}
    rust = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], **model))
    if normalizer:
        rust.normalizer = normalizer
    rust.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    rust.decoder = decoders.Fuse()
    rust.add_tokens([token])
    return rust


def test_each_way_to_lose_text_is_known() -> None:
    """By hand: white space that a token or a normaliser takes, characters composed or dropped."""
    plain = tokenizers.AddedToken("<x>", normalized=False)
    taking = tokenizers.AddedToken("<x>", normalized=False, lstrip=True, rstrip=True)

    def least(text: str, rust: tokenizers.Tokenizer) -> int:
        bound = fewest(rust)
        count = bound.tokens(text) if bound else 0
        assert count <= len(rust.encode(text, add_special_tokens=False).ids)
        return count

    assert least("ab" * 9, _rust(None, plain, unk_token="<unk>")) == 4  # <unk> is 5 long
    assert least("<x>" + " " * 90, _rust(None, taking, unk_token="<unk>")) == 1
    strip = normalizers.Strip()
    assert least(" " * 90 + "a", _rust(strip, plain, unk_token="<unk>")) == 1
    composed = _rust(normalizers.NFC(), plain, unk_token="<unk>")
    assert least("A\u030a" * 10, composed) == 2
    assert fewest(_rust(None, plain)) is None  # a character it does not have is dropped
    assert fewest(_rust(None, plain, unk_token="<unk>", fuse_unk=True)) is None
    collapse = normalizers.Replace(tokenizers.Regex(" +"), " ")
    assert fewest(_rust(collapse, plain, unk_token="<unk>")) is None
    removing = _rust(None, plain, unk_token="<unk>")
    removing.pre_tokenizer = pre_tokenizers.Split("a", "removed")
    assert fewest(removing) is None


def test_bytes_that_a_vocabulary_lacks_do_not_count(smollm2: Path) -> None:
    """The default model has no token for some control characters and drops them."""
    with GGUFFile(smollm2) as file:
        tokenizer = load_gguf(file.metadata)
    assert tokenizer.encode("\x04" * 500) == []
    for text in [*HARD, *map(chr, range(128)), "\x04\x06a" * 50, "\U000a0041" * 9]:
        assert tokenizer.fewest(text) <= len(tokenizer.encode(text))
    assert tokenizer.fewest("\x04" * 500) == 0


def test_16_a_word_of_nine_megabytes_is_refused_at_once(smollm2: Path) -> None:
    with GGUFFile(smollm2) as file:
        tokenizer = load_gguf(file.metadata)
    word = "ab" * 4_500_000
    longest = max(len(tokenizer.token(i)) for i in range(len(tokenizer)))
    began = time.process_time()
    with pytest.raises(ContextLengthError, match="at least") as refused:
        tokenizer.encode(word, most=8192)
    assert time.process_time() - began < 1.0
    assert refused.value.prompt_tokens == -(-len(word) // longest) > 8192
    with pytest.raises(ContextLengthError):
        tokenizer.encode_chat([{"role": "user", "content": word}], most=8192)
    assert tokenizer.encode("hello " * 20, most=3) == tokenizer.encode("hello " * 20)

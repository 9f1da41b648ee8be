"""Streamed text: never half a character, equal to the whole decode; stop strings at any cut."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keifu.text.detokenize import Detokenizer, StopStrings
from keifu.text.load import load
from keifu.text.tokenizer import Tokenizer
from tests.text.samples import HARD

FOLDERS = ["hf_folder", "spm_bpe", "spm_unigram", "wordpiece_folder", "gpt1_folder"]
_LOADED: dict[str, Tokenizer] = {}


def loaded(name: str, request: pytest.FixtureRequest) -> Tokenizer:
    if name not in _LOADED:
        _LOADED[name] = load(request.getfixturevalue(name))
    return _LOADED[name]


@pytest.mark.parametrize("name", FOLDERS)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_pieces_join_to_the_whole(
    name: str, request: pytest.FixtureRequest, data: st.DataObject
) -> None:
    ours = loaded(name, request)
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=40))
    skip = data.draw(st.booleans())
    stream = Detokenizer(ours, skip_special=skip)
    assert "".join([*map(stream.push, ids), stream.flush()]) == ours.decode(ids, skip_special=skip)


@pytest.mark.parametrize("name", ["hf_folder", "spm_bpe"])
@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_never_half_a_character(name: str, text: str, request: pytest.FixtureRequest) -> None:
    ours = loaded(name, request)
    stream = Detokenizer(ours)
    pieces = [stream.push(i) for i in ours.encode(text, add_bos=False)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == text


def test_an_emoji_waits_for_its_last_byte(hf_folder: Path) -> None:
    ours = load(hf_folder)
    ids = ours.encode("👍")
    assert len(ids) > 1
    stream = Detokenizer(ours)
    assert [stream.push(i) for i in ids] == [""] * (len(ids) - 1) + ["👍"]
    cut = Detokenizer(ours)
    assert "".join(cut.push(i) for i in ids[:-1]) == ""
    assert cut.flush() == "\ufffd"


def test_a_continuation_keeps_its_space(spm_bpe: Path) -> None:
    ours = load(spm_bpe)
    ids = ours.encode("the moon", add_bos=False)
    assert ours.decode(ids) == "the moon"
    stream = Detokenizer(ours, start=False)
    assert "".join(map(stream.push, ids)) == " the moon"


def test_decode_equals_the_libraries(
    spm_bpe: Path, wordpiece_folder: Path, gpt1_folder: Path, byte_bpe: tokenizers.Tokenizer
) -> None:
    theirs = sentencepiece.SentencePieceProcessor(str(spm_bpe / "tokenizer.model"))
    for text in HARD:
        ids = theirs.encode(text)
        assert load(spm_bpe).decode(ids) == theirs.decode(ids)
        for folder in (wordpiece_folder, gpt1_folder):
            ours = load(folder)
            ids = ours.encode(text, add_bos=False, add_eos=False)
            assert ours.decode(ids, skip_special=False) == ours._rust.decode(
                ids, skip_special_tokens=False
            )


def test_exact_bytes_of_tokens(hf_folder: Path, spm_bpe: Path) -> None:
    ours = load(hf_folder)
    assert b"".join(map(ours.token_bytes, ours.encode("é👍 \x00"))) == "é👍 \x00".encode()
    assert ours.token_bytes(1) == b"<|im_start|>"
    spm = load(spm_bpe)
    assert spm.token_bytes(spm.id("<0xFF>")) == b"\xff"
    assert spm.token_bytes(spm.id("\u2581the")) == b" the"


def whole(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character, by definition: the first moment at which a stop is complete."""
    for end in range(len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abc", max_size=24),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
    cuts=st.lists(st.integers(0, 24), max_size=6),
)
def test_stop_strings_at_any_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    scanner, out, by = StopStrings(stops), "", None
    for a, b in itertools.pairwise(edges):
        piece, by = scanner.push(text[a:b])
        out += piece
        assert whole(text, stops)[0].startswith(out)
        if by is not None:
            break
    if by is None:
        out += scanner.flush()
    assert (out, by) == whole(text, stops)


def test_a_stop_string_can_stay_in_the_text() -> None:
    scanner = StopStrings(["END"], include=True)
    assert scanner.push("a E") == ("a ", None)
    assert scanner.push("ND b") == ("END", "END")

"""The Transformer of 2017 learns to translate (minutes: `make test-slow`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipes.transformer import BOS, SEARCH, english, japanese, learn, right, words


def test_the_two_languages_by_hand() -> None:
    said = {
        0: ("zero", "〇"),
        10: ("ten", "十"),
        21: ("twenty one", "二 十 一"),
        100: ("one hundred", "百"),
        1901: ("one thousand nine hundred one", "千 九 百 一"),
        10_000: ("ten thousand", "一 万"),
        34_506: ("thirty four thousand five hundred six", "三 万 四 千 五 百 六"),
        110_000: ("one hundred ten thousand", "十 一 万"),
    }
    tokenizer = words()
    for number, (source, target) in said.items():
        assert (english(number), japanese(number)) == (source, target)
        for text in (source, target):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids[:-1]) == text
            assert BOS not in ids


@pytest.mark.slow
def test_a_small_transformer_translates_what_it_never_read(tmp_path: Path) -> None:
    """400 held-out numbers: more than 99 % right to the last token, greedily and with the paper's
    search."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        held_out = learn(tmp_path / "m")
        assert len(held_out) == 400
        assert right(tmp_path / "m", held_out) > 0.99
        assert right(tmp_path / "m", held_out, **SEARCH) > 0.99
    finally:
        torch.set_num_threads(threads)

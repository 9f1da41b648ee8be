"""Recurrent translation and CTC speech learn their tasks; the small ones run every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keifu.families._load import open_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def test_digits_are_reversed_and_the_alignment_runs_against_the_source(tmp_path: Path) -> None:
    """Bahdanau's network; 200 held-out strings, greedily and with beams, through the engine."""
    from recipes.translation import against, learn

    learnt = learn("reversal", tmp_path / "m")
    assert open_checkpoint(learnt.folder).family_name == "rnn-search"
    assert len(learnt.held_out) == 200
    assert learnt.right() > 0.99
    assert learnt.right(beams=4) > 0.99
    assert against(learnt) > 0.9
    for source in list(learnt.held_out)[:10]:
        weights = learnt.alignment(source)
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))


@pytest.mark.slow
def test_numbers_become_words_without_attention(tmp_path: Path) -> None:
    """Sutskever's network: all that the decoder knows is the encoder's last state."""
    from recipes.translation import learn

    learnt = learn("numbers", tmp_path / "m")
    assert open_checkpoint(learnt.folder).family_name == "rnn-translation"
    assert learnt.model.spec.last
    assert learnt.right() > 0.99
    assert learnt.right(beams=4) > 0.99


@pytest.mark.slow
def test_tones_are_written_down_without_a_wrong_letter(tmp_path: Path) -> None:
    """New strings, longer and noisier than any that was learnt."""
    from recipes.speech import learn

    learnt = learn(tmp_path / "m")
    assert min(map(len, learnt.held_out)) > 7
    assert learnt.errors() == 0
    assert learnt.errors(beams=8) == 0


def test_a_few_tones_are_written_down(tmp_path: Path) -> None:
    """The same with four letters and short strings: seconds."""
    from recipes.speech import learn

    learnt = learn(tmp_path / "m", alphabet="abcd", longest=4, examples=200, steps=150, test=8)
    assert min(map(len, learnt.held_out)) > 4
    assert learnt.errors() == 0
    assert learnt.errors(beams=4) == 0

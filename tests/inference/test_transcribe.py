"""From a WAV file to text by a model with known weights; the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from keifu.cli.main import main
from keifu.core.errors import KeifuError
from keifu.families import families, save_model
from keifu.inference.ctc import best_path, prefix_search
from keifu.inference.transcribe import Transcriber, load_transcriber
from keifu.media.resample import resampled
from keifu.media.wav import Sound, read_wav, write_wav
from keifu.nn.stack import StackModule
from keifu.nn.step import fresh_step
from keifu.text.letters import letters

TOKENIZER = letters("abcdefghijklmnopqrs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of random weights and a recording of noise."""
    family = families["rnn-speech"].tiny()
    model = family.spec().build()
    assert isinstance(model, StackModule)
    model.initialise(seed=5, std=1.5)
    here = save_model(tmp_path_factory.mktemp("speech") / "m", family, model, TOKENIZER)
    samples = torch.randn(4000, generator=torch.Generator().manual_seed(2)).clamp(-3, 3) / 4
    write_wav(here / "noise.wav", Sound(samples=samples, rate=8000))
    write_wav(here / "wild.wav", Sound(samples=samples, rate=767_999))
    return here


def test_the_text_is_that_of_the_models_labels(folder: Path) -> None:
    model = load_transcriber(folder)
    found = model.transcribe_file(folder / "noise.wav")
    assert found.seconds == 0.5
    frames = families["rnn-speech"].tiny().mel()(read_wav(folder / "noise.wav"))  # type: ignore[attr-defined]
    assert frames.shape == (25, 16)
    with torch.no_grad():
        logits = model.model.run(frames, fresh_step([25])).logits
    assert logits is not None
    log = logits.log_softmax(-1)
    assert found.labels == best_path(log).labels
    assert found.text == "".join(TOKENIZER.token(i) for i in found.labels) != ""
    searched = model.transcribe_file(folder / "noise.wav", beams=8)
    assert searched.labels == prefix_search(log, width=8)[0].labels
    assert searched.logprob == pytest.approx(prefix_search(log, width=8)[0].logprob, abs=1e-4)


def test_a_language_model_changes_what_is_written(folder: Path) -> None:
    model, sound = load_transcriber(folder), read_wav(folder / "noise.wav")
    plain = model.transcribe(sound, beams=8)
    terse = model.transcribe(sound, beams=8, extend=lambda prefix, label: -8.0)
    assert len(terse.labels) < len(plain.labels)
    with pytest.raises(KeifuError, match="2 with a language model"):
        model.transcribe(sound, extend=lambda prefix, label: 0.0)


def test_the_command_prints_text_or_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav = str(folder / "noise.wav")
    expected = load_transcriber(folder).transcribe_file(wav, beams=4)
    assert main(["transcribe", wav, "-m", str(folder), "--beams", "4"]) == 0
    assert capsys.readouterr().out == expected.text + "\n"
    assert main(["transcribe", wav, "-m", str(folder), "--beams", "4", "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["schema_version"] == 1
    assert said["text"] == expected.text
    assert said["labels"] == list(expected.labels)
    assert said["seconds"] == 0.5


@pytest.mark.parametrize("rate", [11025, 44100, 48000])
def test_a_file_at_another_rate(folder: Path, rate: int, tmp_path: Path) -> None:
    """What is heard is the sound at the model's own rate."""
    high = resampled(read_wav(folder / "noise.wav"), rate)
    write_wav(tmp_path / "high.wav", high)
    model = load_transcriber(folder)
    found = model.transcribe_file(tmp_path / "high.wav")
    assert found.seconds == pytest.approx(0.5, abs=1 / rate)
    back = resampled(read_wav(tmp_path / "high.wav"), 8000)
    assert found.labels == model.transcribe(back).labels
    assert model.log_probs(high).shape == (25, 20)


BAD = {
    "a wild rate": (["wild.wav"], 1, "767999 Hz, which is no simple ratio to the model's 8000"),
    "no file": (["none.wav"], 1, "cannot read"),
    "no sound": (["config.json"], 1, "not a WAV file"),
    "too long": (["noise.wav", "--longest", "0.25"], 1, "more than 0.25: cut it in pieces"),
    "no beams": (["noise.wav", "--beams", "0"], 2, "beams"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_line(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (file, *more), code, says = BAD[name]
    assert main(["transcribe", str(folder / file), "-m", str(folder), *more]) == code
    error = capsys.readouterr().err
    assert says in error
    assert code == 2 or error.count("\n") == 1


def test_a_model_that_does_not_hear_says_what_it_does(tmp_path: Path) -> None:
    family = families["rnn-translation"].tiny()
    save_model(tmp_path, family, family.spec().build())
    with pytest.raises(KeifuError, match="rnn-translation models do not transcribe, but: trans"):
        load_transcriber(tmp_path)


def test_beams_below_one_are_refused() -> None:
    family: Any = families["rnn-speech"].tiny()
    model = family.spec().build()
    heard = Transcriber(model.initialise(), family.mel(), TOKENIZER)
    with pytest.raises(KeifuError, match="beams=0"):
        heard.transcribe(Sound(samples=torch.zeros(800), rate=8000), beams=0)

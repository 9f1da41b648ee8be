"""Steps on one document, each against cases worked out from its source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keifu.core.errors import KeifuError
from keifu.data.document import Document, Dropped
from keifu.data.shingles import words
from keifu.data.step import DocumentStep
from keifu.data.steps.boilerplate import Boilerplate
from keifu.data.steps.c4 import C4
from keifu.data.steps.contamination import Contamination
from keifu.data.steps.gopher import Gopher
from keifu.data.steps.gopher_repetition import GopherRepetition, duplicate_share, top_share
from keifu.data.steps.language import Language
from keifu.data.steps.lines import Lines
from keifu.data.steps.normalise import Normalise
from keifu.data.steps.refinedweb import RefinedWeb
from keifu.data.steps.toxic import Toxic
from tests.data import corpus


def on(step: DocumentStep, text: str) -> str | Dropped:
    """What a step makes of a text."""
    found = step.start()(Document(text))
    return found if isinstance(found, Dropped) else found.text


def reason(step: DocumentStep, text: str) -> str:
    found = on(step, text)
    return found.reason if isinstance(found, Dropped) else ""


def test_normalise() -> None:
    text = "\ufeffcafe\u0301\u200b\r\nsoft\u00adhyphen\x00 \t\r\n\n\n\nnext\u00a0one\u2028end\n"
    assert on(Normalise(), text) == "café\nsofthyphen\n\nnext one\nend"
    assert on(Normalise(), "ﬁne ＡＢＣ") == "ﬁne ＡＢＣ"
    assert on(Normalise(form="NFKC"), "ﬁne ＡＢＣ") == "fine ABC"
    assert on(Normalise(), "  def f():\n\treturn 1") == "  def f():\n\treturn 1"
    assert on(Normalise(), "👨\u200d👩\u200d👧 می\u200cخواهم") == "👨\u200d👩\u200d👧 می\u200cخواهم"
    assert reason(Normalise(), " \n\u200b\n") == "empty"


SENTENCES = {
    "en": "The children walked through the forest to the school while the teacher was waiting.",
    "de": corpus.GERMAN,
    "fr": "Les enfants marchaient dans la forêt vers l'école pendant que le maître attendait.",
    "es": "Los niños caminaban por el bosque hacia la escuela mientras el maestro esperaba.",
    "ja": "子供たちは森を通って学校へ歩いていき、先生はもうドアの前で待っていました。",
    "zh": "孩子们穿过森林走向学校,老师已经在门口等着他们了,今天要讲星星的故事。",
    "ru": "Дети шли через лес в школу, а учитель уже ждал их у двери и рассказал о звёздах.",
}


def test_language() -> None:
    step = Language(keep=("en", "ja")).start()
    for name, text in SENTENCES.items():
        found = step(Document(text, {"a": 1}))
        if name in ("en", "ja"):
            assert isinstance(found, Document)
            assert found.meta["language"] == name
            assert found.meta["a"] == 1
            assert 0.65 <= found.meta["language_score"] <= 1
        else:
            assert isinstance(found, Dropped)
            assert found.detail.startswith(name)
    assert reason(Language(), "zzz qqq 123") in ("language unclear", "")
    with pytest.raises(KeifuError, match="knows no xx"):
        Language(keep=("xx",)).start()


def test_boilerplate() -> None:
    text = corpus.prose(1)
    page = f"{corpus.NAVIGATION}\n\n\n{text}\n{corpus.AD}\n{corpus.COOKIES}\nShare on Facebook"
    assert on(Boilerplate(), page) == text
    assert on(Boilerplate(), text) == text
    code = (
        "def f(a, b):\n    return a | b\n\nx = [1, 2]\nx = [1, 2]\n| a | b |\n|---|---|\n| 1 | 2 |"
    )
    assert on(Boilerplate(), code) == code
    said = "He bought the house because it was cheap, and it was sold again in spring."
    assert on(Boilerplate(), said) == said
    twice = "This very same sentence stands here two times.\n"
    assert on(Boilerplate(), text + "\n" + twice + twice) == text + "\n" + twice.strip()
    assert reason(Boilerplate(), f"{corpus.AD}\n{corpus.COOKIES}\nShort.") == "mostly boilerplate"
    assert on(Boilerplate(phrases=("^gruesse",)), text + "\nGruesse aus Ulm") == text
    with pytest.raises(KeifuError, match="no pattern"):
        Boilerplate(phrases=("(",)).start()


def test_gopher() -> None:
    """One document on each side of each bound of section A.1.1."""
    good = corpus.prose(1)
    assert on(Gopher(), good) == good
    common = "the of and that with have "
    cases = {
        "too few words": common * 8 + "x",  # 49
        "too many words": common * 16_667,
        "length of words": "a b c d e f g h i j " * 5 + common,
        "too many symbols": ("the and words # " * 20).strip(),
        "a list of bullets": "\n".join(["- the words of and that"] * 19 + ["have words"] * 1),
        "lines end with ellipses": "\n".join(
            ["the words of and that you have had in there all along here..."] * 4
            + ["the words of and that is of some more words to be in it"] * 6
        ),
        "words without letters": "the of and 1234 4567 78901 " * 10,
        "no common words": "river stone light morning garden " * 12,
    }
    for expected, text in cases.items():
        assert reason(Gopher(), text) == expected
    fine = {
        "50 words": common * 8 + "x y",
        "bullets": "\n".join(["- the words of and that"] * 9 + ["have words"] * 1),
        "two common words": "river stone light morning the garden of " * 12,
        "ellipses": "\n".join(["the words of and that you have here now"] * 7
                              + ["words of that..."] * 3),
    }  # fmt: skip
    for name, text in fine.items():
        assert reason(Gopher(), text) == "", name
    assert reason(Gopher(common=0), cases["no common words"]) == ""


def test_gopher_shares_by_hand() -> None:
    # words aa bb aa bb cc: ten characters; "aa bb" comes twice: 2 * 4 of 10
    assert top_share(words("aa bb aa bb cc"), 2) == pytest.approx(0.8)
    assert top_share(words("aa bb cc"), 2) == 0
    assert duplicate_share(words("aa bb aa bb cc"), 2) == pytest.approx(0.8)
    # "a a" comes at three places that overlap: each character counts once
    assert duplicate_share(words("a a a a b"), 2) == pytest.approx(0.8)
    assert duplicate_share(words("one two"), 5) == 0


def test_gopher_repetition() -> None:
    good = "\n".join(corpus.prose(seed, 1) for seed in range(3))
    step = GopherRepetition(top=(1.0,) * 3, duplicates=(1.0,) * 6)
    assert on(step, good) == good
    lines = [f"the line number {n}" for n in range(7)]
    assert reason(step, "\n".join(lines + lines[:4])) == "repeated lines"  # 4 of 11
    assert reason(step, "\n".join([*lines, *lines[:1]])) == ""
    assert reason(GopherRepetition(), "one two three four five six " * 3) == "one n-gram too often"
    part = "alpha beta gamma delta epsilon zeta eta theta iota kappa"
    text = f"{part} one two three four five six seven eight nine {part}"
    assert reason(GopherRepetition(top=(1, 1, 1)), text) == "repeated n-grams"


def test_c4() -> None:
    text = (
        "The first line is a whole sentence.[1] It goes on here.\nNo mark at the line's end\n"
        "Too short.\nThis site uses cookies for a better web.\nTurn on Javascript to go on now.\n"
        'She said: "This is the last sentence here."'
    )
    assert on(C4(), text) == (
        "The first line is a whole sentence. It goes on here.\n"
        'She said: "This is the last sentence here."'
    )
    assert reason(C4(), "Lorem ipsum dolor sit amet.") == "lorem ipsum"
    assert reason(C4(), "function f() { return 1; }") == "a curly bracket"
    assert reason(C4(), "Only two sentences here now. They are not enough.") == "too few sentences"
    assert (
        on(C4(), "これは文です。次の文です。もう一つ。") == "これは文です。次の文です。もう一つ。"
    )


def test_refinedweb() -> None:
    text = corpus.prose(1)
    for odd in ("3 likes", "12,345", "Comment", "Sign in to go on", "BUY THIS NOW AND SAVE",
                "Some words: Read more...", "2 items in cart"):  # fmt: skip
        assert on(RefinedWeb(), f"{odd}\n{text}") == text, odd
    assert on(RefinedWeb(), text) == text
    many = "\n".join(["3 likes"] * 10)
    assert reason(RefinedWeb(), f"{many}\n{corpus.prose(1, 2)}") == "too many odd lines"


def test_toxic(tmp_path: Path) -> None:
    text = corpus.prose(1)
    assert on(Toxic(), f"{text}\nWatch free PORN here") == text
    assert on(Toxic(), text + "\nScunthorpe and Essex") == text + "\nScunthorpe and Essex"
    assert reason(Toxic(), "porn\nfine") == "toxic"
    listed = tmp_path / "words.txt"
    listed.write_text("# ours\nHarbour Bridge\nvile\n馬鹿\n", "utf-8")
    found = on(Toxic(words=listed), f"{text}\nThe harbour bridge.\nA vile thing\nこの馬鹿\nporn")
    assert found == f"{text}\nporn"
    with pytest.raises(KeifuError, match="cannot read the word list"):
        Toxic(words=tmp_path / "none").start()


def test_lines_look_at_words_and_stay_bounded() -> None:
    step = Lines(after=1, capacity=2)
    look, judge = step.look(), step.judge()
    seen = [look(Document(t)) for t in ("One two three four.\nx", "ONE, two: three four!\nx")]
    assert judge(1, seen[0]) is None
    assert judge(2, seen[1]) == (0,)
    other = look(Document("a b c d\ne f g h\ni j k l"))
    assert judge(3, other) is None
    assert len(judge(4, other) or ()) == 1  # capacity: one more line was remembered
    edited = step.edit(Document("One\ntwo\nthree"), (1,))
    assert edited == Document("One\nthree")
    assert step.edit(Document("One"), (0,)) == Dropped("only shared lines")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"question": corpus.EVALUATION, "choices": ["one", "two"], "answer": 1},
        {"question": "eight words are the fewest that can match", "answer": "yes"},
        {"question": "only seven words, so never a match"},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_contamination(questions: Path) -> None:
    step = Contamination(against=(str(questions),))
    clean = corpus.prose(1)
    assert on(step, clean) == clean
    asked = corpus.EVALUATION.split()
    for count, expected in ((12, ""), (13, "contaminated")):
        said = " ".join(asked[5 : 5 + count]).upper().replace(" ", ", ")
        assert reason(step, f"{clean}\n{said}\n{clean}") == expected
    found = on(step, f"{clean} Eight words are the fewest that can match! Indeed.")
    assert isinstance(found, Dropped)
    assert found.detail == f"{questions}:2: 'eight words are the fewest that can match'"
    assert on(step, clean + " only seven words, so never a match").endswith("never a match")  # type: ignore[union-attr]


def test_contamination_is_cut_with_what_is_around(questions: Path) -> None:
    """GPT-3: 200 characters on both sides; pieces shorter than that go."""
    step = Contamination(against=(str(questions),), action="cut")
    left, right = "l" * 999 + " ", " " + "r" * 350
    found = step.start()(Document(left + corpus.EVALUATION + right))
    assert isinstance(found, Document)
    cut = len(left) - 200
    assert found.text[:cut] == left[:cut]
    assert found.text[cut:] == ""  # 151 characters are left of the right side
    assert "questions.jsonl:1" in found.meta["contamination"]
    found = step.start()(Document(left + corpus.EVALUATION + right * 2))
    assert isinstance(found, Document)
    pieces = found.text.split("\n\n")
    assert len(pieces) == 2
    assert set(pieces[1]) == {"r", " "}
    assert reason(step, "short " + corpus.EVALUATION) == "contaminated"


def test_contamination_needs_something(tmp_path: Path, questions: Path) -> None:
    with pytest.raises(KeifuError, match="name the evaluation sets"):
        Contamination().start()
    with pytest.raises(KeifuError, match="by chance"):
        Contamination(words=7)
    (tmp_path / "a.jsonl").write_text('{"question": "too short"}')
    with pytest.raises(KeifuError, match="no row of"):
        Contamination(against=(str(tmp_path / "a.jsonl"),)).start()

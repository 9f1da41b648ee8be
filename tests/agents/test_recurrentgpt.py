"""RecurrentGPT: a story of five steps whose every prompt and whose state are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from keifu.agents import agents
from keifu.agents._agent import Agent, Surroundings
from keifu.agents._story import State, load, parts
from keifu.agents._trace import Began, Chose, Ended, Event, Made, Recalled, Refused, record
from keifu.agents.recurrentgpt import Options, RecurrentGPT
from keifu.core.errors import ContextLengthError, FormatError, KeifuError
from keifu.lm.scripted import Request, ScriptedLM
from keifu.retrieval.memory import Embedder, Memory

GOAL = "a ferry that never arrives"
PARAGRAPHS = [
    "The ferry left at dawn with a brass compass on its bridge.",
    "Fog came down and the captain lit the lamps.",
    "A gull spoke to the cook in the galley.",
    "They passed an island that no map shows.",
    "The compass turned round and the dawn came again.",
]
SUMMARIES = [f"Summary {n}." for n in range(1, 6)]
PLANS = [[f"plan {n}{letter}" for letter in "abc"] for n in range(1, 6)]
PLANS[3][1] = "what does the brass compass on the bridge do"  # step 5 needs what step 1 said
PICKED = [0, 2, 1, 1]
"""Which plan the script takes after steps 1 to 4."""

ASKED = """You write a story, paragraph by paragraph, without hurry: it may become a long one. \
Write what is asked for below, each part after its name and a colon, and nothing else.

Paragraph: the next paragraph of the story, about 4 sentences. It follows the plan and agrees with \
what is told above.
Changes: which sentences of the summary no longer matter, what has to be added, and why.
Summary: the summary so changed, the key facts of all that was written, at most 4 sentences.
Plan 1: a way to go on after that, interesting to read, in a few sentences.
Plan 2: another way to go on after that, interesting to read, in a few sentences.
Plan 3: another way to go on after that, interesting to read, in a few sentences."""
PICK = """These are plans for the next paragraph of the story. Which one is the most interesting \
and suits the story best? Answer with its number alone."""


def tagged(tag: str, text: str) -> str:
    return f"<{tag}>\n{text}\n</{tag}>"


def said(step: int) -> str:
    a, b, c = PLANS[step - 1]
    return (
        f"Paragraph: {PARAGRAPHS[step - 1]}\n\nChanges: none.\nSummary: {SUMMARIES[step - 1]}\n"
        f"Plan 1: {a}\nPlan 2: {b}\nPlan 3: {c}\n"
    )


def writes(step: int, *related: int) -> str:
    """The prompt of a step, the paragraphs that it recalls given by their numbers."""
    if step == 1:
        begin = "Begin the story: there is nothing before it yet."
        return "\n\n".join([tagged("subject", GOAL), begin, ASKED])
    plan = PLANS[step - 2][PICKED[step - 2]]
    blocks = [tagged("subject", GOAL)]
    blocks += [tagged("related-paragraph", PARAGRAPHS[n - 1]) for n in related]
    blocks += [
        tagged("summary", SUMMARIES[step - 2]),
        tagged("paragraph", PARAGRAPHS[step - 2]),
        tagged("plan", plan),
    ]
    return "\n\n".join([*blocks, ASKED])


def picks(after: int) -> str:
    plans = "\n".join(f"{n}. {plan}" for n, plan in enumerate(PLANS[after - 1], 1))
    blocks = [
        tagged("summary", SUMMARIES[after - 1]),
        tagged("paragraph", PARAGRAPHS[after - 1]),
        tagged("plans", plans),
        PICK,
    ]
    return "\n\n".join(blocks)


# By words, "plan 1a" is in no paragraph; the last plan shares its words with the first paragraph.
SCRIPT = {
    **{picks(n): f"Plan {PICKED[n - 1] + 1}, I think." for n in range(1, 5)},
    **{writes(n): said(n) for n in range(1, 5)},
    writes(5, 1): said(5),
}
HOW = Options(steps=5, recall=1, sentences=4)
GOLDEN = """{
 "schema_version": 1,
 "goal": "a ferry that never arrives",
 "step": 5,
 "paragraph": "The compass turned round and the dawn came again.",
 "summary": "Summary 5.",
 "plans": [
  "plan 5a",
  "plan 5b",
  "plan 5c"
 ]
}"""


def scripted() -> ScriptedLM:
    return ScriptedLM({key: [reply] for key, reply in SCRIPT.items()})


def story(lm: ScriptedLM, folder: Path, how: Options = HOW, **around: Any) -> Iterator[Event]:
    return RecurrentGPT(lm, how, Surroundings(folder=folder, **around)).run(GOAL)


def test_five_steps(tmp_path: Path) -> None:
    lm = scripted()
    events = list(story(lm, tmp_path))
    lm.assert_done()
    assert lm.prompts == [
        writes(1), picks(1), writes(2), picks(2), writes(3), picks(3), writes(4), picks(4),
        writes(5, 1),
    ]  # fmt: skip
    assert (tmp_path / "state.json").read_text() == GOLDEN
    assert (tmp_path / "story.md").read_text() == "\n\n".join(PARAGRAPHS) + "\n"
    assert events[0] == Began(goal=GOAL, done=0, steps=5)
    assert events[-1] == Ended(steps=5)
    assert [e.text for e in events if isinstance(e, Made)] == PARAGRAPHS
    assert [e.chosen for e in events if isinstance(e, Chose)] == [
        plans[n] for plans, n in zip(PLANS, PICKED, strict=False)
    ]
    recalled = [e for e in events if isinstance(e, Recalled)]
    assert [e.texts for e in recalled] == [(), (), (), (PARAGRAPHS[0],)]
    with Memory(tmp_path / "memory.sqlite") as memory:
        assert [(m.key, m.text) for m in memory.all()] == [
            (str(n), text) for n, text in enumerate(PARAGRAPHS[:4], 1)
        ]


@pytest.mark.parametrize("stop", range(1, 24))
def test_killed_anywhere_it_goes_on_the_same(tmp_path: Path, stop: int) -> None:
    """Broken off after any event, even with a paragraph already kept, the end is the same."""
    first = scripted()
    seen = list(islice(run := story(first, tmp_path), stop))
    run.close()  # type: ignore[attr-defined]
    written = sum(isinstance(event, Made) for event in seen)
    if 0 < written < 5:  # as if killed between the memory and the state of the next step
        with Memory(tmp_path / "memory.sqlite") as memory:
            memory.add(PARAGRAPHS[written - 1], key=str(written))
    second = scripted()
    events = list(story(second, tmp_path))
    assert (tmp_path / "state.json").read_text() == GOLDEN
    assert (tmp_path / "story.md").read_text() == "\n\n".join(PARAGRAPHS) + "\n"
    assert events[0] == Began(goal=GOAL, done=written, steps=5)
    whole = [writes(n, *([1] if n == 5 else [])) for n in range(1, 6)]
    assert [p for p in second.prompts if p in whole] == whole[written:]


def test_a_planted_paragraph_is_found_by_meaning(tmp_path: Path) -> None:
    """Vectors: the plan of step 4 is nearest to paragraph 2, whatever its words."""
    vectors = {text: [1.0, 0.0, n / 10] for n, text in enumerate(PARAGRAPHS)}
    vectors[PARAGRAPHS[1]] = [0.0, 1.0, 0.0]
    for plans, n in zip(PLANS, PICKED, strict=False):
        vectors[plans[n]] = [0.6, 0.0, 0.8]
    vectors[PLANS[2][PICKED[2]]] = [0.1, 0.9, 0.0]
    embedder = Embedder("script", ScriptedLM(embeddings=vectors).embed)
    lm = ScriptedLM.from_function(
        lambda r: (
            SCRIPT[r.prompt] if r.prompt in SCRIPT else said(4 if "plan 3b" in r.prompt else 3)
        )
    )
    how = Options(steps=4, recall=1, sentences=4)
    events = list(story(lm, tmp_path, how, embedder=embedder))
    assert [e.texts for e in events if isinstance(e, Recalled)][-1] == (PARAGRAPHS[1],)
    assert writes(4, 2) in lm.prompts


def test_a_person_picks_or_says_otherwise(tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []

    def choose(plans: Any) -> int | str:
        asked.append(tuple(plans))
        return 2 if len(asked) == 1 else "the engine stops"

    lm = ScriptedLM.from_function(lambda r: said(len(lm.requests)))
    how = Options(steps=3, sentences=4)
    events = list(story(lm, tmp_path, how, choose=choose))
    assert asked == [tuple(PLANS[0]), tuple(PLANS[1])]
    chosen = [e for e in events if isinstance(e, Chose)]
    assert [(e.chosen, e.by) for e in chosen] == [
        ("plan 1c", "person"),
        ("the engine stops", "person"),
    ]
    assert "<plan>\nthe engine stops\n</plan>" in lm.prompts[-1]
    assert len(lm.requests) == 3  # the model is not asked to pick


def test_what_is_lacking_is_asked_for_alone(tmp_path: Path) -> None:
    answers = [
        "I cannot do that.",
        "The ferry left.",
        "Summary: It left.",
        "fog",
        "fog",
        "1. a gull\n- an island\n",
    ]
    lm = ScriptedLM.from_function(lambda r: answers[len(lm.requests) - 1])
    events = list(story(lm, tmp_path, Options(steps=1, sentences=4)))
    assert load(tmp_path) == State(
        goal=GOAL, step=1, paragraph="The ferry left.", summary="It left.",
        plans=("fog", "a gull", "an island"),
    )  # fmt: skip
    whys = [e.why for e in events if isinstance(e, Refused)]
    assert whys == [
        "the paragraph and the summary and the plans could not be found",
        "the summary and the plans could not be found",
        "the plans could not be found",
        "the plans could not be found",
        "the plans could not be found",
    ]
    assert lm.prompts[1].endswith(
        "Write the next paragraph of the story, about 4 sentences, and nothing else."
    )
    assert tagged("new-paragraph", "The ferry left.") in lm.prompts[2]
    assert tagged("other-idea", "fog") not in lm.prompts[3]
    assert tagged("other-idea", "fog") in lm.prompts[4]
    assert lm.prompts[5] == lm.prompts[4] + (
        "\n\nYour last answer could not be used: the plans could not be found."
    )


def test_an_end_to_asking_and_nothing_lost(tmp_path: Path) -> None:
    lm = scripted()
    list(islice(run := story(lm, tmp_path), 3))
    run.close()  # type: ignore[attr-defined]
    before = (tmp_path / "state.json").read_bytes()
    lm = ScriptedLM.from_function(lambda r: "seven")
    with pytest.raises(
        KeifuError, match=r"step 2: no plan from 1 to 3 .* 2 answers .* 1 paragraphs"
    ):
        list(story(lm, tmp_path, Options(steps=5, attempts=2)))
    assert len(lm.requests) == 2
    assert (tmp_path / "state.json").read_bytes() == before
    lm = ScriptedLM.from_function(lambda r: "1", context=300)
    with pytest.raises(ContextLengthError):
        list(story(lm, tmp_path, Options(steps=5)))


def test_a_longer_story_and_another_one(tmp_path: Path) -> None:
    list(story(scripted(), tmp_path, Options(steps=2, recall=1, sentences=4)))
    lm = ScriptedLM()
    assert list(story(lm, tmp_path, Options(steps=2)))[1:] == [Ended(steps=2)]
    with pytest.raises(KeifuError, match="holds a story about 'a ferry"):
        list(RecurrentGPT(lm, HOW, Surroundings(folder=tmp_path)).run("something else"))
    with pytest.raises(KeifuError, match="say what it is to be about"):
        list(RecurrentGPT(lm, HOW, Surroundings(folder=tmp_path / "new")).run(" "))
    run = RecurrentGPT(scripted(), HOW, Surroundings(folder=tmp_path)).run("")
    assert next(run) == Began(goal=GOAL, done=2, steps=5)
    with pytest.raises(KeifuError, match="another process is writing"):
        next(story(lm, tmp_path))
    run.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"schema_version": 2}', GOLDEN.replace("5,", '"5",'), "[" * 100_000,
     GOLDEN.replace('"plan 5a",', ""), GOLDEN.replace('"goal"', '"aim"')],
)  # fmt: skip
def test_a_damaged_state(tmp_path: Path, damage: str) -> None:
    (tmp_path / "state.json").write_text(damage)
    with pytest.raises(FormatError, match=r"state\.json is damaged"):
        load(tmp_path, GOAL)


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("**Paragraph:** One.\nTwo.\n\n## Summary:\nS.\n1. Plan 1: a\nb\nPlan 2: c\nPlan 3: d",
         ["paragraph", "summary", "plans"],
         {"paragraph": "One.\nTwo.", "summary": "S.", "plans": ("a\nb", "c", "d")}),
        ("Paragraph: P\nPlans:\n1. a\n2. b\n3. c\n4. d", ["paragraph", "plans"],
         {"paragraph": "P", "plans": ("a", "b", "c", "d")}),
        ("Plan 1: a\nPlan 2: b", ["plans"], {"plans": ("a", "b")}),
        ("It rains.", ["plans"], {"plans": ("It rains.",)}),
        ("Just text.", ["paragraph", "summary", "plans"], {}),
        ("Just text.", ["summary"], {"summary": "Just text."}),
        ("The summary of it: nothing", ["paragraph"], {"paragraph": "The summary of it: nothing"}),
        ("", ["summary"], {}),
        ("Summary:", ["summary"], {}),
        ("Paragraph: a\0b", ["paragraph"], {"paragraph": "ab"}),
        ("Paragraph: " + "x" * 16_385, ["paragraph"], {}),  # more than the memory keeps
    ],
)  # fmt: skip
def test_reading_answers(text: str, wanted: list[str], found: dict[str, object]) -> None:
    assert parts(text, wanted) == found


@pytest.mark.parametrize("bad", [{"steps": 0}, {"sentences": 0}, {"attempts": 0}, {"recall": -1}])
def test_senseless_options(bad: dict[str, int]) -> None:
    with pytest.raises(KeifuError, match="from"):
        Options(**bad)


def test_the_registry_and_the_record() -> None:
    assert "recurrentgpt" in list(agents)
    assert issubclass(agents["recurrentgpt"], Agent)
    with pytest.raises(KeifuError, match="nearest: recurrentgpt"):
        agents["recurentgpt"]
    event = Chose(step=2, options=("a", "b"), chosen="a", by="model")
    assert json.loads(json.dumps(record(event))) == {
        "event": "chose", "step": 2, "options": ["a", "b"], "chosen": "a", "by": "model",
    }  # fmt: skip


def test_seeds_make_a_run_repeatable(tmp_path: Path) -> None:
    seeds: list[int | None] = []

    def reply(request: Request) -> str:
        seeds.append(request.sampling.seed)
        return "?" if len(seeds) == 1 else said(1)

    lm = ScriptedLM.from_function(reply)
    list(story(lm, tmp_path, Options(steps=1, sentences=4, seed=7)))
    assert seeds[:2] == [1008, 1009]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_model_writes_a_story(smollm2: Path, minilm: Path, tmp_path: Path) -> None:
    from keifu import load as open_model

    lm, embedder = open_model("smollm2-135m", threads=2), open_model("minilm-l6-v2", threads=1)
    how = Options(steps=3, sentences=1, attempts=20, seed=1, repetition_penalty=1.1)
    around = Surroundings(folder=tmp_path, embedder=Embedder("minilm-l6-v2", embedder.embed))
    try:
        events = list(RecurrentGPT(lm, how, around).run("a lighthouse keeper who finds a map"))
    finally:
        lm.close()
        embedder.close()
    made = [e.text for e in events if isinstance(e, Made)]
    assert len(made) == 3
    assert (tmp_path / "story.md").read_text() == "\n\n".join(made) + "\n"
    assert [e.texts for e in events if isinstance(e, Recalled)] == [(), (made[0],)]

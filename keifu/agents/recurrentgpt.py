"""RecurrentGPT: an LSTM in natural language that writes a story without end (arXiv 2305.13304).

Section 2: at step t the model reads the last paragraph, a short-term memory (a summary in the
prompt), a plan, and the paragraphs of the long-term memory (on disk) that are nearest to the plan;
it writes the next paragraph, the updated summary and three plans, of which a person or the model
picks one. A paragraph enters the long-term memory when it is no longer the last.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from filelock import FileLock, Timeout

from keifu.agents._agent import Agent, Surroundings
from keifu.agents._story import (
    PLANS,
    SCHEMA,
    STATE,
    State,
    Unusable,
    load,
    parts,
    picked_plan,
    uncut,
)
from keifu.agents._trace import Began, Chose, Ended, Event, Made, Recalled, Refused, Said
from keifu.core.atomic import written
from keifu.core.errors import ContextLengthError, KeifuError
from keifu.inference.request import Message
from keifu.lm.base import LM
from keifu.prompting.quoted import quoted
from keifu.retrieval.memory import Memory

T = TypeVar("T")

STORY, MEMORY = "story.md", "memory.sqlite"

BEGIN = "Begin the story: there is nothing before it yet."
TASK = (
    "You write a story, paragraph by paragraph, without hurry: it may become a long one. Write "
    "what is asked for below, each part after its name and a colon, and nothing else.\n\n{forms}"
)
FORMS = {
    "paragraph": "Paragraph: the next paragraph of the story, about {sentences} sentences. It "
    "follows the plan and agrees with what is told above.",
    "summary": "Changes: which sentences of the summary no longer matter, what has to be added, "
    "and why.\nSummary: the summary so changed, the key facts of all that was written, at most "
    "{sentences} sentences.",
    "plans": "\n".join(
        f"Plan {n}: a{'nother' if n > 1 else ''} way to go on after that, interesting to read, in "
        "a few sentences."
        for n in (1, 2, 3)
    ),
}
"""The parts of an answer, in their order, and how they are asked for together."""
ALONE = {
    "paragraph": "Write the next paragraph of the story, about {sentences} sentences, and nothing "
    "else.",
    "summary": "Sum up the story with its new paragraph: the key facts, at most {sentences} "
    "sentences, and nothing else.",
    "plans": "What happens next in the story? Give one idea, in a sentence or two, and nothing "
    "else.",
}
"""How a part is asked for that an answer lacked."""
PICK = """These are plans for the next paragraph of the story. Which one is the most interesting \
and suits the story best? Answer with its number alone."""
AGAIN = "Your last answer could not be used: {why}."


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the story is written."""

    steps: int = 5
    """Paragraphs that the story is to have"""
    recall: int = 2
    """Most earlier paragraphs that are recalled for a plan"""
    sentences: int = 20
    """Sentences of a paragraph, and of the summary"""
    attempts: int = 6
    """Times that the model is asked until its answer has all its parts"""
    temperature: float = 0.5
    """How freely words are chosen"""
    repetition_penalty: float | None = None
    """Holds a small model back from saying the same again: 1.1, say"""
    seed: int | None = None
    """Makes a run repeatable"""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name, most in (("steps", 10_000), ("sentences", 100), ("attempts", 20)):
            if not 1 <= getattr(self, name) <= most:
                raise KeifuError(f"{name} {getattr(self, name)}: from 1 to {most}")
        if not 0 <= self.recall <= 50:
            raise KeifuError(f"recall {self.recall}: from 0 to 50")


class RecurrentGPT(Agent):
    """Writes a story step by step; after each, the state is safe in `folder`."""

    options = Options

    def __init__(self, lm: LM, options: Options, around: Surroundings) -> None:
        super().__init__(lm, options, around)
        self.how = options

    def run(self, goal: str) -> Iterator[Event]:
        """Write until the story has its paragraphs, going on with the one in the folder if any."""
        folder = self.around.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock")
            lock.acquire(timeout=0)
        except Timeout:
            raise KeifuError(f"another process is writing in {folder}") from None
        except OSError as refused:
            raise KeifuError(f"cannot write in {folder}: {refused.strerror}") from None
        try:
            with Memory(folder / MEMORY, self.around.embedder) as memory:
                yield from self._run(goal.strip(), memory)
        finally:
            lock.release()

    def _run(self, goal: str, memory: Memory) -> Iterator[Event]:
        state = load(self.around.folder, goal)
        # What a killed step had kept already is not yet of the past.
        late = [one.id for one in memory.all() if int(one.key or 0) >= max(1, state.step)]
        memory.forget(*late)
        yield Began(goal=state.goal, done=state.step, steps=self.how.steps)
        while state.step < self.how.steps:
            number = state.step + 1
            plan = ""
            if state.plans:
                plan = yield from self._pick(state, number)
            related: list[str] = []
            if plan and self.how.recall:
                related = [one.text for one in memory.search(plan, self.how.recall)]
                yield Recalled(step=number, query=plan, texts=tuple(related))
            new = yield from self._write(state, plan, related, number)
            if state.step:
                memory.add(state.paragraph, key=str(state.step))
            state = new
            self._save(state, memory)
            yield Made(step=number, name="paragraph", text=state.paragraph)
        yield Ended(steps=state.step)

    def _pick(self, state: State, number: int) -> Generator[Event, None, str]:
        """The plan to follow, chosen by the person or by the model."""
        if self.around.choose:
            said = self.around.choose(state.plans)
            chosen = said if isinstance(said, str) else state.plans[said]
        else:
            plans = [f"{place}. {plan}" for place, plan in enumerate(state.plans, 1)]
            blocks = [
                quoted("summary", state.summary),
                quoted("paragraph", state.paragraph),
                quoted("plans", "\n".join(plans)),
                PICK,
            ]
            text = "\n\n".join(blocks)
            picked = yield from self._ask("pick", lambda: (text, 16), picked_plan, number)
            chosen = state.plans[picked]
        by: Literal["model", "person"] = "person" if self.around.choose else "model"
        yield Chose(step=number, options=state.plans, chosen=chosen, by=by)
        return chosen

    def _write(
        self, state: State, plan: str, related: Sequence[str], number: int
    ) -> Generator[Event, None, State]:
        """One step of the recurrence: asked until all its parts are there, and for those alone."""
        most = min(self.lm.context // 2, 320 + 80 * self.how.sentences)
        kept, found, wanted = list(related), dict[str, Any](), list(FORMS)
        plans: list[str] = []

        def prompt() -> tuple[str, int]:
            text = self._prompt(state, plan, kept, {**found, "idea": plans}, wanted)
            return text, most if len(wanted) > 1 else most // 2

        def read(text: str) -> dict[str, Any]:
            nonlocal wanted
            found.update(parts(text, wanted))
            plans.extend(p for p in found.pop("plans", ()) if p not in plans)
            if len(plans) >= PLANS:
                found["plans"] = tuple(plans[:PLANS])
            lacking = [name for name in FORMS if name not in found]
            wanted = lacking[:1]  # what is asked for together and not given is asked for alone
            if lacking:
                raise Unusable(f"the {' and the '.join(lacking)} could not be found")
            return found

        while kept and self._count(prompt()[0]) > self.lm.context - most:
            kept.pop()  # the least near gives way
        yield from self._ask("write", prompt, read, number)
        return dataclasses.replace(state, step=number, **found)

    def _prompt(
        self,
        state: State,
        plan: str,
        related: Sequence[str],
        found: Mapping[str, Any],
        wanted: Sequence[str],
    ) -> str:
        """What is known, what of the answer is there already, and what is asked for."""
        whole = TASK.format(forms="\n".join(FORMS.values()))
        task = ALONE[wanted[0]] if len(wanted) == 1 else whole
        task = task.format(sentences=self.how.sentences)
        blocks = [quoted("subject", state.goal)]
        if state.step:
            blocks += [quoted("related-paragraph", text) for text in related]
            blocks += [
                quoted("summary", state.summary),
                quoted("paragraph", state.paragraph),
                quoted("plan", plan),
            ]
        else:
            blocks.append(BEGIN)
        blocks += [quoted(f"new-{name}", found[name]) for name in FORMS if name in found]
        if wanted == ["plans"]:
            blocks += [quoted("other-idea", idea) for idea in found["idea"]]
        return "\n\n".join([*blocks, task])

    def _ask(
        self,
        purpose: str,
        prompt: Callable[[], tuple[str, int]],
        read: Callable[[str], T],
        number: int,
    ) -> Generator[Event, None, T]:
        """Ask until the answer can be read; `prompt` is the text and the most tokens of it."""
        why, before = "", ""
        for attempt in range(1, self.how.attempts + 1):
            text, most = prompt()
            if text == before:  # a part more is a new question; the same one says what was wrong
                text += f"\n\n{AGAIN.format(why=why)}"
            else:
                before = text
            if (tokens := self._count(text)) + most > self.lm.context:
                raise ContextLengthError(tokens, self.lm.context, most)
            options: dict[str, Any] = {"max_tokens": most, "temperature": self.how.temperature}
            if self.how.repetition_penalty is not None:
                options["repetition_penalty"] = self.how.repetition_penalty
            if self.how.seed is not None:
                options["seed"] = self.how.seed + 1000 * number + attempt
            done = self.lm.chat(_message(text), **options)
            yield Said(step=number, purpose=purpose, text=done.text, usage=done.usage)
            try:
                return read(uncut(done.text) if done.finish == "length" else done.text)
            except Unusable as wrong:
                why = str(wrong)
            yield Refused(step=number, purpose=purpose, attempt=attempt, why=why)
        raise KeifuError(
            f"step {number}: {why} in {self.how.attempts} answers ({purpose}); "
            f"{number - 1} paragraphs are safe in {self.around.folder}: run it again, with another "
            "--seed or a larger model"
        )

    def _count(self, prompt: str) -> int:
        return self.lm.count_tokens(_message(prompt))

    def _save(self, state: State, memory: Memory) -> None:
        """The state first: the story can be told again from it and the memory."""
        whole = {"schema_version": SCHEMA, **dataclasses.asdict(state)}
        with written(self.around.folder / STATE) as file:
            file.write(json.dumps(whole, ensure_ascii=False, indent=1).encode())
        told = [one.text for one in memory.all()] + [state.paragraph]
        with written(self.around.folder / STORY) as file:
            file.write(("\n\n".join(told) + "\n").encode())


def _message(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


agent = RecurrentGPT

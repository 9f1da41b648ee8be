"""A needle in a haystack: is one sentence found, wherever it stands in however long a text?

Kamradt 2023 (github.com/gkamradt/LLMTest_NeedleInAHaystack), with RULER's magic numbers (Hsieh et
al. 2024, arXiv 2404.06654, section 3). Besides what the model says, `preferred` asks whether the
answer is likelier to it than other numbers of the same form, which shows what a small model has
seen before it can say it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.data.symbolic import Needle as Task
from keifu.evaluation.findings import Column, Heat, Row, finite
from keifu.evaluation.hay import digest, fitted, hay, hidden
from keifu.evaluation.memory import Symbols, trained_on
from keifu.evaluation.probe import Probe, Subject, Trial, check_list
from keifu.inference.request import Message

ASK = "Read the text. Then answer the question about it in a few words."
CITIES = "Oslo Lima Quito Cairo Hanoi Riga Accra Perth Turin Kyoto Bergen Porto Dakar Sofia".split()
LENGTHS = (512, 1024, 2048)
OTHERS = 3
"""Wrong numbers that the right one is weighed against."""


@dataclass(frozen=True)
class Pin:
    """What is hidden, what is asked, and the answers that are weighed."""

    needle: str
    question: str
    answer: str
    others: tuple[str, ...]
    """Wrong answers of the same form."""

    @property
    def lead(self) -> str:
        """How an answer begins that repeats the needle; nothing where the needle lacks it."""
        return self.needle.partition(self.answer)[0].rstrip() if self.answer in self.needle else ""


@dataclass(frozen=True, kw_only=True)
class Needle(Probe):
    """Is one sentence found, wherever it stands in however long a text?

    A sentence is hidden in real text at each depth (0%: at its start) of a prompt of each length,
    counted in the model's own tokens, chat template included. `found` is the share of answers
    that hold the right one, `exact` of those that say nothing else, `preferred` how often the
    model thinks the right number likelier than wrong ones, and `margin` by how much (nats).
    """

    lengths: tuple[int, ...] = field(default=(), metadata={"commas": True})
    """Tokens of the prompt, with commas (default: 512,1024,2048; of symbols as many as it was
    trained on, 2 and 4 times that)"""
    depths: tuple[float, ...] = field(default=(0, 25, 50, 75, 100), metadata={"commas": True})
    """Where the needle stands, in per cent of the text, with commas"""
    samples: int | None = None
    """Needles a length and depth (default: 1; of symbols 256)"""
    needle: str = ""
    """Hide this sentence (default: a magic number of a city, another each time)"""
    question: str = ""
    """Ask this about it"""
    answer: str = ""
    """What must come back"""
    against: tuple[str, ...] = ()
    """A wrong answer to weigh the right one against; may be given several times"""
    hay: Path | None = None
    """A text file to hide it in (default: Python's language reference)"""
    score: bool = True
    """Also weigh answers by their probability, where the model shows it"""
    max_tokens: int = 24
    """Most tokens of an answer"""
    parallel: int = 4
    """Prompts under way at once"""
    seed: int = 0
    """Of the needles"""

    title = "Needle in a haystack: is it found?"
    axes = (Column("length", "count"), Column("depth", "percent"))
    measures = (
        Column("tokens", "count", "tokens of the prompt, as the model counts them"),
        Column("found", "share", "answers that hold the right one"),
        Column("exact", "share", "answers that are the right one alone"),
        Column("preferred", "share", "times that the right one is likelier than wrong ones"),
        Column("margin", "nats", "log-probability over that of the best wrong one"),
    )
    picture = Heat("length", "depth", "found")
    grid = frozenset({"lengths", "depths", "samples"})
    examples = (
        "needle                                      the default model",
        "needle --lengths 1024,4096 --depths 0,50,100 --plot needle.png",
        "needle openai:gpt-4o-mini --lengths 8000 --out runs/needle",
        'needle --needle "Ada keeps a blue owl." --question "What owl has Ada?" --answer blue',
    )

    def __post_init__(self) -> None:
        if self.lengths:
            check_list("lengths", self.lengths, 16, 1 << 24)
        check_list("depths", self.depths, 0, 100)
        check_list("samples", (1 if self.samples is None else self.samples,), 1, 100_000)
        check_list("max-tokens", (self.max_tokens,), 1, 4096)
        check_list("parallel", (self.parallel,), 1, 256)
        own = (self.needle, self.question, self.answer)
        if any(own) != all(own):
            raise KeifuError("--needle, --question and --answer go together: give all three")
        if self.against and not self.needle:
            raise KeifuError("--against weighs answers to a --needle of your own")
        if self.answer in self.against:
            raise KeifuError(f"--against {self.answer} is the right answer")

    def pin(self, place: object, text: str) -> Pin:
        """The needle of a cell, none of whose answers stands in the text."""
        if self.needle:
            return Pin(self.needle, self.question, self.answer, self.against)
        drawn = random.Random(f"{self.seed} {place}")
        numbers: list[str] = []
        while len(numbers) <= OTHERS:
            number = str(drawn.randrange(10_000, 100_000))
            if number not in text and number not in numbers:
                numbers.append(number)
        city = drawn.choice(CITIES)
        return Pin(
            f"The magic number of {city} is {numbers[0]}.",
            f"What is the magic number of {city}?",
            numbers[0],
            tuple(numbers[1:]),
        )

    def begin(self, subject: Subject) -> Trial:
        """The hay read, every length known to fit; in symbols if it was trained on them."""
        if (task := trained_on(subject, Task)) is not None:
            room = subject.lm.context
            fit = [n * task.length for n in (1, 2, 4) if n * task.length <= room]
            variants = [
                {"length": length, "depth": round(depth)}
                for length in self.lengths or fit
                for depth in self.depths
            ]
            rows = self.samples or 256
            return Symbols(subject, task, variants, measure="found", rows=rows, seed=self.seed)
        return self._in_text(subject)

    def _in_text(self, subject: Subject) -> Search:
        text, lm = hay(self.hay), subject.lm
        if self.answer and self.answer in text:
            raise KeifuError(f"the hay holds the answer {self.answer!r} itself: give another")
        lengths = self.lengths or LENGTHS
        for length in lengths:
            if lm.context and length + self.max_tokens > lm.context:
                raise KeifuError(
                    f"--lengths {length} with {self.max_tokens} tokens of answer is more than the "
                    f"{lm.context} tokens that {subject.name} holds"
                )
        return Search(self, subject, text, lengths)


class Search:
    """One model looking for needles."""

    def __init__(self, probe: Needle, subject: Subject, text: str, lengths: Sequence[int]) -> None:
        self.probe, self.lm, self.text = probe, subject.lm, text
        self.notes: list[str] = []
        self.settings: Row = {"hay": digest(text)}
        self._scores = probe.score
        self.cells: Sequence[Row] = [
            {"length": length, "depth": depth, "sample": sample}
            for length in lengths
            for depth in probe.depths
            for sample in range(probe.samples or 1)
        ]

    async def look(self, cell: Row) -> Row:
        """Ask once; weigh the answers."""
        length, depth = cell["length"], cell["depth"]
        assert isinstance(length, int)
        assert isinstance(depth, int | float)
        pin = self.probe.pin((length, float(depth), cell["sample"]), self.text)
        prompt = await asyncio.to_thread(self._prompt, length, depth, pin)
        options = {"max_tokens": self.probe.max_tokens, "temperature": 0}
        if self.lm.has_template:
            done = await self.lm.achat(self._messages(prompt), **options)
        else:
            done = await self.lm.acomplete(prompt, **options)
        said = done.text.strip().strip("\"'.!*").strip()
        tokens = await asyncio.to_thread(self._count, prompt)
        found: Row = {"tokens": tokens, "found": pin.answer in said, "exact": said == pin.answer}
        return {**found, **await self._weighed(prompt, pin)}

    def close(self) -> None:
        """Nothing is held."""

    def _messages(self, prompt: str) -> list[Message]:
        return [{"role": "user", "content": prompt}]

    def _count(self, prompt: str) -> int:
        return self.lm.count_tokens(self._messages(prompt) if self.lm.has_template else prompt)

    def _prompt(self, length: int, depth: float, pin: Pin) -> str:
        """The prompt of exactly this length."""
        end = "" if self.lm.has_template else "\nAnswer:"

        def make(size: int) -> str:
            text = hidden(self.text, size, depth, pin.needle)
            return f"{ASK}\n\n{text}\n\nQuestion: {pin.question}{end}"

        return fitted(make, self._count, length, len(self.text))

    async def _weighed(self, prompt: str, pin: Pin) -> Row:
        """How much likelier the right answer is than the best wrong one."""
        if not self._scores or not pin.others:
            return {"preferred": None, "margin": None}
        try:
            likely = [await self._likely(prompt, pin, a) for a in (pin.answer, *pin.others)]
        except ContextLengthError:
            raise
        except KeifuError as cannot:
            self._scores = False
            self.notes.append(f"answers are not weighed: {cannot}")
            return {"preferred": None, "margin": None}
        right, *wrong = (finite(value, "an answer's log-probability") for value in likely)
        return {"preferred": right > max(wrong), "margin": right - max(wrong)}

    async def _likely(self, prompt: str, pin: Pin, answer: str) -> float:
        """Log-probability of an answer that repeats the needle."""
        if not self.lm.has_template:
            scored = await self.lm.ascore(f"{prompt} {pin.lead}".rstrip(), f" {answer}")
        else:
            messages = self._messages(prompt)
            if pin.lead:
                messages.append({"role": "assistant", "content": pin.lead})
            before = await asyncio.to_thread(
                self.lm.encode, messages, **({"continue_final": True} if pin.lead else {})
            )
            space = " " if pin.lead else ""
            after = self.lm.encode(f"{space}{answer}", special=False)
            scored = await self.lm.ascore(before, after)
        return scored.total


probe = Needle

"""Closed models: what is published about each, who serves it, and until when.

Every number here is a citation of its source, never a measurement of ours. No size is given for
a model whose size was never published. `load(card.name)` gives a client with the card's limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from keifu.core.errors import unknown

Kind = Literal["remote", "retired"]

KEY_VARIABLES: dict[str, tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
}
"""Environment variables that hold each vendor's key, first one first."""


@dataclass(frozen=True)
class Citation:
    """Something that somebody else published."""

    claim: str
    value: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """One closed system."""

    name: str
    title: str
    year: int
    kind: Kind
    """remote: its own weights answer, while they are served; retired: an heir answers."""
    protocol: str
    model: str
    """The id that is sent."""
    context: int = 0
    """Tokens of prompt and output together; 0 where it is the heir's affair."""
    max_output: int | None = None
    inputs: tuple[str, ...] = ("text",)
    shut_down: str = ""
    """The day (ISO) from which the vendor no longer serves it; "" if none is announced."""
    heir: str = ""
    """The model id to move to."""
    lineage: tuple[str, ...] = ()
    """Catalog ids that it descends from, as its vendor tells it."""
    aliases: tuple[str, ...] = ()
    facts: tuple[Citation, ...] = ()

    @property
    def key_variable(self) -> str:
        """The environment variable of the key."""
        return KEY_VARIABLES[self.protocol][0]

    @property
    def farewell(self) -> str:
        """What to do when the vendor no longer knows the model; "" if it has no end."""
        if not self.shut_down or self.kind == "retired":
            return ""
        return f"its vendor ends it on {self.shut_down}: load '{self.protocol}:{self.heir}' instead"


_GPT4 = "GPT-4 Technical Report, arXiv:2303.08774"
_OPENAI_ENDS = "OpenAI, Deprecations, developers.openai.com/api/docs/deprecations"
_ANTHROPIC_ENDS = "anthropic 2.12 (Python), DEPRECATED_MODELS"
_GEMINI_ENDS = "Google Cloud, Model versions and lifecycle (gemini-1.5-pro-002)"

CARDS: tuple[Card, ...] = (
    Card(
        name="gpt-4",
        title="GPT-4",
        year=2023,
        kind="remote",
        protocol="openai",
        model="gpt-4",
        context=8192,
        max_output=8192,
        shut_down="2026-10-23",
        heir="gpt-5.6-sol",
        facts=(
            Citation("simulated bar exam", "around the top 10%", f"{_GPT4}, abstract"),
            Citation("MMLU, 5-shot", "86.4", f"{_GPT4}, table 2"),
            Citation("ARC challenge, 25-shot", "96.3", f"{_GPT4}, table 2"),
            Citation("HumanEval, 0-shot", "67.0", f"{_GPT4}, table 2"),
            Citation("end of service", "2026-10-23", _OPENAI_ENDS),
        ),
    ),
    Card(
        name="gpt-4v",
        title="GPT-4 with vision",
        year=2023,
        kind="remote",
        protocol="openai",
        model="gpt-4-vision-preview",
        context=128_000,
        max_output=4096,
        inputs=("text", "image"),
        shut_down="2024-12-06",
        heir="gpt-5.6-sol",
        lineage=("gpt-4",),
        facts=(Citation("end of service", "2024-12-06", _OPENAI_ENDS),),
    ),
    Card(
        name="gpt-4o",
        title="GPT-4o",
        year=2024,
        kind="remote",
        protocol="openai",
        model="gpt-4o",
        context=128_000,
        max_output=16_384,
        inputs=("text", "image", "audio"),
        shut_down="2027-01-14",
        heir="gpt-6-luna",
        lineage=("gpt-4",),
        facts=(
            Citation(
                "audio response time",
                "232 ms at best, 320 ms on average",
                "GPT-4o System Card, arXiv:2410.21276, abstract",
            ),
            Citation("end of service", "2027-01-14", _OPENAI_ENDS),
        ),
    ),
    Card(
        name="gpt-3.5",
        title="GPT-3.5 Turbo",
        year=2023,
        kind="remote",
        protocol="openai",
        model="gpt-3.5-turbo",
        context=16_385,
        max_output=4096,
        shut_down="2026-10-23",
        heir="gpt-5.6-terra",
        lineage=("gpt-3",),
        aliases=("gpt-3.5-turbo",),
        facts=(
            Citation("MMLU, 5-shot", "70.0", f"{_GPT4}, table 2"),
            Citation("end of service", "2026-10-23", _OPENAI_ENDS),
        ),
    ),
    Card(
        name="chatgpt",
        title="ChatGPT (first release)",
        year=2022,
        kind="remote",
        protocol="openai",
        model="gpt-3.5-turbo-0301",
        context=4096,
        shut_down="2024-09-13",
        heir="gpt-5.6-terra",
        lineage=("gpt-3", "instructgpt"),
        facts=(
            Citation(
                "training",
                "reinforcement learning from human feedback, the methods of InstructGPT",
                "OpenAI, Introducing ChatGPT, 2022-11-30",
            ),
            Citation("end of service", "2024-09-13", _OPENAI_ENDS),
        ),
    ),
    Card(
        name="claude-100k",
        title="Claude with a context of 100k tokens",
        year=2023,
        kind="remote",
        protocol="anthropic",
        model="claude-1.3-100k",
        context=100_000,
        max_output=4096,
        shut_down="2024-11-06",
        heir="claude-sonnet-5-5",
        facts=(
            Citation(
                "context", "from 9k to 100k tokens", "Anthropic, 100K Context Windows, 2023-05-11"
            ),
            Citation("end of service", "2024-11-06", _ANTHROPIC_ENDS),
        ),
    ),
    Card(
        name="claude-2",
        title="Claude 2",
        year=2023,
        kind="remote",
        protocol="anthropic",
        model="claude-2.0",
        context=100_000,
        max_output=4096,
        shut_down="2025-07-21",
        heir="claude-sonnet-5-5",
        lineage=("claude-100k",),
        facts=(Citation("end of service", "2025-07-21", _ANTHROPIC_ENDS),),
    ),
    Card(
        name="gemini-1.5",
        title="Gemini 1.5 Pro",
        year=2024,
        kind="remote",
        protocol="gemini",
        model="gemini-1.5-pro",
        context=1_048_576,
        max_output=8192,
        inputs=("text", "image", "audio", "video"),
        shut_down="2025-09-24",
        heir="gemini-3.5-flash",
        facts=(
            Citation(
                "retrieval from long contexts",
                "over 99% up to at least 10M tokens",
                "Gemini 1.5, arXiv:2403.05530, abstract",
            ),
            Citation("end of service", "2025-09-24", _GEMINI_ENDS),
        ),
    ),
    Card(
        name="bard",
        title="Bard",
        year=2023,
        kind="retired",
        protocol="gemini",
        model="gemini-3.5-flash",
        shut_down="2024-02-08",
        heir="gemini-3.5-flash",
        lineage=("lamda", "palm-2"),
        facts=(
            Citation(
                "first model", "a lightweight LaMDA", "Google, An important next step, 2023-02-06"
            ),
            Citation("became Gemini", "2024-02-08", "Google, Bard becomes Gemini, 2024-02-08"),
        ),
    ),
    Card(
        name="palm-2",
        title="PaLM 2",
        year=2023,
        kind="retired",
        protocol="gemini",
        model="gemini-3.5-flash",
        heir="gemini-3.5-flash",
        lineage=("palm", "ul2"),
        facts=(
            Citation(
                "training objective",
                "a tuned mixture of different pre-training objectives",
                "PaLM 2 Technical Report, arXiv:2305.10403, section 1",
            ),
            Citation(
                "size",
                "unpublished; significantly smaller than the largest PaLM",
                "PaLM 2 Technical Report, arXiv:2305.10403, section 1",
            ),
        ),
    ),
)


def names() -> list[str]:
    """Every card's name and other names."""
    return [n for card in CARDS for n in (card.name, *card.aliases)]


def find(name: str) -> Card | None:
    """The card of this name, if there is one."""
    return next((c for c in CARDS if name == c.name or name in c.aliases), None)


def get(name: str) -> Card:
    """The card of this name; a miss names the nearest."""
    card = find(name)
    if card is None:
        raise unknown("closed model", name, names())
    return card


def of_model(protocol: str, model: str) -> Card | None:
    """The card of a vendor's model id; a retired card is not its heir's."""
    cards = (c for c in CARDS if c.kind == "remote" and c.protocol == protocol)
    return next((c for c in cards if c.model == model), None)

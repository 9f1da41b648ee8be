"""The one exception for what a user can mend, and the words that make it useful."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KeifuError(Exception):
    """Something the user can mend: one line that says what was wrong and what to do.

    Everything else that is raised is a bug. Subclasses exist only where a caller has to tell
    two faults apart (an HTTP status, a retry).
    """


class FormatError(KeifuError):
    """A file is damaged or hostile: names the file, the offset or field, and what was expected."""


class ConfigError(KeifuError):
    """A configuration has unknown, missing or contradictory fields: names all of them."""


class ContextLengthError(KeifuError):
    """A prompt (with the room it asks for) does not fit the model's context."""

    def __init__(
        self, prompt_tokens: int, context: int, requested: int = 0, *, at_least: bool = False
    ) -> None:
        """`at_least`: the prompt was not counted to its end; it has so many tokens or more."""
        self.prompt_tokens, self.context, self.requested = prompt_tokens, context, requested
        room = f" plus {requested} requested" if requested else ""
        count = f"at least {prompt_tokens}" if at_least else prompt_tokens
        super().__init__(
            f"the prompt has {count} tokens{room}, but the context holds {context}: "
            "shorten the prompt, ask for fewer tokens, or raise --ctx"
        )


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names closest to a misspelt one, best first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.4)


def unknown(kind: str, name: str, known: Iterable[str], remedy: str = "") -> KeifuError:
    """An error for a name that is not there: the nearest names, all of them if few, the remedy."""
    known = sorted(known)
    close = nearest(name, known)
    text = f"no {kind} {name!r}"
    if close:
        text += f"; nearest: {', '.join(close)}"
    if len(known) <= 12:
        text += f"; known: {', '.join(known) or 'none'}"
    if remedy:
        text += f"; {remedy}"
    return KeifuError(text)

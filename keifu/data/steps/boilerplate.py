"""Page furniture inside one document: navigation, notices, advertisements, lines said again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from keifu.core.errors import KeifuError
from keifu.data.document import Change, Document, Dropped
from keifu.data.step import DocumentStep

PHRASES: Mapping[str, str] = {
    "cookie": r"(accept|use[sd]?|using|manage|our) (all )?cookies|cookie (policy|settings|notice)",
    "privacy": r"privacy policy",
    "terms": r"terms (of (use|service)|and conditions|& conditions)",
    "rights": r"all rights reserved",
    "©": r"© ?\d{4}",
    "copyright": r"copyright (\(c\) ?)?\d{4}",
    "skip": r"skip to (main |the )?content",
    "sign": r"\b(sign|log) ?(in|up|out)\b.*\b(sign|log) ?(in|up|out)\b|sign up for (our|the|my) ",
    "account": r"create (an|your) account",
    "subscribe": r"subscribe (to|for) (our|the|my) (free )?(news|mailing|weekly|daily)",
    " on ": r"(share|follow us|find us|like us) on (facebook|twitter|linkedin|instagram|whatsapp)",
    " here ": r"(click|tap) here (to|for|now)",
    "more": r"(read|see|show) more\b.{0,20}$|continue reading$",
    "next ": r"^next (page|post|article)",
    "previous ": r"^previous (page|post|article)",
    "advertisement": r"^advertisement",
    "sponsored": r"^sponsored( content| post)?\b",
    " now": r"(buy|order) (it |yours )?now\b",
    "add to": r"add to (cart|basket|wishlist)",
    "shipping": r"free shipping",
    "%": r"\d+ ?% off\b",
    "offer": r"limited[- ]time offer",
    "script": r"(please )?(enable|turn on) java ?script",
    "back to": r"back to top",
    "leave a": r"leave a (comment|reply)$",
    "related": r"^related (posts|articles|stories)\b",
    "recommended": r"^recommended (posts|articles|stories)\b",
    "popular": r"^popular (posts|articles|stories)\b",
    "comment": r"^\d+ comments?$",
    "like": r"^\d+ likes?$",
    "share": r"^\d+ shares?$",
}
"""A word that is looked for first (in small letters) -> what a line with it must match."""
_PARTS = re.compile(r"\||»|›|•|·|::|→|\s/\s|\s>\s|\s-\s|\t| {3,}")
_LINK = re.compile(r"[^\W_][\w '’&/.-]{0,29}")
_PLAIN = re.compile(r"[.!?。！？;]")


@dataclass(frozen=True, kw_only=True)
class Boilerplate(DocumentStep):
    """Leaves out lines that are not part of the text; what it leaves is as it was."""

    phrases: tuple[str, ...] = ()
    """More patterns (regular expressions) of lines to leave out"""
    longest: int = 160
    """Lines of more characters are text, whatever they say"""
    most: float = 0.7
    """A document of whose characters a larger share goes is left out"""

    def start(self) -> Change:
        """The function that does it."""
        try:
            listed = [(word, re.compile(phrase, re.I)) for word, phrase in PHRASES.items()]
            listed += [("", re.compile(phrase, re.I)) for phrase in self.phrases]
        except re.error as broken:
            raise KeifuError(f"boilerplate: a phrase is no pattern: {broken}") from None

        def change(document: Document) -> Document | Dropped:
            seen: set[str] = set()
            kept: list[str] = []
            gone = size = 0
            small = document.text.lower()
            phrases = [(word, phrase) for word, phrase in listed if word in small]
            for line in document.text.split("\n"):
                core = line.strip()
                size += len(core)
                if core and len(core) <= self.longest and _furniture(core, phrases, seen):
                    gone += len(core)
                    continue
                kept.append(line)
            if not gone:
                return document
            if gone > self.most * size:
                return Dropped("mostly boilerplate", f"{gone / size:.0%} of its characters")
            text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")
            return replace(document, text=text)

        return change


def _furniture(line: str, phrases: Sequence[tuple[str, re.Pattern[str]]], seen: set[str]) -> bool:
    if phrases:
        small = line.lower()
        if any(word in small and phrase.search(line) for word, phrase in phrases):
            return True
    parts = [part.strip() for part in _PARTS.split(line)]
    if len(parts) >= 4 and all(map(_LINK.fullmatch, parts)):  # a row of links; no table, no code
        return 2 * sum(not part[0].islower() for part in parts) >= len(parts)
    if len(line) < 20 or not _PLAIN.search(line[-2:]):
        return False  # short lines and those without an end come again in code, verse and lists
    again = line in seen
    seen.add(line)
    return again


STEP = Boilerplate

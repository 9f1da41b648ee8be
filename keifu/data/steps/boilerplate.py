"""Page furniture inside one document: navigation, notices, advertisements, lines said again."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from keifu.core.errors import KeifuError
from keifu.data.document import Change, Document, Dropped
from keifu.data.step import DocumentStep

PHRASES = (
    r"(accept|use[sd]?|using|manage|our) (all )?cookies", r"cookie (policy|settings|notice)",
    r"privacy policy", r"terms (of (use|service)|and conditions|& conditions)",
    r"all rights reserved", r"(©|\(c\)|copyright) ?\d{4}", r"skip to (main |the )?content",
    r"(sign|log) ?(in|up|out)\b.*\b(sign|log) ?(in|up|out)", r"create (an|your) account",
    r"(subscribe|sign up) (to|for) (our|the|my) (free )?(news|mailing|weekly|daily)",
    r"(share|follow us|find us|like us) on (facebook|twitter|linkedin|instagram|whatsapp|x)\b",
    r"(click|tap) here (to|for|now)", r"read more\b.{0,20}$",
    r"^(next|previous) (page|post|article)",
    r"^advertisement", r"^sponsored( content| post)?\b", r"buy (it )?now\b",
    r"order (yours )?now\b",
    r"add to (cart|basket|wishlist)", r"free shipping", r"\d+ ?% off\b", r"limited[- ]time offer",
    r"(please )?(enable|turn on) java ?script", r"back to top", r"leave a (comment|reply)$",
    r"^(related|recommended|popular) (posts|articles|stories)\b",
    r"^\d+ (comments?|likes?|shares?)$",
)  # fmt: skip
_PARTS = re.compile(r"\s*(?:\||»|›|•|·|::|→|\s/\s|\s>\s|\s-\s|\t| {3,})\s*")
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
            furniture = re.compile("|".join(f"(?:{p})" for p in (*PHRASES, *self.phrases)), re.I)
        except re.error as broken:
            raise KeifuError(f"boilerplate: a phrase is no pattern: {broken}") from None

        def change(document: Document) -> Document | Dropped:
            seen: set[str] = set()
            kept: list[str] = []
            gone = size = 0
            for line in document.text.split("\n"):
                core = line.strip()
                size += len(core)
                if core and len(core) <= self.longest and _furniture(core, furniture, seen):
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


def _furniture(line: str, phrases: re.Pattern[str], seen: set[str]) -> bool:
    if phrases.search(line):
        return True
    parts = _PARTS.split(line)
    if len(parts) >= 4 and all(map(_LINK.fullmatch, parts)):  # a row of links; no table, no code
        return 2 * sum(not part[0].islower() for part in parts) >= len(parts)
    if len(line) < 20 or not _PLAIN.search(line[-2:]):
        return False  # short lines and those without an end come again in code, verse and lists
    again = line in seen
    seen.add(line)
    return again


STEP = Boilerplate

"""C4's rules: sentences alone, no code, no filler, no notices.

Raffel et al. 2020, arXiv 1910.10683, section 2.2. Its word list is the step `toxic`, its language
test the step `language`, its duplicates the steps `exact` and `lines`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from keifu.data.document import Change, Document, Dropped
from keifu.data.step import DocumentStep

_END = (".", "!", "?", '"', "”", "。", "！", "？", "」")
_NOTICES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)  # fmt: skip
_MARKS = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_SENTENCE = re.compile(r"[.!?]+[\"”)\]]*(?=\s|$)|[。！？]")


@dataclass(frozen=True, kw_only=True)
class C4(DocumentStep):
    """Keeps lines that are sentences, and documents that have some; the paper's defaults."""

    fewest_words: int = 5
    """Words of the shortest line that stays"""
    fewest_sentences: int = 3
    """Sentences of the shortest document that stays"""
    braces: bool = True
    """Whether a curly bracket, which prose hardly has, leaves the document out"""
    ends: bool = True
    """Whether lines without a mark at their end are left out"""

    def start(self) -> Change:
        """The function that does it."""

        def change(document: Document) -> Document | Dropped:
            small = document.text.lower()
            if "lorem ipsum" in small:
                return Dropped("lorem ipsum")
            if self.braces and "{" in small:
                return Dropped("a curly bracket")
            lines = [_MARKS.sub("", line).strip() for line in document.text.split("\n")]
            kept = [line for line in lines if self._stays(line)]
            text = "\n".join(kept)
            if len(_SENTENCE.findall(text)) < self.fewest_sentences:
                return Dropped("too few sentences")
            return document if text == document.text else replace(document, text=text)

        return change

    def _stays(self, line: str) -> bool:
        if (self.ends and not line.endswith(_END)) or line.endswith("..."):
            return False
        small = line.lower()
        if "javascript" in small or any(notice in small for notice in _NOTICES):
            return False
        return len(line.split()) >= self.fewest_words or not line.isascii()


STEP = C4

"""Unicode: one form of each character, no control or invisible signs, tidy white space."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Literal

from keifu.data.document import Change, Document, Dropped
from keifu.data.step import DocumentStep

_ENDS = re.compile(r"\r\n?|[\u0085\u2028\u2029\x0b\x0c]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_ENDING = re.compile(r"[\r\x0b\x0c]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_WIDE = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_EMPTY = re.compile(r"\n{3,}")


@dataclass(frozen=True, kw_only=True)
class Normalise(DocumentStep):
    """Text as a person would have typed it; the words stay as they are."""

    form: Literal["NFC", "NFKC"] = "NFC"
    """Unicode form: NFC joins marks to letters; NFKC also unfolds ligatures and wide letters"""

    def start(self) -> Change:
        """The function that does it."""

        def change(document: Document) -> Document | Dropped:
            text = document.text
            if text.isascii():
                if _ENDING.search(text):
                    text = _ENDS.sub("\n", text)
                text = _CONTROL.sub("", text)
            else:
                text = unicodedata.normalize(self.form, _ENDS.sub("\n", text))
                text = _WIDE.sub(" ", _INVISIBLE.sub("", text))
            text = "\n".join([line.rstrip() for line in text.split("\n")])
            text = _EMPTY.sub("\n\n", text).strip("\n")
            if not text.strip():
                return Dropped("empty")
            return document if text == document.text else replace(document, text=text)

        return change


STEP = Normalise

"""Language identification: the language and how sure it is, and which languages stay.

A naive Bayes model over byte n-grams (Lui and Baldwin 2012, langid.py), in the well-kept small
package `py3langid`, whose model comes with it: no network. It reads a few thousand characters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

from keifu.core.errors import KeifuError
from keifu.data.document import Change, Document, Dropped
from keifu.data.step import DocumentStep


@dataclass(frozen=True, kw_only=True)
class Language(DocumentStep):
    """Writes `language` and `language_score` (0 to 1) into a document's meta."""

    keep: tuple[str, ...] = ()
    """ISO 639-1 codes that stay (default: all)"""
    least: float = 0.65
    """Least certainty (CCNet's and RefinedWeb's 0.65)"""
    among: tuple[str, ...] = ()
    """Languages that can occur at all (default: all that the model knows)"""
    read: int = 2000
    """Characters that are looked at, half from the start and half from the middle"""

    def start(self) -> Change:
        """The function that does it, with the model."""
        if not find_spec("py3langid"):
            raise KeifuError("the step language needs py3langid: pip install 'keifu[data]'")
        from py3langid import langid

        model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
        unknown = {*self.keep, *self.among} - set(model.labels)
        if unknown:
            raise KeifuError(f"the step language knows no {', '.join(sorted(unknown))}")
        if self.among:
            model.set_languages(list(self.among))

        def change(document: Document) -> Document | Dropped:
            name, score = model.classify(_part(document.text, self.read))
            score = float(score)
            if score < self.least:
                return Dropped("language unclear", f"{name} {score:.2f}")
            if self.keep and name not in self.keep:
                return Dropped("other language", f"{name} {score:.2f}")
            found = {"language": name, "language_score": round(score, 4)}
            return replace(document, meta={**document.meta, **found})

        return change


def _part(text: str, size: int) -> str:
    if len(text) <= size:
        return text
    middle = len(text) // 2
    return text[: size // 2] + "\n" + text[middle : middle + size // 2]


STEP = Language

"""Text to ids, in which special tokens come only from whom we trust."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from keifu.core.errors import FormatError, KeifuError
from keifu.text.template import Segment


class Encoder:
    """Encodes with the control tokens under unguessable aliases, so that only we can write them.

    The model, normaliser and pre-tokeniser are the original's own objects. A control token in
    trusted text is replaced by its alias, an added token with the same matching rules, and the
    alias's id by the token's. If the model writes a control token from plain text all the same, it
    is rebuilt once with those vocabulary entries renamed.
    """

    def __init__(
        self,
        rust: tokenizers.Tokenizer,
        added: Mapping[int, tokenizers.AddedToken],
        control: frozenset[int],
    ) -> None:
        self._rust, self._control = rust, control
        self._never = control - self._unknown(rust.model)
        self._added = dict(sorted(added.items()))
        self._nonce = secrets.token_hex(8)
        contents: dict[int, str] = {i: str(rust.id_to_token(i)) for i in self._control}
        self._aliases = {text: f"\ue000{self._nonce}{i:x}\ue001" for i, text in contents.items()}
        longest = sorted(self._aliases, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        self._plain = self._wrap(rust.model)

    @staticmethod
    def _unknown(model: Any) -> frozenset[int]:
        """What the model writes for a character it cannot know: the one special id in its power."""
        try:
            return frozenset(token.id for token in model.tokenize("\U0010fffd"))
        except Exception as error:
            raise FormatError(f"the tokenizer's model: {error}") from None

    def _wrap(self, model: Any) -> tokenizers.Tokenizer:
        """A tokenizer over `model` with aliases for the control tokens; sets the id table."""
        plain = tokenizers.Tokenizer(model)
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(self._rust, part) is not None:
                setattr(plain, part, getattr(self._rust, part))
        named: list[tuple[int, tokenizers.AddedToken]] = []
        for i in sorted(self._control | set(self._added)):
            token = self._added.get(i)
            content = token.content if token else str(self._rust.id_to_token(i))
            alias = tokenizers.AddedToken(
                self._aliases.get(content, content) if i in self._control else content,
                special=False,
                normalized=bool(token and token.normalized and i not in self._control),
                lstrip=bool(token and token.lstrip),
                rstrip=bool(token and token.rstrip),
                single_word=bool(token and token.single_word),
            )
            named.append((i, alias))
        plain.add_tokens([alias for _, alias in named])
        ids = {int(plain.token_to_id(alias.content) or 0): i for i, alias in named}
        clash = [i for i in ids if ids[i] != i and model.id_to_token(i) is not None]
        if clash:
            raise FormatError(f"the tokenizer's vocabulary has holes below id {min(clash)}")
        self._ids = {alias: i for alias, i in ids.items() if alias != i}
        return plain

    def encode(self, segments: Sequence[Segment]) -> list[int]:
        """The ids of trusted and untrusted texts in a row."""
        text = "".join(
            self._pattern.sub(self._alias, s.text) if s.trusted else s.text for s in segments
        )
        ids: list[int] = self._safe(text).ids
        table = self._ids
        return [table.get(i, i) for i in ids] if table else ids

    def many(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many untrusted texts, each what `encode` gives; without offsets, so faster."""
        try:
            found: list[list[int]] = [
                e.ids for e in self._plain.encode_batch_fast(texts, add_special_tokens=False)
            ]
        except BaseException as error:
            # Which text it was, and what is to be said of it, is found out one by one.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            return [self.encode([Segment(text, trusted=False)]) for text in texts]
        for n, ids in enumerate(found):
            if not self._never.isdisjoint(ids):
                found[n] = self.encode([Segment(texts[n], trusted=False)])
            elif self._ids and not self._ids.keys().isdisjoint(ids):
                found[n] = [self._ids.get(i, i) for i in ids]
        return found

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of an untrusted text, and which characters each stands for, spaces aside."""
        encoding = self._safe(text)
        spans = [_trimmed(text, *span) for span in encoding.offsets]
        return [self._ids.get(i, i) for i in encoding.ids], spans

    def _safe(self, text: str) -> tokenizers.Encoding:
        """An encoding in which no untrusted control token is; the model is guarded if need be."""
        encoding = self._run(text)
        if not self._never.isdisjoint(encoding.ids):
            self._plain = self._wrap(self._guarded())
            encoding = self._run(text)
        return encoding

    def _alias(self, match: re.Match[str]) -> str:
        return self._aliases[match[0]]

    def _run(self, text: str) -> tokenizers.Encoding:
        try:
            return self._plain.encode(text, add_special_tokens=False)
        except TypeError:
            at = next((n for n, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
            if at is None:
                raise
            raise KeifuError(
                f"the text has half a character (a lone surrogate, U+{ord(text[at]):04X}) at "
                f"character {at}: send valid Unicode"
            ) from None
        except BaseException as error:
            # A pre-tokenizer's regex that runs out of its retry limit is a Rust panic.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise FormatError(f"the tokenizer's own rules failed on this text: {error}") from None

    def _guarded(self) -> Any:
        """The model again, with the control tokens' vocabulary entries renamed."""
        whole = json.loads(self._rust.to_str())
        model = whole["model"]
        never = {self._rust.id_to_token(i) for i in self._never}
        names = {text: alias for text, alias in self._aliases.items() if text in never}
        if isinstance(model["vocab"], list):
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        else:
            model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
        if model.get("merges"):
            pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
            model["merges"] = [[a, b] for a, b in pairs if not names.keys() & {a, b, a + b}]
        shell = {"version": "1.0", "added_tokens": [], "model": model}
        return tokenizers.Tokenizer.from_str(json.dumps(shell)).model


def _trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    """A span without the spaces at its ends."""
    while start < stop and text[start].isspace():
        start += 1
    while start < stop and text[stop - 1].isspace():
        stop -= 1
    return start, stop

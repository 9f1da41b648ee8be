"""The one tokenizer: text to ids and back, over the `tokenizers` library, safe by default.

Text that somebody typed never yields a special token: `<|im_start|>` in it is ten ordinary
characters, unless the caller says `special=True`. The library cannot do that for every model (a
Unigram vocabulary holds its own `</s>`), so the encoder used here is a second one over the same
model in which the control tokens exist only under names nobody can guess.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from keifu.core.errors import ContextLengthError, FormatError, KeifuError, unknown
from keifu.text.encoder import Encoder
from keifu.text.fewest import Fewest, fewest
from keifu.text.marks import ROLES, TURN_ENDS, Marks, is_control
from keifu.text.pairs import Encoded, Truncation, encode_pair
from keifu.text.pieces import Pieces, pieces_of
from keifu.text.template import ChatTemplate, Segment

_SHORT = 16
"""Characters a token below which a text is encoded rather than measured first."""


class Tokenizer:
    """A vocabulary with its rules; immutable but for caches, and safe to share between threads."""

    def __init__(
        self,
        rust: tokenizers.Tokenizer,
        marks: Marks | None = None,
        *,
        encoder: Encoder | None = None,
    ) -> None:
        """`encoder`: what cuts texts, where it is another than the model of `rust` (Marian)."""
        rust.no_truncation()
        rust.no_padding()
        self._rust, self.marks, self._given = rust, marks or Marks(), encoder
        state = rust.decoder.__getstate__() if rust.decoder is not None else None
        self.pieces: Pieces = pieces_of(state.decode() if state is not None else None)
        self._added: dict[int, tokenizers.AddedToken] = dict(rust.get_added_tokens_decoder())
        self._bytes: dict[int, bytes] = {}
        bad = [n for ids in self._named_ids() for n in ids if not 0 <= n < self.vocab_size]
        if bad:
            raise FormatError(f"special token ids {bad} are not in a vocabulary of {len(self)}")

    def _named_ids(self) -> tuple[Iterable[int], ...]:
        marks = self.marks
        return marks.named.values(), marks.ends, marks.prefix, marks.suffix

    def __len__(self) -> int:
        return self.vocab_size

    @cached_property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included (a model's table may be larger)."""
        return int(self._rust.get_vocab_size(with_added_tokens=True))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what makes ids of texts: equal ones give equal ids, marks round them aside."""
        bare = tokenizers.Tokenizer(self._rust.model)
        for part in ("normalizer", "pre_tokenizer"):
            if getattr(self._rust, part) is not None:
                setattr(bare, part, getattr(self._rust, part))
        added = {i: repr(token) for i, token in sorted(self._added.items())}
        said = f"{bare.to_str()}\n{added}"
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()

    def same_vocabulary(self, other: Tokenizer) -> bool:
        """Whether every id means the same token in both."""
        mine: dict[str, int] = self._rust.get_vocab(with_added_tokens=True)
        return bool(mine == other._rust.get_vocab(with_added_tokens=True))

    # --- ids by name

    @property
    def bos_id(self) -> int | None:
        """The token that begins a document."""
        return self.marks.named.get("bos")

    @property
    def eos_id(self) -> int | None:
        """The token that ends a document; see `eos_ids` for all that end an answer."""
        return self.marks.named.get("eos")

    @property
    def pad_id(self) -> int | None:
        """The token that fills a batch."""
        return self.marks.named.get("pad")

    @property
    def unk_id(self) -> int | None:
        """The token for what the vocabulary cannot write."""
        return self.marks.named.get("unk")

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that are not text: `decode` leaves them out."""
        special = {i for i, token in self._added.items() if token.special}
        return frozenset(special | set(self.marks.named.values()))

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids that text must not yield: the special ones, and those that only lack the label."""
        templates = tuple(self.marks.templates.values())
        found = {i for i, t in self._added.items() if is_control(t.content, t.special, templates)}
        return frozenset(found | self.special_ids)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends an answer: eos, the checkpoint's others, the well-known ones."""
        ends = {*self.marks.ends, *([] if self.eos_id is None else [self.eos_id])}
        names = TURN_ENDS
        if self._rust.token_to_id("<|return|>") is not None:  # there, <|end|> ends only a message
            names = names - {"<|end|>"}
        ends |= {i for i in self.control_ids if self.token(i) in names}
        return tuple(sorted(ends))

    def id(self, token: str) -> int:
        """The id of a token string; a miss is an error."""
        found = self._rust.token_to_id(token)
        if found is None:
            raise unknown("token", token, [t.content for t in self._added.values()])
        return int(found)

    def knows(self, token: str) -> bool:
        """Whether a token string is in the vocabulary."""
        return self._rust.token_to_id(token) is not None

    def token(self, token_id: int) -> str:
        """The token string of an id, as the vocabulary writes it."""
        found = self._rust.id_to_token(token_id) if token_id >= 0 else None
        if found is None:
            raise KeifuError(f"token id {token_id} is not in a vocabulary of {len(self)}")
        return str(found)

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that an id adds to a text; they need not be whole characters."""
        data = self._bytes.get(token_id)
        if data is None:
            piece = self.token(token_id)
            data = self.pieces.to_bytes(piece, added=token_id in self._added)
            self._bytes[token_id] = data
        return data

    # --- text to ids

    def encode(
        self,
        text: str,
        *,
        special: bool = False,
        add_bos: bool | None = None,
        add_eos: bool | None = None,
        most: int | None = None,
    ) -> list[int]:
        """A text's ids.

        most: refuse with ContextLengthError, before any work, what cannot have so few ids.
        special: whether special tokens written in the text are parsed; never for what a user typed.
        add_bos, add_eos: whether to put the begin and end tokens round it; None is what the
        checkpoint does by itself, and True takes `bos`/`eos` where it does nothing.
        """
        ids = self.encode_segments([Segment(text, trusted=special)], most=most)
        head = _around(add_bos, self.marks.prefix, self.bos_id, "bos")
        return [*head, *ids, *_around(add_eos, self.marks.suffix, self.eos_id, "eos")]

    def encode_segments(self, segments: Sequence[Segment], *, most: int | None = None) -> list[int]:
        """The ids of texts in a row, of which the trusted ones may hold special tokens.

        Ordinary text merges across the borders, as if the whole were one text. `most` as `encode`.
        """
        if most is not None and sum(len(s.text) for s in segments) > _SHORT * most:
            least = self.fewest("".join(s.text for s in segments))
            if least > most:
                raise ContextLengthError(least, most, at_least=True)
        return self._encoder.encode(segments)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, without marks; each as `encode` gives them, in less time."""
        return self._encoder.many(texts)

    def encode_pair(
        self,
        first: str,
        second: str | None = None,
        *,
        most: int | None = None,
        truncation: Truncation = "do_not_truncate",
    ) -> Encoded:
        """One text or two with what stands round them, as encoders read them.

        Args:
            most: tokens in all, the marks included; None: any number.
            truncation: what happens to more: "longest_first" takes tokens from the end of the
                longer text, "only_first" and "only_second" from that text, "do_not_truncate" is a
                ContextLengthError.
        """
        texts = [first] if second is None else [first, second]
        parts = [self._encoder.spans(text) for text in texts]
        return encode_pair(self.marks, parts, most=most, truncation=truncation)

    def fewest(self, text: str) -> int:
        """A number of tokens that no encoding of a text undercuts, told without encoding it."""
        return self._fewest.tokens(text) if self._fewest else 0

    @cached_property
    def _fewest(self) -> Fewest | None:
        return fewest(self._rust)

    @cached_property
    def _encoder(self) -> Encoder:
        return self._given or Encoder(self._rust, self._added, self.control_ids)

    # --- chat

    def template(self, name: str = "default") -> ChatTemplate:
        """One of the checkpoint's chat templates."""
        if not self.marks.templates:
            raise KeifuError(
                "this checkpoint has no chat template: choose one of keifu.text.chat_formats"
            )
        if name not in self.marks.templates:
            raise unknown("chat template", name, self.marks.templates)
        return self._template_of(self.marks.templates[name])

    def _template_of(self, source: str) -> ChatTemplate:
        if source not in self._templates:
            named = {f"{r}_token": self.token(self.marks.named[r]) for r in self.marks.named}
            self._templates[source] = ChatTemplate(
                source,
                special={k: v for k, v in named.items() if k[: -len("_token")] in ROLES},
                control=frozenset(map(self.token, self.control_ids)),
                hidden=frozenset(map(self.token, self.special_ids)),
            )
        return self._templates[source]

    @cached_property
    def _templates(self) -> dict[str, ChatTemplate]:
        return {}

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        most: int | None = None,
        **options: Any,
    ) -> list[int]:
        """The ids of a conversation, with only the template's own special tokens as such.

        `most` as in `encode`.
        """
        named = "tool_use" if tools and "tool_use" in self.marks.templates else "default"
        return self.encode_segments(
            self.template(named).render(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt and not continue_final,
                continue_final=continue_final,
                **options,
            ),
            most=most,
        )

    def with_template(self, source: str) -> Tokenizer:
        """The same tokenizer with another chat template."""
        marks = replace(self.marks, templates={"default": source})
        return Tokenizer(self._rust, marks, encoder=self._given)

    # --- ids to text

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of some ids, as if they began a document; bad UTF-8 becomes U+FFFD."""
        hidden = self.special_ids if skip_special else frozenset()
        parts = [self.token_bytes(i) for i in ids if i not in hidden]
        return self.pieces.join(parts).decode("utf-8", "replace")

    # --- making and keeping

    def extend(self, tokens: Iterable[str], *, special: bool = False) -> Tokenizer:
        """A copy with more tokens, whose ids follow the present ones; known tokens keep theirs."""
        rust = tokenizers.Tokenizer.from_str(self._rust.to_str())
        new = [tokenizers.AddedToken(t, special=special, normalized=False) for t in tokens]
        (rust.add_special_tokens if special else rust.add_tokens)(new)
        return Tokenizer(rust, self.marks)

    def save(self, folder: str | Path) -> None:
        """Write the files from which transformers (and `load`) make this tokenizer again."""
        from keifu.text.save import save

        save(self._rust, self.marks, self.token, Path(folder))

    def to_gguf(self, rows: int) -> dict[str, Any]:
        """The `tokenizer.*` keys of a GGUF file whose embedding has `rows` rows."""
        from keifu.text.to_gguf import to_gguf

        return to_gguf(self._rust, self.marks, rows)

    def bytes_per_token(self, texts: Mapping[str, str]) -> dict[str, float]:
        """How many UTF-8 bytes a token carries, by language (or whatever the keys are)."""
        return {
            name: len(text.encode()) / max(1, len(self.encode(text, add_bos=False, add_eos=False)))
            for name, text in texts.items()
        }


def _around(
    wanted: bool | None, own: tuple[int, ...], one: int | None, role: str
) -> tuple[int, ...]:
    """The ids to put at one end of a text."""
    if wanted is False:
        return ()
    if wanted is None or own:
        return own
    if one is None:
        raise KeifuError(f"this tokenizer has no {role} token: leave add_{role} out")
    return (one,)

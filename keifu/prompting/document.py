"""Questions about long documents: sent whole, read in parts, or through retrieval.

The token count decides. What fits with room for the answer is sent whole ("stuff"); else each part
is read and its notes are put together ("map-reduce"); beyond `most_calls` parts only the passages
nearest to the question are read ("retrieve").

    answer(lm, Path("book.txt").read_text(), "Who wrote the letter?").text
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from keifu.core.errors import ContextLengthError, KeifuError
from keifu.inference.request import Completion, Delta, Message, Usage
from keifu.inference.stream import collect
from keifu.lm.base import LM
from keifu.lm.pieces import pieces, take
from keifu.prompting.quoted import quoted, rule
from keifu.retrieval.lexical import Lexical
from keifu.retrieval.retriever import Retriever

Route = Literal["stuff", "map-reduce", "retrieve"]
Strategy = Literal["auto", "stuff", "map-reduce", "retrieve"]
Progress = Callable[[int, int], None]
"""Hears how many parts are read, of how many."""

ANSWER = "Answer the question from the {kind} alone. If the answer is not there, say so. {rule}"
READ = (
    "Note down what this part of a document says that helps to answer the question, with its names "
    "and figures. If nothing does, write only: NOTHING. {rule}"
)
MERGE = "Put these notes together into fewer words. Keep what helps to answer the question. {rule}"
NOTHING = "NOTHING"


@dataclass(frozen=True)
class Document:
    """A text and what it is called."""

    text: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a document is read."""

    strategy: Strategy = "auto"
    """`auto` chooses by the token count: whole, in parts, or through retrieval"""
    max_tokens: int | None = None
    """Most tokens of the answer (default: 512, at most a quarter of the context)"""
    note_tokens: int | None = None
    """Most tokens of the notes on one part (default: 256, at most an eighth of the context)"""
    most_calls: int = 32
    """Most parts that are read one by one; a longer document is searched"""
    at_once: int = 4
    """Parts that are read at the same time"""
    passage_tokens: int | None = None
    """Most tokens of a passage that can be found (default: 200, at most a sixth of the context)"""
    passages: int = 16
    """Most passages that are found and sent"""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.strategy not in get_args(Strategy):
            allowed = ", ".join(get_args(Strategy))
            raise KeifuError(f"strategy={self.strategy!r}: give one of {allowed}")
        for name in ("max_tokens", "note_tokens", "most_calls", "at_once", "passage_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise KeifuError(f"{name}={value}: give 1 or more")
        if self.passages < 1:
            raise KeifuError(f"passages={self.passages}: give 1 or more")


@dataclass(frozen=True)
class Plan:
    """What will be asked, known before anything is."""

    route: Route
    tokens: int
    """Tokens of the question with the documents whole."""
    room: int
    """Most tokens of a prompt, so that the answer has its own."""
    calls: int
    """Requests to the model, at least."""
    prompt_tokens: int
    """Tokens those requests read: at least (map-reduce), at most (retrieve)."""
    parts: tuple[str, ...] = ()
    """Map-reduce: what each request of the first round reads."""


@dataclass(frozen=True)
class Step:
    """One request that was made."""

    kind: Literal["read", "merge", "answer"]
    text: str
    usage: Usage


@dataclass(frozen=True)
class Found:
    """An answer, and how it was come by."""

    text: str
    plan: Plan
    steps: tuple[Step, ...]
    passages: tuple[str, ...] = ()
    """Retrieve: the passages that were sent, in the documents' order."""

    @property
    def usage(self) -> Usage:
        """What all requests cost together."""
        spent = [step.usage for step in self.steps]
        return Usage(sum(u.prompt_tokens for u in spent), sum(u.completion_tokens for u in spent))


class Reader:
    """One question about some documents, put to one model."""

    def __init__(
        self, lm: LM, documents: Iterable[Document], question: str, reading: Reading = Reading()
    ) -> None:
        self.lm, self.question, self.reading = lm, question.strip(), reading
        self.documents = [d for d in documents if d.text.strip()]
        if not self.documents:
            raise KeifuError("there is no text to read: the documents are empty")
        if not self.question:
            raise KeifuError("the question is empty")
        self.answer_tokens = reading.max_tokens or max(1, min(512, lm.context // 4))
        self.note_tokens = reading.note_tokens or max(1, min(256, lm.context // 8))
        self.passage_tokens = reading.passage_tokens or max(1, min(200, lm.context // 6))
        self.room = lm.context - self.answer_tokens
        self.steps: list[Step] = []

    def plan(self) -> Plan:
        """Choose the route; nothing is asked. Raises ContextLengthError where none is possible."""
        wish, limit = self.reading.strategy, self.reading.most_calls
        tokens = self._count(self._answer(self._whole()))
        if wish == "stuff" or (wish == "auto" and tokens <= self.room):
            if tokens > self.room:
                raise ContextLengthError(tokens, self.lm.context, self.answer_tokens)
            return Plan("stuff", tokens, self.room, 1, tokens)
        if wish != "retrieve":
            share = self._part_room() - self._count(self._read(""))
            # Parts that are certainly too many need not be cut out to be counted.
            if wish == "map-reduce" or share < 1 or tokens <= share * (limit + 1):
                parts = self._parts()
                if wish == "map-reduce" or len(parts) <= limit:
                    read = sum(self._count(self._read(part)) for part in parts)
                    return Plan("map-reduce", tokens, self.room, len(parts) + 1, read, tuple(parts))
        return Plan("retrieve", tokens, self.room, 1, self.room)

    async def answer(
        self,
        plan: Plan,
        *,
        retriever: Retriever | None = None,
        write: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> Found:
        """Carry the plan out; the answer's text goes to `write` as it comes."""
        self.steps, passages = [], list[str]()
        if plan.route == "stuff":
            messages = self._answer(self._whole())
        elif plan.route == "retrieve":
            passages = await asyncio.to_thread(self._search, retriever or Lexical())
            messages = self._answer(passages, "excerpts")
        else:
            notes = await self._notes([self._read(p) for p in plan.parts], "read", progress)
            while notes and self._count(self._answer(_numbered(notes), "notes")) > self.room:
                notes = await self._notes(self._groups(notes), "merge", None)
            if not notes:
                text = "Nothing in the document helps to answer this."
                if write:
                    write(text)
                return Found(text, plan, tuple(self.steps))
            messages = self._answer(_numbered(notes), "notes")
        done = await self._run(messages, self.answer_tokens, write)
        self.steps.append(Step("answer", done.text, done.usage))
        return Found(done.text, plan, tuple(self.steps), tuple(passages))

    async def _notes(
        self,
        prompts: list[list[Message]],
        kind: Literal["read", "merge"],
        progress: Progress | None,
    ) -> list[str]:
        """One note a prompt, in order, several at a time; those that found nothing are left out."""
        turn, done = asyncio.Semaphore(self.reading.at_once), 0

        async def one(messages: list[Message]) -> Completion:
            nonlocal done
            async with turn:
                found = await self._run(messages, self.note_tokens, None)
            done += 1
            if progress:
                progress(done, len(prompts))
            return found

        if progress:
            progress(0, len(prompts))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(messages)) for messages in prompts]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        found = [task.result() for task in tasks]
        self.steps += [Step(kind, one.text, one.usage) for one in found]
        texts = [one.text.strip() for one in found]
        return [text for text in texts if text.rstrip(".!").upper() not in ("", NOTHING)]

    async def _run(
        self, messages: list[Message], most: int, write: Callable[[str], None] | None
    ) -> Completion:
        """One request; given up if we are."""
        stream = self.lm.chat_stream(messages, max_tokens=most, temperature=0)
        deltas: list[Delta] = []
        try:
            async for delta in stream:
                deltas.append(delta)
                if write and delta.text:
                    write(delta.text)
        except BaseException:
            stream.cancel()
            raise
        return collect(deltas)

    def _groups(self, notes: Sequence[str]) -> list[list[Message]]:
        """Notes in groups that each fit one request."""
        groups: list[list[str]] = [[]]
        for note in notes:
            if groups[-1] and self._count(self._merge([*groups[-1], note])) > self._part_room():
                groups.append([])
            groups[-1].append(note)
        if len(groups) == len(notes):
            raise KeifuError(
                f"the notes on two parts do not fit {self.lm.context} tokens of context: "
                "allow fewer tokens a note, or raise --ctx"
            )
        return [self._merge(group) for group in groups]

    def _parts(self) -> list[str]:
        """What each request reads: documents whole where they can be, several if they are short."""
        found: list[list[str]] = [[]]

        def fits(text: str, before: Sequence[str] = ()) -> bool:
            return self._count(self._read("\n\n".join([*before, text]))) <= self._part_room()

        for document in self.documents:
            block = self._block(document.text, document)
            if found[-1] and fits(block, found[-1]):
                found[-1].append(block)
                continue
            rest = document.text
            while rest.strip():
                piece, rest = take(rest, lambda p, d=document: fits(self._block(p, d)))  # type: ignore[misc]
                found.append([self._block(piece, document)])
        return ["\n\n".join(part) for part in found if part]

    def _search(self, retriever: Retriever) -> list[str]:
        """The passages nearest to the question that fit together, in the documents' order."""
        most = self.passage_tokens
        passages = [
            (piece, document)
            for document in self.documents
            for piece in pieces(document.text, lambda p: self.lm.count_tokens(p) <= most)
        ]
        retriever.add([piece for piece, _ in passages])
        found = [hit.index for hit in retriever.search(self.question, self.reading.passages)]
        if not found:
            raise KeifuError(
                "no passage shares a word with the question: ask in the document's words, or give "
                "an embedder"
            )
        while found:
            blocks = [self._block(*passages[index], kind="excerpt") for index in sorted(found)]
            if self._count(self._answer(blocks, "excerpts")) <= self.room:
                return blocks
            found.pop()  # the last is the least near
        raise KeifuError(f"not one passage of {most} tokens fits: shorten them, or raise --ctx")

    def _whole(self) -> list[str]:
        return [self._block(document.text, document) for document in self.documents]

    @staticmethod
    def _block(text: str, document: Document, kind: str = "document") -> str:
        return quoted(kind, text, document.name)

    def _answer(self, blocks: Sequence[str], kind: str = "document") -> list[Message]:
        tag = {"document": "document", "excerpts": "excerpt", "notes": "note"}[kind]
        task = ANSWER.format(kind=kind, rule=rule(tag))
        return self._prompt("\n\n".join(blocks), task)

    def _read(self, part: str) -> list[Message]:
        return self._prompt(part, READ.format(rule=rule("document")))

    def _merge(self, notes: Sequence[str]) -> list[Message]:
        return self._prompt("\n\n".join(_numbered(notes)), MERGE.format(rule=rule("note")))

    def _prompt(self, data: str, task: str) -> list[Message]:
        return [{"role": "user", "content": f"{data}\n\n{task}\n\nQuestion: {self.question}"}]

    def _part_room(self) -> int:
        return self.lm.context - self.note_tokens

    def _count(self, messages: list[Message]) -> int:
        return self.lm.count_tokens(messages)


def answer(
    lm: LM,
    document: str | Document | Sequence[Document],
    question: str,
    reading: Reading = Reading(),
    *,
    retriever: Retriever | None = None,
) -> Found:
    """Answer a question about a document, on the route that its length asks for.

    `retriever` finds passages where the document has to be searched; by words (BM25) without one.
    Raises ContextLengthError if the whole is to be sent and does not fit; KeifuError.
    """
    if isinstance(document, str):
        document = Document(document)
    reader = Reader(
        lm, [document] if isinstance(document, Document) else document, question, reading
    )
    return asyncio.run(reader.answer(reader.plan(), retriever=retriever))


def _numbered(notes: Sequence[str]) -> list[str]:
    return [quoted("note", note) for note in notes]

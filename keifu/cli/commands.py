"""The /commands of a conversation: one table, each a few lines."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keifu.cli import conversation as store
from keifu.cli.render import note, safe
from keifu.cli.table import table
from keifu.core.errors import KeifuError, nearest, unknown
from keifu.inference.request import Sampling

if TYPE_CHECKING:
    from keifu.cli.session import Session
    from keifu.retrieval.memory import Memory


class Leave(Exception):
    """The user wants to go."""


@dataclass(frozen=True)
class Command:
    """One /command: what it takes, what it does."""

    takes: str
    help: str
    run: Callable[[Session, str], None]


def obey(session: Session, line: str) -> None:
    """Run one line that begins with a slash. Raises KeifuError for what is not known."""
    name, _, rest = line[1:].partition(" ")
    name = ALIASES.get(name.strip().lower(), name.strip().lower())
    if name not in COMMANDS:
        close = nearest(name, COMMANDS, 1)
        hint = f"did you mean /{close[0]}?" if close else "/help lists the commands"
        raise KeifuError(f"no command /{name}: {hint}")
    COMMANDS[name].run(session, rest.strip())


def _help(session: Session, rest: str) -> None:
    rows = [[f"/{name} {c.takes}".strip(), c.help] for name, c in COMMANDS.items()]
    note(table(["command", "what it does"], rows))
    note(
        "\n@file attaches a text file (@@ is a plain @). For a message of several lines:"
        '\nAlt-Enter, a backslash at the end of the line, or """ around the message.'
        "\nCtrl-C stops an answer; again, or Ctrl-D, leaves."
    )


def _leave(session: Session, rest: str) -> None:
    raise Leave


def _clear(session: Session, rest: str) -> None:
    old = session.conversation
    session.change(store.Conversation(model=old.model, system=old.system))
    note("a new conversation" + (", with the same system message" if old.system else ""))


def _system(session: Session, rest: str) -> None:
    if rest:
        session.conversation.system = None if rest == "-" else rest
    note(f"system: {safe(session.conversation.system or '(none)')}")


def _save(session: Session, rest: str) -> None:
    if rest:
        before = session.conversation.id
        session.conversation.id = rest
        try:
            path, _ = session.conversation.save()
        except KeifuError:
            session.conversation.id = before
            raise
    else:
        path, _ = session.conversation.save()
    session.keep = True
    note(f"saved to {path}")


def _load(session: Session, rest: str) -> None:
    session.change(store.load(rest or None))
    talk = session.conversation
    note(f"going on with {talk.id}: {len(talk.messages)} messages, {talk.title()!r}")


def _list(session: Session, rest: str) -> None:
    rows = [[r["id"], r["when"], str(r["messages"]), safe(r["title"])] for r in store.listing()]
    note(table(["id", "when", "messages", "title"], rows) if rows else "no saved conversations")


def _model(session: Session, rest: str) -> None:
    if rest:
        session.switch(rest)
    lm = session.dialogue().lm
    note(f"model: {lm.name}, context {lm.context}")


def _retry(session: Session, rest: str) -> None:
    question = session.conversation.undo()
    if question is None:
        raise KeifuError("there is nothing to retry yet")
    session.ask(question)


def _undo(session: Session, rest: str) -> None:
    question = session.conversation.undo()
    if question is None:
        raise KeifuError("there is nothing to undo")
    session.autosave()
    note(f"forgotten: {safe(' '.join(question.split()))[:70]!r} and its answer")


def _show(session: Session, rest: str) -> None:
    for message in session.conversation.prompt():
        note(f"[{message['role']}]\n{safe(message['content'])}\n")


def _tokens(session: Session, rest: str) -> None:
    dialogue = session.dialogue()
    used, context = dialogue.tokens(), dialogue.lm.context
    turns = len(session.conversation.messages)
    note(f"{used} of {context} tokens ({used / context:.0%}) in {turns} messages")


def _set(session: Session, rest: str) -> None:
    name, _, value = rest.replace("=", " ").partition(" ")
    name, value = name.replace("-", "_"), value.strip()
    if not name:
        rows = {**session.dialogue().lm.defaults, **session.sampling}
        listed = [f"{key} {rows[key]}" for key in SETTABLE if key in rows]
        note("set: " + (", ".join(listed) or "nothing (the model's own settings hold)"))
        return
    if name not in SETTABLE:
        raise unknown("setting", name, SETTABLE)
    if not value:
        session.sampling.pop(name, None)
        note(f"{name}: the model's own")
        return
    session.sampling.update(_checked(name, value))
    note(f"{name}: {session.sampling[name]}")


def _remember(session: Session, rest: str) -> None:
    if not rest:
        raise KeifuError("/remember TEXT: what?")
    note(f"remembered as {_memory(session).add(rest)}")


def _memories(session: Session, rest: str) -> None:
    from keifu.cli.remembering import shown

    memory = _memory(session)
    note(shown(memory.search(rest, 20) if rest else memory.all()))


def _forget(session: Session, rest: str) -> None:
    memory = _memory(session)
    if rest == "all":
        ids = [one.id for one in memory.all()]
    elif rest.isascii() and rest.isdigit() and len(rest) < 10:
        ids = [int(rest)]
    else:
        raise KeifuError("/forget ID, or /forget all: /memories shows the ids")
    gone = memory.forget(*ids)
    note(f"forgotten: {gone} memor{'y' if gone == 1 else 'ies'}")


def _memory(session: Session) -> Memory:
    if session.memory is None:
        raise KeifuError("nothing is remembered in this chat: begin it with --memory USER")
    return session.memory


def _checked(name: str, value: str) -> dict[str, Any]:
    """A setting from its text, by the type and the bounds that `Sampling` declares."""
    hint = typing.get_type_hints(Sampling)[name]
    if typing.get_origin(hint) is types.UnionType:
        (hint,) = [part for part in typing.get_args(hint) if part is not types.NoneType]
    try:
        made: Any = (value,) if typing.get_origin(hint) is tuple else hint(value)
    except ValueError:
        raise KeifuError(f"{name} {value!r}: give a number ({hint.__name__})") from None
    Sampling(**{name: made})
    return {name: made}


SETTABLE = [
    field.name
    for field in dataclasses.fields(Sampling)
    if field.name
    in {
        "max_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop",
        "repetition_penalty", "presence_penalty", "frequency_penalty",
    }
]  # fmt: skip
"""What /set changes."""

COMMANDS = {
    "help": Command("", "list the commands", _help),
    "clear": Command("", "begin a new conversation", _clear),
    "system": Command("[TEXT]", "show or set the system message (- for none)", _system),
    "retry": Command("", "ask the last question again", _retry),
    "undo": Command("", "take back the last question and its answer", _undo),
    "show": Command("", "show the conversation", _show),
    "tokens": Command("", "how full the context is", _tokens),
    "set": Command("[NAME [VALUE]]", "change how tokens are chosen: temperature 0.3", _set),
    "model": Command("[NAME]", "show the model, or talk to another one", _model),
    "remember": Command("TEXT", "keep something about you (--memory USER)", _remember),
    "memories": Command("[QUERY]", "what is remembered of you", _memories),
    "forget": Command("ID", "remove a memory for good (all: every one)", _forget),
    "save": Command("[NAME]", "save the conversation", _save),
    "load": Command("[ID]", "go on with a saved conversation (the latest)", _load),
    "list": Command("", "list the saved conversations", _list),
    "exit": Command("", "leave (Ctrl-D)", _leave),
}
ALIASES = {"quit": "exit", "q": "exit", "bye": "exit", "new": "clear", "?": "help", "h": "help"}

"""Reading what the user types: an editor with history and completion, or plain lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from keifu.cli import conversation as store
from keifu.cli.commands import COMMANDS, SETTABLE, Leave
from keifu.cli.render import note
from keifu.core.errors import KeifuError
from keifu.core.folders import writable_folder

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from keifu.cli.session import Session

PROMPT, MORE = "> ", ". "


def reader(session: Session) -> Callable[[], str]:
    """What reads one message: the editor on a terminal, else plain lines.

    It raises EOFError at the end of input and Leave when the user has had enough.
    """
    if sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
        return _editor(session)
    return _plain


def unfinished(text: str) -> bool:
    """Whether Enter begins a new line: a backslash at the end, or three quotes still open."""
    return text.endswith("\\") or text.count('"""') % 2 == 1


def joined(text: str) -> str:
    """The message as it is meant, without the marks that made it several lines."""
    stripped = text.strip()
    if len(stripped) >= 6 and stripped.startswith('"""') and stripped.endswith('"""'):
        return stripped[3:-3].strip("\n")
    return text.replace("\\\n", "\n")


def _plain() -> str:
    """Lines without an editor; the prompt goes to stderr, so that stdout holds answers alone."""
    text = ""
    while True:
        print(MORE if text else PROMPT, end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            raise Leave from None
        if not line:
            raise EOFError
        text += line.rstrip("\n")
        if not unfinished(text):
            return joined(text)
        text += "\n"


def _editor(session: Session) -> Callable[[], str]:
    from prompt_toolkit import PromptSession

    editor: PromptSession[str] = PromptSession(
        history=_history(session),
        completer=_completer(),
        complete_while_typing=False,
        multiline=True,
        prompt_continuation=MORE,
        key_bindings=_keys(),
        enable_open_in_editor=False,
    )
    warned = False

    def read() -> str:
        nonlocal warned
        while True:
            try:
                text = editor.prompt(PROMPT)
            except KeyboardInterrupt:
                if warned:
                    raise Leave from None
                note("Ctrl-C again or Ctrl-D leaves")
                warned = True
                continue
            warned = False
            return joined(text)

    return read


def _history(session: Session) -> History:
    """Earlier lines, in a file of the user's alone; in memory if nothing is to be kept."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if not session.keep:
        return InMemoryHistory()
    try:
        path = writable_folder(".")[0] / "history"
        os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))
    except (KeifuError, OSError):
        return InMemoryHistory()
    return FileHistory(path)


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None
        elif unfinished(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys


def _completer() -> Completer:
    from prompt_toolkit.completion import Completer, Completion

    class Words(Completer):
        """/commands and their arguments; paths after @."""

        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterable[Completion]:
            before = document.text_before_cursor
            word = before.split()[-1] if before.split() and not before[-1].isspace() else ""
            for text, about in candidates(before, word):
                yield Completion(text, start_position=-len(word), display_meta=about)

    return Words()


def candidates(before: str, word: str) -> list[tuple[str, str]]:
    """What `word`, the end of the text `before`, could become, each with a remark."""
    found: list[tuple[str, str]] = []
    if before.startswith("/"):
        name, space, _ = before[1:].partition(" ")
        if not space:
            found = [(f"/{key}", command.help) for key, command in COMMANDS.items()]
        elif name == "set" and len(before.split()) < 3:
            found = [(key, "") for key in SETTABLE]
        elif name == "load":
            found = [(path.stem, "") for path in store.saved()]
    elif word.startswith("@"):
        found = _paths(word[1:])
    return [(text, about) for text, about in found if text.startswith(word)][:50]


def _paths(begun: str) -> list[tuple[str, str]]:
    base, start = os.path.split(begun)
    try:
        entries = sorted(Path(base or ".").expanduser().iterdir())
    except OSError:
        return []
    found = []
    for entry in entries:
        if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
            tail = "/" if entry.is_dir() else ""
            found.append(("@" + os.path.join(base, entry.name) + tail, ""))
    return found

"""The interactive conversation: reading lines, answering them, keeping what was said."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from keifu.cli import gather, model, render
from keifu.cli.answer import ended, meter
from keifu.cli.commands import Leave, obey
from keifu.cli.conversation import Conversation
from keifu.cli.dialogue import Dialogue
from keifu.cli.model import ModelOptions
from keifu.core.errors import KeifuError

if TYPE_CHECKING:
    from keifu.lm.base import LM
    from keifu.lm.budget import Policy
    from keifu.retrieval.memory import Memory


class Session:
    """A conversation at a terminal. The model loads while the first question is typed."""

    def __init__(
        self,
        options: ModelOptions,
        conversation: Conversation,
        sampling: Mapping[str, Any],
        *,
        policy: Policy = "drop-oldest",
        memory: Memory | None = None,
        keep: bool = True,
        stream: bool = True,
        quiet: bool = False,
    ) -> None:
        self.options, self.conversation, self.sampling = options, conversation, dict(sampling)
        self.policy, self.memory = policy, memory
        self.keep, self.stream, self.quiet = keep, stream, quiet
        self._opening: _Opening | None = None
        self._dialogue: Dialogue | None = None
        self._told_dropped, self._told_temporary = 0, False

    def run(self) -> None:
        """Talk until the user leaves."""
        from keifu.cli.terminal import reader

        model.find(self.options, quiet=self.quiet)
        self._opening = _Opening(self.options)
        read = reader(self)
        if not self.quiet:
            self.greet()
        try:
            while True:
                try:
                    line = read()
                    if line.strip():
                        self.take(line)
                except KeifuError as wrong:
                    model.warn(" ".join(str(wrong).split()))
                    if self._dialogue is None and self._opening and self._opening.failed():
                        raise SystemExit(1) from None
        except (Leave, EOFError, KeyboardInterrupt):  # the last: Ctrl-C between two prompts
            pass
        finally:
            self.close()

    def greet(self) -> None:
        """What is running, and the two things to know."""
        talk = self.conversation
        render.note(f"{self.options.model}: /help shows the commands, Ctrl-D leaves")
        if talk.messages:
            render.note(f"going on with {talk.id}: {len(talk.messages)} messages, {talk.title()!r}")

    def take(self, line: str) -> None:
        """One input: a /command, or something for the model."""
        if line.startswith("/") and line[1:2].strip():
            name = line[1:].split(maxsplit=1)[0]
            if "/" not in name:  # not a path such as /etc/hosts
                obey(self, line)
                return
        self.ask(gather.attached(gather.text(line.strip(), "the message")))

    def ask(self, question: str) -> None:
        """Put a question, draw the answer, and keep both."""
        dialogue = self.dialogue()
        out = render.printer(sys.stdout, markdown=dialogue.lm.has_template)
        try:
            write = out.write if self.stream else (lambda text: None)
            with render.keyboard_off(sys.stdin):
                answer = dialogue.ask(question, write, policy=self.policy, stoppable=True)
            if not self.stream:
                out.write(answer.completion.text)
        finally:
            out.end()
        self._tell_dropped()
        if dialogue.recalled and not self.quiet:
            render.note("remembered: " + ", ".join(str(one.id) for one in dialogue.recalled))
        if answer.completion.finish == "cancelled":
            render.note("stopped")
        elif cut := ended(answer, self.sampling.get("max_tokens")):
            render.note(cut)
        if not self.quiet and answer.completion.usage.completion_tokens:
            render.note(meter(answer, dialogue.lm.context))
        self.autosave()

    def dialogue(self) -> Dialogue:
        """The conversation with its model, once that is loaded."""
        if self._dialogue is None:
            if self._opening is None:
                self._opening = _Opening(self.options)
            if self._opening.busy() and not self.quiet:
                render.note(f"loading {self.options.model} ...")
            lm = self._opening.wait()
            from keifu.cli.chat import untaught

            if (manners := untaught(lm)) and not self.quiet:
                render.note(manners)
            self._dialogue = Dialogue(lm, self.conversation, self.sampling)
            self._dialogue.memory = self.memory
        self._dialogue.conversation, self._dialogue.sampling = self.conversation, self.sampling
        return self._dialogue

    def change(self, conversation: Conversation) -> None:
        """Go on with another conversation."""
        self.conversation, self._told_dropped = conversation, 0

    def switch(self, name: str) -> None:
        """Talk to another model; if it cannot be opened, the present one stays."""
        options = dataclasses.replace(self.options, model=name)
        model.find(options, quiet=self.quiet)
        opening = _Opening(options)
        opening.wait()
        self._close_model()
        self.options, self._opening, self._dialogue = options, opening, None
        self.conversation.model = name

    def autosave(self) -> None:
        """Keep the conversation on disk; a failure is said once and ends the keeping."""
        if not self.keep or not self.conversation.messages:
            return
        try:
            path, temporary = self.conversation.save()
        except KeifuError as wrong:
            model.warn(f"{wrong}; this conversation is not kept")
            self.keep = False
            return
        if temporary and not self._told_temporary:
            self._told_temporary = True
            model.warn(f"the data folder cannot be written: the conversation is kept in {path}")

    def _tell_dropped(self) -> None:
        dropped = self._dialogue.dropped if self._dialogue else 0
        if dropped > self._told_dropped:
            assert self._dialogue
            render.note(self._dialogue.left_out())
        self._told_dropped = dropped

    def close(self) -> None:
        """Free the model; say how to come back."""
        self._close_model()
        if self.keep and self.conversation.messages and not self.quiet:
            render.note(f"kept: keifu chat --continue {self.conversation.id}")

    def _close_model(self) -> None:
        if self._opening:
            self._opening.close()
            self._opening = None


class _Opening:
    """A model that loads in a thread; the terminal is ready meanwhile."""

    def __init__(self, options: ModelOptions) -> None:
        self._lm: LM | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._load, args=[options], daemon=True)
        self._thread.start()

    def _load(self, options: ModelOptions) -> None:
        try:
            self._lm = model.load(options)
        except BaseException as error:
            self._error = error

    def busy(self) -> bool:
        """Whether it is still loading."""
        return self._thread.is_alive()

    def failed(self) -> bool:
        """Whether it ended without a model."""
        return not self.busy() and self._lm is None

    def wait(self) -> LM:
        """The model, or the error of loading it."""
        self._thread.join()
        if self._lm is None:
            assert self._error is not None
            raise self._error
        return self._lm

    def close(self) -> None:
        """Free it; one that is still loading first ends, since a thread cannot be left behind."""
        self._thread.join()
        if self._lm:
            self._lm.close()

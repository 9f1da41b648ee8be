"""A group of verbs as a literal table: listing it imports none of their modules."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import click

from keifu.core.errors import nearest


@dataclass(frozen=True)
class Verb:
    """Where a verb lives ("module:attribute": a function or a `Verbs`), and what it is for."""

    target: str
    job: str
    help: str


class Verbs(click.Group):
    """A click group over a table of verbs, shown under the jobs that they serve."""

    def __init__(self, name: str, table: dict[str, Verb], **settings: Any) -> None:
        super().__init__(name, **settings)
        self.table = table

    def spelt(self, words: list[str]) -> list[str]:
        """The words after this group's name with every verb in them that may be left out."""
        return words

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the table's order."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb; its options take their defaults from the config file."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name].target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, click.Command):
            return found
        from keifu.cli.options import command_from

        command = command_from(found, self.path(ctx, cmd_name))
        if not ctx.resilient_parsing:
            self.settle(ctx, command)
        return command

    @staticmethod
    def path(ctx: click.Context, verb: str) -> str:
        """The words after `keifu` that lead here: "models pull"."""
        return " ".join([*ctx.command_path.split()[1:], verb])

    @staticmethod
    def settle(ctx: click.Context, command: click.Command) -> None:
        """Put the config file's values under the command's own defaults."""
        from keifu.cli import settings

        verbs = ctx.find_root().command.list_commands(ctx.find_root())  # type: ignore[attr-defined]
        settings.check_environment(command, verbs)
        config = settings.read_config(verbs)
        ctx.default_map = {str(command.name).rsplit(" ")[-1]: settings.defaults(command, config)}

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb named first; a miss names the nearest."""
        verb = args[0]
        if verb.startswith("-") or verb in self.table:
            return super().resolve_command(ctx, args)
        close = nearest(verb, self.table)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        ask = f'{ctx.command_path} chat "{" ".join(args)}"' if self.name == "keifu" else ""
        hint = hint or (f" To ask a model, write: {ask}" if ask else "")
        raise click.UsageError(f"no verb {verb!r}.{hint}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs under the jobs that they serve."""
        for job in dict.fromkeys(verb.job for verb in self.table.values()):
            rows = [(name, verb.help) for name, verb in self.table.items() if verb.job == job]
            with formatter.section(job):
                formatter.write_dl(rows, col_max=20)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The epilog as it is written: examples keep their lines."""
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")

"""`keifu bench`: the speed of a model, or (`keifu bench serve`) of a server under load."""

from __future__ import annotations

import click

from keifu.cli.verbs import Verb, Verbs

PLAIN = "speed"
"""The verb that is meant where none is named; its settings are those of `bench` itself."""


class Benches(Verbs):
    """`keifu bench MODEL` is `keifu bench speed MODEL`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the plain verb before them where none is named."""
        return super().parse_args(ctx, args if ctx.resilient_parsing else self.spelt(args))

    def spelt(self, words: list[str]) -> list[str]:
        """The words with the verb that is meant, unless one is named or help is asked for."""
        named = bool(words) and words[0] in (*self.table, "-h", "--help")
        return words if named else [PLAIN, *words]

    @staticmethod
    def path(ctx: click.Context, verb: str) -> str:
        """The plain verb's options go by the name of the group."""
        path = Verbs.path(ctx, verb)
        return path.removesuffix(f" {PLAIN}") if verb == PLAIN else path

    @staticmethod
    def settle(ctx: click.Context, command: click.Command) -> None:
        """The config file's section `bench` is the plain verb's."""
        Verbs.settle(ctx, command)
        if ctx.default_map:
            own = str(command.name).rsplit(" ")[-1]
            name = own if own in app.table else PLAIN
            ctx.default_map = {name: ctx.default_map[own]}


app = Benches(
    "bench",
    {
        PLAIN: Verb("keifu.cli.bench:command", "What to measure", "A model, beside its peers."),
        "serve": Verb("keifu.cli.bench_serve:command", "What to measure", "A server under load."),
    },
    help="How fast a model runs here, or how a server answers under load.",
    epilog="""\
Examples:
  keifu bench                                 the default model: `keifu bench speed --help`
  keifu bench path/to/model.gguf --grid
  keifu bench serve --rate 1,2,4              a server of our own, under rising load
  keifu bench serve --url http://host:8000/v1 --rate 8 --slo ttft:500,tpot:50""",
    subcommand_metavar="[speed] [MODEL] | serve [MODEL]",
)

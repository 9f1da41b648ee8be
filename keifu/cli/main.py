"""The keifu command: one literal table of verbs, each imported when it is called."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence

import click

import keifu
from keifu.cli.verbs import Verb, Verbs
from keifu.core.errors import KeifuError

RUN, MAKE, CHANGE = "Run a model", "Make a model", "Change a model"
USE, KNOW = "Use a model", "Understand a model"


VERBS = {
    "chat": Verb("keifu.cli.chat:command", RUN, "Talk to a model, or ask it one thing."),
    "serve": Verb("keifu.cli.serve:command", RUN, "Serve models over HTTP (OpenAI, Anthropic)."),
    "complete": Verb("keifu.cli.complete:command", RUN, "Continue a text."),
    "gist": Verb("keifu.cli.gist:command", RUN, "Press a prompt into a few tokens' cache."),
    "ask": Verb("keifu.cli.ask:command", USE, "Ask about documents, however long."),
    "agent": Verb("keifu.cli.agent:app", USE, "Let a model work in several steps."),
    "train": Verb("keifu.cli.train:command", MAKE, "Train a model by a recipe."),
    "data": Verb("keifu.cli.data:app", MAKE, "From raw text to what training reads."),
    "models": Verb("keifu.cli.models:app", RUN, "Pull, list, show and remove models."),
    "convert": Verb("keifu.cli.convert:command", CHANGE, "Another format or type, checked."),
    "export": Verb("keifu.cli.export:command", CHANGE, "Hand a model to vLLM, llama.cpp..."),
    "embed": Verb("keifu.cli.embed:command", USE, "Turn texts into vectors."),
    "fill-mask": Verb("keifu.cli.fill_mask:command", USE, "Guess the masked words of a text."),
    "vectors": Verb("keifu.cli.vectors:app", USE, "Train and ask word vectors."),
    "transcribe": Verb("keifu.cli.transcribe:command", USE, "Write down a recording."),
    "bench": Verb("keifu.cli.benches:app", KNOW, "How fast a model runs, and a server answers."),
    "probe": Verb("keifu.cli.probe:app", KNOW, "Ask at every length and depth what it finds."),
    "tree": Verb("keifu.cli.tree:command", KNOW, "The family tree: what descends from what."),
    "diff": Verb("keifu.cli.diff:command", KNOW, "What one family changed against another."),
    "list": Verb("keifu.cli.listing:listing", KNOW, "What there is of a kind."),
    "show": Verb("keifu.cli.listing:show", KNOW, "What is known of one thing."),
    "doctor": Verb("keifu.cli.doctor:command", KNOW, "What this machine has; what will be slow."),
}

ABOUT = """Language models from the whole family tree, working, on your machine.

The default model, smollm2-135m, is fetched on first use (93 MB): no account, no hub."""

EXAMPLES = """\
Examples:
  keifu chat                                 talk; /help shows what else it can do
  keifu chat "Why is the sky blue?"          one answer
  cat notes.txt | keifu chat "Summarise."    with piped input
  keifu chat --json --temperature 0 "Hi"     for programs
  keifu doctor                               what this machine can do

Settings: flags, then KEIFU_* variables, then ~/.config/keifu/config.yaml, then the model's own.
`keifu VERB --help` shows a verb's flags. KEIFU_DEBUG=1 shows tracebacks."""


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value:
        return
    from importlib.metadata import version  # not torch itself: that takes seconds

    python = ".".join(map(str, sys.version_info[:3]))
    click.echo(f"keifu {keifu.__version__} (python {python}, torch {version('torch')})")
    ctx.exit()


def _completion(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if not value:
        return
    from click.shell_completion import get_completion_class

    shell = get_completion_class(value)
    assert shell is not None
    click.echo(shell(cli, {}, "keifu", "_KEIFU_COMPLETE").source())
    ctx.exit()


cli = Verbs(
    "keifu",
    VERBS,
    help=ABOUT,
    epilog=EXAMPLES,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version,
            help="Show the versions of keifu, python and torch.",
        ),
        click.Option(
            ["--show-completion"], type=click.Choice(["bash", "zsh", "fish"]), expose_value=False,
            is_eager=True, callback=_completion, help="Print the completion script of a shell.",
        ),
    ],
)  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0 done, 1 failed, 2 misused, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")  # an ASCII terminal gets `?`, not a crash
    try:
        code = cli.main(args, "keifu", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as empty:
        click.echo(empty.ctx.get_help() if empty.ctx else "")
        return 0
    except click.ClickException as misuse:
        misuse.show()
        return misuse.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        # What reads our output has left: say nothing, and let the exit's flush say nothing either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("KEIFU_DEBUG", "0") not in ("", "0"):
            raise
        print(f"keifu: {_line(error)}", file=sys.stderr)
        return 1


def _line(error: Exception) -> str:
    """One line for any failure: what the user can mend as it is, a bug as a bug."""
    if isinstance(error, KeifuError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES):
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, MemoryError):
        return "out of memory: use a smaller model or a smaller --ctx"
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return f"this is a bug: {text} (KEIFU_DEBUG=1 shows where)"


if __name__ == "__main__":
    sys.exit(main())

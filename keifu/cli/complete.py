"""`keifu complete`: continue a text, without any conversation around it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from keifu.cli import constrain, gather, model
from keifu.cli.answer import as_json, ended, run
from keifu.cli.chat import SAMPLING
from keifu.cli.dialogue import BASE_TOKENS
from keifu.cli.model import ModelOptions
from keifu.cli.options import Argument, Fields, Option
from keifu.cli.render import Plain, note
from keifu.core.errors import KeifuError

if TYPE_CHECKING:
    from keifu.lm.base import LM


def command(
    words: Annotated[tuple[str, ...], Argument("[TEXT]...")] = (),
    options: Annotated[ModelOptions, Fields(ModelOptions)] = ModelOptions(),
    sampling: Annotated[dict[str, Any], SAMPLING] = {},  # noqa: B006 (never written)
    gist: Annotated[
        Path | None, Option("--gist", help="A cache of `keifu gist`, which the text goes on from.")
    ] = None,
    form: Annotated[constrain.Form, Fields(constrain.Form)] = constrain.Form(),
    echo: Annotated[bool, Option("--echo", help="Print the text before its continuation.")] = False,
    as_object: Annotated[bool, Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, Option("-q", "--quiet", help="Nothing but the text.")] = False,
) -> None:
    """Continue a text, exactly as it stands: `keifu complete "Once upon a time"`.

    The text is the words, or what is piped in. 256 tokens are made unless --max-tokens says more
    or less. An encoder-decoder turns the text into another, to its end.
    """
    text = gather.gather(words, attach=False)
    if not text:
        raise click.UsageError("there is no text to continue: give a TEXT or pipe one in")
    start = time.perf_counter()
    model.find(options, quiet=quiet)
    lm = model.load(options)
    loaded = time.perf_counter() - start
    out = Plain(sys.stdout)
    try:
        if echo and lm.text_to_text:
            raise KeifuError(f"{lm.name} does not continue its text: leave --echo out")
        most = sampling.get("max_tokens", None if lm.text_to_text else BASE_TOKENS)
        past = {"past": _opened(lm, gist)} if gist else {}
        asked = {**sampling, **form.options(), "max_tokens": most}
        stream = lm.complete_stream(text, **asked, **past)
        if as_object:
            answer = run(stream, lambda piece: None)
            print(json.dumps(as_json(lm, answer, loaded), ensure_ascii=False))
            return
        if echo:
            out.write(text)
        answer = run(stream, out.write)
        out.end()
        if (cut := ended(answer, most)) and not quiet:
            note(cut)
    finally:
        lm.close()


def _opened(lm: LM, path: Path) -> Any:
    from keifu.lm.gist import open_gist

    return open_gist(lm, path).kept

"""keifu serve: an OpenAI- and Anthropic-compatible server for one or several models."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
from typing import Annotated

from keifu.cli.model import DEFAULT, REMOTE, ModelOptions
from keifu.cli.options import Option
from keifu.core.errors import KeifuError

_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def command(
    model: Annotated[
        tuple[str, ...],
        Option("-m", "--model", help=f"a model to serve; may be repeated (default: {DEFAULT})"),
    ] = (),
    alias: Annotated[
        tuple[str, ...],
        Option("--alias", help="what clients call the model; once for each --model, in order"),
    ] = (),
    host: Annotated[str, Option("--host", help="address to listen on")] = "127.0.0.1",
    port: Annotated[
        int, Option("--port", help="port to listen on; 0 picks a free one", min=0, max=65535)
    ] = 8000,
    api_key: Annotated[
        str | None,
        Option("--api-key", help="key that clients must send (better in KEIFU_API_KEY)"),
    ] = None,
    insecure: Annotated[
        bool, Option("--insecure", help="listen beyond this machine without a key")
    ] = False,
    allow_host: Annotated[
        tuple[str, ...], Option("--allow-host", help="a further name this server is reached by")
    ] = (),
    allow_origin: Annotated[
        tuple[str, ...],
        Option("--allow-origin", help="a web origin that may call, as http://localhost:3000"),
    ] = (),
    ctx: Annotated[int | None, Option("--ctx", help="tokens of context to hold", min=1)] = None,
    max_memory: Annotated[
        str | None, Option("--max-memory", help="memory for running requests, as 2GB or 512MiB")
    ] = None,
    parallel: Annotated[
        int, Option("--parallel", help="requests that run at once", min=1, max=256)
    ] = 4,
    queue: Annotated[
        int, Option("--queue", help="requests that may wait beyond those", min=0, max=100_000)
    ] = 64,
    threads: Annotated[
        int | None, Option("--threads", help="threads to compute with", min=1, max=1024)
    ] = None,
    idle_unload: Annotated[
        float | None,
        Option("--idle-unload", help="free a model after so many seconds without work", min=0),
    ] = None,
    deadline: Annotated[
        float, Option("--deadline", help="seconds a request may take", min=1)
    ] = 600.0,
    strict: Annotated[
        bool, Option("--strict", help="refuse unknown request fields instead of listing them")
    ] = False,
    offline: Annotated[bool, Option("--offline", help="never use the network")] = False,
    verbose: Annotated[bool, Option("-v", "--verbose", help="log every request")] = False,
) -> int:
    """Serve models over HTTP, for clients of OpenAI's and of Anthropic's API.

    The first line printed is the address; a curl and a Python snippet follow. Ctrl-C lets running
    requests end; a second Ctrl-C does not.
    """
    missing = [m for m in ("uvicorn", "starlette", "pydantic") if not importlib.util.find_spec(m)]
    if missing:
        raise KeifuError(f"serving needs {', '.join(missing)}: pip install 'keifu[serve]'")
    from keifu.lm.base import LM
    from keifu.server.app import service
    from keifu.server.models import Models, offers
    from keifu.server.run import access, greeting, listen, serve
    from keifu.server.settings import Limits

    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="keifu: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    key = api_key or os.environ.get("KEIFU_API_KEY") or None
    door = access(host, key, insecure, list(allow_host), list(allow_origin))
    memory = None if max_memory is None else size(max_memory)

    def load(source: str) -> LM:
        import keifu.lm
        from keifu.cli.model import find
        from keifu.lm.cards import find as card

        if source.partition(":")[0] in REMOTE or card(source):
            return keifu.lm.load(source)
        find(ModelOptions(model=source, offline=offline))
        return keifu.lm.load(source, ctx=ctx, threads=threads, max_memory=memory, parallel=parallel)

    offered = offers(model or (DEFAULT,), alias)
    shared = service(
        Models(offered, load, idle_unload),
        limits=Limits(parallel=parallel, queue=queue, deadline=deadline),
        access=door,
        strict=strict,
    )
    bound = listen(host, port)
    print(greeting(bound, offered[0].id, key is not None), flush=True)
    serve(bound, shared)
    return 0


def size(text: str) -> int:
    """Bytes of "2GB", "512MiB", "1000000"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if not found:
        raise KeifuError(f"--max-memory {text!r} is no size: write 2GB or 512MiB")
    number, unit, binary = found.groups()
    scale = 1024 ** " KMGT".index(unit.upper()) if binary and unit else _UNITS[unit.upper()]
    return int(float(number) * scale)

"""The real command line over a scripted model: run as `python driver.py chat ...` in a pty.

The model answers by rule: "count N" counts up slowly, "markdown" is a document, "long" is long,
anything else is echoed in capitals with the number of messages that were sent.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import keifu.lm
from keifu.cli import model
from keifu.cli.main import main
from keifu.core.errors import KeifuError
from keifu.lm.scripted import Reply, Request, ScriptedLM

DOCUMENT = """# Title

A paragraph with **bold** and `code`.

- one
- two

```python
def f(x):

    return x
```

| a | b |
|---|---|
| 1 | 2 |

The end."""


def reply(request: Request) -> Reply:
    """What the model says."""
    last = request.messages[-1]["content"] if request.messages else request.prompt
    delay = float(os.environ.get("DRIVER_DELAY", "0.01"))
    if last.startswith("count "):
        numbers = tuple(f"{n} " for n in range(1, int(last.split()[1]) + 1))
        return Reply(pieces=numbers, delay=delay)
    if last.startswith("escape"):
        return Reply(text="a\x1b[31mred\x07 b")
    if last.startswith("markdown"):
        pieces = tuple(DOCUMENT[i : i + 3] for i in range(0, len(DOCUMENT), 3))
        return Reply(pieces=pieces, delay=delay)
    if last.startswith("fail"):
        return Reply(text="some words", error=KeifuError("the model broke"), fail_at=1)
    if last.endswith("Answer with its number alone."):
        return Reply(text="2")
    if last.startswith("long"):
        return Reply(text="word " * 40)
    return Reply(text=f"{last.upper()} [{len(request.messages)}]")


def load(name: str, **options: Any) -> ScriptedLM:
    """Stands for keifu.lm.load."""
    time.sleep(float(os.environ.get("DRIVER_LOAD", "0")))
    if name == "broken":
        raise KeifuError("the file is damaged")
    lm = ScriptedLM.from_function(reply, name=name, context=options.get("ctx") or 4096)
    lm.has_template = not name.startswith("base")
    return lm


if __name__ == "__main__":
    keifu.lm.load = load
    model.find = lambda options, quiet=False: None
    code = main()
    if os.environ.get("DRIVER_MODULES"):
        print(*sys.modules, file=sys.stderr)
    sys.exit(code)

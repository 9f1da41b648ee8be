"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from keifu.core.errors import KeifuError


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its name when the block ends well; else it is gone.

    Raises:
        KeifuError: the disk is full, read-only, or the folder is not there.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as refused:
        raise KeifuError(f"cannot write {target}: {refused.strerror or refused}") from refused
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """A text in UTF-8, whole or not at all. KeifuError as above."""
    with written(path) as file:
        file.write(text.encode("utf-8"))

"""Where Keifu keeps what it writes for a person: one data folder, and a way out if it is read-only.

`$KEIFU_HOME`, else `$XDG_DATA_HOME/keifu`, that is `~/.local/share/keifu`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from keifu.core.errors import KeifuError


def data_folder() -> Path:
    """The preferred data folder; it need not exist. Does not look at the current folder's name."""
    home = os.environ.get("KEIFU_HOME")
    if not home:
        home = os.path.join(
            os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"), "keifu"
        )
    return Path(home if os.path.isabs(home) else os.path.abspath(home))


def fallback_folder() -> Path:
    """A temporary folder of this user, for machines where the home folder cannot be written."""
    user = str(os.getuid()) if os.name == "posix" else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir()) / f"keifu-{user}"


def is_own(folder: Path) -> bool:
    """Whether a folder is a real one of this user: others may write in a temporary folder."""
    if os.name != "posix":
        return folder.is_dir()
    return folder.is_dir() and not folder.is_symlink() and folder.lstat().st_uid == os.getuid()


def writable_folder(name: str) -> tuple[Path, bool]:
    """A folder `name` under the data folder that can be written, made if need be.

    The second value is true if it is the temporary one, which the user should be told. Raises
    KeifuError where neither can be written, where the one that KEIFU_HOME names cannot, or where
    somebody else owns the temporary one.
    """
    wanted = data_folder() / name
    try:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted, False
    except OSError as refused:
        why = refused.strerror
    if os.environ.get("KEIFU_HOME"):
        raise KeifuError(f"KEIFU_HOME: cannot write {wanted}: {why}")
    top = fallback_folder()
    try:
        top.mkdir(mode=0o700, exist_ok=True)
        if not is_own(top):
            raise KeifuError(f"{top} belongs to somebody else: set KEIFU_HOME to a folder")
        (top / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as refused:
        raise KeifuError(
            f"cannot write {wanted} ({why}) nor {top} ({refused.strerror}): set KEIFU_HOME"
        ) from None
    return top / name, True

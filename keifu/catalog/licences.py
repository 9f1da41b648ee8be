"""What a published model's licence allows: everything, research alone, its own conditions, nothing.

A reading of each licence's own words for a first choice, not legal advice: read the licence.
"""

from __future__ import annotations

from keifu.core.errors import ConfigError

USES = ("commercial", "custom", "research", "closed", "unclear")
"""commercial: any use, with notice or share-alike at most; custom: commercial use under the
vendor's conditions (a size of business, a list of uses, a request); research: no commercial use;
closed: no weights; unclear: it differs from one checkpoint to the next."""

_USE = {
    "commercial": ("Apache-2.0", "MIT", "BSD-3-Clause", "CC-BY-SA-4.0"),
    "custom": (
        "Llama 2 Community Licence",
        "Meta Llama 3 Community Licence",
        "Llama 3.1 Community Licence",
        "Gemma Terms of Use",
        "Tongyi Qianwen Licence",
        "Yi Licence",
        "Falcon-180B TII Licence",
        "DeepSeek Licence",
    ),
    "research": ("LLaMA non-commercial licence", "Chameleon Research Licence"),
    "closed": ("proprietary",),
    "unclear": ("as on each model card", "as on the model card"),
}


def use_of(licence: str, openness: str = "open") -> str:
    """One of USES for a licence as the catalog writes it; a licence that is not read is an error.

    What has a licence and no weights is closed.
    """
    if openness == "closed":
        return "closed"
    for use, licences in _USE.items():
        if licence in licences:
            return use
    raise ConfigError(f"no word on what the licence {licence!r} allows: add it to {__name__}")

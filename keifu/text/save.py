"""Writing a tokenizer as the files that transformers loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from keifu.core.atomic import write_text
from keifu.text.marks import ROLES, Marks


def save(
    rust: tokenizers.Tokenizer, marks: Marks, token: Callable[[int], str], folder: Path
) -> None:
    """Write tokenizer.json, its configuration and the chat templates, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {f"{role}_token": token(marks.named[role]) for role in ROLES if role in marks.named}
    added = {
        str(i): {
            "content": t.content,
            "lstrip": t.lstrip,
            "normalized": t.normalized,
            "rstrip": t.rstrip,
            "single_word": t.single_word,
            "special": t.special,
        }
        for i, t in sorted(rust.get_added_tokens_decoder().items())
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
        **names,
    }
    whole = json.loads(rust.to_str())
    whole["post_processor"] = _around(marks, token)
    write_text(folder / "tokenizer.json", json.dumps(whole, ensure_ascii=False))
    write_text(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2))
    write_text(folder / "special_tokens_map.json", json.dumps(names, ensure_ascii=False, indent=2))
    for name, source in marks.templates.items():
        if name == "default":
            write_text(folder / "chat_template.jinja", source)
        else:
            more = folder / "additional_chat_templates"
            more.mkdir(exist_ok=True)
            write_text(more / f"{name}.jinja", source)


def _around(marks: Marks, token: Callable[[int], str]) -> dict[str, Any] | None:
    """The ids round a text, in the library's words."""
    if not marks.prefix and not marks.suffix:
        return None

    def fixed(i: int, kind: int = 0) -> dict[str, Any]:
        return {"SpecialToken": {"id": token(i), "type_id": kind}}

    def text(part: str, kind: int) -> dict[str, Any]:
        return {"Sequence": {"id": part, "type_id": kind}}

    head, tail = [fixed(i) for i in marks.prefix], [fixed(i) for i in marks.suffix]
    used = {*marks.prefix, *marks.suffix}
    pair = [*head, text("A", 0), *tail, *head, text("B", 1), *tail]
    if (together := marks.pair) is not None:
        sides = (together.before, together.between, together.after)
        before, between, after = ([fixed(*mark) for mark in side] for side in sides)
        first, second = together.segments
        pair = [*before, text("A", first), *between, text("B", second), *after]
        used |= {i for side in sides for i, _ in side}
    return {
        "type": "TemplateProcessing",
        "single": [*head, text("A", 0), *tail],
        "pair": pair,
        "special_tokens": {
            token(i): {"id": token(i), "ids": [i], "tokens": [token(i)]} for i in sorted(used)
        },
    }

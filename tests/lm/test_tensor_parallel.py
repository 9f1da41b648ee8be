"""One model in several processes, from the library to the terminal: the same answers, one end."""

from __future__ import annotations

from typing import Any

PROMPTS = [[7, 3, 60, 22, 9], [5, 5, 1], list(range(20, 50)), [7, 3, 60, 22, 9, 4]]
ASKED: dict[str, Any] = {"max_tokens": 10, "temperature": 0, "ignore_eos": True}

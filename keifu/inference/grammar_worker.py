"""The process in which constraints are first compiled: what takes too much ends here, not there.

Started by `grammar.py` as `python -I grammar_worker.py`; it imports nothing of Keifu. Requests and
answers are JSON after a four-byte length. The first request tells the vocabulary: its size and the
spellings of its special tokens; each other one is a constraint, whose grammar is the answer.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

JSON: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Between the tokens of a JSON text: what Python's json writes, and so a bounded length."""


class Vocabulary:
    """Special tokens as they are, and after them every byte: all that a grammar asks about."""

    eos_token_id = 0
    bos_token_id = None
    is_tokenizer_wrapper = True

    def __init__(self, size: int, special: dict[int, str]) -> None:
        blank = [special[i].encode() if i in special else b"" for i in range(size)]
        self.tokens = [*blank, *(bytes([i]) for i in range(256))]
        self.special_token_ids = sorted(special)
        self._first = size

    def __call__(self, text: str | bytes) -> list[int]:
        """One token a byte."""
        data = text if isinstance(text, bytes) else text.encode()
        return [self._first + byte for byte in data]


def grammar(kind: str, text: str) -> str:
    """A constraint in llguidance's own words."""
    match kind:
        case "json":
            return str(llguidance.LLMatcher.grammar_from_json_schema(text, overrides=JSON))
        case "regex":
            text = f"start: /{llguidance.regex_to_lark(text, 'd')}/"  # digits are 0 to 9
        case "choice":
            options = (json.dumps(option, ensure_ascii=False) for option in json.loads(text))
            text = "start: " + " | ".join(options)
        case "grammar":
            text = any_to_lark(text)
    return str(llguidance.LLMatcher.grammar_from_lark(text))


def compiled(tokenizer: Any, ask: dict[str, Any]) -> dict[str, Any]:
    """The grammar of a constraint, or why there is none."""
    try:
        made = grammar(ask["kind"], ask["text"])
    except (Exception, RecursionError) as error:  # the converter's own raise plain exceptions
        return {"error": str(error) or type(error).__name__}
    limits = llguidance.LLParserLimits(**ask["limits"])
    matcher = llguidance.LLMatcher(tokenizer, made, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return {"error": matcher.get_error()} if matcher.is_error() else {"grammar": made}


def bounded(seconds: float, memory: int) -> None:
    """From here on, so much processor time and so many further bytes; 0 seconds: no bound."""
    if sys.platform == "win32":
        return
    import resource
    import signal

    signal.setitimer(signal.ITIMER_PROF, seconds)
    most = resource.RLIM_INFINITY
    if seconds and sys.platform == "linux":
        with open("/proc/self/statm") as told:
            most = int(told.read().split()[0]) * resource.getpagesize() + memory
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def main() -> None:
    """Answer until the pipe closes."""
    read, write = sys.stdin.buffer, sys.stdout.buffer
    tokenizer: Any = None
    while len(head := read.read(4)) == 4:
        ask = json.loads(read.read(struct.unpack("<I", head)[0]))
        if "vocabulary" in ask:
            special = {int(i): name for i, name in ask["special"].items()}
            words: Any = Vocabulary(ask["vocabulary"], special)
            tokenizer = llguidance.LLTokenizer(words, n_vocab=len(words.tokens), eos_token=[0])
            answer: dict[str, Any] = {}
        else:
            bounded(ask["seconds"], ask["memory"])
            answer = compiled(tokenizer, ask)
            bounded(0, 0)
        data = json.dumps(answer).encode()
        write.write(struct.pack("<I", len(data)) + data)
        write.flush()


if __name__ == "__main__":
    main()

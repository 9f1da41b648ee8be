"""Constraints at work: compiled once for a vocabulary; then a matcher says what may come next.

The grammars are llguidance's (Earley over lazily made lexers, an implementation of byte-level
constraints). A constraint comes from strangers, so it is first compiled in a process of its own,
within a second of processor time and a bound of memory; only what ends well there is compiled here.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from keifu.core.errors import KeifuError
from keifu.inference.constraint import Constraint, ConstraintError
from keifu.inference.sampling import NEVER
from keifu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

SECONDS = 1.0
"""Of the processor's time to compile a constraint."""
MEMORY = 64 << 20
"""Bytes to compile it in."""
PATIENCE = 20.0
"""Seconds by the clock, on a machine that has other things to do."""
KEPT = 32
"""Compiled constraints that are kept."""
KEPT_TEXT = 8 << 20
"""Characters of all that are kept together."""
FEW = 64
"""Words of a mask with tokens in them, up to which these are looked at one by one."""
Mask = np.ndarray[Any, np.dtype[np.int32]]
"""(vocab / 32,): a bit a token, set where it may come; the lowest first."""
LIMITS: dict[str, Any] = {
    "max_lexer_states": 25_000,  # of 1 to 2 kB each
    "max_grammar_size": 200_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}


def available() -> bool:
    """Whether the library that follows grammars is installed."""
    return find_spec("llguidance") is not None


class Grammars:
    """The constraints of one engine: compiles them, keeps the latest.

    Args:
        ends: tokens that end an output; they may come where the constraint is met.
        ahead: whether masks are made in a thread of their own while the model computes: where it
            does so elsewhere. On a processor whose cores all compute, a hand-over costs more than
            most masks do (0.02 to 0.1 ms).
    """

    def __init__(self, tokenizer: Tokenizer, ends: Iterable[int], *, ahead: bool = False) -> None:
        self.tokenizer, self.ends, self._ahead = tokenizer, frozenset(ends), ahead
        self._lock = threading.Lock()
        self._kept: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._worker: _Worker | None = None
        self._words: LLTokenizer | None = None
        self._pool: ThreadPoolExecutor | None = None

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of a constraint; ConstraintError if it has none within the bounds."""
        with self._lock:
            found = self._kept.get(constraint)
            if found is None:
                found = self._kept[constraint] = self._compile(constraint)
                size = sum(len(c.text) for c in self._kept)
                while len(self._kept) > KEPT or (size > KEPT_TEXT and len(self._kept) > 1):
                    size -= len(self._kept.popitem(last=False)[0].text)
            self._kept.move_to_end(constraint)
            return found

    def close(self) -> None:
        """End the process and the thread."""
        with self._lock:
            if self._worker is not None:
                self._worker.stop()
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
            self._worker = self._pool = None

    def _compile(self, constraint: Constraint) -> Grammar:
        try:
            import llguidance
        except ImportError:
            raise KeifuError(
                "constrained output needs llguidance: pip install 'keifu[constrain]'"
            ) from None
        if not self.ends:
            raise ConstraintError("this model has no end token, so no output can be whole")
        if self._worker is None:
            control = {i: self.tokenizer.token(i) for i in self.tokenizer.control_ids}
            self._worker = _Worker(self.tokenizer.vocab_size, control)
        text = self._worker.ask(constraint)
        if self._words is None:
            self._words = _words(self.tokenizer, self.ends)
        if self._pool is None and self._ahead:
            self._pool = ThreadPoolExecutor(1, "keifu-constrain")
        limits = llguidance.LLParserLimits(**LIMITS)
        matcher = llguidance.LLMatcher(self._words, text, log_level=0, limits=limits)
        return Grammar(matcher, self.ends, self.tokenizer.vocab_size, self._pool)


class Grammar:
    """One compiled constraint."""

    def __init__(
        self, matcher: LLMatcher, ends: frozenset[int], vocab: int, pool: ThreadPoolExecutor | None
    ) -> None:
        self._matcher, self._ends, self._vocab, self._pool = matcher, ends, vocab, pool
        self._lock = threading.Lock()
        self._first = _mask(matcher, vocab)

    def matcher(self) -> Matcher:
        """A matcher at the beginning."""
        with self._lock:
            copy = self._matcher.deep_copy()
        return Matcher(copy, self._ends, self._vocab, self._pool, self._first)


class Matcher:
    """How far one output has come in its grammar.

    With a pool, the mask of the next token is made in its thread from the moment a token is taken,
    while the model reads that token; without, when it is asked for.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        ends: frozenset[int],
        vocab: int,
        pool: ThreadPoolExecutor | None,
        mask: Mask | None,
    ) -> None:
        self._matcher, self.ends, self._vocab, self._pool = matcher, ends, vocab, pool
        self._made: Mask | Future[Mask] | None = mask
        self.ended = False
        """Whether the output is whole: nothing more may come."""

    def allow(self, scores: Tensor, *, ends: bool = True) -> Tensor:
        """Scores (vocab,), with -inf for what may not come next.

        Args:
            ends: whether end tokens may come, although others could.
        """
        mask = self._mask(ends)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little", count=self._vocab)
        allowed = torch.from_numpy(bits).view(torch.bool)
        beyond = scores.shape[0] - self._vocab
        if beyond > 0:  # rows of the table that are no tokens
            allowed = torch.cat([allowed, allowed.new_zeros(beyond)])
        return torch.where(allowed[: scores.shape[0]], scores, NEVER)

    def few(self, *, ends: bool = True) -> Tensor | None:
        """The ids that may come next, in rising order (count,), unless they are many."""
        mask = self._mask(ends)
        at = np.flatnonzero(mask)
        if len(at) > FEW:
            return None
        bits = np.flatnonzero(np.unpackbits(mask[at].view(np.uint8), bitorder="little"))
        return torch.from_numpy(32 * at[bits >> 5] + (bits & 31))

    def forced(self) -> list[int]:
        """The tokens that spell all that can come next, where that is one text; often none."""
        if self.ended:
            return []
        self._settle()
        return self._matcher.compute_ff_tokens()

    def valid(self, tokens: list[int]) -> int:
        """How many of these tokens may come one after another."""
        tokens = list(takewhile(lambda token: token < self._vocab, tokens))
        if self.ended or not tokens:
            return 0
        self._settle()
        return self._matcher.validate_tokens(tokens)

    def take(self, token: int) -> bool:
        """Go on past a token that was chosen; True once the output is whole.

        A token that may not come is a KeifuError and changes nothing. After the end only an end
        token may come, any number of times.
        """
        if self.ended and token in self.ends:
            return True
        if self.valid([token]) != 1:
            raise KeifuError(f"token id {token} may not come here: the constraint forbids it")
        self._matcher.consume_token(token)
        self.ended = token in self.ends or self._matcher.is_stopped()
        _check(self._matcher)
        if self.ended:
            self._made = _only(self.ends, self._vocab)
        elif self._pool is None:
            self._made = None
        else:
            self._made = self._pool.submit(_mask, self._matcher, self._vocab)
        return self.ended

    def fork(self) -> Matcher:
        """A matcher that has come as far, and goes its own way."""
        self._settle()
        made = self._made if isinstance(self._made, np.ndarray) else None
        other = Matcher(self._matcher.deep_copy(), self.ends, self._vocab, self._pool, made)
        other.ended = self.ended
        return other

    def _settle(self) -> None:
        """Wait for a mask in the making: a matcher does one thing at a time."""
        if isinstance(self._made, Future):
            self._made = self._made.result()

    def _mask(self, ends: bool) -> Mask:
        self._settle()
        if not isinstance(self._made, np.ndarray):
            self._made = _mask(self._matcher, self._vocab)
        if ends:
            return self._made
        others: Mask = self._made & ~_only(self.ends, self._vocab)
        return others if others.any() else self._made


def _mask(matcher: LLMatcher, vocab: int) -> Mask:
    """Which tokens may come next."""
    made: Mask = np.empty((vocab + 31) // 32, dtype=np.int32)
    matcher.unsafe_compute_mask_ptr(made.ctypes.data, made.nbytes)
    _check(matcher)
    if not made.any():
        raise KeifuError("no token may follow: the constraint leaves none")
    return made


@lru_cache(maxsize=16)
def _only(tokens: frozenset[int], vocab: int) -> Mask:
    """A mask of these tokens."""
    bits = np.zeros((vocab + 31) // 32 * 32, dtype=np.uint8)
    bits[sorted(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        why = _line(matcher.get_error())
        raise KeifuError(f"the constraint cannot be followed any further: {why}")


def _words(tokenizer: Tokenizer, ends: frozenset[int]) -> LLTokenizer:
    """The vocabulary as llguidance knows it: the bytes of every token."""
    import llguidance

    words: Any = _Words(tokenizer, ends)
    return llguidance.LLTokenizer(words, n_vocab=tokenizer.vocab_size, eos_token=sorted(ends))


class _Words:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        self.eos_token_id = min(ends)
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.control_ids | ends)
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        text = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return self._encode(text, add_bos=False, add_eos=False)


class _Worker:
    """The process that compiles what is not known to be harmless; one question at a time."""

    def __init__(self, vocabulary: int, special: dict[int, str]) -> None:
        self._setting = {"vocabulary": vocabulary, "special": special}
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, constraint: Constraint) -> str:
        """The grammar of a constraint; ConstraintError if there is none within the bounds."""
        if self._process is None:
            self._process = self._start()
            if self._exchange(self._setting) is None:
                raise KeifuError("the process that compiles constraints does not start")
        bounds = {"seconds": SECONDS, "memory": MEMORY, "limits": LIMITS}
        answer = self._exchange({"kind": constraint.kind, "text": constraint.text, **bounds})
        what = {"json": "JSON schema", "lark": "grammar"}.get(constraint.kind, constraint.kind)
        if answer is None:
            raise ConstraintError(
                f"this {what} takes more than {SECONDS:g} s or {MEMORY >> 20} MB to compile: make "
                "it simpler"
            )
        if "error" in answer:
            raise ConstraintError(f"this {what} cannot be followed: {_line(answer['error'])}")
        return str(answer["grammar"])

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("grammar_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ},
            cwd="/" if sys.platform != "win32" else None,
            start_new_session=sys.platform != "win32",
        )
        weakref.finalize(self, _end, process)
        return process

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _exchange(self, ask: dict[str, Any]) -> dict[str, Any] | None:
        """One question and its answer; None if the process died over it, or had to."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        clock = threading.Timer(PATIENCE, process.kill)
        clock.daemon = True
        clock.start()
        try:
            data = json.dumps(ask).encode()
            process.stdin.write(struct.pack("<I", len(data)) + data)
            process.stdin.flush()
            head = process.stdout.read(4)
            body = process.stdout.read(struct.unpack("<I", head)[0])
            found: dict[str, Any] = json.loads(body)
            return found
        except (OSError, ValueError, struct.error):
            self.stop()
            return None
        finally:
            clock.cancel()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()


def _line(why: str) -> str:
    """What llguidance says, in one line."""
    text = " ".join(why.replace("<non-verbose/>", "").split())
    if "coerce_one_of" in text:
        text = "a oneOf whose branches overlap cannot be kept to: write anyOf"
    return text if len(text) <= 300 else text[:300] + "…"

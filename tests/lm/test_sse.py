"""The event parser: any split gives the same events, the standard's examples, bounds."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keifu.lm.errors import RemoteError
from keifu.lm.sse import Event, SSEParser


def parse(*chunks: bytes, max_event: int = 1 << 20) -> list[Event]:
    parser = SSEParser(max_event)
    return [event for chunk in chunks for event in parser.feed(chunk)]


# The examples of WHATWG HTML 9.2.6 ("Interpreting an event stream").
@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event("", "YHOO\n+2\n10")]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third",
            [Event("", "first event"), Event("", "second event")],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [Event("", ""), Event("", "\n")]),
        (b"data:test\n\ndata: test\n\n", [Event("", "test"), Event("", "test")]),
        (b"event: add\ndata: 73857293\n\n", [Event("add", "73857293")]),
        (b"event: lost\n\ndata: x\n\n", [Event("", "x")]),
        (b"\xef\xbb\xbfdata: a\r\n\r\ndata: b\r\rdata: c\n\n", [("", "a"), ("", "b"), ("", "c")]),
    ],
)
def test_standard_examples(stream: bytes, expected: list[Event]) -> None:
    assert parse(stream) == expected


@given(st.lists(st.integers(0, 200), max_size=8))
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    stream = "event: é\r\ndata: 系\r\rdata: 譜\r\ndata: x\n\n: ping\n\ndata: end\r\n\r\n".encode()
    places = [0, *sorted(c % (len(stream) + 1) for c in cuts), len(stream)]
    chunks = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert parse(*chunks) == [Event("é", "系"), Event("", "譜\nx"), Event("", "end")]


def test_an_event_is_bounded_however_it_comes() -> None:
    with pytest.raises(RemoteError, match="more than 1000 bytes"):
        parse(b"data: " + b"x" * 1001, max_event=1000)
    with pytest.raises(RemoteError, match="more than 1000 bytes"):
        parse(*[b"data: x\n"] * 200, max_event=1000)
    with pytest.raises(RemoteError, match="UTF-8"):
        parse(b"data: \xff\n\n")


def test_keep_alives_do_not_add_up() -> None:
    assert parse(*[b": ping\n"] * 1000, b"data: x\n\n", max_event=100) == [Event("", "x")]


def test_a_long_line_in_small_chunks_is_linear() -> None:
    start = time.monotonic()
    events = parse(b"data: ", *[b"y" * 16] * 60_000, b"\n\n")
    assert len(events[0].data) == 960_000
    assert time.monotonic() - start < 2

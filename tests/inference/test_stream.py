"""A stream that is read again, by anyone, after its end."""

from __future__ import annotations

import asyncio

import pytest

from keifu.inference.request import Delta
from keifu.inference.stream import Stream


def ended(error: Exception | None = None) -> Stream:
    stream = Stream()
    stream.put(Delta(text="a", tokens=(1,)))
    stream.put(Delta(text="b", tokens=(2,), finish="stop"))
    stream.close(error)
    return stream


def test_the_result_stays() -> None:
    stream = ended()
    assert stream.result().text == "ab"
    assert stream.result() is stream.result()
    assert asyncio.run(stream.aresult()) is stream.result()


def test_reading_again_finds_the_end() -> None:
    stream = ended()
    assert [delta.text for delta in stream] == ["a", "b"]
    assert list(stream) == []


def test_an_error_is_raised_to_whoever_comes() -> None:
    stream = ended(ValueError("broke"))
    for _ in range(2):
        with pytest.raises(ValueError, match="broke"):
            stream.result()


def test_the_whole_wakes_its_reader_once() -> None:
    """What comes before and after somebody begins to wait for the whole stays in order."""
    stream, woken = Stream(), []
    stream.put(Delta(text="a"))

    async def both() -> str:
        waiting = asyncio.ensure_future(stream.aresult())
        await asyncio.sleep(0)
        wake = stream._wake
        assert wake is not None
        stream._wake = lambda: (woken.append(1), wake())
        for text in "bcd":
            stream.put(Delta(text=text))
        stream.close()
        return (await waiting).text

    assert asyncio.run(both()) == "abcd"
    assert woken == [1]
    assert stream.result().text == "abcd"

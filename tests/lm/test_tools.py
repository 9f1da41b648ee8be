"""Tool calls in the published formats, whole and in pieces, good and bad."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keifu.inference.request import ToolCall
from keifu.lm.tools import (
    FORMATS,
    HERMES,
    LLAMA,
    MISTRAL,
    MOST_CHARACTERS,
    PLAIN,
    TAGGED,
    ToolFormat,
    ToolReader,
    detect,
    markers,
    read_all,
)

NAMES = ["get_weather", "add"]
OSLO = ("get_weather", {"city": "Oslo"})
ADD = ("add", {"a": 1, "b": [2, {"c": "}"}]})

# Outputs as the vendors' documentation and model cards show them.
GOOD: list[tuple[ToolFormat, str, str, list[tuple[str, object]]]] = [
    (
        HERMES,
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
        "",
        [OSLO],
    ),
    (
        HERMES,
        'I look.\n<tool_call>{"arguments": {"city": "Oslo"}, "name": "get_weather"}</tool_call>\n'
        '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}</tool_call>',
        "I look.",
        [OSLO, ADD],
    ),
    (
        HERMES,  # SmolLM2 writes a list into one pair of tags
        '<tool_call>[{"name": "get_weather", "arguments": {"city": "Oslo"}}]</tool_call>',
        "",
        [OSLO],
    ),
    (
        HERMES,  # the end token came instead of the closing tag
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}',
        "",
        [OSLO],
    ),
    (TAGGED, '<function=get_weather>{"city": "Oslo"}</function>', "", [OSLO]),
    (
        LLAMA,
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        "",
        [OSLO],
    ),
    (
        LLAMA,
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}; '
        '{"name": "add", "parameters": {"a": 1, "b": [2, {"c": "}"}]}}',
        "",
        [OSLO, ADD],
    ),
    (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}, '
        '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}]',
        "",
        [OSLO, ADD],
    ),
    (
        MISTRAL,
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}'
        '[TOOL_CALLS]add[ARGS]{"a": 1, "b": [2, {"c": "}"}]}',
        "",
        [OSLO, ADD],
    ),
    (PLAIN, '{"name": "get_weather", "arguments": {"city": "Oslo"}}', "", [OSLO]),
    (
        PLAIN,
        '```json\n[{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}]\n```',
        "",
        [OSLO],
    ),
]

PLAIN_TEXT: list[tuple[ToolFormat, str]] = [
    (HERMES, "no call at all <tool_cal"),
    (HERMES, '<tool_call>{"name": "get_weather", "arguments": {bad}}</tool_call> after'),
    (HERMES, '<tool_call>{"name": "rm_rf", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>'),
    (HERMES, "<tool_call>" + "[" * 5000),
    (HERMES, "<tool_call></tool_call>"),
    (TAGGED, "<function=add>{1}</function>"),
    (LLAMA, 'The answer: {"name": "add", "parameters": {}}'),
    (LLAMA, '{"answer": 42}'),
    (MISTRAL, "[TOOL_CALLS] none"),
    (MISTRAL, "[TOOL_CALLS]add[ARGS]{"),
    (PLAIN, "Sure! {}"),
]


def told(calls: tuple[ToolCall, ...]) -> list[tuple[str, object]]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize(("form", "text", "rest", "calls"), GOOD)
def test_published_formats(
    form: ToolFormat, text: str, rest: str, calls: list[tuple[str, object]]
) -> None:
    left, found = read_all(text, form, NAMES)
    assert (left, told(found)) == (rest, calls)
    assert len({call.id for call in found}) == len(found)
    wanted = r"[A-Za-z0-9]{9}" if form is MISTRAL else r"call_[A-Za-z0-9]{24}"
    assert all(re.fullmatch(wanted, call.id) for call in found)


@pytest.mark.parametrize(("form", "text"), PLAIN_TEXT)
def test_what_is_no_call_stays_text(form: ToolFormat, text: str) -> None:
    assert read_all(text, form, NAMES) == (text, ())


@settings(max_examples=150, deadline=None)
@given(
    case=st.sampled_from(
        [(f, t) for f, t, *_ in GOOD] + [(f, t) for f, t in PLAIN_TEXT if len(t) < 200]
    ),
    cuts=st.lists(st.integers(0, 250), max_size=30),
)
def test_pieces_say_what_the_whole_says(case: tuple[ToolFormat, str], cuts: list[int]) -> None:
    form, text = case
    edges = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    reader = ToolReader(form, NAMES)
    steps = [reader.feed(text[a:b]) for a, b in itertools.pairwise(edges)]
    steps.append(reader.close())
    whole, calls = read_all(text, form, NAMES)
    assert "".join(piece for piece, _ in steps) == whole
    assert [pair for _, found in steps for pair in told(found)] == told(calls)


def test_text_is_not_held_back_longer_than_it_must_be() -> None:
    reader = ToolReader(HERMES, NAMES)
    assert reader.feed("Hello <too") == ("Hello", ())
    assert reader.feed("thpaste") == (" <toothpaste", ())


def test_a_call_comes_as_soon_as_it_closes() -> None:
    reader = ToolReader(HERMES, NAMES)
    text = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    assert reader.feed(text[:-1]) == ("", ())
    assert told(reader.feed(text[-1])[1]) == [("add", {})]


def test_an_endless_call_becomes_text() -> None:
    reader = ToolReader(HERMES, NAMES)
    reader.feed("<tool_call>")
    out = "".join(reader.feed("x" * 1000)[0] for _ in range(MOST_CHARACTERS // 1000 + 2))
    assert out.startswith("<tool_call>xxx")


TEMPLATES = {
    "Qwen2.5": (
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\\n<tool_call>\\n",
        HERMES,
    ),
    "Llama 3.1": (
        '{{- "Environment: ipython\\n" }} Respond in the format {"name": function name, '
        '"parameters": dictionary of argument name and its value}.',
        LLAMA,
    ),
    "Mistral 7B v0.3": ('{{- "[TOOL_CALLS] [" }}', MISTRAL),
    "Functionary-like": ("<function=example_function_name>{{ parameters }}</function>", TAGGED),
    "ChatML": ("{{'<|im_start|>' + message['role'] + '\\n' + message['content']}}", None),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_says_which_format(name: str) -> None:
    text, form = TEMPLATES[name]
    assert detect(text) is form


def test_markers_are_what_the_detokenizer_must_keep() -> None:
    assert markers(HERMES) == ("<tool_call>", "</tool_call>")
    assert markers(MISTRAL) == ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
    assert markers(LLAMA) == ("<|python_tag|>",)
    assert PLAIN not in FORMATS

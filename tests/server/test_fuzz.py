"""Any JSON in any field of any route: an answer or a proper error, never a 500."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keifu.server import anthropic, bodies
from tests.server.harness import FakeLM, Running, running

ROUTES = {
    "/v1/chat/completions": (
        bodies.ChatBody,
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    ),
    "/v1/completions": (bodies.CompletionBody, {"prompt": "hi", "max_tokens": 3}),
    "/v1/embeddings": (bodies.EmbeddingBody, {"input": "hi"}),
    "/v1/messages": (
        anthropic.MessagesBody,
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    ),
    "/v1/messages/count_tokens": (
        anthropic.CountBody,
        {"messages": [{"role": "user", "content": "hi"}]},
    ),
    "/tokenize": (bodies.TokenizeBody, {"prompt": "hi"}),
    "/detokenize": (bodies.DetokenizeBody, {"tokens": [5, 6]}),
}
WORDS = [
    "type", "text", "role", "content", "name", "function", "tools", "mode", "id", "user", "tool",
    "assistant", "system", "auto", "tool_use", "tool_result", "json_schema", "schema", "image",
    "arguments", "input", "tool_use_id", "json_object", "allowed_tools", "tool_calls",
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(WORDS), st.text(max_size=8))
NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -1.5, 1e300])
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def house() -> Iterator[Running]:
    with running(lambda source: FakeLM(source, reply="Fine, 世界.", context=500)) as house:
        yield house


@pytest.mark.parametrize("route", ROUTES)
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_json(house: Running, route: str, data: st.DataObject) -> None:
    kind, good = ROUTES[route]
    names = st.one_of(st.sampled_from(sorted(kind.model_fields)), TEXTS)
    changes = data.draw(st.dictionaries(names, VALUES, max_size=3))
    answer = house.http.post(route, json={**good, **changes})
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
    elif answer.headers["content-type"].startswith("text/event-stream"):
        assert "server_error" not in answer.text
        assert "api_error" not in answer.text

"""Rows 17 to 19 and 39 to 41 of the fault table: bodies, parameters, prompts, names, who may call.

Each ends with a good request being answered; rows 20 to 24 are in test_server_load.py.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from keifu.server.settings import Access
from tests.server.harness import FakeLM, Running, running

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def house() -> Iterator[Running]:
    with running(
        lambda source: FakeLM(source, reply="fine.", context=200),
        body_bytes=100_000,
        body_seconds=0.5,
    ) as house:
        yield house


def send(house: Running, body: bytes, **headers: str) -> httpx.Response:
    return house.http.post(CHAT, content=body, headers={**JSON, **headers})


def chat_with(text: str) -> bytes:
    return b'{"messages":[{"role":"user","content":"hi"}],' + text.encode() + b"}"


BODIES = {
    "empty": (b"", 400),
    "not JSON": (b"{", 400),
    "not an object": (b"[1]", 400),
    "not UTF-8": (chat_with('"user":"x"').replace(b"x", b"\xff"), 400),
    "wrong type": (b'{"messages": "hi"}', 400),
    "wrong inner type": (chat_with('"max_tokens": "5"'), 400),
    "duplicate key": (chat_with('"seed":1,"seed":2'), 400),
    "deep lists": (chat_with('"x":' + "[" * 10_000 + "]" * 10_000), 400),
    "deep objects": (chat_with('"x":' + '{"a":' * 10_000 + "1" + "}" * 10_000), 400),
    "unclosed depth": (b"[" * 100_000, 400),
    "NaN": (chat_with('"temperature":NaN'), 400),
    "infinity": (chat_with('"temperature":1e999'), 400),
    "a huge integer": (chat_with('"seed":' + "9" * 10_000), 400),
    "half a surrogate pair": (chat_with('"user":"\\ud800"'), 400),
    "a million faults": (b'{"prompt":[' + b"1.5," * 24_000 + b"1.5]}", 400),
    "quotes without end": (chat_with('"user":"' + '\\"' * 49_000)[:-1], 400),
    "lists without end": (b'{"prompt":[' + b"[]," * 30_000 + b"[]]}", 400),
    "too large": (b" " * 100_001, 413),
    "much too large": (b" " * 1_000_000, 413),
}


@pytest.mark.parametrize("name", BODIES)
def test_17_bodies(house: Running, name: str) -> None:
    body, status = BODIES[name]
    began = time.monotonic()
    answer = send(house, body)
    assert answer.status_code == status
    assert time.monotonic() - began < 2
    assert answer.json()["error"]["message"]
    assert "Traceback" not in answer.text
    assert answer.headers["x-request-id"]
    house.still_good()


def test_17_brackets_inside_strings_are_no_depth(house: Running) -> None:
    text = json.dumps("[" * 5000 + '\\"{')
    assert send(house, chat_with(f'"user":{text}')).status_code == 200


def test_17_content_types_and_compression(house: Running) -> None:
    good = json.dumps({"messages": USER}).encode()
    assert house.http.post(CHAT, content=good).status_code == 415
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert send(house, good, **{"content-type": kind}).status_code == 415
    assert send(house, good, **{"content-type": "application/json; charset=utf-8"}).is_success
    bomb = gzip.compress(b"0" * 10_000_000)
    assert send(house, bomb, **{"content-encoding": "gzip"}).status_code == 415
    house.still_good()


def test_17_a_body_that_never_ends(house: Running) -> None:
    with socket.create_connection(("127.0.0.1", int(house.url.rsplit(":")[-1]))) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}transfer-encoding: chunked\r\n\r\n1\r\n{{\r\n".encode())
        client.settimeout(5)
        began = time.monotonic()
        assert b" 408 " in client.recv(4096).split(b"\r\n")[0]
        assert 0.4 < time.monotonic() - began < 3
    house.still_good()


def test_17_a_client_that_leaves_in_mid_body(house: Running) -> None:
    before = house.gate.cancelled
    with socket.create_connection(("127.0.0.1", int(house.url.rsplit(":")[-1]))) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
    house.wait(lambda: house.gate.cancelled == before + 1)
    house.still_good()


START = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
MANY = "".join(f"x-{i}: {'v' * 200}\r\n" for i in range(200))
CHUNKED = START + "transfer-encoding: chunked\r\n\r\n"
HEADS: dict[str, bytes] = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an endless target": b"GET /" + b"a" * 100_000,
    "an endless name": START.encode() + b"x" * 100_000,
    "an endless value": START.encode() + b"x: " + b"y" * 100_000,
    "a large value": f"{START}x: {'y' * 20_000}\r\ncontent-length: 0\r\n\r\n".encode(),
    "many headers": f"{START}{MANY}content-length: 0\r\n\r\n".encode(),
    "many trailers": f"{CHUNKED}1\r\n{{\r\n0\r\n{MANY}\r\n".encode(),
    "a target that is none": b"GET \xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a NUL": f"{START}x: a\0b\r\ncontent-length: 0\r\n\r\n".encode(),
    "a name with a space": f"{START}x y: a\r\ncontent-length: 0\r\n\r\n".encode(),
    "a length below 0": f"{START}content-length: -1\r\n\r\n".encode(),
    "two lengths": f"{START}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}".encode(),
    "a length and chunks": f"{CHUNKED[:-2]}content-length: 2\r\n\r\n{{}}".encode(),
    "a chunk of no size": f"{CHUNKED}zz\r\n".encode(),
    "a chunk of 2 ** 80": f"{CHUNKED}{2**80:x}\r\n".encode(),
}


@pytest.mark.parametrize("name", HEADS)
def test_17_heads(house: Running, name: str) -> None:
    """Refused with 400, in one piece or in many, and the connection is closed."""
    for piece in (len(HEADS[name]), 1000):
        with socket.create_connection(("127.0.0.1", int(house.url.rsplit(":")[-1]))) as client:
            client.settimeout(2)
            told = b""
            try:
                for at in range(0, len(HEADS[name]), piece):
                    client.sendall(HEADS[name][at : at + piece])
                while found := client.recv(4096):
                    told += found
            except ConnectionError:  # closed while more was on its way
                pass
            assert told.split(b"\r\n")[0].startswith((b"HTTP/1.1 400 ", b"")[not told :])
            assert b"Traceback" not in told
        house.wait(lambda: house.gate.admitted == 0)
    house.still_good()


def test_17_heads_of_an_honest_size(house: Running) -> None:
    """Long cookies pass, as do several requests on one connection and a client that asks first."""
    body = json.dumps({"messages": USER})
    one = f"{START}cookie: {'c' * 12_000}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
    with socket.create_connection(("127.0.0.1", int(house.url.rsplit(":")[-1]))) as client:
        client.settimeout(5)
        client.sendall(one * 3)
        told = b""
        while told.count(b"HTTP/1.1 200 ") < 3:
            told += client.recv(65536)
        head = f"{START}expect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        while told.count(b"chat.completion") < 3:
            told += client.recv(65536)
        client.sendall(head)
        assert client.recv(4096).startswith(b"HTTP/1.1 100 ")
        client.sendall(body.encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    house.still_good()


PARAMETERS = [
    ("max_tokens", -1),
    ("max_tokens", 2**40),
    ("max_completion_tokens", 0),
    ("n", 10**6),
    ("n", 0),
    ("n", -1),
    ("top_k", -5),
    ("top_p", 1.5),
    ("top_p", -0.1),
    ("min_p", 2),
    ("typical_p", -1),
    ("temperature", -1),
    ("temperature", 1e9),
    ("temperature", "hot"),
    ("temperature", True),
    ("repetition_penalty", 0),
    ("repeat_penalty", -1),
    ("presence_penalty", 3),
    ("frequency_penalty", -3),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"9" * 30: 1}),
    ("top_logprobs", 10**6),
    ("top_logprobs", 5),
    ("stop", ["x"] * 10_000),
    ("stop", ""),
    ("stop", [""]),
    ("stop", ["x" * 5000]),
    ("seed", 2**70),
    ("seed", 10**30),
    ("min_tokens", -1),
    ("prompt_logprobs", 1000),
    ("stop_token_ids", [-1]),
    ("tool_choice", "sometimes"),
    ("tools", [{"type": "function", "function": {"name": "../x"}}]),
    ("tools", [{"type": "function", "function": {"name": f"f{i}"}} for i in range(500)]),
    ("response_format", {"type": "xml"}),
    ("chat_template_kwargs", {"messages": []}),
    ("model", 5),
]


@pytest.mark.parametrize(("name", "value"), PARAMETERS, ids=lambda v: repr(v)[:24])
def test_18_parameters(house: Running, name: str, value: object) -> None:
    answer = house.chat(**{name: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == name
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(answer.text) < 3000
    house.still_good()


def test_18_best_of(house: Running) -> None:
    for value in (10**6, 0, -1):
        answer = house.http.post("/v1/completions", json={"prompt": "x", "best_of": value})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "best_of"
    house.still_good()


def test_19_prompts_at_the_edge(house: Running) -> None:
    long = house.chat("x" * 300)
    error = long.json()["error"]
    assert (long.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "319" in error["message"]
    assert "200" in error["message"]
    exact = house.http.post("/v1/completions", json={"prompt": [5] * 200, "max_tokens": 1})
    assert exact.json()["error"]["code"] == "context_length_exceeded"
    room = house.http.post("/v1/completions", json={"prompt": [5] * 199, "max_tokens": 1})
    assert room.status_code == 200
    assert house.http.post("/v1/completions", json={"prompt": "", "max_tokens": 1}).is_success
    empty = house.http.post(CHAT, json={"messages": []})
    assert (empty.status_code, empty.json()["error"]["param"]) == (400, "messages")
    system = house.http.post(CHAT, json={"messages": [{"role": "system", "content": "x"}]})
    assert system.status_code == 200
    streamed = house.chat("x" * 300, stream=True)
    assert (streamed.status_code, streamed.json()["error"]["code"]) == (400, error["code"])
    house.still_good()


NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "nul\x00byte",
    "CON",
    "fаke",  # a Cyrillic a
    "x" * 300,
    "x" * 5000,
    "fake/../fake",
    "",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda n: ascii(n)[:20])
def test_39_names(house: Running, name: str) -> None:
    answer = house.chat(model=name)
    assert answer.status_code in (400, 404)
    assert len(answer.text) < 600
    assert "root:" not in answer.text
    path = httpx.URL(house.url).join("/v1/models/" + "".join(f"%{b:02x}" for b in name.encode()))
    assert house.http.get(path).status_code in (404, 400)
    house.still_good()


HOSTS = [
    ({"host": "evil.example"}, 403),
    ({"host": "evil.example:80"}, 403),
    ({"host": "127.0.0.1.evil.example"}, 403),
    ({"host": "localhost.evil.example"}, 403),
    ({"host": "localhost@evil.example"}, 403),
    ({"host": "192.168.1.7"}, 403),
    ({"host": ""}, 403),
    ({"host": "[::1"}, 403),
    ({"host": "localhost"}, 200),
    ({"host": "LOCALHOST:1"}, 200),
    ({"host": "[::1]:9"}, 200),
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": "http://localhost:1"}, 403),
    ({"origin": "file://"}, 403),
    ({"sec-fetch-site": "cross-site"}, 403),
    ({"sec-fetch-site": "same-origin"}, 200),
]


@pytest.mark.parametrize(("headers", "status"), HOSTS, ids=str)
def test_40_hosts_and_origins(house: Running, headers: dict[str, str], status: int) -> None:
    body = json.dumps({"messages": USER}).encode()
    answer = send(house, body, **headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    if status == 403:
        assert answer.json()["error"]["type"] == "permission_error"
        if "origin" not in headers and "sec-fetch-site" not in headers:
            assert house.http.get("/health", headers=headers).status_code == 403
    house.still_good()


def test_40_an_allowed_origin() -> None:
    access = Access(origins=frozenset({"http://localhost:3000"}), key="secret-key")
    with running(access=access) as house:
        origin = {"origin": "http://localhost:3000"}
        asked = house.http.options(CHAT, headers=origin)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert "access-control-allow-credentials" not in asked.headers
        key = {"authorization": "Bearer secret-key"}
        answer = house.http.post(
            CHAT, json={"messages": USER, "max_tokens": 2}, headers=origin | key
        )
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert house.http.post(CHAT, json={"messages": USER}, headers=origin).status_code == 401
        same = {"origin": house.url, **key}
        assert house.http.get("/v1/models", headers=same).status_code == 200


KEYLESS = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/fake"),
    ("GET", "/version"),
    ("GET", "/tokenizer_info"),
    ("GET", "/nothing"),
    ("POST", "/tokenize"),
    ("POST", "/v1/detokenize"),
    ("POST", CHAT),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/messages"),
    ("POST", "/health"),
    ("GET", "//health"),
    ("GET", "/health/../version"),
]


def test_41_every_route_wants_the_key() -> None:
    with running(access=Access(key="correct-horse")) as house:
        for method, path in KEYLESS[:-3]:
            for wrong in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": "correct-horse"},
                {"authorization": "Basic correct-horse"},
                {"x-api-key": "correct-hors"},
                {"x-api-key": "correct-horsee"},
            ):
                answer = house.http.request(method, path, headers=wrong, json={})
                assert answer.status_code == 401, (method, path, wrong)
                assert "correct" not in answer.text
        for method, path in KEYLESS[-3:]:
            assert house.http.request(method, path).status_code in (401, 405)
        assert house.http.get("/health").status_code == 200
        assert house.http.get("/ping").status_code == 200
        for right in ({"authorization": "Bearer correct-horse"}, {"x-api-key": "correct-horse"}):
            assert house.http.get("/v1/models", headers=right).status_code == 200
            body = {"messages": USER, "max_tokens": 2}
            assert house.http.post(CHAT, json=body, headers=right).status_code == 200

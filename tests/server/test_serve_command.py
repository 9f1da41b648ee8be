"""keifu serve: who may listen where, what it prints first, options that do not fit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from keifu.cli.serve import size
from keifu.core.errors import KeifuError
from keifu.server.run import access, greeting, listen


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from keifu.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


def test_41_refuses_the_network_without_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(KeifuError, match="--api-key"):
            access(host, None, False, [], [])
        assert access(host, None, True, [], []).any_address
        assert access(host, "long-enough", False, [], []).key == "long-enough"
    for host in ("127.0.0.1", "localhost", "::1"):
        assert not access(host, None, False, [], []).any_address
    with pytest.raises(KeifuError, match="8 printable"):
        access("127.0.0.1", "short", False, [], [])
    with pytest.raises(KeifuError, match="no address"):
        access("no such host", None, False, [], [])


def test_41_by_the_command_line_and_the_key_is_not_echoed() -> None:
    run = serve("--host", "0.0.0.0", "--port", "0")
    assert run.returncode == 1
    assert run.stdout == ""
    assert "--api-key" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    run = serve("--port", "0", "--model", "/nowhere/x.gguf", KEIFU_API_KEY="secret-of-mine")
    assert run.returncode == 1
    assert "secret-of-mine" not in run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout.splitlines()[0].startswith("http://127.0.0.1:")


def test_a_taken_port_says_so() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(KeifuError, match=f"port {port}.*--port 0"):
            listen("127.0.0.1", port)
    with pytest.raises(KeifuError, match="65535"):
        listen("127.0.0.1", 70000)


def test_the_greeting_begins_with_the_address() -> None:
    with listen("127.0.0.1", 0) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        text = greeting(bound, "mine", True)
        assert text.splitlines()[0] == url
        assert f"curl {url}/v1/chat/completions" in text
        assert '"model": "mine"' in text
        assert "$KEIFU_API_KEY" in text
        code = text[text.index("import os") :]
        compile(code, "snippet", "exec")
    with listen("0.0.0.0", 0) as bound:
        assert greeting(bound, "m", False).startswith("http://127.0.0.1:")
    if socket.has_ipv6:
        with listen("::1", 0) as bound:
            assert greeting(bound, "m", False).startswith("http://[::1]:")


def test_sizes() -> None:
    assert size("2GB") == 2 * 10**9
    assert size("512MiB") == 512 * 2**20
    assert size("1.5g") == 1_500_000_000
    assert size("1000") == 1000
    for wrong in ("", "GB", "-1", "2 parsecs", "1e99"):
        with pytest.raises(KeifuError):
            size(wrong)
    run = serve("--port", "0", "--max-memory", "2 parsecs")
    assert (run.returncode, run.stdout) == (2, "")
    assert "2 parsecs" in run.stderr

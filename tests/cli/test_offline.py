"""After installation nothing needs the network: a run in which every way to it is shut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SHUT = """
import sys
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
def hook(event, args):
    if event in FORBIDDEN:
        print("NETWORK", event, args[1:] or args, file=sys.stderr, flush=True)
        raise PermissionError(f"no network here: {event}")
sys.addaudithook(hook)
from keifu.cli.main import main
for line in sys.stdin.read().split("\\n"):
    print("=== ", line.split(" ")[0], flush=True)
    status = main(line.split(" "))
    if status:
        sys.exit(f"{line}: {status}")
"""
LINES = """tree --json
list published --license commercial
show gpt-4
diff llama qwen2
models list
doctor
chat --model MODEL --quiet --max-tokens 24 --temperature 0 What is the capital of France?
complete --model MODEL --quiet --max-tokens 3 --temperature 0 Once upon a
embed --model MODEL some words"""


def test_the_whole_command_line_without_a_network(smollm2: Path) -> None:
    env = {**os.environ, "KEIFU_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SHUT],
        input=LINES.replace("MODEL", str(smollm2)),
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr
    parts = {p.split("\n", 1)[0]: p.split("\n", 1)[1] for p in done.stdout.split("===  ")[1:]}
    assert "Paris" in parts["chat"]
    assert len(json.loads(parts["tree"])) == 301
    assert len(parts["embed"]) > 500


def test_the_shut_door_is_shut() -> None:
    """The hook that the test above leans on stops what does use the network."""
    done = subprocess.run(
        [sys.executable, "-c", SHUT],
        input="models pull some-org/some-model",
        env={**os.environ, "KEIFU_OFFLINE": "", "HF_ENDPOINT": "http://192.0.2.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "NETWORK socket." in done.stderr
    assert "Traceback" not in done.stderr

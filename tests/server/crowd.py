"""Many clients at once, as a process of their own: `python -m tests.server.crowd PORT COUNT`.

All connect, then all send one chat request at the same moment; one JSON line says for each what it
was answered and after how many seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}]})
REQUEST = (
    "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    f"connection: close\r\ncontent-length: {len(BODY)}\r\n\r\n{BODY}"
).encode()


async def crowd(port: int, count: int) -> list[dict[str, object]]:
    """What each of the clients was told."""
    links = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    began = time.monotonic()
    for _, writer in links:
        writer.write(REQUEST)

    async def told(reader: asyncio.StreamReader) -> dict[str, object]:
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        seconds = time.monotonic() - began
        status, *lines = head.split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        code = int(status.split()[1])
        return {"status": code, "headers": headers, "body": json.loads(body), "seconds": seconds}

    answers = await asyncio.gather(*[told(reader) for reader, _ in links])
    for _, writer in links:
        writer.close()
    return answers


if __name__ == "__main__":
    print(json.dumps(asyncio.run(crowd(int(sys.argv[1]), int(sys.argv[2])))))

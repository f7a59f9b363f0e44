"""A service of asyncio alone: a task for each connection, there before its first request; each request is passed on."""

import asyncio
import os
from urllib.parse import urlsplit

NEXT = urlsplit(os.environ["SAMPLE_NEXT"])
pool = []


async def head(reader):
    """Its first line and its content's length."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    return lines[0], int(fields.get("content-length", 0))


async def ask(path):
    """Through a pooled connection."""
    reader, writer = pool.pop() if pool else await asyncio.open_connection(NEXT.hostname, NEXT.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {NEXT.netloc}\r\n\r\n".encode())
    line, length = await head(reader)
    await reader.readexactly(length)
    pool.append((reader, writer))
    return line.split(" ", 1)[1]


async def serve(reader, writer):
    """One connection."""
    try:
        while True:
            line, _ = await head(reader)
            path = line.split(" ")[1]
            await asyncio.sleep(0.01)
            status = await (asyncio.create_task(ask(path)) if path.startswith("/tasks") else ask(path))
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 3\r\n\r\nok\n".encode())
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def for_nobody():
    """There before the first request."""
    number = 0
    while True:
        await asyncio.gather(ask(f"/nobody/{number}"))
        number += 1
        await asyncio.sleep(0.05)


async def main():
    """As long as it runs."""
    nobody = asyncio.ensure_future(for_nobody())
    server = await asyncio.start_server(serve, os.environ["SAMPLE_HOST"], int(os.environ["SAMPLE_PORT"]), backlog=256)
    async with server:
        await asyncio.gather(server.serve_forever(), nobody)


loop = asyncio.new_event_loop()
loop.run_until_complete(main())

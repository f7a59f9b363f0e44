"""A FastAPI service that passes each request on with its path, which says how; and one call after the other for nobody."""

import asyncio
import contextlib
import http.client
import os
import threading
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI

NEXT = os.environ["SAMPLE_NEXT"]
client = httpx.AsyncClient(base_url=NEXT, timeout=20, limits=httpx.Limits(max_connections=256))
local = threading.local()


def ask(path):
    """From a thread, through a connection of its own."""
    if not hasattr(local, "connection"):
        local.connection = http.client.HTTPConnection(urlsplit(NEXT).netloc, timeout=20)
    local.connection.request("GET", path)
    answer = local.connection.getresponse()
    return {"status": answer.status, "bytes": len(answer.read())}


async def call(path):
    """From a task, through a pool."""
    answer = await client.get(path)
    return {"status": answer.status_code, "bytes": len(answer.content)}


async def calls_for_nobody():
    """It was there before the first request, and starts tasks while others are answered."""
    number = 0
    while True:
        await asyncio.create_task(call(f"/nobody/{number}"))
        number += 1
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def lifespan(_app):
    """As long as the service runs."""
    task = asyncio.create_task(calls_for_nobody())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/first/{number}")
@app.get("/await/{number}")
async def awaits(number: int):
    """In the request's own task."""
    await asyncio.sleep(0.01)
    return await call(f"/await/{number}")


@app.get("/tasks/{number}")
async def tasks(number: int):
    """In two tasks, one of which starts the second call."""

    async def later():
        await asyncio.sleep(0.01)
        return await asyncio.create_task(call(f"/tasks/{number}"))

    return await asyncio.gather(later(), call(f"/tasks/{number}"))


@app.get("/thread/{number}")
async def thread(number: int):
    """In a thread that is asked to."""
    return await asyncio.to_thread(ask, f"/thread/{number}")


@app.get("/def/{number}")
def plain(number: int):
    """In the thread in which the framework runs what does not wait."""
    return ask(f"/def/{number}")

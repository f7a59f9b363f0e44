"""The FastAPI service of the sample system: answers by itself, or asks the Node service behind it."""

import os

import anyio
import httpx
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

NODE = os.environ["SAMPLE_NODE"]
app = FastAPI()
client = httpx.AsyncClient(base_url=NODE, timeout=10)


@app.get("/items/{item}")
async def item(item: int):
    """One item, from this service alone."""
    return {"item": item, "name": f"item {item}"}


@app.post("/items")
async def create(payload: dict, response: Response):
    """Takes a JSON body."""
    response.status_code = 201
    return {"received": len(payload)}


@app.get("/orders/{order}")
async def order(order: int):
    """Through Node and Go: the trace that crosses every service."""
    answer = await client.get(f"/prices/{order}")
    return {"order": order, "price": answer.json()}


@app.get("/slow")
async def slow():
    """Takes 150 ms."""
    await anyio.sleep(0.15)
    return {"slept": 0.15}


@app.get("/broken")
async def broken(response: Response):
    """Fails."""
    response.status_code = 500
    return {"error": "broken on purpose"}


@app.get("/stream")
async def stream():
    """Chunked: ten pieces, 20 ms apart."""

    async def pieces():
        for number in range(10):
            yield f'{{"piece": {number}}}\n'
            await anyio.sleep(0.02)

    return StreamingResponse(pieces(), media_type="application/x-ndjson")

"""A web service: it answers with all outputs, or sends each as it ends.

pip install fanout-llm fastapi uvicorn; uvicorn --app-dir examples api:app
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

from fanout import FanoutError, ParallelCalls

MODEL = os.environ.get("FANOUT_MODEL", "openai/gpt-5-mini")  # with OPENAI_API_KEY
# What is posted are texts by name, and so are the answers.
PROMPT = "Is this review positive, negative or mixed? One word.\n\n{input}"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # One runner serves all requests. With FANOUT_BROKER_URL, its work is that of a fleet.
    async with ParallelCalls(llm=MODEL) as app.state.runner:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/reviews")
async def answer(texts: dict[str, str]) -> dict[str, str | None]:
    try:
        result = await app.state.runner.arun(texts, PROMPT)
    except FanoutError as error:
        raise HTTPException(422, str(error)) from error
    return {branch.document: branch.output for branch in result.branches}


@app.post("/reviews/stream")
async def stream(texts: dict[str, str]) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        try:
            async for one in app.state.runner.astream(texts, PROMPT):
                yield json.dumps({one.document: one.output or one.message}) + "\n"
        except FanoutError as error:  # the status has been sent
            yield json.dumps({"error": str(error)}) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")

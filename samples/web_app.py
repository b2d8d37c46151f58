"""Answer questions over HTTP inside an asyncio web app: pip install starlette uvicorn.

Usage: python web_app.py MODEL, then curl -N 'http://127.0.0.1:8000/ask?q=Name+three+rivers.'
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import edgesdk
from edgesdk.errors import RequestError


def app_of(model: edgesdk.Model) -> Starlette:
    """An app that answers with a model; a client that hangs up ends its answer."""

    async def ask(request: Request) -> Response:
        try:
            stream = model.astream(request.query_params.get("q", ""), max_tokens=100)
        except RequestError as error:
            return JSONResponse({"error": str(error)}, status_code=400)

        async def pieces() -> AsyncIterator[str]:
            async with stream:
                async for piece in stream:
                    yield piece

        return StreamingResponse(pieces(), media_type="text/plain; charset=utf-8")

    return Starlette(routes=[Route("/ask", ask)])


if __name__ == "__main__":
    with edgesdk.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct") as loaded:
        uvicorn.run(app_of(loaded), port=8000)

"""`/v1/embeddings`, as OpenAI has it, and `/v1/rerank`, as Jina and Cohere have it.

Sources: https://platform.openai.com/docs/api-reference/embeddings, https://jina.ai/reranker,
https://docs.cohere.com/reference/rerank. `prompt_name` and `truncate` are those of Hugging Face's
text-embeddings-inference.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field
from starlette.routing import Route

from edgesdk.embedding.embedder import Vectors
from edgesdk.errors import EdgeError
from edgesdk.server.api_errors import ApiError, to_api_error
from edgesdk.server.api_requests import validated
from edgesdk.server.chat_messages import StrictModel
from edgesdk.server.model_pool import LoadedModel
from edgesdk.server.request_body import JsonEndpoint
from edgesdk.server.service import Service

# OpenAI's own limit.
_MAX_INPUTS = 2048
_Result = TypeVar("_Result")
_Tokens = Annotated[list[int], Field(min_length=1)]


class EmbeddingRequest(StrictModel):
    """The body of `/v1/embeddings`. Tokens are the model's own, special ones included."""

    model: str = ""
    input: (
        str
        | _Tokens
        | Annotated[list[str], Field(min_length=1, max_length=_MAX_INPUTS)]
        | Annotated[list[_Tokens], Field(min_length=1, max_length=_MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None
    prompt_name: str | None = None
    truncate: bool | None = None


class DocumentText(StrictModel):
    """A document that is an object."""

    text: str


class RerankRequest(StrictModel):
    """The body of `/v1/rerank`."""

    model: str = ""
    query: str
    documents: Annotated[list[str | DocumentText], Field(min_length=1, max_length=_MAX_INPUTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    truncate: bool | None = None


class OllamaEmbedRequest(StrictModel):
    """The body of Ollama's `/api/embed`; texts that are too long are cut unless it says no.

    `options` and `keep_alive` change no vector.
    """

    model: str
    input: str | Annotated[list[str], Field(max_length=_MAX_INPUTS)]
    truncate: bool = True
    dimensions: Annotated[int, Field(ge=1)] | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None


class OllamaEmbeddingsRequest(StrictModel):
    """The body of Ollama's older `/api/embeddings`."""

    model: str
    prompt: str
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None


def vector_routes(service: Service) -> list[Route]:
    """The paths that make vectors and scores."""

    def route(path: str, answer: Callable[[Service, bytes], Awaitable[dict[str, Any]]]) -> Route:
        async def body_of(body: bytes) -> dict[str, Any]:
            return await answer(service, body)

        endpoint = JsonEndpoint(body_of, service.settings.body_limit)
        return Route(path, endpoint, methods=["POST"])

    return [
        route("/v1/embeddings", embeddings),
        route("/v1/rerank", rerank),
        route("/v2/rerank", rerank),
        route("/api/embed", ollama_embed),
        route("/api/embeddings", ollama_embeddings),
    ]


async def embeddings(service: Service, body: bytes) -> dict[str, Any]:
    """OpenAI's reply: a vector for each input, and how many tokens were read.

    Raises:
        ApiError: a field is wrong, or the model is unknown or makes no vectors.
    """
    request = validated(EmbeddingRequest, body)
    name, vectors, tokens = await _vectors(
        service,
        request.model,
        request.input,
        dimensions=request.dimensions,
        prompt=request.prompt_name,
        truncate=bool(request.truncate),
    )
    coded = request.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": at, "embedding": _base64(row) if coded else row.tolist()}
        for at, row in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": name, "usage": usage}


async def rerank(service: Service, body: bytes) -> dict[str, Any]:
    """Jina's reply: the documents' places and scores, the best first; raises as `embeddings`."""
    request = validated(RerankRequest, body)
    documents = [each if isinstance(each, str) else each.text for each in request.documents]
    truncate = bool(request.truncate)

    def work(loaded: LoadedModel) -> dict[str, Any]:
        reranker = loaded.reranker
        counts = [reranker.count(request.query, document) for document in documents]
        ranked = reranker.rank(request.query, documents, top=request.top_n, truncate=truncate)
        tokens = sum(min(count, reranker.max_tokens) for count in counts)
        results: list[dict[str, Any]] = [
            {"index": each.index, "relevance_score": each.score} for each in ranked
        ]
        if request.return_documents:
            for result, each in zip(results, ranked, strict=True):
                result["document"] = {"text": each.document}
        return {
            "object": "list",
            "model": loaded.model_info.name,
            "results": results,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    return await _computed(service, request.model, work, param="documents")


async def ollama_embed(service: Service, body: bytes) -> dict[str, Any]:
    """Ollama's reply; raises as `embeddings`."""
    request = validated(OllamaEmbedRequest, body)
    name, vectors, tokens = await _vectors(
        service,
        request.model,
        request.input,
        dimensions=request.dimensions,
        truncate=request.truncate,
    )
    return {"model": name, "embeddings": vectors.tolist(), "prompt_eval_count": tokens}


async def ollama_embeddings(service: Service, body: bytes) -> dict[str, Any]:
    """The older one, for one text; raises as `embeddings`."""
    request = validated(OllamaEmbeddingsRequest, body)
    _, vectors, _ = await _vectors(service, request.model, request.prompt, truncate=True)
    return {"embedding": vectors[0].tolist()}


async def _vectors(
    service: Service,
    model: str,
    given: str | list[str] | list[int] | list[list[int]],
    *,
    dimensions: int | None = None,
    prompt: str | None = None,
    truncate: bool = False,
) -> tuple[str, Vectors, int]:
    """The model's name, the vectors, and how many tokens were read."""
    one = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    inputs: list[Any] = [given] if one else list(given)

    def work(loaded: LoadedModel) -> tuple[str, Vectors, int]:
        embedder = loaded.embedder
        rows = inputs
        if inputs and isinstance(inputs[0], str):
            rows = embedder.tokenize(inputs, prompt=prompt, truncate=truncate)
        vectors = embedder.embed_tokens(rows, dimensions=dimensions)
        return loaded.model_info.name, vectors, sum(map(len, rows))

    return await _computed(service, model, work, param="input")


async def _computed(
    service: Service, model: str, work: Callable[[LoadedModel], _Result], *, param: str
) -> _Result:
    try:
        return await service.compute(model, work)
    except ApiError:
        raise
    except EdgeError as error:
        raise to_api_error(error, param=param) from None


def _base64(vector: Vectors) -> str:
    """Little-endian float32, as OpenAI's clients read it."""
    return base64.b64encode(vector.astype(np.dtype("<f4")).tobytes()).decode()

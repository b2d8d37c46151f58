"""Paths that tokenize, as llama.cpp's server and vLLM's have them.

Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/server, and
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#tokenizer-api.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgesdk.server.api_errors import ApiError
from edgesdk.server.api_requests import ChatRequest, parse, validated
from edgesdk.server.chat_messages import MessageModel
from edgesdk.server.dialects.conversation import Json
from edgesdk.server.dialects.translation import prompt_of
from edgesdk.server.model_pool import LoadedModel
from edgesdk.server.request_body import JsonEndpoint
from edgesdk.server.service import Service
from edgesdk.text.tokenizer import Tokenizer


class TokenizeRequest(MessageModel):
    """The body of `/tokenize`: a text, as llama.cpp's `content` or vLLM's `prompt`, or a chat.

    llama.cpp adds the tokens that begin a prompt only where it is told to, vLLM unless it is told
    not to.
    """

    model: str = ""
    content: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    @property
    def text(self) -> str:
        """What is to be tokenized.

        Raises:
            ApiError: 400; there is nothing.
        """
        text = self.prompt if self.content is None else self.content
        if text is None:
            raise ApiError(400, "Give a content, a prompt, or messages.", param="content")
        return text

    @property
    def begins(self) -> bool:
        """Whether the tokens that begin a prompt are wanted."""
        if self.content is not None:
            return bool(self.add_special)
        return self.add_special_tokens is not False


class DetokenizeRequest(MessageModel):
    """The body of `/detokenize`."""

    model: str = ""
    tokens: list[Annotated[int, Field(ge=0)]]


def tokenizing_routes(service: Service) -> list[Route]:
    """The paths of one server."""

    async def tokenize(body: bytes) -> Json:
        request = validated(TokenizeRequest, body)
        if request.messages is not None:
            chat = {"model": request.model, "messages": request.messages, "tools": request.tools}
            return await prompt_of(service, _chat(to_json(chat)), partial(_tokenized, request))

        def work(loaded: LoadedModel) -> Json:
            tokenizer = loaded.model.runtime.encoder.tokenizer
            tokens = tokenizer.encode(request.text, add_bos=request.begins)
            return _tokenized(request, loaded, tokens)

        return await service.use(request.model, work)

    async def detokenize(body: bytes) -> Json:
        request = validated(DetokenizeRequest, body)

        def work(loaded: LoadedModel) -> Json:
            text = _text(loaded.model.runtime.encoder.tokenizer, request.tokens)
            return {"content": text, "prompt": text}

        return await service.use(request.model, work)

    async def apply_template(body: bytes) -> Json:
        def written(loaded: LoadedModel, tokens: list[int]) -> Json:
            return {"prompt": _text(loaded.model.runtime.encoder.tokenizer, tokens)}

        return await prompt_of(service, _chat(body), written)

    async def props(request: Request) -> Response:
        def work(loaded: LoadedModel) -> Json:
            return _props(loaded, service.settings.parallel)

        return JSONResponse(await service.use(request.query_params.get("model", ""), work))

    limit = service.settings.body_limit
    return [
        Route("/tokenize", JsonEndpoint(tokenize, limit), methods=["POST"]),
        Route("/detokenize", JsonEndpoint(detokenize, limit), methods=["POST"]),
        Route("/apply-template", JsonEndpoint(apply_template, limit), methods=["POST"]),
        Route("/props", props),
    ]


def _chat(body: bytes) -> ChatRequest:
    return parse(ChatRequest, body)


def _tokenized(request: TokenizeRequest, loaded: LoadedModel, tokens: list[int]) -> Json:
    tokenizer = loaded.model.runtime.encoder.tokenizer
    shown: Json = {"tokens": tokens}
    if request.with_pieces:
        shown["tokens"] = [{"id": each, "piece": _piece(tokenizer, each)} for each in tokens]
    if request.return_token_strs:
        shown["token_strs"] = [_text(tokenizer, [each]) for each in tokens]
    return {
        **shown,
        "count": len(tokens),
        "max_model_len": loaded.model.info.context_length,
    }


def _piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """A token's text; its bytes where they are no text by themselves."""
    written = _bytes(tokenizer, [token])
    try:
        return written.decode()
    except UnicodeDecodeError:
        return list(written)


def _text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return _bytes(tokenizer, tokens).decode("utf-8", "replace")


def _bytes(tokenizer: Tokenizer, tokens: list[int]) -> bytes:
    """What tokens stand for, and of control tokens their names."""
    size = tokenizer.vocab_size
    if any(token >= size for token in tokens):
        raise ApiError(400, f"The tokens of this model are from 0 to {size - 1:,}.", param="tokens")
    names = {token: name.encode() for name, token in tokenizer.added_tokens.items()}
    return b"".join(tokenizer.token_bytes(each) or names.get(each, b"") for each in tokens)


def _props(loaded: LoadedModel, parallel: int) -> Json:
    model = loaded.model
    encoder = model.runtime.encoder
    return {
        "default_generation_settings": {"n_ctx": model.info.context_length},
        "total_slots": parallel,
        "model_alias": loaded.model_info.name,
        "model_path": loaded.model_info.name,
        "chat_template": "" if encoder.template is None else encoder.template.source,
        "bos_token": encoder.bos_token or "",
        "eos_token": encoder.eos_token or "",
        "modalities": {"vision": False, "audio": False},
        "build_info": model.info.name,
    }

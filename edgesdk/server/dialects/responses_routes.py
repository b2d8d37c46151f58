"""The paths of OpenAI's Responses API."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgesdk.server.api_errors import ApiError
from edgesdk.server.api_requests import validated
from edgesdk.server.dialects.conversation import Json
from edgesdk.server.dialects.response_store import ResponseStore
from edgesdk.server.dialects.responses_answers import ResponsesAnswer
from edgesdk.server.dialects.responses_requests import ResponsesInput, ResponsesRequest
from edgesdk.server.dialects.translation import Translated, answer_endpoint, counting_endpoint
from edgesdk.server.hybrid_routing import HybridClients
from edgesdk.server.service import Service


def responses_routes(service: Service, hybrid: HybridClients | None) -> list[Route]:
    """The paths of one server, which share what is kept."""
    store = ResponseStore()

    def read(body: bytes) -> ResponsesInput:
        request = validated(ResponsesRequest, body)
        earlier: list[Json] = []
        if request.previous_response_id is not None:
            try:
                stored = store.get(request.previous_response_id)
            except ApiError as error:
                code, param = "previous_response_not_found", "previous_response_id"
                raise ApiError(400, error.message, code=code, param=param) from None
            earlier = [*stored.items, *stored.body["output"]]
        return ResponsesInput(request, earlier, store.find_item)

    def translate(body: bytes) -> Translated:
        given = read(body)

        def keep(response: Json) -> None:
            if given.request.store is not False:
                store.put(response, given.items)

        builder = partial(ResponsesAnswer, request=given.request, keep=keep)
        return given.chat_body(), builder

    async def get(request: Request) -> Response:
        return JSONResponse(store.get(request.path_params["key"]).body)

    async def delete(request: Request) -> Response:
        key = request.path_params["key"]
        store.delete(key)
        return JSONResponse({"id": key, "object": "response", "deleted": True})

    async def items(request: Request) -> Response:
        stored = store.get(request.path_params["key"])
        data = [{"id": f"item_{index}", **item} for index, item in enumerate(stored.items)]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return JSONResponse({"object": "list", "data": data, "has_more": False, **ends})

    def counted(tokens: int) -> Json:
        return {"object": "response.input_tokens", "input_tokens": tokens}

    answer = answer_endpoint(translate, service, hybrid)
    count = counting_endpoint(lambda body: read(body).chat_body(), counted, service)
    one = "/v1/responses/{key}"
    return [
        Route("/v1/responses", answer, methods=["POST"]),
        Route("/v1/responses/input_tokens", count, methods=["POST"]),
        Route(one, get, methods=["GET"]),
        Route(one, delete, methods=["DELETE"]),
        Route(f"{one}/input_items", items, methods=["GET"]),
    ]

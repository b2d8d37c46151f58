"""The form that a chat request holds the answer to, known before anything is decoded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from edgesdk.errors import InvalidOption, MissingExtra, StructureError
from edgesdk.server.arguments import MOST_CHARACTERS
from edgesdk.server.failures import ApiError, missing
from edgesdk.server.requests import ChatRequest
from edgesdk.structure.asking import Structure
from edgesdk.structure.forms import structure_of

FORMAT = "response_format"


def format_asked(request: ChatRequest) -> Structure | None:
    """The form that `response_format` asks for; None where the answer may be any text.

    Raises:
        ApiError: 400; it cannot be enforced, or goes with something else of the request. 501 if
            llguidance is not installed.
    """
    asked = request.response_format
    if asked is None or asked.type == "text":
        return None
    if request.stop:
        raise ApiError(
            400, f"stop and {FORMAT} exclude each other: it would cut the JSON short.", param="stop"
        )
    if asked.type == "json_object":
        with blamed_on(FORMAT):
            return structure_of("schema", {"type": "object"})
    param = f"{FORMAT}.json_schema"
    if asked.json_schema is None:
        raise missing(param)
    schema, param = asked.json_schema.form, f"{param}.schema"
    if schema is None:
        raise missing(param)
    if len(json.dumps(schema)) > MOST_CHARACTERS:
        raise ApiError(
            400, f"The schema is longer than {MOST_CHARACTERS:,} characters.", param=param
        )
    with blamed_on(param):
        return structure_of("schema", schema)


@contextmanager
def blamed_on(param: str) -> Iterator[None]:
    """Errors of forms as errors of the request's field `param`."""
    try:
        yield
    except (InvalidOption, StructureError) as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from None
    except MissingExtra as error:
        raise ApiError(501, str(error), param=param, code="missing_extra") from None

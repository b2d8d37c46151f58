"""What a request says about who may answer it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from pydantic import BaseModel
from starlette.datastructures import Headers

from edgesdk.hybrid.changes import Prefer
from edgesdk.hybrid.privacy.policy import Policy, Upload, Verdict
from edgesdk.server.failures import ApiError
from edgesdk.server.parts import FLAT

UPLOAD_HEADER, PREFER_HEADER = "x-edgesdk-upload", "x-edgesdk-prefer"
# Without "ask", because there is nobody to ask.
RequestUpload = Literal["local_only", "redact", "allow"]
_Word = TypeVar("_Word", bound=str)


class RoutingFields(BaseModel):
    """The field `edgesdk` of a request."""

    model_config = FLAT

    upload: RequestUpload | None = None
    prefer: Prefer | None = None


@dataclass(frozen=True)
class Routing:
    """Attributes:
    upload: the request's own rule; None for the server's.
    prefer: see `HybridClient.stream`.
    """

    upload: Upload | None
    prefer: Prefer | None


def routing_of(fields: RoutingFields | None, headers: Headers, policy: Policy) -> Routing:
    """What a request says, in its body or in its headers.

    Raises:
        ApiError: 400 for a word that is none, or where body and header contradict each other; 403
            for a rule that is looser than the server's.
    """
    fields = fields or RoutingFields()
    upload = _one("upload", fields.upload, headers.get(UPLOAD_HEADER), get_args(RequestUpload))
    prefer = _one("prefer", fields.prefer, headers.get(PREFER_HEADER), get_args(Prefer))
    if upload is not None and Verdict(upload, "").at_most(policy.default, "").upload != upload:
        raise ApiError(
            403,
            f"This server's rule for uploads is {policy.default!r}; a request may only be"
            " stricter.",
            param="edgesdk.upload",
            code="upload_not_allowed",
        )
    return Routing(upload, prefer)


def _one(
    name: str, field: _Word | None, header: str | None, words: tuple[_Word, ...]
) -> _Word | None:
    param = f"edgesdk.{name}"
    if header is None:
        return field
    said = next((word for word in words if word == header.strip()), None)
    if said is None:
        raise ApiError(
            400,
            f"The header X-Edgesdk-{name.title()} must be one of {', '.join(words)}.",
            param=param,
            code="invalid_value",
        )
    if field not in (None, said):
        raise ApiError(
            400, f"The header and the body contradict each other in {param!r}.", param=param
        )
    return said

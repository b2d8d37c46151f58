"""Says which cloud may answer: the rules of the server, and those of one request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, TypeVar, get_args

from starlette.datastructures import Headers

from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.privacy.policy import Policy, UploadVerdict
from edgesdk.hybrid.request import Prefer
from edgesdk.model import Model
from edgesdk.server.api_errors import ApiError
from edgesdk.server.chat_messages import StrictModel
from edgesdk.system.checks import checked_choice
from edgesdk.system.closing import Closeable

UPLOAD_HEADER, PREFER_HEADER = "x-edgesdk-upload", "x-edgesdk-prefer"
# Without "ask", because there is nobody to ask.
RequestUpload = Literal["local_only", "redact", "allow"]
# What a stream holds back, so that a client which only appends text never shows a withdrawn draft.
# "decision": the device's pieces, until it is sure that they are the answer. "answer": all pieces,
# until the answer is whole. "nothing".
HoldPolicy = Literal["decision", "answer", "nothing"]
_Word = TypeVar("_Word", bound=str)


class HybridClients(Closeable):
    """One hybrid client for each model that a server has loaded.

    Args:
        make: makes the client of a model.
        policy: of all clients; its default is the loosest rule that a request may ask for.
        hold: what streams hold back.

    Raises:
        InvalidOption: `hold` has no such value.
    """

    def __init__(
        self,
        make: Callable[[Model], HybridClient],
        policy: Policy,
        *,
        hold: HoldPolicy = "decision",
    ) -> None:
        self.policy = policy
        self.hold: HoldPolicy = checked_choice("hold", hold, get_args(HoldPolicy))
        self._make = make
        self._clients: dict[str, tuple[Model, HybridClient]] = {}
        self._guard = threading.Lock()

    def client(self, name: str, model: Model) -> HybridClient:
        """The client of a loaded model.

        Args:
            name: that it is served by.
        """
        with self._guard:
            known = self._clients.get(name)
            if known is not None and known[0] is model:
                return known[1]
            made = self._make(model)
            self._clients[name] = (model, made)
        if known is not None:
            # Its model was unloaded since, so nobody asks it any more.
            known[1].close()
        return made

    def close(self) -> None:
        with self._guard:
            clients, self._clients = self._clients, {}
        for _, client in clients.values():
            client.close()


class RequestRouting(StrictModel):
    """Says who may answer one request: its field `edgesdk`, or its headers.

    Attributes:
        upload: the request's own rule; None for the server's.
        prefer: see `HybridClient.stream`.
    """

    upload: RequestUpload | None = None
    prefer: Prefer | None = None


def requested_routing(
    fields: RequestRouting | None, headers: Headers, policy: Policy
) -> RequestRouting:
    """Read the routing of a request from its body or its headers.

    Raises:
        ApiError: 400 for a value that is not allowed, or where body and header contradict each
            other; 403 for a rule that is looser than the server's.
    """
    fields = fields or RequestRouting()
    upload: RequestUpload | None = _field_or_header(
        "upload", fields.upload, headers.get(UPLOAD_HEADER), get_args(RequestUpload)
    )
    prefer = _field_or_header("prefer", fields.prefer, headers.get(PREFER_HEADER), get_args(Prefer))
    if (
        upload is not None
        and UploadVerdict(upload, "").tightened(policy.default, "").upload != upload
    ):
        raise ApiError(
            403,
            f"This server's rule for uploads is {policy.default!r}; a request may only be"
            " stricter.",
            param="edgesdk.upload",
            code="upload_not_allowed",
        )
    return RequestRouting(upload=upload, prefer=prefer)


def _field_or_header(
    name: str, field: _Word | None, header: str | None, words: tuple[_Word, ...]
) -> _Word | None:
    param = f"edgesdk.{name}"
    if header is None:
        return field
    value = next((word for word in words if word == header.strip()), None)
    if value is None:
        raise ApiError(
            400,
            f"The header X-Edgesdk-{name.title()} must be one of {', '.join(words)}.",
            param=param,
            code="invalid_value",
        )
    if field not in (None, value):
        raise ApiError(
            400, f"The header and the body contradict each other in {param!r}.", param=param
        )
    return value

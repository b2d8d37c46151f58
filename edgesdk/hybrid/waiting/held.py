"""A request that waits: what has to be known to send it later."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edgesdk.decode.options import Options, options_from
from edgesdk.errors import RequestError
from edgesdk.hybrid.privacy.policy import Upload, Verdict

# What a cloud is told of the options; the rest is the device's.
_TOLD = ("max_tokens", "stop", "temperature", "top_p", "seed")


@dataclass(frozen=True)
class Held:
    """One request.

    Attributes:
        messages: as they are, with all that is private.
        upload: the rule that held when it was asked; a later one may be stricter, never looser.
        call: the rule that its call gave, if it gave one,
        tags: and the tags; both are judged again when it is sent.
    """

    messages: list[dict[str, Any]]
    options: Options
    upload: Upload
    call: Upload | None = None
    tags: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """`from_bytes` reads it; raises RequestError where a message is no JSON."""
        options = {name: getattr(self.options, name) for name in _TOLD}
        fields = {
            "messages": self.messages,
            "options": options,
            "upload": self.upload,
            "call": self.call,
            "tags": self.tags,
        }
        try:
            return json.dumps(fields).encode("ascii")
        except (TypeError, ValueError) as error:
            raise RequestError(f"A message that is no JSON cannot wait: {error}.") from error


def held_of(messages: list[dict[str, Any]], options: Options, verdict: Verdict) -> Held:
    """A request with the verdict on it."""
    return Held(messages, options, verdict.upload, verdict.call, verdict.tags)


def from_bytes(data: bytes) -> Held:
    """What `Held.to_bytes` gave."""
    fields = json.loads(data)
    return Held(
        fields["messages"],
        options_from(fields["options"]),
        fields["upload"],
        fields["call"],
        tuple(fields["tags"]),
    )

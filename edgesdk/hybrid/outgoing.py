"""What is sent: the conversation as a request, hidden as far as the policy wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgesdk.decode.options import Options
from edgesdk.hybrid.privacy.policy import Messages
from edgesdk.hybrid.privacy.vault import Vault

# Words of the protocol, which say nothing about anybody.
_PROTOCOL = frozenset({"role", "type", "id", "tool_call_id"})


def request_body(
    messages: Messages, options: Options, *, vault: Vault | None, max_output_tokens: int
) -> dict[str, Any]:
    """A request without model and streaming.

    Args:
        vault: hides what is private; None sends the texts as they are.
        max_output_tokens: where the options set no limit.
    """
    body: dict[str, Any] = {
        "messages": [hidden(vault, message) for message in messages],
        "max_tokens": options.max_tokens or max_output_tokens,
        "temperature": options.temperature,
    }
    if options.top_p is not None and options.top_p < 1:
        body["top_p"] = options.top_p
    if options.seed is not None:
        body["seed"] = options.seed
    if options.stops:
        body["stop"] = [hidden(vault, stop) for stop in options.stops]
    return body


def hidden(vault: Vault | None, value: Any) -> Any:
    """A JSON value with all its texts redacted, but for words of the protocol."""
    if vault is None:
        return value
    if isinstance(value, str):
        return vault.redact(value)
    if isinstance(value, Mapping):
        return {
            key: item if key in _PROTOCOL else hidden(vault, item) for key, item in value.items()
        }
    if isinstance(value, Sequence):
        return [hidden(vault, item) for item in value]
    return value

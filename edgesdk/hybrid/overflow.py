"""Shortens a conversation that is too long for the device but not for a cloud."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from edgesdk.errors import InvalidOption, TemplateError
from edgesdk.hybrid.content import text_messages
from edgesdk.hybrid.request import HybridRequest, Messages
from edgesdk.overflow import Overflow, checked_policy, drop_oldest, low_watermark, prompt_limit
from edgesdk.runtime import Runtime

HybridOverflow = Literal["error", "drop_oldest_turns"]


def checked_overflow(policy: str) -> HybridOverflow:
    """`policy` itself.

    Raises:
        InvalidOption: there is no such policy.
    """
    found = checked_policy(policy)
    if found == "summarize":
        raise InvalidOption(
            "A hybrid chat does not summarize: a cloud may yet be sent the turns as they are.",
            hint="Choose 'error' or 'drop_oldest_turns'.",
        )
    return found


def fit_to_device(
    runtime: Runtime, hybrid: HybridRequest, history: range, unseen: int
) -> tuple[HybridRequest, int]:
    """The request, of which the device sees as many of the latest turns as fit its context.

    A cloud is sent all of them.

    Args:
        history: places in the request's messages of the turns that may be left out.
        unseen: how many of these messages were left out before. They stay out while not all fit,
            so that the KV cache of what follows them is of use.

    Returns:
        The request, and how many messages are left out now.
    """
    request = hybrid.request
    before, turns = (
        request.messages[: history.start],
        request.messages[history.start : history.stop],
    )
    news = request.messages[history.stop :]
    limit = prompt_limit(runtime.engine.info.context_length, request.options.max_tokens)

    def tokens(kept: Messages) -> int:
        return len(request.encode(text_messages([*before, *kept, *news]), request.specs))

    try:
        full = len(hybrid.full.tokens)
        if full <= limit:
            return hybrid, 0
        kept = turns[unseen:]
        if tokens(kept) > limit:
            kept = drop_oldest(kept, tokens, low_watermark(limit)).turns
        left = tokens(kept)
    except TemplateError:
        # The device's model cannot read it anyway, which is said elsewhere.
        return hybrid, 0
    out = len(turns) - len(kept)
    dropped = sum(message["role"] == "user" for message in turns[:out])
    overflow = Overflow("drop_oldest_turns", dropped, full, left)
    return replace(hybrid, local_messages=[*before, *kept, *news], overflow=overflow), out

"""Into the journal: what became of a request, in numbers and in words of the SDK's own."""

from __future__ import annotations

import json
import logging
import time

from edgesdk.errors import RequestError
from edgesdk.hybrid.ask import Messages
from edgesdk.hybrid.privacy.policy import Verdict
from edgesdk.hybrid.records.decision import Decision, Texts
from edgesdk.hybrid.records.journal import Journal
from edgesdk.hybrid.reply import HybridReply, LocalDraft

_LOG = logging.getLogger("edgesdk.hybrid")


def write_down(
    journal: Journal,
    reply: HybridReply,
    messages: Messages,
    verdict: Verdict,
    *,
    started: float,
    bundle: str,
) -> None:
    """Append a decision, if that is possible; the answer does not depend on it.

    Args:
        started: seconds since the epoch.
        bundle: hash of the local model's bundle.
    """
    local, cloud = reply.local, reply.cloud
    counted = cloud.usage if cloud else None
    decision = Decision(
        at=started,
        route=reply.route,
        reason=reply.reason,
        upload=verdict.upload,
        kinds=tuple(sorted(verdict.kinds)),
        confidence=local.confidence if local else None,
        signals=local.measured if local else {},
        gate=reply.gate,
        doubted=local is not None and local.doubted,
        bundle=bundle,
        endpoint=cloud.endpoint if cloud else "",
        prompt_tokens=counted.prompt_tokens if counted else _tokens(local, "prompt_tokens"),
        output_tokens=counted.completion_tokens if counted else _tokens(local, "output_tokens"),
        money=reply.cost.money,
        seconds=time.time() - started,
        finish=cloud.finish_reason if cloud else local.receipt.finish_reason if local else "",
    )
    prompt = json.dumps(messages, ensure_ascii=False)
    texts = Texts(prompt, local.text if local else None, cloud.text if cloud else None)
    try:
        journal.append(decision, prompt=prompt, texts=texts)
    except RequestError as error:
        _LOG.warning("a decision was not written down: %s", error)


def _tokens(local: LocalDraft | None, name: str) -> int:
    return 0 if local is None else int(getattr(local.receipt, name))

"""Writes into the journal where a request was answered, and why."""

from __future__ import annotations

import json
import logging
import time

from edgesdk.errors import RequestError
from edgesdk.hybrid.privacy.policy import UploadVerdict
from edgesdk.hybrid.reply import HybridReply, LocalDraft
from edgesdk.hybrid.request import Messages
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal, RecordedTexts

_LOG = logging.getLogger("edgesdk.hybrid")


def record_decision(
    journal: Journal,
    reply: HybridReply,
    messages: Messages,
    verdict: UploadVerdict,
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
    decision = DecisionRecord(
        at=started,
        route=reply.route,
        reason=reply.reason,
        upload=verdict.upload,
        kinds=tuple(sorted(verdict.kinds)),
        confidence=local.confidence if local else None,
        signals=local.measured if local else {},
        rejected_by=reply.rejected_by,
        predicted_wrong=local is not None and local.predicted_wrong,
        bundle=bundle,
        endpoint=cloud.endpoint if cloud else "",
        prompt_tokens=counted.prompt_tokens if counted else _tokens(local, "prompt_tokens"),
        output_tokens=counted.completion_tokens if counted else _tokens(local, "output_tokens"),
        money=reply.cost.money,
        seconds=time.time() - started,
        finish=cloud.finish_reason if cloud else local.receipt.finish_reason if local else "",
    )
    prompt = json.dumps(messages, ensure_ascii=False)
    texts = RecordedTexts(prompt, local.text if local else None, cloud.text if cloud else None)
    try:
        journal.append(decision, prompt=prompt, texts=texts)
    except RequestError as error:
        _LOG.warning("a decision was not written down: %s", error)


def _tokens(local: LocalDraft | None, name: str) -> int:
    return 0 if local is None else int(getattr(local.receipt, name))

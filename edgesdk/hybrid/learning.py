"""What a device's own right and wrong answers teach: which prompts to leave alone, and how far to
trust an answer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

from edgesdk.hybrid.gate.features import Messages
from edgesdk.hybrid.gate.prompts import PromptGate, train_with_unseen
from edgesdk.hybrid.records.journal import Entry
from edgesdk.hybrid.trust.confidence import Confidence
from edgesdk.hybrid.trust.kept import Kept
from edgesdk.hybrid.trust.learning import train_signals
from edgesdk.hybrid.trust.regression import LogisticRegression
from edgesdk.hybrid.trust.signals import NAMES, Signals
from edgesdk.text.prompts import Prompt


@dataclass(frozen=True)
class Learned:
    """What belongs together: the regression was trained on what the gate says of prompts that it
    had not seen.

    Attributes:
        prompts: for `edgesdk.hybrid.gate.gate.DraftGate`.
        regression: for `edgesdk.hybrid.trust.confidence.Confidence`.
    """

    prompts: PromptGate
    regression: LogisticRegression

    def keep(self, kept: Kept, bundle: str, *, threshold: float = Confidence.threshold) -> None:
        """Store both for the model with this hash, whose clients then use them by themselves.

        Args:
            threshold: from which on answers are kept where no calibration says otherwise.

        Raises:
            RequestError: it cannot be written.
        """
        self.prompts.keep(kept, bundle)
        Confidence(self.regression, threshold=threshold).keep(kept, bundle)


def learn(examples: Iterable[tuple[Prompt, Signals, bool]], *, lost: float = 0.05) -> Learned:
    """Learn from some hundreds of answers of one model.

    What the prompt alone says goes into the confidence beside the logits (a stacked
    generalization, Wolpert, 1992): for its training each prompt is judged by a gate that was
    trained on the others.

    Args:
        examples: a prompt, the signals of the answer, and whether it was right. None of them may
            calibrate the threshold later.
        lost: see `edgesdk.hybrid.gate.prompts.train_prompts`.

    Raises:
        InvalidOption: `lost` is no share.
        RequestError: there are too few right or wrong ones.
    """
    found = list(examples)
    gate, unseen = train_with_unseen([(prompt, right) for prompt, _, right in found], lost=lost)
    signals = [
        replace(each, prompt_log_odds=odds)
        for (_, each, _), odds in zip(found, unseen, strict=True)
    ]
    return Learned(gate, train_signals(signals, [right for *_, right in found]))


def examples_in(
    entries: Iterable[Entry], *, bundle: str | None = None
) -> list[tuple[Prompt, Signals, bool]]:
    """The examples in a journal that keeps texts: local answers that somebody judged, each made in
    one try.

    Args:
        bundle: only those of this model.
    """
    found: list[tuple[Prompt, Signals, bool]] = []
    for entry in entries:
        decision = entry.decision
        if entry.texts is None or entry.right is None or set(decision.signals) != set(NAMES):
            continue
        messages = _messages(entry.texts.prompt)
        if messages and decision.route != "audit" and bundle in (None, decision.bundle):
            found.append((list(messages), Signals(**decision.signals), entry.right))
    return found


def _messages(prompt: str) -> Messages | None:
    """A conversation as the client writes it down; None where an app wrote something else."""
    try:
        found = json.loads(prompt)
    except ValueError:
        return None
    return found if isinstance(found, list) else None

"""What a device's own right and wrong answers teach: which prompts to leave alone, and how far to
trust an answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from typing_extensions import Unpack

from edgesdk.decode.options import OptionChanges
from edgesdk.engines.base import HiddenStates
from edgesdk.errors import ContextOverflow, DeadlineExceeded
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.gate.features import Messages
from edgesdk.hybrid.gate.prompts import PromptGate, train_with_unseen
from edgesdk.hybrid.records.journal import Entry
from edgesdk.hybrid.trust.confidence import Confidence
from edgesdk.hybrid.trust.folds import folds_of
from edgesdk.hybrid.trust.judging import Check, passes
from edgesdk.hybrid.trust.kept import Kept, kept_for
from edgesdk.hybrid.trust.learning import train_signals
from edgesdk.hybrid.trust.probe import Probe, train_probe
from edgesdk.hybrid.trust.regression import LogisticRegression, Matrix
from edgesdk.hybrid.trust.signals import NAMES, Signals
from edgesdk.model import Model
from edgesdk.text.prompts import Prompt, messages_of

# Of right answers and of wrong ones that went on.
_FEWEST_HALFWAY = 20


@dataclass(frozen=True)
class Example:
    """An answer of one model that was judged.

    Attributes:
        prompt: that was answered,
        signals: of the answer,
        right: and whether it was.
        hidden_state: that it ended in, float32 [hidden]; None where the engine gives none.
        halfway: its signals while it went on; none of a short one.
    """

    prompt: Prompt
    signals: Signals
    right: bool
    hidden_state: HiddenStates | None = None
    halfway: tuple[Signals, ...] = ()


@dataclass(frozen=True)
class Learned:
    """What belongs together: the regression was trained on what the gate and the probe say of
    answers that they had not seen.

    Attributes:
        prompts: for `edgesdk.hybrid.gate.gate.DraftGate`.
        regression, probe, halfway: for `edgesdk.hybrid.trust.confidence.Confidence`.
    """

    prompts: PromptGate
    regression: LogisticRegression
    probe: Probe | None = None
    halfway: LogisticRegression | None = None

    def confidence(self, threshold: float = Confidence.threshold) -> Confidence:
        """What answers are judged by, as far as it was learned."""
        return Confidence(
            self.regression, threshold=threshold, probe=self.probe, halfway=self.halfway
        )

    def keep(self, kept: Kept, bundle: str, *, threshold: float = Confidence.threshold) -> None:
        """Store both for the model with this hash, whose clients then use them by themselves.

        Args:
            threshold: from which on answers are kept where no calibration says otherwise.

        Raises:
            RequestError: it cannot be written.
        """
        self.prompts.keep(kept, bundle)
        self.confidence(threshold).keep(kept, bundle)


def learn(examples: Iterable[Example], *, lost: float = 0.05) -> Learned:
    """Learn from some hundreds of answers of one model.

    What the prompt alone says, and what the hidden state at the answer's end says if all examples
    have one, goes into the confidence beside the logits: for its training each answer is judged by
    a gate and a probe that were trained on the others.

    Args:
        examples: none of which may calibrate the threshold later.
        lost: see `edgesdk.hybrid.gate.prompts.train_prompts`.

    Raises:
        InvalidOption: `lost` is no share.
        RequestError: there are too few right or wrong ones.
    """
    found = list(examples)
    gate, of_prompts = train_with_unseen([(each.prompt, each.right) for each in found], lost=lost)
    probe, of_states = _probed(found)
    signals = [
        replace(each.signals, prompt_log_odds=prompt, probe_log_odds=float(state))
        for each, prompt, state in zip(found, of_prompts, of_states, strict=True)
    ]
    regression = train_signals(signals, [each.right for each in found])
    return Learned(gate, regression, probe, _halfway(found, of_prompts))


def learn_from(
    model: Model,
    labelled: Iterable[tuple[Prompt, Check]],
    *,
    kept: Kept | None = None,
    threshold: float = Confidence.threshold,
    lost: float = 0.05,
    **options: Unpack[OptionChanges],
) -> Learned:
    """Let a model answer some hundred prompts, learn from what is right, and keep that: hybrid
    clients that are made for the model from then on use it.

    Args:
        labelled: prompts, drawn as those to come will be, none of which may calibrate the threshold
            later, each with the expected answer (see `edgesdk.hybrid.trust.judging.same_answer`)
            or what tells whether an answer is right. One at a time is asked for.
        kept: where it is kept; None for the store.
        threshold: see `Learned.keep`.
        lost: see `learn`.
        options: with which answers are made later.

    Raises:
        InvalidOption: an option is unknown or out of its range.
        RequestError: there are too few right or wrong answers, or nothing can be kept.
        EngineError: the engine failed.
        Exception: whatever a check raises.
    """
    learned = learn(_answered(model, labelled, options), lost=lost)
    learned.keep(
        kept or kept_for(model.source), model.runtime.engine.origin.model, threshold=threshold
    )
    return learned


def _answered(
    model: Model, labelled: Iterable[tuple[Prompt, Check]], options: OptionChanges
) -> Iterator[Example]:
    """Without a cloud nothing is turned down and nothing given up."""
    with HybridClient(model, confidence=Confidence()) as client:
        for prompt, check in labelled:
            try:
                local = client.respond(prompt, **options).local
            except (ContextOverflow, DeadlineExceeded):
                continue
            if local is not None and local.signals is not None:
                right = passes(check, local.text)
                yield Example(prompt, local.signals, right, local.hidden_state, local.halfway)


def _probed(examples: list[Example]) -> tuple[Probe | None, Matrix]:
    """A probe, and what one that was trained on the others says of each example, [n]; none, and
    zeros, where an example has no state."""
    states = [each.hidden_state for each in examples if each.hidden_state is not None]
    if len(states) < len(examples):
        return None, np.zeros(len(examples))
    right = np.array([each.right for each in examples], bool)
    folds = folds_of(messages_of(each.prompt) for each in examples)
    return train_probe(np.stack(states), right, folds)


def _halfway(examples: list[Example], of_prompts: list[float]) -> LogisticRegression | None:
    """What answers that go on are judged by; None where too few of both kinds went on."""
    seen = [
        (replace(signals, prompt_log_odds=prompt), each.right)
        for each, prompt in zip(examples, of_prompts, strict=True)
        for signals in each.halfway
    ]
    right = sum(each.right for each in examples if each.halfway)
    wrong = sum(bool(each.halfway) for each in examples) - right
    if min(right, wrong) < _FEWEST_HALFWAY:
        return None
    return train_signals([signals for signals, _ in seen], [each for _, each in seen])


def examples_in(entries: Iterable[Entry], *, bundle: str | None = None) -> list[Example]:
    """The examples in a journal that keeps texts: local answers that somebody judged, each made in
    one try. They have no hidden states, which no journal keeps.

    Args:
        bundle: only those of this model.
    """
    found: list[Example] = []
    for entry in entries:
        decision = entry.decision
        if entry.texts is None or entry.right is None or set(decision.signals) != set(NAMES):
            continue
        messages = _messages(entry.texts.prompt)
        if messages and decision.route != "audit" and bundle in (None, decision.bundle):
            found.append(Example(list(messages), Signals(**decision.signals), entry.right))
    return found


def _messages(prompt: str) -> Messages | None:
    """A conversation as the client writes it down; None where an app wrote something else."""
    try:
        found = json.loads(prompt)
    except ValueError:
        return None
    return found if isinstance(found, list) else None

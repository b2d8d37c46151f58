"""Trains the confidence and the prompt classifier of a model from labelled answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from typing_extensions import Unpack

from edgesdk.engines.base import HiddenStates
from edgesdk.errors import ContextOverflow, DeadlineExceeded
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.confidence.artifacts import ArtifactStore, profile_store
from edgesdk.hybrid.confidence.confidence import SIGNAL_NAMES, Confidence, Signals
from edgesdk.hybrid.confidence.linear_models import (
    HiddenStateProbe,
    LogisticRegression,
    Matrix,
    folds_of,
    train_probe,
    train_regression,
)
from edgesdk.hybrid.confidence.prompt_classifier import PromptClassifier, train_out_of_fold
from edgesdk.hybrid.confidence.threshold import Check, passes
from edgesdk.hybrid.storage.journal import JournalEntry
from edgesdk.model import Model
from edgesdk.options import OptionsKwargs
from edgesdk.text.prompts import Prompt, as_messages

# Of right answers and of wrong ones that went on.
_MIN_PARTIAL = 20


@dataclass(frozen=True)
class LabelledDraft:
    """An answer of one model that is known to be right or wrong.

    Attributes:
        hidden_state: that it ended in, float32 [hidden]; None where the engine gives none.
        partial_signals: its signals while it went on; none of a short one.
    """

    prompt: Prompt
    signals: Signals
    right: bool
    hidden_state: HiddenStates | None = None
    partial_signals: tuple[Signals, ...] = ()


@dataclass(frozen=True)
class ConfidenceProfile:
    """Everything that was learned about a model's answers.

    The parts belong together: the regression was trained on predictions of the classifier and the
    probe for answers that those had not seen.

    Attributes:
        classifier: for `edgesdk.hybrid.router.Router`.
        regression, probe, partial_regression: for `Confidence`.
    """

    classifier: PromptClassifier
    regression: LogisticRegression
    probe: HiddenStateProbe | None = None
    partial_regression: LogisticRegression | None = None

    def confidence(self, threshold: float = Confidence.threshold) -> Confidence:
        """The confidence that was learned."""
        return Confidence(
            self.regression,
            threshold=threshold,
            probe=self.probe,
            partial_regression=self.partial_regression,
        )

    def save(
        self, artifacts: ArtifactStore, bundle: str, *, threshold: float = Confidence.threshold
    ) -> None:
        """Store the parts for the model with this hash, so that new clients of the model use them.

        Args:
            threshold: lowest confidence of answers that are kept, without a calibration.

        Raises:
            RequestError: it cannot be written.
        """
        self.classifier.save(artifacts, bundle)
        self.confidence(threshold).save(artifacts, bundle)


def fit_profile(
    examples: Iterable[LabelledDraft], *, max_false_rejections: float = 0.05
) -> ConfidenceProfile:
    """Train a profile on some hundreds of answers of one model.

    What the prompt alone says, and what the hidden state at the answer's end says if all examples
    have one, goes into the confidence beside the logits: for its training each answer is judged by
    a classifier and a probe that were trained on the others.

    Args:
        examples: none of which may calibrate the threshold later.
        max_false_rejections: see `train_prompt_classifier`, which raises the same.
    """
    drafts = list(examples)
    classifier, of_prompts = train_out_of_fold(
        [(each.prompt, each.right) for each in drafts], max_false_rejections=max_false_rejections
    )
    probe, of_states = _fit_probe(drafts)
    signals = [
        replace(each.signals, prompt_log_odds=prompt, probe_log_odds=float(state))
        for each, prompt, state in zip(drafts, of_prompts, of_states, strict=True)
    ]
    regression = train_signal_regression(signals, [each.right for each in drafts])
    return ConfidenceProfile(classifier, regression, probe, _fit_partial(drafts, of_prompts))


def train_profile(
    model: Model,
    labelled: Iterable[tuple[Prompt, Check]],
    *,
    profile: str | Path,
    threshold: float = Confidence.threshold,
    max_false_rejections: float = 0.05,
    **options: Unpack[OptionsKwargs],
) -> ConfidenceProfile:
    """Have a model answer some hundred prompts, train a profile on the answers, and store it.

    Hybrid clients of the same `profile` that are made for the model from then on use it, and no
    others.

    Args:
        labelled: prompts, drawn as those to come will be, none of which may calibrate the threshold
            later, each with the expected answer (see `same_answer`) or what tells
            whether an answer is right. One at a time is asked for.
        profile: where it is stored; see `edgesdk.hybrid.client.HybridClient`.
        threshold: see `ConfidenceProfile.save`.
        max_false_rejections: see `fit_profile`.
        options: with which answers are made later.

    Raises:
        InvalidOption: an option is unknown or out of its range.
        RequestError: there are too few right or wrong answers, or the profile cannot be stored.
        EngineError: the engine failed.
        Exception: whatever a check raises.
    """
    store = profile_store(profile)
    learned = fit_profile(
        _labelled_drafts(model, labelled, options), max_false_rejections=max_false_rejections
    )
    learned.save(store, model.runtime.engine.kv_identity.model, threshold=threshold)
    return learned


def _labelled_drafts(
    model: Model, labelled: Iterable[tuple[Prompt, Check]], options: OptionsKwargs
) -> Iterator[LabelledDraft]:
    """Draft without a cloud, so that nothing is rejected or aborted."""
    with HybridClient(model, confidence=Confidence()) as client:
        for prompt, check in labelled:
            try:
                local = client.respond(prompt, **options).local
            except (ContextOverflow, DeadlineExceeded):
                continue
            # An answer that is cut is never kept, so there is nothing to learn of it.
            if local is not None and local.signals is not None and local.complete:
                right = passes(check, local.text)
                yield LabelledDraft(
                    prompt, local.signals, right, local.hidden_state, local.partial_signals
                )


def _fit_probe(examples: list[LabelledDraft]) -> tuple[HiddenStateProbe | None, Matrix]:
    """Train a probe, and predict each example by one that was trained on the others, [n].

    Without states of all examples there is no probe, and zeros.
    """
    states = [each.hidden_state for each in examples if each.hidden_state is not None]
    if len(states) < len(examples):
        return None, np.zeros(len(examples))
    right = np.array([each.right for each in examples], bool)
    folds = folds_of(as_messages(each.prompt) for each in examples)
    return train_probe(np.stack(states), right, folds)


def _fit_partial(
    examples: list[LabelledDraft], of_prompts: list[float]
) -> LogisticRegression | None:
    """Train the regression for answers under way; None where too few of both kinds went on."""
    labelled = [
        (replace(signals, prompt_log_odds=prompt), each.right)
        for each, prompt in zip(examples, of_prompts, strict=True)
        for signals in each.partial_signals
    ]
    right = sum(each.right for each in examples if each.partial_signals)
    wrong = sum(bool(each.partial_signals) for each in examples) - right
    if min(right, wrong) < _MIN_PARTIAL:
        return None
    return train_signal_regression(
        [signals for signals, _ in labelled], [each for _, each in labelled]
    )


def examples_in(
    entries: Iterable[JournalEntry], *, bundle: str | None = None
) -> list[LabelledDraft]:
    """Read labelled local answers from a journal that keeps texts.

    Each is whole, and was made in one try. They have no hidden states, which no journal keeps.

    Args:
        bundle: only those of this model.
    """
    examples: list[LabelledDraft] = []
    for entry in entries:
        decision = entry.decision
        if entry.texts is None or entry.right is None or set(decision.signals) != set(SIGNAL_NAMES):
            continue
        if not decision.local_complete:
            continue
        messages = entry.texts.messages
        if messages and decision.route != "audit" and bundle in (None, decision.bundle):
            examples.append(LabelledDraft(messages, Signals(**decision.signals), entry.right))
    return examples


# The odds of the answer are the model's own word for what is asked here, so they are taken as they
# are, and the other signals correct them as far as the examples insist. Trained on some hundreds
# with equal penalties, a regression knew right from wrong in unknown families less well than the
# odds alone (benchmarks/hybrid).
_UNPENALIZED = "log_odds"
_SMALL_PENALTY = 0.1
_PENALTY = 10.0


def train_signal_regression(
    signals: Sequence[Signals], right: Sequence[bool]
) -> LogisticRegression:
    """Train the regression of a `Confidence`.

    Args:
        signals: of answers of one model, some hundreds; none may calibrate the threshold later.

    Raises:
        RequestError: all are right, or all are wrong, or there is none.
    """
    features = np.array([each.vector() for each in signals], np.float64).reshape(
        -1, len(SIGNAL_NAMES)
    )
    penalties = [_SMALL_PENALTY if name == _UNPENALIZED else _PENALTY for name in SIGNAL_NAMES]
    return train_regression(SIGNAL_NAMES, features, np.asarray(right, np.bool_), penalty=penalties)

"""Measure what a new model must not lose: perplexity of general text, prompts, and tasks.

Tasks are those of lm-evaluation-harness, from the harness or from a folder of one's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk.bundle.opening import Bundle
from edgesdk.errors import RequestError, requires_extra
from edgesdk.model import Model
from edgesdk_export.flywheel.answers import right_answers
from edgesdk_export.flywheel.examples import read_examples
from edgesdk_export.flywheel.recipe import DecidingRecipe
from edgesdk_export.quality.evaluation_text import (
    EvaluationText,
    cut_windows,
    default_text,
    text_from_file,
)

_TOKENS = 8_192


@dataclass(frozen=True)
class RegressionSet:
    """What is measured of both models.

    Attributes:
        texts: .txt files whose perplexity counts; none for reference prose from Python itself.
        prompts: .jsonl files of prompts with answers, of which the share of right answers counts.
        tasks: names of tasks of lm-evaluation-harness.
        include: a folder with tasks of one's own.
        tokens: of a text that are read, at most.
        limit: questions of a task; None for all.
    """

    texts: tuple[Path, ...] = ()
    prompts: tuple[Path, ...] = ()
    tasks: tuple[str, ...] = ()
    include: Path | None = None
    tokens: int = _TOKENS
    limit: int | None = None


@dataclass(frozen=True)
class RegressionFigure:
    """One figure of both models.

    Attributes:
        name: of the text, the file or the task, and of the metric.
        old, new: of the models.
        bound: that the new one must keep.
        higher_is_better: on which side of the bound that is.
    """

    name: str
    old: float
    new: float
    bound: float
    higher_is_better: bool

    @property
    def kept(self) -> bool:
        """Whether the new model is not worse than allowed."""
        return self.new >= self.bound if self.higher_is_better else self.new <= self.bound


def measure_regressions(
    old: Model, new: Model, regression: RegressionSet, recipe: DecidingRecipe
) -> list[RegressionFigure]:
    """Measure both models on all of a regression set.

    Raises:
        ExportError: a text cannot be read, or is too short.
        RequestError: a file of prompts cannot be read, or a task has no figure.
    """
    figures = []
    texts = [text_from_file(path) for path in regression.texts] or [default_text()]
    for text in texts:
        before, after = (perplexity(model, text, regression.tokens) for model in (old, new))
        bound = before * (1 + recipe.perplexity_rise)
        figures.append(RegressionFigure(f"perplexity of {text.name}", before, after, bound, False))
    for path in regression.prompts:
        examples = read_examples(path)
        before, after = (
            float(np.mean(right_answers(model, examples, max_tokens=recipe.max_tokens)))
            for model in (old, new)
        )
        bound = before - recipe.answers_lost
        figures.append(
            RegressionFigure(f"right answers of {path.name}", before, after, bound, True)
        )
    if regression.tasks:
        figures += _task_figures(old, new, regression, recipe)
    return figures


def perplexity(model: Model, text: EvaluationText, tokens: int) -> float:
    """Perplexity of the first `tokens` tokens of a text, in windows that see nothing of each
    other."""
    source = model.source
    if not isinstance(source, Bundle):
        raise RequestError("Perplexity is measured of bundles.", hint="Export the model first.")
    entry = source.manifest.tokenizer
    engine = model.runtime.engine
    windows = cut_windows(
        text,
        source.file(entry.file).read_bytes(),
        tokens=tokens,
        bos=entry.bos_token_id if entry.add_bos else None,
        context=engine.info.context_length,
    )
    losses = []
    for ids in windows.ids:
        state = engine.new_state()
        try:
            logits = state.extend(ids[:-1].tolist(), logits="all").astype(np.float64)
        finally:
            state.close()
        top = logits.max(axis=1)
        normalizers = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        losses.append(normalizers - logits[np.arange(len(ids) - 1), ids[1:]])
    return float(np.exp(np.concatenate(losses).mean()))


def _task_figures(
    old: Model, new: Model, regression: RegressionSet, recipe: DecidingRecipe
) -> list[RegressionFigure]:
    with requires_extra("eval", needed_for="Regression tasks"):
        from edgesdk.evaluation import evaluate
    before, after = (
        evaluate(model, regression.tasks, include_path=regression.include, limit=regression.limit)
        for model in (old, new)
    )
    figures = []
    for task in before:
        metric = _metric(task, before[task])
        bound = before[task][metric] - recipe.answers_lost
        figures.append(
            RegressionFigure(
                f"{metric} of {task}", before[task][metric], after[task][metric], bound, True
            )
        )
    return figures


def _metric(task: str, values: dict[str, Any]) -> str:
    """The metric that counts: the first share of right answers that the task reports."""
    for name in values:
        if name.startswith(("acc", "exact_match")) and "_stderr" not in name:
            return name
    raise RequestError(
        f"The task {task} reports no share of right answers, only {', '.join(values)}.",
        hint="Choose tasks with acc or exact_match.",
    )

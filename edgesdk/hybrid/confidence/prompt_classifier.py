"""Predicts from a prompt alone whether the device's answer would be right.

Predictive routing by the prompt alone, as in Ong et al. 2024 (RouteLLM, arXiv:2406.18665), with
features that need no model. It trains in seconds on thousands of examples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesdk.errors import InvalidOption, RequestError
from edgesdk.hybrid.confidence.artifacts import ArtifactStore, value_to_json
from edgesdk.hybrid.confidence.linear_models import (
    Folds,
    LogisticRegression,
    Matrix,
    auroc,
    folds_of,
    out_of_fold,
    train_regression,
)
from edgesdk.hybrid.content import texts_of
from edgesdk.text.prompts import Prompt, as_messages

# The name of the artifact; see `edgesdk.hybrid.confidence.artifacts`.
CLASSIFIER_ARTIFACT = "prompts"
_MIN_OF_EACH = 15
# More than for signals: there are three times as many features, most of them silent. Chosen, as
# those of `edgesdk.hybrid.confidence.training`, by the likelihood of answers that are neither
# trained on nor reported, and on families that were left out of the training
# (benchmarks/hybrid).
_PENALTY = 30.0
# A chance of 0 or 1 has no finite odds.
_CLIP = 1e-4


@dataclass(frozen=True)
class PromptClassifier:
    """Predicts from a prompt whether the device's answer would be right.

    Attributes:
        regression: over `edgesdk.hybrid.confidence.prompt_classifier`.
        threshold: below it the device does not try.
        examples: that it was trained on.
        auroc: how well it told them apart, each judged by a regression that had not seen it: 0.5
            is a guess, 1 is always.

    Raises:
        RequestError: the regression is of other features, or the threshold is no number.
    """

    regression: LogisticRegression
    threshold: float
    examples: int
    auroc: float

    def __post_init__(self) -> None:
        if self.regression.names != PROMPT_FEATURES:
            raise RequestError(
                "The prompt classifier was trained on other features.", hint="Train it again."
            )
        if not math.isfinite(self.threshold):
            raise RequestError("The threshold of the prompt classifier is no number.")

    def probability(self, messages: Messages) -> float:
        """The probability that the answer would be right, 0 to 1."""
        return float(self.regression.probability(prompt_features(messages)[None])[0])

    def log_odds(self, messages: Messages) -> float:
        """The log-odds of `probability`; a signal of the answer, beside those of its logits."""
        return _log_odds(np.array([self.probability(messages)]))[0]

    def save(self, artifacts: ArtifactStore, bundle: str) -> None:
        """Store it for the model with this hash, so that new clients of the model use it.

        Raises:
            RequestError: it cannot be written.
        """
        artifacts.write(bundle, CLASSIFIER_ARTIFACT, value_to_json(self))


def train_prompt_classifier(
    examples: Iterable[tuple[Prompt, bool]], *, max_false_rejections: float = 0.05
) -> PromptClassifier:
    """Train on prompts whose local answer was right or wrong.

    Args:
        max_false_rejections: share of the prompts that the device gets right which may go to the
            cloud without a try, as long as prompts are like these. Where prompts tell little, few
            of the wrong ones go too: the draft then decides.

    Raises:
        InvalidOption: `max_false_rejections` is no share.
        RequestError: there are too few right or wrong ones.
    """
    return train_out_of_fold(examples, max_false_rejections=max_false_rejections)[0]


def train_out_of_fold(
    examples: Iterable[tuple[Prompt, bool]], *, max_false_rejections: float
) -> tuple[PromptClassifier, list[float]]:
    """Train a classifier, and give the `log_odds` of each prompt by one trained on the others.

    What learns from a classifier's output has to see it for prompts that were not trained on.
    """
    if not 0 <= max_false_rejections < 1:
        raise InvalidOption(
            f"max_false_rejections must be at least 0 and below 1, not {max_false_rejections}."
        )
    inputs, right, folds = _prepared(examples)
    scores = out_of_fold(
        folds,
        lambda others, held: train_regression(
            PROMPT_FEATURES, inputs[others], right[others], penalty=_PENALTY
        ).probability(inputs[held]),
    )
    classifier = PromptClassifier(
        train_regression(PROMPT_FEATURES, inputs, right, penalty=_PENALTY),
        float(np.quantile(scores[right], max_false_rejections, method="lower")),
        len(right),
        auroc(scores, right),
    )
    return classifier, _log_odds(scores)


def _prepared(
    examples: Iterable[tuple[Prompt, bool]],
) -> tuple[Matrix, npt.NDArray[np.bool_], Folds]:
    """Return features [n, len(PROMPT_FEATURES)], whether each was right [n], and its fold [n]."""
    pairs = [(as_messages(prompt), right) for prompt, right in examples]
    right = np.array([each for _, each in pairs], bool)
    if min(int(right.sum()), int((~right).sum())) < _MIN_OF_EACH:
        raise RequestError(
            f"There are {int(right.sum())} prompts with a right answer and {int((~right).sum())}"
            " with a wrong one.",
            hint=f"Training a prompt classifier needs at least {_MIN_OF_EACH} of each.",
        )
    inputs = np.stack([prompt_features(messages) for messages, _ in pairs])
    return inputs, right, folds_of(messages for messages, _ in pairs)


def _log_odds(chances: Matrix) -> list[float]:
    inside = np.clip(chances, _CLIP, 1 - _CLIP)
    odds: list[float] = np.log(inside / (1 - inside)).tolist()
    return odds


# A document that is pasted in is judged by its beginning and its end, where questions are.
_MAX_CHARACTERS = 20_000
_MAX_MAGNITUDE = 18.0

_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d[\d,_]*(?:\.\d+)?")
# Hyphens, dashes of lists and slashes between words are none.
_OPERATOR = re.compile(r"[+*^=<>%×÷√∑∫≤≥≠]|(?<=[\d)\]])[-/]|(?<=[\w)\]] )[-/](?= [\w(\[])")
_BRACKET = re.compile(r"[()\[\]{}]")
_CODE_SIGN = re.compile(r"[{}\[\]();_=<>$\\|&#@`]")
_CODE_LINE = re.compile(
    r"^\s*(?:def |class |import |from \w+ import|function |const |let |var |return\b|if ?\(|for ?\("
    r"|while ?\(|SELECT |INSERT |public |private |#include|</?\w+)",
    re.MULTILINE,
)
_LIST_LINE = re.compile(r"^\s*(?:[-*•]|\d+[.)、]|step \d+)\s", re.MULTILINE | re.IGNORECASE)
_CHOICE_LINE = re.compile(r"^\s*\(?[A-Ea-e][).:]\s", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…](?=\s|$)|[。！？]")
# Scripts by their blocks; what a small model was trained on decides how well it reads them.
_SCRIPTS = {
    "han": r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]",
    "cyrillic": r"[\u0370-\u052f]",
    "semitic": r"[\u0590-\u08ff]",
    "indic": r"[\u0900-\u0eff]",
}
_KINDS = {
    "fact": r"\b(?:what|who|whom|whose|when|where|which)\b|什么|谁|哪|何时",
    "reason": r"\b(?:why|how|explain|compare|difference|reason)\b|为什么|怎么|如何|解释|比较",
    "proof": r"\b(?:prove|proof|derive|show that|theorem|lemma)\b|证明|推导",
    "sum": r"\b(?:calculate|compute|evaluate|solve|simplify|how (?:many|much)|sum|product"
    r"|difference|percent\w*|average)\b|计算|求|多少|几",
    "writing": r"\b(?:write|story|poem|essay|email|letter|rewrite|rephrase|summari[sz]e"
    r"|translate)\b|写|翻译|总结|改写",
    "programming": r"\b(?:code|function|program|python|javascript|java|sql|regex|bug|algorithm"
    r"|implement)\b|代码|函数|程序|算法",
    "steps": r"\b(?:step by step|steps?|first|then|finally|list|each|every|all)\b"
    r"|步骤|首先|然后|列出",
    "strictness": r"\b(?:exactly|only|must|never|at least|at most|without|format|json)\b"
    r"|必须|只|至少|至多|格式",
}
_SCRIPT_PATTERNS = {name: re.compile(pattern) for name, pattern in _SCRIPTS.items()}
_KIND_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _KINDS.items()}

Messages = Sequence[Mapping[str, Any]]


def prompt_features(messages: Messages) -> npt.NDArray[np.float64]:
    """Compute the features of a conversation, float64 [len(PROMPT_FEATURES)], all finite."""
    return np.array(list(_measured(messages).values()), np.float64)


def question_in(messages: Messages) -> str:
    """Return the text of the user's last message, or of the last message where no user spoke."""
    asked = [message for message in messages if message.get("role") == "user"]
    last = (asked or list(messages))[-1:]
    return "\n".join(text for message in last for text in texts_of(message))


def _measured(messages: Messages) -> dict[str, float]:
    whole = question_in(messages)
    text = whole
    if len(whole) > _MAX_CHARACTERS:
        half = _MAX_CHARACTERS // 2
        text = f"{whole[:half]}\n{whole[-half:]}"
    every = sum(len(text) for message in messages for text in texts_of(message))
    letters = _WORD.findall(text)
    numbers = [_magnitude(number) for number in _NUMBER.findall(text)]
    size = max(len(text), 1)
    found = {
        "characters": math.log1p(len(whole)),
        "context_characters": math.log1p(max(every - len(whole), 0)),
        "turns": math.log1p(sum(message.get("role") == "user" for message in messages)),
        "words": math.log1p(len(letters)),
        "word_length": sum(map(len, letters)) / max(len(letters), 1),
        "different_words": len({word.lower() for word in letters}) / max(len(letters), 1),
        "lines": math.log1p(text.count("\n")),
        "sentences": math.log1p(len(_SENTENCE_END.findall(text))),
        "questions": math.log1p(len(re.findall(r"[?？]", text))),
        "digits": sum(map(str.isdigit, text)) / size,
        "numbers": math.log1p(len(numbers)),
        "largest_number": max(numbers, default=0.0),
        "mean_number": sum(numbers) / max(len(numbers), 1),
        "operators": math.log1p(len(_OPERATOR.findall(text))),
        "depth": float(_depth(text)),
        "fences": math.log1p(text.count("```")),
        "code_lines": math.log1p(len(_CODE_LINE.findall(text))),
        "code_signs": len(_CODE_SIGN.findall(text)) / size,
        "list_lines": math.log1p(len(_LIST_LINE.findall(text))),
        "choices": math.log1p(len(_CHOICE_LINE.findall(text))),
        "capitals": sum(map(str.isupper, text)) / size,
        "beyond_ascii": sum(char > "\x7f" for char in text) / size,
    }
    found |= {name: len(p.findall(text)) / size for name, p in _SCRIPT_PATTERNS.items()}
    found |= {name: math.log1p(len(p.findall(text))) for name, p in _KIND_PATTERNS.items()}
    return found


def _magnitude(number: str) -> float:
    """Return the decimal digits of a number, as log10(1 + n); it may have thousands of them."""
    whole = re.sub(r"[,_]", "", number).partition(".")[0]
    return min(math.log10(1 + int(whole[:20])) + max(len(whole) - 20, 0), _MAX_MAGNITUDE)


def _depth(text: str) -> int:
    """Return how deep brackets are nested, up to 10."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        depth = depth + 1 if bracket in "([{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return min(deepest, 10)


PROMPT_FEATURES: tuple[str, ...] = tuple(_measured([{"role": "user", "content": ""}]))

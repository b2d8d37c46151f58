"""A fake engine that is as sure of each answer as the test says."""

from __future__ import annotations

import math

import numpy as np

from edgesdk.engines.base import Logits
from edgesdk.engines.saved_state import KvIdentity
from tests.support.fake_engine import END, OPEN, VOCAB, FakeEngine


class SureEngine(FakeEngine):
    """Answers by what the prompt says.

    Args:
        answers: by a text that the prompt has: the answer, and its probability, which without a
            regression is the confidence. Each token has an equal part in it.
    """

    def __init__(self, answers: dict[str, tuple[str, float]], *, bundle: str = "ab" * 32) -> None:
        super().__init__(context_length=512)
        self.answers = answers
        self.kv_identity = KvIdentity("fake", bundle, "float32")

    def logits(self, tokens: list[int]) -> Logits:
        opened = tokens.index(OPEN) if OPEN in tokens else len(tokens)
        prompt = bytes(tokens[:opened]).decode(errors="replace")
        text, sureness = next(
            (value for key, value in self.answers.items() if key in prompt), ("", 0.5)
        )
        written = [*text.encode(), END]
        sureness **= 1 / len(written)
        likeliest = written[min(len(tokens) - opened - 1, len(text.encode()))]
        rest = (1 - sureness) / (VOCAB - 1)
        row = np.full(VOCAB, math.log(rest), np.float32)
        row[likeliest] = math.log(sureness)
        return row[None]

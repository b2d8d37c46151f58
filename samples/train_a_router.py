"""Teach the router which answers of the device are right, and calibrate what it may keep.

Usage: python train_a_router.py MODEL. The profile lies in the folder `sums-profile` afterwards.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import edgesdk
from edgesdk.hybrid import train_profile

PROFILE = Path("sums-profile")


def labelled(seed: int, count: int) -> list[tuple[str, str]]:
    """Questions as the app's users ask them, each with its answer: easy and hard ones."""
    draws = random.Random(seed)
    pairs: list[tuple[str, str]] = []
    for index in range(count):
        size = 10 if index % 2 else 1000
        a, b = draws.randrange(size), draws.randrange(size)
        # In place of an answer there may be a function that judges the model's.
        pairs.append((f"What is {a} + {b}? Say only the number.", str(a + b)))
    return pairs


def main(name: str, count: int = 300) -> None:
    """Have the model answer, learn from what was right, and find the threshold."""
    with edgesdk.load(name) as model:
        learned = train_profile(model, labelled(1, count), profile=PROFILE, max_tokens=24)
        print(
            f"Prompts alone tell right from wrong with an AUROC of {learned.classifier.auroc:.2f}"
        )
        # A client of the profile finds what was learned. Nothing that trained may calibrate.
        with edgesdk.HybridClient(model, profile=PROFILE) as client:
            client.calibrate(labelled(2, count), alpha=0.2, delta=0.05, max_tokens=24)
            print(client.guarantee.phrase())
            for question in ("What is 2 + 3?", "What is 2871 * 12?"):
                reply = client.respond(f"{question} Say only the number.", max_tokens=24)
                kept = "escalated, if there were a cloud" if reply.low_confidence else "kept"
                print(f"{question} {reply.text} ({reply.receipt.confidence:.2f}: {kept})")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")

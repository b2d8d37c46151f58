"""Make training data of hybrid journals: escalated prompts with the cloud's answers.

Only text that an app opted to keep is there to be read. What its detectors find private becomes a
placeholder before anything is written or learned, as it does before an upload.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgesdk.errors import RequestError
from edgesdk.hybrid.content import text_messages
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.storage.journal import TrainingSet
from edgesdk.system.atomic_files import write_atomically
from edgesdk_export.distill.duplicates import SeenTexts, normalized

# What an example is for. Held out: comparing the new model with the old one. Profile, calibration:
# training the confidence, then choosing its threshold; none of them trains the model.
Part = Literal["training", "held_out", "profile", "calibration"]
PARTS: tuple[Part, ...] = ("held_out", "profile", "calibration", "training")


@dataclass(frozen=True)
class Example:
    """A prompt that the device could not answer, and the cloud's answer to it.

    Attributes:
        messages: the prompt, texts only.
        answer: the cloud's.
    """

    messages: tuple[Mapping[str, Any], ...]
    answer: str

    @property
    def prompt_text(self) -> str:
        """All of the prompt as one text."""
        return "\n".join(f"{each['role']}: {each['content']}" for each in self.messages)

    @property
    def position(self) -> float:
        """Where the prompt's hash lies between 0 and 1: the same for the same prompt, always."""
        digest = hashlib.sha256(normalized(self.prompt_text).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    def to_line(self) -> str:
        """A line of a .jsonl that `edgesdk_export.distill.samples.read_samples` takes."""
        target = {"role": "assistant", "content": self.answer}
        return json.dumps({"messages": [*self.messages, target]}, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class ExampleCounts:
    """How many examples there are of each part, and what was left out and why.

    Attributes:
        without_text: answers of which no text was kept, or that need more than text.
        unfinished: answers that are incomplete.
        repeated: prompts that were answered again, on this device or on another.
        near: prompts that say nearly the same as another one.
    """

    parts: dict[Part, int] = field(default_factory=dict)
    without_text: int = 0
    unfinished: int = 0
    repeated: int = 0
    near: int = 0


@dataclass(frozen=True)
class Shares:
    """How the examples are divided, by the hash of their prompts.

    Attributes:
        held_out: the share that nothing is learned from, to compare models on.
        calibration: the share for the confidence: one half trains it, the other calibrates it.
    """

    held_out: float
    calibration: float

    def part_of(self, example: Example) -> Part:
        """The part of an example. It stays the same over turns, whatever else is collected."""
        position = example.position
        if position < self.held_out:
            return "held_out"
        position -= self.held_out
        if position < self.calibration:
            return "profile" if position < self.calibration / 2 else "calibration"
        return "training"


def collect_examples(
    sets: Iterable[TrainingSet], shares: Shares, *, near: float
) -> tuple[dict[Part, list[Example]], ExampleCounts]:
    """Collect the examples of several journals, each prompt once.

    Of a training example that is near one of another part only the latter stays, so that no model
    is compared on what it nearly learned.

    Args:
        sets: of each journal; of equal prompts the last one's answer is taken.
        near: from which similarity on two prompts count as one; see `SeenTexts`.
    """
    detectors = Policy().detectors
    newest: dict[str, Example] = {}
    without_text = unfinished = repeated = 0
    for found in sets:
        without_text += found.without_text
        unfinished += found.unfinished
        repeated += found.repeated
        for each in found.examples:
            example = _redacted(each["messages"], detectors)
            if example is None:
                without_text += 1
                continue
            repeated += example.prompt_text in newest
            newest[example.prompt_text] = example
    divided: dict[Part, list[Example]] = {part: [] for part in PARTS}
    for example in newest.values():
        divided[shares.part_of(example)].append(example)
    seen, dropped = SeenTexts(near), 0
    for part in PARTS:
        kept = [example for example in divided[part] if seen.add(example.prompt_text)]
        dropped += len(divided[part]) - len(kept)
        divided[part] = kept
    counts = {part: len(divided[part]) for part in PARTS}
    return divided, ExampleCounts(counts, without_text, unfinished, repeated, dropped)


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write a .jsonl of conversations, for nobody else to read."""
    write_atomically(path, "".join(example.to_line() for example in examples), private=True)


def read_examples(path: Path) -> list[Example]:
    """Read prompts with their answers: conversations, or {"prompt": ..., "answer": ...}.

    Raises:
        RequestError: the file cannot be read, or a line is neither; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}.") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(_parsed(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                raise RequestError(
                    f"{path}, line {number} is no prompt with an answer.",
                    hint='Write {"prompt": "...", "answer": "..."}, or {"messages": [...]}.',
                ) from None
    return found


def _parsed(value: Any) -> Example:
    if "messages" in value:
        *before, last = value["messages"]
        if last["role"] != "assistant" or not before:
            raise ValueError
        return Example(tuple(before), str(last["content"]))
    return Example(({"role": "user", "content": str(value["prompt"])},), str(value["answer"]))


def _redacted(messages: Sequence[Mapping[str, Any]], detectors: Sequence[Any]) -> Example | None:
    """An example with placeholders for what is private; None where it has more than texts."""
    plain = text_messages(messages)
    texts = [message.get("content") for message in plain]
    if any(set(message) != {"role", "content"} for message in plain):
        return None
    said = [text for text in texts if isinstance(text, str)]
    if len(said) < len(texts):
        return None
    # The same prompt gets the same placeholders on every device.
    seed = hashlib.sha256("\0".join(said[:-1]).encode("utf-8", "replace")).hexdigest()
    *prompt, answer = Redactor(detectors, seed=seed).redact_parts(said)
    return Example(
        tuple(
            {"role": message["role"], "content": text}
            for message, text in zip(plain, prompt, strict=False)
        ),
        answer,
    )

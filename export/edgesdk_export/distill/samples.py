"""Turn texts and conversations into the token sequences that a student learns from.

Documents are never joined into one sequence: a token sees nothing of another document, and no loss
is counted across a border. The ids are those of the runtime, so that a student learns the prompts
that it will meet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesdk.errors import RequestError, TooLittleData
from edgesdk.text.prompts import PromptEncoder, as_messages

# Fewer tokens than this say more about the text than about the teacher.
MIN_TOKENS = 512


@dataclass(frozen=True)
class Sample:
    """One sequence of tokens.

    Attributes:
        ids: all tokens.
        prompt: how many of them are given; the tokens after them are learned. At least 1.
    """

    ids: tuple[int, ...]
    prompt: int = 1

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return len(self.ids) - self.prompt


def read_samples(
    paths: Iterable[Path], encoder: PromptEncoder, *, end: int | None, max_length: int
) -> list[Sample]:
    """Read training data: .txt files, one document each, and .jsonl files with one in each line.

    A line is {"text": ...}, {"prompt": ..., "answer": ...} or {"messages": [...]} that end with the
    assistant's answer. Of conversations the answer alone is learned. Long documents are cut into
    sequences of `max_length` tokens; a conversation that is longer is left out.

    Args:
        end: the token that ends an answer; None for a model that has none.

    Raises:
        RequestError: a file cannot be read, or a line is none of these; file and line are named.
        TooLittleData: fewer than `MIN_TOKENS` tokens can be learned.
    """
    samples: list[Sample] = []
    for path in paths:
        for where, document in read_documents(path):
            try:
                samples += _samples_of(document, encoder, end=end, max_length=max_length)
            except RequestError as error:
                raise RequestError(f"{where}: {error}", hint=error.hint) from None
    learned = sum(sample.learned for sample in samples)
    if learned < MIN_TOKENS:
        raise TooLittleData(
            f"The data gives {learned} tokens to learn in {len(samples)} sequences; training needs"
            f" {MIN_TOKENS}.",
            hint="Give more text, or a larger max_length where conversations are long.",
        )
    return samples


def split_held_out(samples: list[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """Split samples into those for training and those held out: every n-th one, at least one."""
    step = max(2, round(1 / share))
    held = samples[step - 1 :: step] or samples[-1:]
    chosen = {id(sample) for sample in held}
    return [sample for sample in samples if id(sample) not in chosen], held


def read_documents(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The documents of a file, each with where it is: a text, or the lines of a .jsonl.

    Raises:
        RequestError: the file cannot be read, or a line is no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is not UTF-8 text (byte {error.start}).", hint="Convert it to UTF-8."
        ) from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.") from None
    if path.suffix != ".jsonl":
        yield str(path), {"text": text}
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where} is not JSON: {error}.") from None
        if not isinstance(document, Mapping):
            raise RequestError(f"{where} is not a JSON object.")
        yield where, document


def _samples_of(
    document: Mapping[str, Any], encoder: PromptEncoder, *, end: int | None, max_length: int
) -> Iterator[Sample]:
    if isinstance(document.get("text"), str):
        yield from _pieces(encoder, document["text"], max_length)
        return
    messages = document.get("messages")
    if isinstance(document.get("prompt"), str) and isinstance(document.get("answer"), str):
        messages = [
            {"role": "user", "content": document["prompt"]},
            {"role": "assistant", "content": document["answer"]},
        ]
    if not isinstance(messages, list):
        raise RequestError(
            'there is no "text", no "messages", and no "prompt" with an "answer".',
            hint='Write {"text": "..."}, or {"prompt": "...", "answer": "..."}.',
        )
    *before, last = as_messages(messages)
    answer = last.get("content")
    if last["role"] != "assistant" or not isinstance(answer, str) or not before:
        raise RequestError("the conversation does not end with an answer of the assistant.")
    prompt = encoder.chat(before)
    control = encoder.control_tokens
    ids = [*prompt, *encoder.tokenizer.encode_pieces([(answer, False)], control.ids)]
    if end is not None:
        ids.append(end)
    if len(ids) <= max_length:
        yield Sample(tuple(ids), len(prompt))


def _pieces(encoder: PromptEncoder, text: str, max_length: int) -> Iterator[Sample]:
    start = encoder.tokenizer.encode("", add_bos=True)
    ids = encoder.tokenizer.encode_pieces([(text, False)], encoder.control_tokens.ids)
    body = max_length - len(start)
    for at in range(0, len(ids), body):
        piece = (*start, *ids[at : at + body])
        if len(piece) > 1:
            yield Sample(piece)

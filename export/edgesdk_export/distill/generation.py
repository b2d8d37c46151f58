"""Have an endpoint write answers to a file of prompts: a teacher of which only the text is known.

Each answer is kept as soon as it is there. Where the endpoint dies, the budget is spent or the run
is stopped, the same job goes on later and asks only for what is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesdk.errors import (
    BudgetExceeded,
    CloudError,
    InvalidOption,
    RequestError,
    TrainingError,
)
from edgesdk.hybrid.cloud.attempt import BAD_REQUEST_STATUSES
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.spending import Budget, CallSpending, SpendingLimits
from edgesdk.system.atomic_files import write_atomically
from edgesdk.text.prompts import as_messages
from edgesdk_export.distill.answer_store import AnswerStore, StoredAnswer, answer_key
from edgesdk_export.distill.duplicates import SeenTexts
from edgesdk_export.distill.samples import read_documents
from edgesdk_export.distill.verifiers import Verifier, same_as_expected
from edgesdk_export.progress import ExportProgress

# A verifier's score from which on no other answer is asked for.
_RIGHT = 1.0
# A token of text has at least two bytes, but for scripts that vocabularies hardly know.
_BYTES_PER_TOKEN = 2
REFUSED = "refused"


@dataclass(frozen=True)
class GenerationJob:
    """What is asked, of whom, and how.

    Attributes:
        prompts: .jsonl files; see `GenerationJob.output` for what becomes of a line.
        output: a .jsonl that `edgesdk_export.distill.samples.read_samples` takes. Beside it lies
            `OUTPUT.db` with all answers, from which a stopped job goes on.
        clouds: endpoints in order of preference.
        answers: of how many the best is taken; more than one needs a verifier, or an expected
            answer ("answer") in each line.
        verifier: scores an answer from 0 to 1; None for the expected answer, where a line has one.
            What scores 0 is left out.
        max_tokens: of an answer.
        temperature: of sampling; 0 asks for the likeliest answer.
        parallel: requests at once.
        near: similarity from which on two prompts count as one; see `SeenTexts`.
        limits: what may be spent; None for no limit.
        with_reasoning: put the endpoint's reasoning before the answer, between <think> and
            </think>. Without it, it stands in the line as "reasoning".
    """

    prompts: tuple[Path, ...]
    output: Path
    clouds: tuple[Cloud, ...]
    answers: int = 1
    verifier: Verifier | None = None
    max_tokens: int = 1024
    temperature: float = 0.0
    parallel: int = 8
    near: float = 0.95
    limits: SpendingLimits | None = None
    with_reasoning: bool = False


@dataclass(frozen=True)
class Generated:
    """What came of it.

    Attributes:
        path: the file of samples.
        samples: how many it has.
        repeated: prompts that say nearly the same as another one, which were not asked.
        wrong: prompts to which no answer was right.
        incomplete: prompts to which no answer came to its end, or which the endpoint refused.
    """

    path: Path
    samples: int
    repeated: int
    wrong: int
    incomplete: int


def generate(job: GenerationJob, progress: ExportProgress) -> Generated:
    """Ask for all answers that are missing, and write the samples.

    Raises:
        RequestError: a file cannot be read, a line has no prompt, or the output is taken.
        InvalidOption: an option is out of its range, or there is no verifier to choose by.
        TrainingError: the endpoint gives no answers any more, or the next one might cost more than
            is left. Those that it gave are kept.
    """
    if job.parallel < 1 or job.answers < 1 or job.max_tokens < 1:
        raise InvalidOption("parallel, answers and max_tokens must be at least 1.")
    database = job.output.with_name(f"{job.output.name}.db")
    if job.output.exists() and not database.exists():
        raise RequestError(f"{job.output} exists already.", hint="Name another file.")
    samples, repeated = _different(job)
    store = AnswerStore(database)
    budget = None if job.limits is None else Budget(job.limits, f"{database}.spending")
    try:
        with CloudClient(job.clouds) as client:
            if budget is not None:
                budget.limits.check_prices(job.clouds)
            writer = _Writer(job, client, store, budget)
            _ask_all(writer, samples, job.parallel, progress)
    finally:
        # Also of a job that is stopped: what there is can be trained on.
        result = _write(job, samples, store, repeated)
        store.close()
        if budget is not None:
            budget.close()
    return result


def _different(job: GenerationJob) -> tuple[list[Mapping[str, Any]], int]:
    """The lines of the prompts' files, each prompt once; and how many were left out."""
    seen, found, repeated = SeenTexts(job.near), [], 0
    for path in job.prompts:
        for where, sample in read_documents(path):
            text = "\n".join(f"{m['role']}: {m['content']}" for m in _messages(sample, where))
            if job.answers > 1 and job.verifier is None and "answer" not in sample:
                raise InvalidOption(
                    f"{where} has no expected answer to choose the best of {job.answers} by.",
                    hint='Give a verifier, or write {"prompt": "...", "answer": "..."}.',
                )
            if seen.add(text):
                found.append(sample)
            else:
                repeated += 1
    return found, repeated


def _messages(sample: Mapping[str, Any], where: str = "A line") -> list[dict[str, Any]]:
    prompt = sample.get("prompt", sample.get("messages"))
    if not isinstance(prompt, str | list) or not prompt:
        raise RequestError(
            f"{where} has no prompt.", hint='Write {"prompt": "..."} or {"messages": [...]}.'
        )
    return as_messages(prompt)


class _Writer:
    """Asks for the answers to one prompt at a time. Several threads may use it."""

    def __init__(
        self, job: GenerationJob, client: CloudClient, store: AnswerStore, budget: Budget | None
    ) -> None:
        self._job = job
        self._client = client
        self._store = store
        self._budget = budget

    def ask(self, sample: Mapping[str, Any]) -> None:
        """Ask until an answer is right, or there are as many as wanted; keep each."""
        for attempt in range(self._job.answers):
            key = key_of(self._job, sample, attempt)
            answer = self._store.read(key)
            if answer is None:
                answer = self._asked(_body(self._job, sample, attempt))
                self._store.write(key, answer)
            if score_of(self._job, sample, answer) >= _RIGHT or answer.finish_reason == REFUSED:
                return

    def _asked(self, body: dict[str, Any]) -> StoredAnswer:
        size = len(json.dumps(body["messages"], ensure_ascii=False).encode("utf-8", "replace"))
        spending = CallSpending(
            self._budget, math.ceil(size / _BYTES_PER_TOKEN), self._job.max_tokens
        )
        try:
            with self._client.stream(body, spending=spending) as stream:
                for _ in stream:
                    pass
                reply = stream.reply
        except CloudError as error:
            # What the endpoint says of this request is no reason to give up the others.
            if error.status not in BAD_REQUEST_STATUSES:
                raise
            return StoredAnswer("", "", REFUSED)
        finally:
            spending.settle()
        return StoredAnswer(reply.text, reply.reasoning, reply.finish_reason)


def key_of(job: GenerationJob, sample: Mapping[str, Any], attempt: int) -> str:
    """Where the answer of an attempt is kept."""
    return answer_key([cloud.name for cloud in job.clouds], _body(job, sample, attempt), attempt)


def score_of(job: GenerationJob, sample: Mapping[str, Any], answer: StoredAnswer) -> float:
    """How good an answer is: 0 for none that could be learned, 1 where nothing better is known."""
    if answer.finish_reason != "stop" or not answer.text.strip():
        return 0.0
    if job.verifier is not None:
        return float(job.verifier(sample, answer.text))
    return same_as_expected(sample, answer.text) if "answer" in sample else _RIGHT


def _body(job: GenerationJob, sample: Mapping[str, Any], attempt: int) -> dict[str, Any]:
    body = {
        "messages": _messages(sample),
        "max_tokens": job.max_tokens,
        "temperature": job.temperature,
    }
    # So that an endpoint that caches does not give the same answer again.
    return body | {"seed": attempt} if attempt else body


def _ask_all(
    writer: _Writer, samples: Sequence[Mapping[str, Any]], parallel: int, progress: ExportProgress
) -> None:
    """Ask for all samples, some at once; after a failure no new one is begun."""
    progress.stage("Asking for answers", len(samples))
    waiting: Iterator[Mapping[str, Any]] = iter(samples)
    running: set[Future[None]] = set()
    done = 0
    with ThreadPoolExecutor(parallel) as pool:
        while True:
            while len(running) < parallel and (sample := next(waiting, None)) is not None:
                running.add(pool.submit(writer.ask, sample))
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for one in finished:
                try:
                    one.result()
                except (CloudError, BudgetExceeded) as error:
                    raise TrainingError(
                        f"{error} {done} of {len(samples)} prompts are answered, and kept.",
                        hint="The same command goes on from there.",
                    ) from error
                done += 1
            progress.advance(done)


def _write(
    job: GenerationJob, samples: Sequence[Mapping[str, Any]], store: AnswerStore, repeated: int
) -> Generated:
    lines, wrong, incomplete = [], 0, 0
    for sample in samples:
        answers = [
            answer
            for attempt in range(job.answers)
            if (answer := store.read(key_of(job, sample, attempt))) is not None
        ]
        scored = [(score_of(job, sample, answer), answer) for answer in answers]
        best = max(scored, key=lambda each: each[0], default=(0.0, None))
        if best[1] is not None and best[0] > 0:
            lines.append(_line(job, sample, best[1]))
        elif any(answer.finish_reason == "stop" for answer in answers):
            wrong += 1
        else:
            incomplete += bool(answers)
    try:
        write_atomically(job.output, "".join(lines))
    except OSError as error:
        raise RequestError(f"{job.output} cannot be written: {error.strerror}.") from None
    return Generated(job.output, len(lines), repeated, wrong, incomplete)


def _line(job: GenerationJob, sample: Mapping[str, Any], answer: StoredAnswer) -> str:
    text = answer.text
    line: dict[str, Any] = {}
    if answer.reasoning and job.with_reasoning:
        text = f"<think>\n{answer.reasoning}\n</think>\n\n{text}"
    elif answer.reasoning:
        line["reasoning"] = answer.reasoning
    line = {"messages": [*_messages(sample), {"role": "assistant", "content": text}], **line}
    return json.dumps(line, ensure_ascii=False) + "\n"

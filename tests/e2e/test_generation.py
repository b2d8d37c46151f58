"""What `edgesdk generate` asks, keeps and writes, with an endpoint on a real socket."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from edgesdk_export.distill.duplicates import SeenTexts
from edgesdk_export.distill.generation import Generated, GenerationJob, generate
from edgesdk_export.distill.verifiers import verifier_named
from edgesdk_export.progress import SilentProgress
from support.scripted_server import Script, status
from support.talking_cloud import TalkingCloud, last, said

from edgesdk.errors import InvalidOption, RequestError, TrainingError
from edgesdk.hybrid.cloud.spending import SpendingLimits

pytestmark = pytest.mark.e2e


def shout(body: dict[str, Any]) -> Script:
    return said(last(body).upper())


@pytest.fixture
def job(tmp_path: Path) -> GenerationJob:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"say {word}"} for word in ("one", "two", "three", "four")]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return GenerationJob((prompts,), tmp_path / "answers.jsonl", (), parallel=2)


def run(job: GenerationJob, server: TalkingCloud, **changes: Any) -> Generated:
    made = dataclasses.replace(job, clouds=(server.cloud(),), **changes)
    return generate(made, SilentProgress())


def written(job: GenerationJob) -> dict[str, str]:
    lines = [json.loads(line) for line in job.output.read_text().splitlines()]
    return {line["messages"][0]["content"]: line["messages"][-1]["content"] for line in lines}


def with_lines(job: GenerationJob, *lines: dict[str, Any]) -> None:
    job.prompts[0].write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_answers_become_samples_and_nothing_is_asked_twice(job: GenerationJob) -> None:
    with TalkingCloud(shout) as server:
        found = run(job, server)
        assert (found.samples, found.repeated) == (4, 0)
        assert written(job)["say three"] == "SAY THREE"
        run(job, server)
        assert len(server.requests) == 4
        # Another temperature is another question.
        run(job, server, temperature=0.5)
        assert len(server.requests) == 8


def test_an_endpoint_that_dies_midway_loses_nothing(job: GenerationJob) -> None:
    asked: list[str] = []

    def dies(body: dict[str, Any]) -> Script:
        asked.append(last(body))
        return status("403 Forbidden") if len(asked) > 2 else shout(body)

    with TalkingCloud(dies) as server:
        with pytest.raises(TrainingError, match=r"2 of 4 prompts .* same command goes on"):
            run(job, server, parallel=1)
        assert written(job) == {"say one": "SAY ONE", "say two": "SAY TWO"}
        asked.clear()
        server._answers = lambda body: asked.append(last(body)) or shout(body)
        assert run(job, server, parallel=1).samples == 4
    assert asked == ["say three", "say four"]


def test_a_request_that_the_endpoint_refuses_stops_nobody_else(job: GenerationJob) -> None:
    def refuses(body: dict[str, Any]) -> Script:
        return status("400 Bad Request") if "two" in last(body) else shout(body)

    with TalkingCloud(refuses) as server:
        found = run(job, server)
    assert (found.samples, found.incomplete) == (3, 1)


def test_the_best_of_several_answers_is_taken(job: GenerationJob) -> None:
    with_lines(job, {"prompt": "5 + 6?", "answer": "11"}, {"prompt": "5 + 7?", "answer": "12"})

    def counts(body: dict[str, Any]) -> Script:
        # Right at the third try, and only where the answer is 11.
        return said("It is 11." if body.get("seed", 0) == 2 else "It is 10.")

    with TalkingCloud(counts) as server:
        found = run(job, server, answers=4, temperature=0.8)
        assert written(job) == {"5 + 6?": "It is 11."}
        assert (found.samples, found.wrong) == (1, 1)
        # No fourth answer where the third one is right.
        assert len(server.requests) == 3 + 4


def test_an_apps_own_verifier_scores(
    job: GenerationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "length_check.py").write_text("def longest(sample, text): return len(text) / 100\n")
    monkeypatch.syspath_prepend(tmp_path)
    lengths = {None: "ab", 1: "abcd", 2: "abc"}
    with TalkingCloud(lambda body: said(lengths[body.get("seed")])) as server:
        run(job, server, answers=3, verifier=verifier_named("length_check:longest"))
    assert set(written(job).values()) == {"abcd"}
    with pytest.raises(InvalidOption, match="cannot be imported"):
        verifier_named("length_check:shortest")


def test_without_a_verifier_there_is_no_best(job: GenerationJob) -> None:
    with TalkingCloud(shout) as server, pytest.raises(InvalidOption, match="line 1 has no expec"):
        run(job, server, answers=2)


def test_a_spent_budget_ends_the_run_and_keeps_what_there_is(job: GenerationJob) -> None:
    limits = SpendingLimits(tokens_per_day=128)
    with TalkingCloud(shout) as server:
        with pytest.raises(TrainingError, match="tokens_per_day"):
            run(job, server, max_tokens=100, parallel=1, limits=limits)
        assert len(written(job)) == len(server.requests) == 2
        # It is counted over runs, too.
        with pytest.raises(TrainingError, match="tokens_per_day"):
            run(job, server, max_tokens=120, parallel=1, limits=limits, temperature=0.1)
        with pytest.raises(InvalidOption, match="prices"):
            run(job, server, limits=SpendingLimits(money_per_day=1.0))


def test_reasoning_is_kept_beside_the_answer_or_in_it(job: GenerationJob) -> None:
    with_lines(job, {"messages": [{"role": "user", "content": "Why?"}]})
    with TalkingCloud(lambda body: said("So.", reasoning_content="Hm.")) as server:
        run(job, server)
        line = json.loads(job.output.read_text())
        assert line["reasoning"] == "Hm."
        assert line["messages"][-1]["content"] == "So."
        run(job, server, with_reasoning=True)
        assert written(job) == {"Why?": "<think>\nHm.\n</think>\n\nSo."}
        assert len(server.requests) == 1


def test_cut_answers_are_not_learned(job: GenerationJob) -> None:
    with TalkingCloud(lambda body: said("And so", finish="length")) as server:
        found = run(job, server)
    assert (found.samples, found.incomplete) == (0, 4)


def test_near_duplicates_are_asked_once(job: GenerationJob) -> None:
    text = "Please tell me in a few words how the tides of the sea come about"
    with_lines(
        job,
        {"prompt": f"{text}."},
        {"prompt": f"{text} !"},
        {"prompt": f"  {text.upper()}."},
        {"prompt": "What is 45 + 17 in the arithmetic of whole numbers?"},
        {"prompt": "What is 45 + 18 in the arithmetic of whole numbers?"},
    )
    with TalkingCloud(shout) as server:
        found = run(job, server, near=0.9)
    assert (found.samples, found.repeated) == (3, 2)


def test_only_equal_texts_are_alike_with_a_similarity_of_one() -> None:
    seen = SeenTexts(1)
    assert seen.add("The tides of the sea")
    assert seen.add("The tides of the sea.")
    assert not seen.add("the  tides of the SEA")


def test_somebody_elses_file_is_kept(job: GenerationJob) -> None:
    job.output.write_text("mine")
    with TalkingCloud(shout) as server, pytest.raises(RequestError, match="exists already"):
        run(job, server)
    assert job.output.read_text() == "mine"

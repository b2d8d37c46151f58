"""Turns of a flywheel with a tiny model: what is promoted, what is refused, what goes on."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from edgesdk_export.distill.samples import Sample
from edgesdk_export.distill.students import load_trainable
from edgesdk_export.flywheel import frozen_layers
from edgesdk_export.flywheel import turn as turning
from edgesdk_export.flywheel.candidate import load_promoted
from edgesdk_export.flywheel.recipe import FlywheelRecipe
from edgesdk_export.flywheel.regression import RegressionSet
from edgesdk_export.flywheel.state import FlywheelFolder
from edgesdk_export.flywheel.turn import FlywheelJob, turn
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.command_line import edgesdk_here
from support.tiny_models import make_tiny

from edgesdk.errors import RequestError
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal, RecordedTexts
from edgesdk.hybrid.storage.parquet import write_parquet

pytestmark = pytest.mark.integration

SENT = DecisionRecord(
    at=1.0, route="cloud", reason="the device was unsure (0.31)", upload="redact",
    endpoint="big at host", finish_reason="stop",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny checkpoint and its bundle."""
    folder = tmp_path_factory.mktemp("base")
    make_tiny("llama", folder / "checkpoint")
    job = ExportJob(
        folder / "checkpoint", folder / "bundle", "tiny", scheme="fp32", quality_tokens=0
    )
    export(job, SilentProgress())
    return folder


@pytest.fixture
def journal(tmp_path):
    """Eighty prompts that the cloud answered with the same word, and one without text."""
    path = tmp_path / "app.journal"
    opened = Journal(path, keep_texts=True)
    for number in range(80):
        prompt = json.dumps([{"role": "user", "content": f"Is {number * 7} odd?"}])
        opened.append(SENT, prompt=prompt, texts=RecordedTexts(prompt, None, "yes, it is so"))
    opened.append(SENT, prompt="?")
    opened.close()
    return path


def recipe(**learning):
    learned = {"lora_rank": 4, "steps": 40, "learning_rate": 2e-2, "warmup": 0.0} | learning
    return FlywheelRecipe.model_validate(
        {
            "learning": learned,
            "collecting": {"near": 1.0},
            # A random model has no perplexity worth keeping.
            "deciding": {"max_tokens": 16, "perplexity_rise": 1e9},
        }
    )


@pytest.fixture
def job(base, journal, tmp_path):
    return FlywheelJob(
        tmp_path / "wheel",
        (journal,),
        base / "checkpoint",
        base / "bundle",
        recipe(),
        RegressionSet(tokens=128),
        (Cloud("http://127.0.0.1:9/v1", "big"),),
    )


def answer_of(model):
    with load_promoted(model) as loaded:
        return loaded.respond("Is 1 odd?", max_tokens=16, temperature=0).text


def test_what_the_cloud_said_is_learned_promoted_and_rolled_back(job, base):
    result = turn(job, SilentProgress())
    assert result.verdict.better
    assert result.verdict.old_right == 0
    assert result.examples["without_text"] == 1
    assert answer_of(result.current) == "yes, it is so"
    assert result.current.bundle == base / "bundle"
    adapter = sum(path.stat().st_size for path in result.current.adapter.rglob("*"))
    assert adapter < sum(path.stat().st_size for path in (base / "bundle").rglob("*"))
    # All answers are right, so no confidence could be trained; a threshold was looked for.
    assert "0 with a wrong one" in result.recalibration.untrained
    assert result.recalibration.labels == result.examples["parts"]["calibration"]
    assert list(result.current.profile.rglob("calibration.json"))
    history = edgesdk_here("flywheel", "history", str(job.folder), home=job.folder).stdout
    assert "turn 1  promoted" in history
    back = edgesdk_here("flywheel", "rollback", str(job.folder), home=job.folder).stdout
    assert "current: the model of turn 0" in back
    assert answer_of(FlywheelFolder(job.folder).current) != "yes, it is so"


def test_a_model_that_lost_something_is_refused(job):
    strict = dataclasses.replace(
        job,
        recipe=FlywheelRecipe.model_validate(
            {
                "learning": recipe().learning.model_dump(),
                "collecting": {"near": 1.0},
                "deciding": {"max_tokens": 16, "perplexity_rise": 0.0},
            }
        ),
    )
    result = turn(strict, SilentProgress())
    assert not result.verdict.better
    assert "perplexity of" in result.verdict.reason
    folder = FlywheelFolder(job.folder)
    assert folder.current.turn == 0
    assert folder.history()[-1]["event"] == "refused"
    assert folder.open_turn({}).number == 2


def test_a_stopped_turn_goes_on_and_promotes_nothing_before_its_end(job, monkeypatch):
    learned = []
    original = turning.learn
    monkeypatch.setattr(turning, "learn", lambda *a: (learned.append(1), original(*a))[1])

    def stopped(*arguments, **named):
        raise KeyboardInterrupt

    for step in ("build_candidate", "compare", "recalibrate"):
        with monkeypatch.context() as patch:
            patch.setattr(turning, step, stopped)
            with pytest.raises(KeyboardInterrupt):
                turn(job, SilentProgress())
        assert FlywheelFolder(job.folder).current.turn == 0
    assert turn(job, SilentProgress()).current.turn == 1
    assert learned == [1]


def test_all_weights_make_a_bundle_like_the_one_before(job, base, tmp_path):
    parquet = tmp_path / "device.parquet"
    journal = Journal(job.journals[0])
    write_parquet(parquet, journal.entries())
    journal.close()
    whole = dataclasses.replace(
        job, recipe=recipe(lora_rank=0, learning_rate=3e-3), journals=(parquet,)
    )
    result = turn(whole, SilentProgress())
    assert result.current.adapter is None
    assert result.current.bundle != base / "bundle"
    assert answer_of(result.current) == "yes, it is so"
    # The next turn starts from what was learned.
    assert load_trainable(result.current.checkpoint).model.config.num_hidden_layers == 3


def test_too_few_prompts_are_refused(job, tmp_path):
    empty = tmp_path / "empty.journal"
    Journal(empty).close()
    with pytest.raises(RequestError, match="0 escalated prompts with text"):
        turn(dataclasses.replace(job, journals=(empty,)), SilentProgress())
    with pytest.raises(RequestError, match="needs --checkpoint and --bundle"):
        turn(dataclasses.replace(job, folder=tmp_path / "new", checkpoint=None), SilentProgress())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("alike", [True, False])
def test_layers_that_are_not_trained_are_computed_once(family, alike, tmp_path, monkeypatch):
    make_tiny(family, tmp_path)
    model = load_trainable(tmp_path).model
    samples = [Sample(tuple(range(20 + length))) for length in (4, 0)]
    with torch.no_grad():
        expected = [model(torch.tensor([sample.ids])).logits[0] for sample in samples]
    if not alike:
        # What it compares differs each time: the model is to be as it was.
        monkeypatch.setattr(frozen_layers, "_logits", lambda model, **inputs: torch.randn(3))
    states = frozen_layers.states_below(model, 2, samples, lambda done: None)
    assert (states is not None) == alike
    for number, sample in enumerate(samples):
        given = (
            {"input_ids": torch.tensor([sample.ids])}
            if states is None
            else {"inputs_embeds": states[number][None]}
        )
        with torch.no_grad():
            found = model(**given).logits[0]
        assert torch.allclose(found, expected[number], atol=1e-4)

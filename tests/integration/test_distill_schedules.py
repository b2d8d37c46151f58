"""What a loss is made of besides the divergence: shares that change, and hidden states."""

from __future__ import annotations

import random

import pytest
import torch
from edgesdk_export.distill.divergence import divergence_named
from edgesdk_export.distill.hidden_states import HiddenStateMatching
from edgesdk_export.distill.recipe import DistillRecipe
from edgesdk_export.distill.run import DistillJob, distill
from edgesdk_export.distill.samples import Sample
from edgesdk_export.distill.students import cut_layers, load_trainable
from edgesdk_export.distill.teachers import ModelTeacher
from edgesdk_export.distill.trainer import DistillTrainer, Objective, TeacherCollator
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.tiny_models import make_tiny
from transformers import TrainingArguments

from edgesdk.errors import RequestError

pytestmark = pytest.mark.integration

SAMPLES = [Sample(tuple((i * 7 + row) % 256 for i in range(24))) for row in range(8)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny("llama", folder, num_hidden_layers=4)
    return folder


def trainer_of(model, teacher, folder, objective, **settings):
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=5, report_to=[], remove_unused_columns=False, seed=3
    )
    return DistillTrainer(
        objective=objective,
        teacher=teacher,
        model=model,
        args=arguments,
        train_dataset=list(enumerate(SAMPLES)),
        data_collator=TeacherCollator(teacher, objective, pad=0),
        **settings,
    )


def loss_of(trainer, step):
    trainer.state.max_steps, trainer.state.global_step = 5, step
    batch = trainer.data_collator([(0, SAMPLES[0])])
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model.eval(), batch))


def test_the_share_of_cross_entropy_goes_from_one_to_another(checkpoint, tmp_path):
    student, other = load_trainable(checkpoint).model, load_trainable(checkpoint).model
    cut_layers(other, 3, SAMPLES[:1])
    teacher = ModelTeacher(other, "three layers")

    def losses(**shares):
        objective = Objective(divergence_named("forward_kl"), teacher_tokens=320, **shares)
        trainer = trainer_of(student, teacher, tmp_path, objective)
        return [loss_of(trainer, step) for step in range(5)]

    divergence, entropy = losses()[0], losses(cross_entropy=1.0)[0]
    found = losses(cross_entropy=0.8, cross_entropy_end=0.0)
    shares = [0.8, 0.6, 0.4, 0.2, 0.0]
    expected = [share * entropy + (1 - share) * divergence for share in shares]
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_share_of_own_writing_goes_from_one_to_another(checkpoint, tmp_path):
    model = load_trainable(checkpoint).model
    objective = Objective(divergence_named("forward_kl"), on_policy=0.0, on_policy_end=1.0)
    trainer = trainer_of(model, ModelTeacher(model, "itself"), tmp_path, objective)
    trainer.state.max_steps = 101
    found = []
    for step in range(101):
        trainer.state.global_step = step
        found.append(trainer._writes_itself())
    expected = [random.Random(f"3 {step}").random() < step / 100 for step in range(101)]
    assert found == expected
    assert sum(found[:50]) < sum(found[50:])


def test_hidden_states_are_compared_with_the_layer_that_they_came_from(checkpoint):
    """By hand, from transformers' own hidden states."""
    whole, student = load_trainable(checkpoint).model, load_trainable(checkpoint).model
    layers = cut_layers(student, 2, SAMPLES[:1])
    matching = HiddenStateMatching(student, ModelTeacher(whole, "whole"), layers, weight=0.5)
    ids = torch.tensor([SAMPLES[0].ids, SAMPLES[1].ids])
    mask = torch.ones_like(ids)
    learned = torch.zeros_like(ids, dtype=torch.bool)
    learned[0, 3:9], learned[1, 20] = True, True
    with torch.no_grad():
        student(input_ids=ids, use_cache=False)
        found = matching.loss(ids, mask, learned)
        # The last state of `hidden_states` has passed the final norm; the layer's own has not.
        theirs = whole(input_ids=ids, output_hidden_states=True).hidden_states
        ours = student(input_ids=ids, output_hidden_states=True).hidden_states
    assert layers[1] < 3
    expected = 0.0
    last = matching._student.seen[1]
    for state, number in ((ours[1], layers[0]), (last, layers[1])):
        taught = theirs[number + 1][learned]
        errors = (state[learned] - taught).square().sum(-1) / taught.square().sum(-1)
        expected += float(errors.sum()) / 2
    assert float(found) == pytest.approx(0.5 * expected, rel=1e-4)


def test_a_student_that_is_its_teacher_has_no_distance(checkpoint):
    model = load_trainable(checkpoint).model
    teacher = ModelTeacher(load_trainable(checkpoint).model, "itself")
    matching = HiddenStateMatching(model, teacher, range(4), weight=1.0)
    ids = torch.tensor([SAMPLES[0].ids])
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
        found = matching.loss(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
    assert float(found) == pytest.approx(0, abs=1e-9)


def test_training_takes_hidden_states_and_schedules_from_its_recipe(checkpoint, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{i} times {i} is {i * i}." for i in range(150)))
    recipe = DistillRecipe.model_validate(
        {
            "student": {"layers": 3, "vocabulary": "used"},
            "data": {"max_length": 32, "held_out": 0.1},
            "training": {
                "steps": 12,
                "batch": 4,
                "learning_rate": 5e-4,
                "hidden_states": 0.1,
                "cross_entropy": 0.02,
                "cross_entropy_end": 0.0,
                "on_policy": 0.0,
                "on_policy_end": 0.3,
                "sampled_tokens": 8,
            },
        }
    )
    found = distill(DistillJob(checkpoint, (text,), tmp_path / "student", recipe), SilentProgress())
    assert found.after.kl < found.before.kl


def test_a_teacher_without_hidden_states_is_refused(checkpoint, tmp_path):
    bundle = export(
        ExportJob(checkpoint, tmp_path / "bundle", "tiny", scheme="fp32", quality_tokens=0),
        SilentProgress(),
    )
    text = tmp_path / "text.txt"
    text.write_text("abc " * 800)
    recipe = DistillRecipe.model_validate({"training": {"hidden_states": 1.0}})
    job = DistillJob(checkpoint, (text,), tmp_path / "student", recipe, teacher=bundle.path)
    with pytest.raises(RequestError, match="an engine that gives no hidden states"):
        distill(job, SilentProgress())


def test_a_teacher_of_another_shape_is_refused(checkpoint, tmp_path):
    make_tiny("llama", tmp_path, num_hidden_layers=2)
    teacher = ModelTeacher(load_trainable(tmp_path).model, "small")
    with pytest.raises(RequestError, match="a teacher of 2 layers"):
        HiddenStateMatching(load_trainable(checkpoint).model, teacher, range(4), weight=1.0)

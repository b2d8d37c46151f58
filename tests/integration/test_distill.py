"""Distilling tiny models: what is learned, what is not counted, and how a stopped run goes on."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from edgesdk_export.adapters.export import AdapterJob, export_adapter
from edgesdk_export.distill.divergence import divergence_named
from edgesdk_export.distill.measure import measure
from edgesdk_export.distill.recipe import DistillRecipe
from edgesdk_export.distill.run import DistillJob, distill
from edgesdk_export.distill.samples import Sample, read_samples, split_held_out
from edgesdk_export.distill.students import (
    cut_layers,
    load_trainable,
    prompt_encoder,
    save_checkpoint,
)
from edgesdk_export.distill.teacher_cache import CachedTeacher
from edgesdk_export.distill.teachers import EngineTeacher, ModelTeacher, require_same_vocabulary
from edgesdk_export.distill.trainer import DistillTrainer, Objective, TeacherCollator
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from peft import PeftModel
from support.command_line import edgesdk_here
from support.tiny_models import make_tiny
from transformers import TrainingArguments

import edgesdk
from edgesdk.bundle.opening import open_bundle
from edgesdk.errors import RequestError, TooLittleData, TrainingError, VocabulariesDiffer

pytestmark = pytest.mark.integration

RNG = np.random.default_rng(0)
SAMPLES = [Sample(tuple(int(i) for i in RNG.integers(0, 256, 24))) for _ in range(24)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny("llama", folder, num_hidden_layers=4)
    return folder


@pytest.fixture
def trainable(checkpoint):
    return load_trainable(checkpoint)


@pytest.fixture
def text(tmp_path):
    """Some 3,000 tokens of bytes."""
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"{i} times {i} is {i * i}." for i in range(150)))
    return path


def recipe(**sections):
    plain = {
        "data": {"max_length": 32, "held_out": 0.1},
        "training": {"steps": 4, "batch": 4, "micro_batch": 2, "save_every": 2, "warmup": 0.0},
    }
    return DistillRecipe.model_validate(
        {key: plain.get(key, {}) | sections.get(key, {}) for key in {*plain, *sections}}
    )


# --- what the trainer counts ---------------------------------------------------------------------


def distill_trainer(model, teacher, folder, objective=None, **arguments):
    objective = objective or Objective(divergence_named("forward_kl"), teacher_tokens=8)
    settings = {"max_steps": 1, "per_device_train_batch_size": 2, "report_to": []} | arguments
    return DistillTrainer(
        objective=objective,
        teacher=teacher,
        model=model,
        args=TrainingArguments(
            output_dir=str(folder), remove_unused_columns=False, disable_tqdm=True, **settings
        ),
        train_dataset=list(enumerate(SAMPLES)),
        data_collator=TeacherCollator(teacher, objective, pad=0),
    )


def loss_of(one, samples):
    batch = one.data_collator(list(enumerate(samples)))
    return float(one.compute_loss(one.model, batch))


@pytest.fixture
def teacher(trainable):
    """A teacher that differs from the student: a layer less."""
    other = load_trainable(trainable.checkpoint.path).model
    cut_layers(other, 3, SAMPLES[:1])
    return ModelTeacher(other, "three layers")


def test_padding_and_prompts_are_not_counted(trainable, teacher, tmp_path):
    one = distill_trainer(trainable.model, teacher, tmp_path)
    long, short = SAMPLES[0], Sample(SAMPLES[1].ids[:6])
    alone = [loss_of(one, [long]), loss_of(one, [short])]
    both = loss_of(one, [long, short])
    weights = np.array([long.learned, short.learned])
    assert both == pytest.approx(float(np.average(alone, weights=weights)), rel=1e-4)
    # The answer's loss is that of its positions in the whole, by hand.
    answer = Sample(long.ids, prompt=20)
    ids = torch.tensor([long.ids])
    with torch.no_grad():
        student = trainable.model(input_ids=ids).logits[0].log_softmax(-1)
    taught = teacher.tokens(long.ids, 320)
    expected = torch.empty_like(student).scatter(1, taught.ids, taught.log_probs)
    by_hand = (expected.exp() * (expected - student)).sum(-1)[19:23].mean()
    whole = Objective(divergence_named("forward_kl"), teacher_tokens=320)
    other = distill_trainer(trainable.model, teacher, tmp_path, whole)
    assert loss_of(other, [answer]) == pytest.approx(float(by_hand), rel=1e-4)


def test_documents_do_not_see_each_other(checkpoint, tmp_path, trainable):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("abc" * 200)
    second.write_text("xyz" * 200)
    encoder = prompt_encoder(trainable.text, tmp_path)
    samples = read_samples([first, second], encoder, end=None, max_length=64)
    texts = [bytes(i for i in sample.ids if i < 256) for sample in samples]
    assert all(not (b"a" in text and b"x" in text) for text in texts)
    # Every byte of both is in there once.
    assert sum(map(len, texts)) == 1200


def test_an_answer_alone_is_learned_with_its_end(tmp_path, trainable):
    path = tmp_path / "chat.jsonl"
    line = {"prompt": "How are you <|end|>?", "answer": "Fine<|end|>" * 30}
    path.write_text("\n".join([json.dumps(line)] * 3))
    encoder = prompt_encoder(trainable.text, tmp_path)
    samples = read_samples([path], encoder, end=trainable.end, max_length=2048)
    assert len(samples) == 3
    sample = samples[0]
    learned = sample.ids[sample.prompt :]
    assert learned[-1] == trainable.end
    # Text that looks like a control token is text.
    assert trainable.end not in learned[:-1]
    assert list(sample.ids[: sample.prompt]) == encoder.chat(
        [{"role": "user", "content": line["prompt"]}]
    )


# --- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jensen_shannon", "skewed_kl"])
def test_a_student_of_the_same_size_comes_to_its_teacher(loss, checkpoint, trainable, tmp_path):
    teacher = ModelTeacher(load_trainable(checkpoint).model, "whole")
    with torch.no_grad():
        for parameter in trainable.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.manual_seed(1))
    before = measure(trainable.model, teacher, SAMPLES)
    objective = Objective(divergence_named(loss), teacher_tokens=320)
    one = distill_trainer(
        trainable.model,
        teacher,
        tmp_path,
        objective,
        max_steps=60,
        per_device_train_batch_size=12,
        learning_rate=2e-3,
        save_strategy="no",
    )
    one.train()
    after = measure(trainable.model, teacher, SAMPLES)
    assert after.kl < 0.1 * before.kl


def test_the_cheapest_layers_go(checkpoint):
    whole = load_trainable(checkpoint)
    with torch.no_grad():
        # A layer that adds nothing costs nothing.
        idle = whole.model.model.layers[2]
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    assert cut_layers(whole.model, 3, SAMPLES[:2]) == (0, 1, 3)
    ids = torch.tensor([SAMPLES[0].ids])
    with torch.no_grad():
        cached = whole.model(input_ids=ids[:, :12], use_cache=True)
        stepped = whole.model(input_ids=ids[:, 12:], past_key_values=cached.past_key_values)
        at_once = whole.model(input_ids=ids)
    assert torch.allclose(stepped.logits, at_once.logits[:, 12:], atol=1e-4)
    with pytest.raises(RequestError, match="3 layers cannot be cut from a model of 3"):
        cut_layers(whole.model, 3, SAMPLES[:1])


def test_one_command_ends_in_bundles_that_answer(checkpoint, text, tmp_path):
    """From a checkpoint to a student, two bundles and a page that tells of all of them."""
    student, home = tmp_path / "small", tmp_path / "home"
    arguments = ["distill", checkpoint, text, "--layers", 2, "--steps", 2, "--output", student]
    exports = ["--export", "onnx", "--export", "gguf", "--bits", "8"]
    edgesdk_here(*map(str, arguments), *exports, home=home)
    report = json.loads((student / "distillation.json").read_text())
    page = (student / "distillation.html").read_text(encoding="utf-8")
    names = [bundle["name"] for bundle in report["bundles"]]
    assert names == ["small-int8", "small-q8_0"]
    for name, told in zip(names, report["bundles"], strict=True):
        bundle = open_bundle(home / "bundles" / name)
        assert told["size"] == bundle.size
        assert f"{bundle.size / 1e6:.1f} MB" in page
        with edgesdk.load(bundle.path) as model:
            assert model.complete("1 times", max_tokens=4).tokens
    with pytest.raises(AssertionError, match="--bits goes with --export only"):
        edgesdk_here(*map(str, arguments), "--bits", "8", home=home)


def test_a_distilled_student_is_a_checkpoint_that_answers(checkpoint, text, tmp_path):
    job = DistillJob(
        checkpoint,
        (text,),
        tmp_path / "student",
        recipe(student={"layers": 3}, training={"steps": 30}),
    )
    result = distill(job, SilentProgress())
    assert len(result.layers) == 3
    assert result.after.kl < result.before.kl
    assert not (tmp_path / ".student.training").exists()
    report = json.loads((tmp_path / "student" / "distillation.json").read_text())
    assert report["after"]["kl"] == pytest.approx(result.after.kl)
    page = (tmp_path / "student" / "distillation.html").read_text(encoding="utf-8")
    assert f"{result.after.kl:.4f}" in page
    assert "What each of them writes" in page
    bundle = export(
        ExportJob(tmp_path / "student", tmp_path / "bundle", "student", quality_tokens=0),
        SilentProgress(),
    )
    assert bundle.manifest.shape.layers == 3
    with edgesdk.load(bundle.path) as model:
        assert model.complete("1 times 1", max_tokens=4).tokens


def test_low_rank_training_leaves_an_adapter_and_the_merged_student(checkpoint, text, tmp_path):
    settings = {"lora_rank": 4, "steps": 20, "learning_rate": 1e-2}
    job = DistillJob(
        checkpoint,
        (text,),
        tmp_path / "student",
        recipe(student={"layers": 3}, training=settings),
    )
    result = distill(job, SilentProgress())
    assert result.after.kl < result.before.kl
    merged = load_trainable(job.destination).model
    start = load_trainable(checkpoint)
    layers = torch.nn.ModuleList([start.model.model.layers[index] for index in result.layers])
    for place, layer in enumerate(layers):
        layer.self_attn.layer_idx = place
    start.model.model.layers = layers
    start.model.config.num_hidden_layers = 3
    adapted = PeftModel.from_pretrained(start.model, job.destination / "adapter")
    ids = torch.tensor([SAMPLES[0].ids])
    with torch.no_grad():
        one, other = merged(input_ids=ids).logits, adapted(input_ids=ids).logits
    assert torch.allclose(one, other, atol=1e-4)


def test_the_adapter_that_training_leaves_goes_onto_the_bundle(checkpoint, text, tmp_path):
    whole = recipe(training={"lora_rank": 2, "steps": 4})
    student = distill(
        DistillJob(checkpoint, (text,), tmp_path / "student", whole), SilentProgress()
    ).path
    job = ExportJob(checkpoint, tmp_path / "bundle", "tiny", scheme="fp32", quality_tokens=0)
    export(job, SilentProgress())
    adapter = export_adapter(
        AdapterJob(student / "adapter", job.destination, tmp_path / "adapter", "trained")
    )
    with edgesdk.load(job.destination, device="cpu", adapter=adapter.path) as model:
        found = model.runtime.engine.new_state().extend(SAMPLES[0].ids, logits="all")
    with torch.no_grad():
        expected = load_trainable(student).model(input_ids=torch.tensor([SAMPLES[0].ids])).logits
    np.testing.assert_allclose(found, expected[0], atol=1e-3)


def test_a_gguf_is_trained_and_saved_like_any_checkpoint(gguf_checkpoint, text, tmp_path):
    student = load_trainable(gguf_checkpoint)
    save_checkpoint(student, tmp_path / "saved")
    again = load_trainable(tmp_path / "saved")
    assert again.text.entry == student.text.entry
    ids = torch.tensor([SAMPLES[0].ids])
    with torch.no_grad():
        one, other = student.model(input_ids=ids).logits, again.model(input_ids=ids).logits
    assert torch.equal(one, other)
    job = DistillJob(gguf_checkpoint, (text,), tmp_path / "student", recipe(student={"layers": 3}))
    assert distill(job, SilentProgress()).after.tokens


@pytest.fixture
def gguf_checkpoint(checkpoint, tmp_path):
    bundle = export(
        ExportJob(
            checkpoint, tmp_path / "gguf", "tiny", format="gguf", scheme="f32", quality_tokens=0
        ),
        SilentProgress(),
    )
    return bundle.role_file("decoder")


def test_what_the_student_writes_in_a_batch_is_what_it_writes_alone(trainable, teacher, tmp_path):
    one = distill_trainer(trainable.model, teacher, tmp_path)
    prompts = [list(SAMPLES[0].ids[:5]), list(SAMPLES[1].ids[:11])]
    settings = {"do_sample": False, "max_new_tokens": 64, "pad_token_id": 0}
    alone = [
        trainable.model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    greedy = trainable.model.generate

    def generate(**asked):
        return greedy(**asked | settings | {"temperature": None, "top_p": None, "top_k": None})

    trainable.model.generate = generate
    assert one._continued(trainable.model, prompts) == alone
    # Padding that follows an end is not written.
    end = alone[0][2]
    trainable.model.generation_config.eos_token_id = [end]
    written = one._continued(trainable.model, prompts)
    assert written[0] == alone[0][: alone[0].index(end) + 1]


# --- teachers ------------------------------------------------------------------------------------


@dataclass
class CountedTeacher:
    """A teacher that counts how often it is asked."""

    teacher: ModelTeacher
    asked: int = 0
    identity: str = "counted"
    vocab_size: int = 320
    most_tokens: int = 320

    def tokens(self, ids, k):
        self.asked += 1
        return self.teacher.tokens(ids, k)


def test_a_teacher_reads_each_sequence_once(teacher, tmp_path):
    counted = CountedTeacher(teacher)
    for _ in range(2):
        cached = CachedTeacher(counted, tmp_path / "cache.sqlite")
        found = cached.tokens(SAMPLES[0].ids, 8)
        cached.close()
    assert counted.asked == 1
    exact = teacher.tokens(SAMPLES[0].ids, 8)
    assert torch.equal(found.ids, exact.ids)
    assert torch.allclose(found.log_probs, exact.log_probs, atol=5e-3)
    # Another teacher, and another number of tokens, are other answers.
    cached = CachedTeacher(counted, tmp_path / "cache.sqlite")
    cached.tokens(SAMPLES[0].ids, 9)
    counted.identity = "another"
    cached.tokens(SAMPLES[0].ids, 8)
    cached.close()
    assert counted.asked == 3


def test_a_cache_that_is_none_is_named(teacher, tmp_path):
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(edgesdk.EdgeError, match=r"cache\.sqlite cannot be used"):
        CachedTeacher(teacher, path)


def test_a_bundle_teaches_as_its_checkpoint_does(checkpoint, trainable, tmp_path):
    bundle = export(
        ExportJob(checkpoint, tmp_path / "b", "tiny", scheme="fp32", quality_tokens=0),
        SilentProgress(),
    )
    engine = EngineTeacher(bundle, threads=1)
    ids = SAMPLES[0].ids
    one, other = engine.tokens(ids, 8), ModelTeacher(trainable.model, "torch").tokens(ids, 8)
    engine.close()
    assert torch.allclose(one.log_probs, other.log_probs, atol=1e-3)


def test_vocabularies_of_one_size_that_differ_are_refused(trainable, tmp_path):
    ours = trainable.text.tokenizer_json
    swapped = json.loads(ours)
    added = swapped["added_tokens"]
    added[0]["content"], added[1]["content"] = added[1]["content"], added[0]["content"]
    require_same_vocabulary(ours, ours)
    with pytest.raises(VocabulariesDiffer, match="of the teacher's"):
        require_same_vocabulary(json.dumps(swapped).encode(), ours)


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_stopped_run_goes_on_to_the_same_losses(checkpoint, text, tmp_path, monkeypatch):
    whole = distill(
        DistillJob(checkpoint, (text,), tmp_path / "whole", recipe(training={"on_policy": 0.3})),
        SilentProgress(),
    )

    class Stops(SilentProgress):
        def advance(self, done):
            if done == 3:
                raise KeyboardInterrupt

    job = DistillJob(checkpoint, (text,), tmp_path / "stopped", recipe(training={"on_policy": 0.3}))
    with pytest.raises(KeyboardInterrupt):
        distill(job, Stops())
    assert not job.destination.exists()
    resumed = distill(job, SilentProgress())
    assert resumed.losses == whole.losses
    assert resumed.after == whole.after


def test_a_loss_that_is_no_number_names_the_samples(trainable, teacher, tmp_path):
    with torch.no_grad():
        trainable.model.lm_head.weight[3] = float("nan")
    one = distill_trainer(trainable.model, teacher, tmp_path)
    with pytest.raises(TrainingError, match=r"nan in step 1, on the samples \d+, \d+"):
        one.train()


def test_memory_that_runs_out_halves_the_micro_batch(checkpoint, text, tmp_path, monkeypatch):
    # In bfloat16 two halves of a batch do not round as the whole does.
    settings = {"batch": 4, "micro_batch": 4, "steps": 4, "save_every": 100, "bfloat16": False}
    job = DistillJob(checkpoint, (text,), tmp_path / "small", recipe(training=settings))
    sizes, said = [], []
    original = DistillTrainer.compute_loss

    def small_memory(self, model, inputs, *args, **kwargs):
        sizes.append(len(inputs["samples"]))
        if sizes[-1] > 1 and self.state.global_step == 2:
            raise torch.OutOfMemoryError("no memory")
        return original(self, model, inputs, *args, **kwargs)

    class Says(SilentProgress):
        def stage(self, title, steps):
            said.append(title)

    monkeypatch.setattr(DistillTrainer, "compute_loss", small_memory)
    small = distill(job, Says())
    assert sizes == [4] * 3 + [2] * 5 + [1] * 16
    assert any("1 sequences at a time because memory ran out" in title for title in said)
    monkeypatch.setattr(DistillTrainer, "compute_loss", original)
    large = distill(dataclasses.replace(job, destination=tmp_path / "large"), SilentProgress())
    # Steps that were made before memory ran out are not made twice.
    assert [loss for _, loss in small.losses] == pytest.approx(
        [loss for _, loss in large.losses], rel=1e-3
    )


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("too short", TooLittleData, "8 tokens to learn in 1 sequences"),
        ("", TooLittleData, "0 tokens"),
    ],
)
def test_little_data_is_refused(content, error, said, trainable, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(content)
    with pytest.raises(error, match=said):
        read_samples([path], prompt_encoder(trainable.text, tmp_path), end=None, max_length=64)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 is not a JSON object"),
        ('{"body": "x"}', 'line 2: there is no "text"'),
        ('{"messages": [{"role": "user", "content": "x"}]}', "line 2: .*does not end with an"),
    ],
)
def test_wrong_lines_are_named(line, said, trainable, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(RequestError, match=said):
        read_samples([path], prompt_encoder(trainable.text, tmp_path), end=None, max_length=64)


def test_a_destination_that_is_taken_is_kept(checkpoint, text, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(RequestError, match="is there already"):
        distill(DistillJob(checkpoint, (text,), tmp_path / "there"), SilentProgress())


def test_held_out_samples_are_not_learned_from():
    training, held_out = split_held_out(SAMPLES, 0.25)
    assert len(held_out) == 6
    assert len(training) + len(held_out) == len(SAMPLES)
    assert not {id(sample) for sample in training} & {id(sample) for sample in held_out}

"""Students cut in width and in vocabulary: what is left computes as the whole did."""

from __future__ import annotations

import json

import pytest
import torch
from edgesdk_export.distill.divergence import TeacherTokens
from edgesdk_export.distill.recipe import DistillRecipe
from edgesdk_export.distill.run import DistillJob, distill
from edgesdk_export.distill.samples import Sample
from edgesdk_export.distill.students import load_trainable
from edgesdk_export.distill.vocabulary import (
    TrimmedTeacher,
    TrimmedVocabulary,
    trim_model,
    trim_vocabulary,
)
from edgesdk_export.distill.width import Width, cut_width, width_of
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.tiny_models import make_tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import edgesdk
from edgesdk.errors import RequestError, TrainingError

pytestmark = pytest.mark.integration

IDS = torch.arange(40)[None] * 7 % 256
SAMPLES = [Sample(tuple(IDS[0].tolist()))]
TEXT = " ".join(f"the {i}th time the other thing was there" for i in range(150))


def logits_of(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0]


# --- width ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["llama", "llama-biased", "qwen2", "qwen3", "gemma2"])
def test_what_is_left_computes_as_if_the_rest_were_zero(variant, tmp_path):
    make_tiny(variant, tmp_path)
    model = load_trainable(tmp_path).model
    size = getattr(model.config, "head_dim", 16)
    with torch.no_grad():
        for layer in model.model.layers:
            # What adds least: heads 0 and 1, which share keys and values, and these channels.
            layer.self_attn.o_proj.weight[:, : 2 * size] *= 1e-4
            layer.mlp.down_proj.weight[:, 10:42] *= 1e-4
    whole = width_of(model)
    found = cut_width(model, Width(whole.heads - 2, whole.kv_heads - 1, 64), SAMPLES)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:, : 2 * size] = 0
            layer.mlp.down_proj.weight[:, 10:42] = 0
    torch.testing.assert_close(logits_of(found), logits_of(model), atol=1e-4, rtol=1e-4)
    assert width_of(found) == Width(2, 1, 64)


def test_heads_within_their_groups(tmp_path):
    make_tiny("llama", tmp_path)
    model = load_trainable(tmp_path).model
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:, 16:32] = 0  # head 1, of the first group
            layer.self_attn.o_proj.weight[:, 32:48] = 0  # head 2, of the second one
    found = cut_width(model, Width(2, 2, 96), SAMPLES)
    torch.testing.assert_close(logits_of(found), logits_of(model), atol=1e-4, rtol=1e-4)
    kept = found.model.layers[0].self_attn.q_proj.weight
    there = model.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(kept, torch.cat([there[:16], there[48:]]))


def test_importance_is_what_a_channel_adds(tmp_path):
    """By hand: the mean square of the middle's values, times the length of the output's columns."""
    make_tiny("llama", tmp_path, num_hidden_layers=1)
    model = load_trainable(tmp_path).model
    seen = []
    down = model.model.layers[0].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].detach()))
    logits_of(model)
    hook.remove()
    added = seen[0][:, :, None] * down.weight.detach().T[None]
    best = added.square().sum(-1).mean(0).topk(40).indices.sort().values
    found = cut_width(model, Width(4, 2, 40), SAMPLES)
    assert torch.equal(found.model.layers[0].mlp.up_proj.weight, _rows(model, best))


def _rows(model, places):
    return model.model.layers[0].mlp.up_proj.weight[places]


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (Width(5, 2, 96), "heads = 5 cannot be cut from a model with 4"),
        (Width(3, 2, 96), "3 heads cannot share 2 groups"),
        (Width(4, 1, 96), "4 heads cannot share 1 groups"),
        (Width(4, 2, 97), "channels = 97"),
    ],
)
def test_widths_that_cannot_be(width, said, tmp_path):
    make_tiny("llama", tmp_path)
    with pytest.raises(RequestError, match=said):
        cut_width(load_trainable(tmp_path).model, width, SAMPLES)


def test_fused_matrices_are_refused(tmp_path):
    make_tiny("phi3", tmp_path)
    with pytest.raises(RequestError, match=r"has no self_attn\.q_proj"):
        cut_width(load_trainable(tmp_path).model, Width(2, 1, 96), SAMPLES)


# --- vocabulary ----------------------------------------------------------------------------------


def trained_tokenizer(folder):
    """A byte-level tokenizer with merges, in place of the one that has none."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = "the other brother gathers there, the mother bothers another father thing time was"
    tokenizer.train_from_iterator([words] * 8, trainer)
    tokenizer.add_special_tokens(["<|end|>", "<|start|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.fixture(params=["llama", "qwen2"])
def checkpoint(request, tmp_path):
    """With a head of its own, and with a tied one."""
    folder = tmp_path / "checkpoint"
    make_tiny(request.param, folder)
    tokenizer = trained_tokenizer(folder)
    ids = {key: tokenizer.token_to_id(key) for key in ("<|end|>", "<|start|>")}
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"eos_token_id": ids["<|end|>"], "bos_token_id": ids["<|start|>"]}
    path.write_text(json.dumps(config))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def test_a_trimmed_vocabulary_reads_its_data_as_the_whole_one(checkpoint):
    whole = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = whole.encode("the other thing was there").ids
    found = trim_vocabulary((checkpoint / "tokenizer.json").read_bytes(), [Sample(tuple(ids))])
    trimmed = Tokenizer.from_str(found.tokenizer_json.decode())
    assert 256 < trimmed.get_vocab_size() < whole.get_vocab_size()
    assert trimmed.get_vocab_size() == len(found.kept)
    again = trimmed.encode("the other thing was there")
    assert tuple(again.ids) == found.renumbered([Sample(tuple(ids))])[0].ids
    assert [found.kept[number] for number in again.ids] == ids
    # A word that went is read in pieces; special tokens and bytes are all there.
    for text in ("the mother bothers", "中文, naïve"):
        assert trimmed.decode(trimmed.encode(text).ids) == text
    assert len(trimmed.encode("mother").ids) > len(whole.encode("mother").ids)
    assert trimmed.token_to_id("<|end|>") == found.kept.index(whole.token_to_id("<|end|>"))
    known = set(trimmed.get_vocab())
    merges = json.loads(found.tokenizer_json)["model"]["merges"]
    assert all(a in known and b in known and a + b in known for a, b in merges)


def test_a_trimmed_model_gives_the_logits_of_the_same_rows(checkpoint):
    model = load_trainable(checkpoint).model
    kept = tuple(sorted({*range(0, 320, 3), *IDS[0].tolist()}))
    vocabulary = TrimmedVocabulary(kept, b"")
    (sample,) = vocabulary.renumbered(SAMPLES)
    found = logits_of(trim_model(model, vocabulary), torch.tensor([sample.ids]))
    torch.testing.assert_close(found, logits_of(model)[:, list(kept)], atol=1e-5, rtol=1e-5)


class FourTokens:
    """Says .4 .3 .2 .1 for tokens 0 to 3, in the order of their probability."""

    identity, vocab_size = "four", 4

    def __init__(self, given=4):
        self._given = given

    def tokens(self, ids, k):
        self.asked = ids
        log_probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(len(ids), -1)
        numbers = torch.arange(4).expand(len(ids), -1)
        return TeacherTokens(numbers[:, : self._given], log_probs[:, : self._given], 4)


def test_a_teacher_of_all_tokens_speaks_of_those_that_are_left():
    teacher = FourTokens()
    trimmed = TrimmedTeacher(teacher, TrimmedVocabulary((1, 3), b""))
    found = trimmed.tokens([1, 0, 1], 2)
    assert teacher.asked == [3, 1, 3]
    # Given that it is 1 or 3: .3 / .4 and .1 / .4.
    torch.testing.assert_close(found.log_probs[0].exp(), torch.tensor([0.75, 0.25]))
    assert found.ids[0].tolist() == [0, 1]
    assert trimmed.vocab_size == 2
    other = TrimmedTeacher(teacher, TrimmedVocabulary((1, 2), b""))
    assert trimmed.identity != other.identity
    with pytest.raises(TrainingError, match="some tokens only"):
        TrimmedTeacher(FourTokens(2), TrimmedVocabulary((1, 3), b"")).tokens([0], 2)


def test_a_vocabulary_without_merges_is_refused():
    tokenizer = Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)]))
    with pytest.raises(RequestError, match="of the kind Unigram cannot be trimmed"):
        trim_vocabulary(tokenizer.to_str().encode(), SAMPLES)


# --- all of it -----------------------------------------------------------------------------------


def test_a_student_cut_in_all_directions_is_a_checkpoint_that_answers(checkpoint, tmp_path):
    data = tmp_path / "text.txt"
    data.write_text(TEXT)
    recipe = DistillRecipe.model_validate(
        {
            "student": {"layers": 2, "kv_heads": 1, "channels": 64, "vocabulary": "used"},
            "data": {"max_length": 32, "held_out": 0.1},
            "training": {"steps": 12, "batch": 4, "learning_rate": 3e-3},
        }
    )
    job = DistillJob(checkpoint, (data,), tmp_path / "student", recipe)
    result = distill(job, SilentProgress())
    assert result.after.kl < result.before.kl
    assert len(result.layers) == 2
    student = load_trainable(job.destination)
    config = student.model.config
    assert width_of(student.model) == Width(heads=2, kv_heads=1, channels=64)
    tokenizer = Tokenizer.from_file(str(job.destination / "tokenizer.json"))
    assert config.vocab_size == tokenizer.get_vocab_size() < 290
    assert config.eos_token_id == tokenizer.token_to_id("<|end|>")
    assert student.text.entry.eos_token_ids == (tokenizer.token_to_id("<|end|>"),)
    bundle = export(
        ExportJob(job.destination, tmp_path / "bundle", "student", quality_tokens=0),
        SilentProgress(),
    )
    with edgesdk.load(bundle.path) as model:
        assert model.complete("the other", max_tokens=4).tokens

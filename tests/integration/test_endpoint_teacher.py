"""Endpoints that teach: as vLLM tells log-probabilities, and as llama-cpp-python's server does."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from edgesdk_export.distill.endpoint_teacher import EndpointTeacher
from edgesdk_export.distill.recipe import DistillRecipe
from edgesdk_export.distill.run import DistillJob, distill
from edgesdk_export.distill.students import load_trainable
from edgesdk_export.distill.teachers import ModelTeacher
from edgesdk_export.progress import SilentProgress
from support.scripted_server import Script, status
from support.talking_cloud import TalkingCloud
from support.tiny_models import make_tiny
from tokenizers import Tokenizer

from edgesdk.errors import TrainingError, VocabulariesDiffer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tiny model that teaches by itself."""
    folder = tmp_path_factory.mktemp("teacher")
    make_tiny("llama", folder)
    return load_trainable(folder)


@pytest.fixture(scope="module")
def ids(whole):
    tokenizer = Tokenizer.from_str(whole.text.tokenizer_json.decode())
    return tokenizer.encode("plain text", add_special_tokens=False).ids


class Vllm:
    """Answers as vLLM's /v1/completions does, with a model's own log-probabilities."""

    def __init__(self, model: Any, tokenizer_json: bytes, shift: int = 0) -> None:
        self._model = model
        self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        self._shift = shift

    def __call__(self, body: dict[str, Any]) -> Script:
        ids, k = body["prompt"], body["prompt_logprobs"]
        assert body["max_tokens"] == 1
        if k > 20:
            return status("400 Bad Request", {"error": {"message": "max_logprobs is 20"}})
        with torch.no_grad():
            logs = self._model(torch.tensor([ids])).logits[0].log_softmax(-1)
        rows: list[Any] = [None]
        for place, token in enumerate(ids[1:]):
            chosen = {*logs[place].topk(k).indices.tolist(), token}
            rows.append({str(each): self._entry(each, float(logs[place][each])) for each in chosen})
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return status("200 OK", {"choices": [{"prompt_logprobs": rows}], "usage": usage})

    def _entry(self, token: int, log_prob: float) -> dict[str, Any]:
        text = self._tokenizer.decode([token + self._shift], skip_special_tokens=False)
        return {"logprob": log_prob, "rank": 1, "decoded_token": text}


def test_vllms_log_probabilities_teach_as_the_model_itself(whole, ids):
    expected = ModelTeacher(whole.model, "itself").tokens(ids, 8)
    with TalkingCloud(Vllm(whole.model, whole.text.tokenizer_json)) as server:
        teacher = EndpointTeacher(server.cloud(), whole.text.tokenizer_json, 320)
        found = teacher.tokens(ids, 8)
        teacher.close()
    assert torch.equal(found.ids[:-1], expected.ids[:-1])
    assert torch.allclose(found.log_probs[:-1], expected.log_probs[:-1], atol=1e-5)
    # The rest has a cell of its own.
    assert torch.allclose(found.cells()[:-1].exp().sum(-1), torch.ones(len(ids) - 1), atol=1e-4)
    assert b"/v1/completions" in server.requests[0]


def test_another_vocabulary_is_refused_with_the_token(whole, ids):
    with TalkingCloud(Vllm(whole.model, whole.text.tokenizer_json, shift=1)) as server:
        teacher = EndpointTeacher(server.cloud(), whole.text.tokenizer_json, 320)
        with pytest.raises(VocabulariesDiffer, match=r"token \d+ is .* there and .* here"):
            teacher.tokens(ids, 4)
        teacher.close()


def test_an_endpoint_without_log_probabilities_is_told_apart(whole, ids):
    def text_only(body: dict[str, Any]) -> Script:
        return status("200 OK", {"choices": [{"text": "Hm.", "logprobs": None}]})

    with TalkingCloud(text_only) as server:
        teacher = EndpointTeacher(server.cloud(), whole.text.tokenizer_json, 320)
        with pytest.raises(TrainingError, match=r"no log-probabilities .*edgesdk generate"):
            teacher.tokens(ids, 4)
        teacher.close()
    assert [("echo" in body) for body in server.bodies()] == [False, True]


def echoed(tokenizer: Tokenizer, model: Any, body: dict[str, Any]) -> Script:
    """As llama-cpp-python's server: texts of tokens, and a token that it wrote itself."""
    if "echo" not in body:
        return status("400 Bad Request", {"error": {"message": "prompt must be a text"}})
    ids = tokenizer.encode(body["prompt"], add_special_tokens=False).ids
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    texts = [tokenizer.decode([token]) for token in [*ids, int(logs[-1].argmax())]]
    top: list[Any] = [None]
    for row in logs:
        best = row.topk(body["logprobs"])
        names = [tokenizer.decode([int(i)], skip_special_tokens=False) for i in best.indices]
        top.append(dict(zip(names, best.values.tolist(), strict=True)))
    told = {"tokens": texts, "top_logprobs": top}
    return status("200 OK", json.loads(json.dumps({"choices": [{"logprobs": told}]})))


def test_echoed_log_probabilities_teach_too(whole, ids):
    tokenizer = Tokenizer.from_str(whole.text.tokenizer_json.decode())
    expected = ModelTeacher(whole.model, "itself").tokens(ids, 300)
    with TalkingCloud(lambda body: echoed(tokenizer, whole.model, body)) as server:
        teacher = EndpointTeacher(server.cloud(), whole.text.tokenizer_json, 320)
        found = teacher.tokens(ids, 6)
        teacher.tokens(ids, 6)
        teacher.close()
    for place in range(len(ids) - 1):
        known = dict(zip(expected.ids[place].tolist(), expected.log_probs[place], strict=True))
        for token, value in zip(found.ids[place].tolist(), found.log_probs[place], strict=True):
            # Bytes that are no text by themselves are not told apart, and count as the rest.
            if value > -1e3:
                assert float(value) == pytest.approx(float(known[token]), abs=1e-4)
    # What the endpoint does not know is tried once.
    assert [("echo" in body) for body in server.bodies()] == [False, True, True]


def test_a_student_learns_from_an_endpoint_what_it_learns_from_the_model(tmp_path):
    make_tiny("llama", tmp_path / "hf", num_hidden_layers=3)
    whole = load_trainable(tmp_path / "hf")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{i} times {i} is {i * i}." for i in range(40)))
    recipe = DistillRecipe.model_validate(
        {
            "student": {"layers": 2},
            "data": {"max_length": 32, "held_out": 0.1},
            "training": {"steps": 3, "batch": 4, "teacher_tokens": 20, "bfloat16": False},
        }
    )
    jobs = [DistillJob(tmp_path / "hf", (text,), tmp_path / "by-model", recipe)]
    with TalkingCloud(Vllm(whole.model, whole.text.tokenizer_json)) as server:
        cloud = server.cloud()
        jobs += [DistillJob(tmp_path / "hf", (text,), tmp_path / "by-endpoint", recipe, cloud)]
        by_model, by_endpoint = [distill(job, SilentProgress()) for job in jobs]
        sequences = {json.dumps(body["prompt"]) for body in server.bodies()}
        # No sequence is read twice.
        assert len(sequences) == len(server.bodies())
    for mine, theirs in zip(by_endpoint.losses, by_model.losses, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    for mine, theirs in (
        (by_endpoint.before, by_model.before),
        (by_endpoint.after, by_model.after),
    ):
        # 20 tokens and the rest tell less than all tokens.
        assert 0 < mine.kl <= theirs.kl
        assert mine.top1 == pytest.approx(theirs.top1, abs=0.02)
        assert mine.perplexity == pytest.approx(theirs.perplexity, rel=1e-2)

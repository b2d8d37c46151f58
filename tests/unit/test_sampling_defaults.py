"""The sampling that a model's makers recommend is read, kept and used."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from pydantic import ValidationError
from support.fake_engine import FakeEngine, fake_model

from edgesdk.bundle.sampling import Sampling, sampling_of_config, sampling_of_metadata
from edgesdk.errors import InvalidOption
from edgesdk.model import Model
from edgesdk.server.api_requests import ChatRequest, parse

QWEN = {
    "do_sample": True,
    "repetition_penalty": 1.1,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "eos_token_id": [151645, 151643],
}
QWEN_OPTIONS = {
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "repetition_penalty": 1.1,
}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (QWEN, QWEN_OPTIONS),
        ({"do_sample": True}, {"temperature": 1.0}),
        # transformers takes the likeliest token where do_sample is not true.
        ({"temperature": 0.6, "top_p": 0.9}, None),
        ({"do_sample": False, "temperature": 0.6}, None),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"repetition_penalty": 1.0}, None),
        ({}, None),
        ({"do_sample": True, "top_k": None, "min_p": 0.1}, {"temperature": 1.0, "min_p": 0.1}),
        # What no sampler could take is left out.
        ({"do_sample": True, "top_p": 7, "top_k": 1.5}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": "hot", "min_p": True}, None),
        ({"do_sample": True, "temperature": float("nan"), "top_k": -1}, None),
    ],
)
def test_a_generation_config_is_read_as_transformers_does(
    config: dict[str, Any], options: dict[str, float] | None
) -> None:
    sampling = sampling_of_config(config)

    assert (None if sampling is None else sampling.options()) == options


def test_metadata_of_a_gguf_say_the_same_in_float32() -> None:
    metadata = {
        "general.sampling.temp": 0.699999988079071,
        "general.sampling.top_k": 20,
        "general.sampling.top_p": 0.800000011920929,
        "general.sampling.penalty_repeat": 1.10000002384186,
        "general.name": "Qwen",
    }
    sampling = sampling_of_metadata(metadata)

    assert sampling is not None
    assert sampling.options() == QWEN_OPTIONS
    assert sampling_of_metadata(sampling.gguf_metadata()) == sampling
    assert sampling_of_metadata({"general.name": "x"}) is None


def test_a_manifest_takes_no_sampling_out_of_its_bounds() -> None:
    assert Sampling.model_validate_json(json.dumps(QWEN_OPTIONS)).options() == QWEN_OPTIONS
    for bad in ({"temperature": -1}, {"top_p": 0}, {"min_p": 2}, {"heat": 1}):
        with pytest.raises(ValidationError):
            Sampling.model_validate(bad)


def _recommending(**sampling: float) -> Model:
    runtime = dataclasses.replace(fake_model(FakeEngine(b"Hi.")).runtime, sampling=sampling)
    return Model("fake", runtime)


def test_an_answer_that_says_nothing_else_is_sampled_so() -> None:
    runtime = _recommending(**QWEN_OPTIONS).runtime
    messages = [{"role": "user", "content": "Hi"}]

    options = runtime.request(messages, {}).options
    assert {name: getattr(options, name) for name in QWEN_OPTIONS} == QWEN_OPTIONS
    given = runtime.request(messages, {"temperature": 0, "top_k": 5}).options
    assert (given.temperature, given.top_k, given.top_p) == (0, 5, 0.8)
    assert runtime.options({"temperature": 0.2}).temperature == 0.2
    with pytest.raises(InvalidOption, match="'heat'"):
        runtime.options({"heat": 1})


def test_a_value_or_a_call_is_the_likeliest() -> None:
    pytest.importorskip("llguidance")
    runtime = _recommending(**QWEN_OPTIONS).runtime
    messages = [{"role": "user", "content": "Hi"}]

    assert runtime.request(messages, {"choices": ["a", "b"]}).options.temperature == 0
    assert runtime.request(messages, {"choices": None}).options.temperature == 0.7


def test_a_model_without_a_recommendation_takes_the_likeliest_token() -> None:
    options = fake_model().runtime.request([{"role": "user", "content": "Hi"}], {}).options

    assert options.temperature == 0
    assert not options.penalizes


def test_the_server_takes_it_where_the_client_says_nothing() -> None:
    def options(**fields: Any) -> Any:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
        request = parse(ChatRequest, json.dumps(body).encode())
        return request.options(deadline=1.0, sampling=QWEN_OPTIONS)

    assert {name: getattr(options(), name) for name in QWEN_OPTIONS} == QWEN_OPTIONS
    assert (options(temperature=0).temperature, options(top_p=1).top_p) == (0, 1)
    assert options(repeat_penalty=1.0).repetition_penalty == 1.0

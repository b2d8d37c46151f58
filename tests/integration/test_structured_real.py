"""Structures with the tokenizers and engines of a real model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

import edgesdk
from edgesdk.bundle.opening import Bundle
from edgesdk.errors import IncompleteStructure
from edgesdk.model import Model
from edgesdk.text.tokenizer import BundleTokenizer
from tests.support.random_engine import noise_model
from tests.support.schemas import brief_schema, random_schema

pytestmark = pytest.mark.integration


class City(BaseModel):
    name: str = Field(max_length=20)
    country: Literal["France", "Japan", "Peru"]
    population: int = Field(ge=0, le=50_000_000)
    tags: list[str] = Field(max_length=2)
    capital: bool | None


@pytest.fixture(scope="module", params=["onnx", "gguf"])
def model(
    request: pytest.FixtureRequest, smollm2_int4: Bundle, smollm2_gguf: Path
) -> Iterator[Model]:
    source = smollm2_int4.path if request.param == "onnx" else smollm2_gguf
    with edgesdk.load(source, context=1024, threads=1) as model:
        yield model


@pytest.mark.parametrize("part", range(2))
def test_noise_in_real_tokens_is_valid(model: Model, part: int) -> None:
    """Only the tokenizer counts here, so each schema meets one of them, at one temperature."""
    tokenizer = model.runtime.encoder.tokenizer
    first = 2 * part + isinstance(tokenizer, BundleTokenizer)
    noise = noise_model(tokenizer)
    for seed in range(first, 200, 4):
        schema = random_schema(seed)
        reply = noise.respond(
            "?", schema=schema, temperature=(0, 1.5)[part], seed=seed, max_tokens=5000
        )
        jsonschema.validate(reply.parsed, schema)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_real_model_fills_a_schema(model: Model, temperature: float) -> None:
    reply = model.respond(
        "Describe Lima as JSON.", schema=City, temperature=temperature, seed=4, max_tokens=200
    )
    assert isinstance(reply.parsed, City)


def test_a_real_model_keeps_to_generated_schemas(model: Model) -> None:
    """Whole and valid, or the error that says why not: there is nothing between.

    Each schema meets one of the engines.
    """
    tokenizer = model.runtime.encoder.tokenizer
    seeds = range(int(isinstance(tokenizer, BundleTokenizer)), 200, 2)

    def is_whole(seed: int) -> bool:
        schema = brief_schema(seed)
        try:
            reply = model.complete(
                "The answer as JSON:\n",
                schema=schema,
                temperature=(0, 0.7, 1.5)[seed % 3],
                seed=seed,
                max_tokens=48,
            )
        except IncompleteStructure as error:
            cut.append(error)
            return False
        jsonschema.validate(reply.parsed, schema)
        return True

    cut: list[IncompleteStructure] = []
    with ThreadPoolExecutor(4) as pool:
        whole = list(pool.map(is_whole, seeds))
    # The rest fill 48 tokens with decimals and with names in other alphabets.
    assert sum(whole) > 75
    for error in cut:
        assert "max_tokens" in str(error)
        # A text of digits is a number already, which more digits could have made valid.
        if error.text.startswith(("{", "[", '"')):
            with pytest.raises(ValueError):
                json.loads(error.text)


def test_a_real_model_chooses(model: Model) -> None:
    question = "Is Paris in France? Answer yes or no."
    assert model.respond(question, choices=["yes", "no"]).parsed in ("yes", "no")
    date = model.respond("Tell a date.", regex=r"20[0-9]{2}-[01][0-9]-[0-3][0-9]").parsed
    assert re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", date)


def test_the_name_of_a_control_token_is_spelled(model: Model) -> None:
    assert model.respond("?", choices=["a<|im_end|>b"]).text == "a<|im_end|>b"
    assert model.respond("?", schema={"const": "<|im_start|>"}).parsed == "<|im_start|>"


def test_a_real_answer_that_is_cut_is_an_error(model: Model) -> None:
    with pytest.raises(IncompleteStructure):
        model.respond("Describe Lima as JSON.", schema=City, max_tokens=8)


def test_a_chat_goes_on_after_a_structure(model: Model) -> None:
    with model.chat() as chat:
        first = chat.respond("Describe Lima as JSON.", schema=City, max_tokens=200)
        reply = chat.respond("And in words?", max_tokens=5)
    # The answer before is computed once more, besides the question.
    step = model.runtime.engine.info.prefill_step
    assert reply.receipt.cached_tokens > first.receipt.prompt_tokens - step - 2

"""Answers of a given form, from a model that answers noise."""

from __future__ import annotations

import contextlib
import enum
import re
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypedDict

from edgesdk.errors import (
    DeadlineExceeded,
    IncompleteStructure,
    InvalidOption,
    MissingExtra,
    RejectedStructure,
    RequestError,
    StructureError,
)
from edgesdk.model import Model
from edgesdk.structured.output_format import format_of_schema
from tests.support.fake_engine import END, ByteTokenizer, FakeDecodeState, FakeEngine, fake_model
from tests.support.random_engine import noise_model
from tests.support.schemas import random_schema

HOT: dict[str, Any] = {"temperature": 1.5, "max_tokens": 3000}


@pytest.fixture(scope="module")
def model() -> Model:
    return noise_model(ByteTokenizer())


class Animal(enum.Enum):
    CAT = "cat"
    DOG = "dog"


class Toy(BaseModel):
    name: str = Field(min_length=1, max_length=5)
    price: float = Field(ge=0, le=10)


class Pet(BaseModel):
    kind: Animal
    age: int = Field(ge=0, lt=30)
    toys: list[Toy] = Field(max_length=2)
    nickname: str | None = Field(default=None, max_length=4)


@dataclass
class Point:
    x: int
    y: int


class Named(TypedDict):
    name: Annotated[str, Field(max_length=4)]


class A(BaseModel):
    tag: Literal["a"]
    value: int


class B(BaseModel):
    tag: Literal["b"]
    flag: bool


class Tagged(BaseModel):
    item: Annotated[A | B, Field(discriminator="tag")]


class Even(BaseModel):
    number: Literal[1, 3, 5]

    @field_validator("number")
    @classmethod
    def even(cls, number: int) -> int:
        raise ValueError(f"{number} is odd")


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_answers_of_generated_schemas_are_valid(model: Model, first: int) -> None:
    for seed in range(first, first + 50):
        schema, temperature = random_schema(seed), (0, 1.5)[seed % 2]
        reply = model.respond(
            "?", schema=schema, temperature=temperature, seed=seed, max_tokens=5000
        )
        jsonschema.validate(reply.parsed, schema)
        assert reply.finish_reason == "stop"


@pytest.mark.parametrize("seed", range(5))
def test_a_pydantic_model_comes_back_as_an_instance(model: Model, seed: int) -> None:
    pet = model.respond("?", schema=Pet, seed=seed, **HOT).parsed

    assert isinstance(pet, Pet)
    assert isinstance(pet.kind, Animal)
    assert all(isinstance(toy, Toy) for toy in pet.toys)


@pytest.mark.parametrize(
    ("schema", "kind"), [(Point, Point), (Named, dict), (Tagged, Tagged), (tuple[int, bool], tuple)]
)
def test_other_python_types_come_back_as_themselves(model: Model, schema: Any, kind: type) -> None:
    assert isinstance(model.respond("?", schema=schema, seed=3, **HOT).parsed, kind)


def test_a_python_type_gets_no_properties_that_it_does_not_have(model: Model) -> None:
    for seed in range(20):
        text = model.respond("?", schema=Point, seed=seed, **HOT).text
        assert re.fullmatch(r'\{"x":-?\d+,"y":-?\d+\}', text)


@pytest.mark.parametrize("pattern", [r"[a-c]{3}-\d{2}", r"(yes|no)!?", r"^[^ ]{1,4}$", "[^a]"])
def test_an_answer_matches_a_regular_expression(model: Model, pattern: str) -> None:
    for seed in range(10):
        reply = model.respond("?", regex=pattern, seed=seed, **HOT)
        assert re.fullmatch(pattern, reply.parsed)
        assert reply.parsed == reply.text


@settings(max_examples=30)
@given(
    choices=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_an_answer_is_one_of_the_choices(choices: list[str], seed: int) -> None:
    # Bytes 2 and 3 are control tokens of this tokenizer, so no text has them.
    choices = [re.sub("[\x02\x03]", "_", choice) for choice in choices]
    reply = noise_model(ByteTokenizer()).respond("?", choices=choices, seed=seed, **HOT)

    assert reply.parsed in choices


def test_an_answer_keeps_to_a_grammar(model: Model) -> None:
    grammar = 'start: sum\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[1-9][0-9]{0,2}/'
    for seed in range(10):
        text = model.respond("?", grammar=grammar, seed=seed, **HOT).parsed
        assert re.fullmatch(r"[1-9]\d{0,2}(\+[1-9]\d{0,2})*", text)


def test_without_llguidance_the_error_says_how_to_get_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)

    with pytest.raises(MissingExtra, match=r"edgesdk\[structure\]"):
        model.respond("?", choices=["a"])


def test_no_whitespace_stands_between_json_tokens(model: Model) -> None:
    for seed in range(30):
        text = model.respond("?", schema=random_schema(seed), seed=seed, **HOT).text
        assert not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', '""', text))


def test_an_answer_ends_where_nothing_can_follow() -> None:
    engine = FakeEngine(b"nothing of this kind")
    reply = fake_model(engine).respond("?", choices=["red", "green"])

    # The end token was never asked for: the last logits are those before the last letter.
    assert reply.finish_reason == "stop"
    assert END not in reply.tokens
    assert engine.states[0].tokens[-len(reply.tokens) + 1 :] == reply.tokens[:-1]


def test_a_model_that_keeps_to_the_form_by_itself_is_not_steered() -> None:
    text = '{"x":12,"y":-3}'
    assert fake_model(FakeEngine(text.encode())).respond("?", schema=Point).parsed == Point(12, -3)


def test_penalties_and_bias_do_not_lead_out_of_the_form(model: Model) -> None:
    reply = model.respond(
        "?", schema=Pet, seed=1, repetition_penalty=0.2, logit_bias={7: 100.0}, top_k=3, **HOT
    )
    assert isinstance(reply.parsed, Pet)


@pytest.mark.parametrize("tokens", [1, 3, 6])
def test_an_answer_cut_by_max_tokens_is_an_error_with_its_text(tokens: int) -> None:
    model = fake_model(FakeEngine(b'{"x":12,"y":-3}'))

    with pytest.raises(IncompleteStructure, match=r"tokens ran out.*max_tokens") as caught:
        model.respond("?", schema=Point, max_tokens=tokens)

    assert caught.value.text == '{"x":12,"y":-3}'[:tokens]


def test_an_answer_cut_by_the_context_is_an_error() -> None:
    model = noise_model(ByteTokenizer(), context_length=40)

    with pytest.raises(IncompleteStructure):
        model.respond("?", regex="a{100}")


def test_an_answer_cut_by_the_deadline_is_an_error() -> None:
    def wait(state: FakeDecodeState) -> None:
        if len(state.extended) == 3:
            time.sleep(1)

    model = fake_model(FakeEngine(b"aaaaaaaaaaaa", before_extend=wait))
    with pytest.raises(IncompleteStructure, match="deadline") as caught:
        model.respond("?", regex="a{9}", deadline=0.9)

    # The call for the fourth token was under way.
    assert caught.value.text == "aaa"


def test_a_deadline_before_the_first_token_is_what_it_is_elsewhere(model: Model) -> None:
    with pytest.raises(DeadlineExceeded):
        model.respond("?", regex="a{9}", deadline=1e-9)


def test_a_text_that_the_vocabulary_cannot_spell_is_an_error(model: Model) -> None:
    # Byte 2 is a control token of this tokenizer.
    with pytest.raises(StructureError, match="cannot go on") as caught:
        model.respond("?", choices=["ab\x02c"])

    assert caught.value.text == "ab"


def test_a_complete_answer_that_could_go_on_may_be_cut(model: Model) -> None:
    assert model.respond("?", regex="a+", max_tokens=3, temperature=0, seed=1).parsed in (
        "a",
        "aa",
        "aaa",
    )


def test_a_stream_tells_at_its_end_that_the_answer_was_cut() -> None:
    stream = fake_model(FakeEngine(b'{"x":12,"y":-3}')).stream("?", schema=Point, max_tokens=4)

    pieces = [next(stream) for _ in range(4)]
    with pytest.raises(IncompleteStructure):
        next(stream)

    assert "".join(pieces) == '{"x"'
    with pytest.raises(RequestError, match="no reply"):
        _ = stream.reply


def test_a_stream_has_the_value_at_its_end() -> None:
    stream = fake_model(FakeEngine(b'{"x":12,"y":-3}')).stream("?", schema=Point)

    assert "".join(stream) == '{"x":12,"y":-3}'
    assert stream.reply.parsed == Point(12, -3)


def test_a_cancelled_answer_has_no_value() -> None:
    stream = fake_model(FakeEngine(b'{"x":12,"y":-3}')).stream("?", schema=Point)
    next(stream)
    stream.close()

    assert stream.reply.finish_reason == "cancelled"
    assert stream.reply.parsed is None


async def test_asyncio_gets_the_same_values_and_errors(model: Model) -> None:
    reply = await model.arespond("?", schema=Pet, seed=2, **HOT)
    assert isinstance(reply.parsed, Pet)
    with pytest.raises(IncompleteStructure):
        await model.arespond("?", regex="a{100}", max_tokens=3)


def test_a_chat_takes_a_form_and_keeps_the_answer_as_text() -> None:
    chat = fake_model(FakeEngine(b'{"x":12,"y":-3}')).chat()

    assert chat.respond("Where?", schema=Point).parsed == Point(12, -3)
    assert chat.messages[-1] == {"role": "assistant", "content": '{"x":12,"y":-3}'}
    with pytest.raises(IncompleteStructure):
        chat.respond("Where?", schema=Point, max_tokens=2)
    assert len(chat.messages) == 2
    assert chat.respond("Where?").parsed is None


def test_a_validator_of_the_type_has_the_last_word(model: Model) -> None:
    with pytest.raises(RejectedStructure, match="is odd") as caught:
        model.respond("?", schema=Even)

    assert re.fullmatch(r'\{"number":[135]\}', caught.value.text)


def test_an_integer_too_long_for_python_is_told(model: Model) -> None:
    with pytest.raises(RejectedStructure, match="Python cannot read"):
        fake_model(FakeEngine(b"9" * 5000, context_length=9000)).respond(
            "?", schema={"type": "integer", "minimum": 0}
        )


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, "'not'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"properties": {"a": {"items": {"contains": {}}}}}, "'properties.a.items.contains'"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "'minimum'"),
        ({"anyOf": [{"type": "string", "minLength": 5, "maxLength": 3}]}, "minLength'"),
        ({"type": "string", "pattern": "(?=a)b"}, "'pattern'"),
        ({"type": "string", "format": "smoke-signal"}, "'format'"),
        ({"$ref": "#/$defs/gone"}, "/\\$defs/gone"),
        ({"$ref": "https://example.org/schema"}, "example.org"),
        (
            {"$defs": {"X": {"propertyNames": {}}}, "items": {"$ref": "#/$defs/X"}},
            "X.propertyNames",
        ),
        ({"if": {}, "then": {}}, '"if", "then"'),
        ({"type": "object", "minProperties": 2}, "'minProperties'"),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "'#' needs itself"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
        ({"$defs": {"a": {"required": None}}}, "'[$]defs.a.required' is not a list of texts"),
        ({"enum": []}, "'enum'"),
        ({"const": {1, 2}}, "'const'"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_by_its_keyword(
    schema: dict[str, Any], named: str
) -> None:
    engine = FakeEngine()

    with pytest.raises(InvalidOption, match=named):
        fake_model(engine).respond("?", schema=schema)

    assert all(state.tokens == () for state in engine.states)


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({"schema": set[int]}, "uniqueItems"),
        ({"schema": 3}, "no JSON Schema"),
        ({"schema": len}, "function"),
        ({"regex": "["}, "unclosed"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": "[a&&b]"}, "No answer"),
        ({"regex": b"a"}, "not a text"),
        ({"choices": []}, "not a list"),
        ({"choices": "abc"}, "not a list"),
        ({"choices": ["a", ""]}, "not a text"),
        ({"choices": ["\ud800"]}, "Unicode"),
        ({"grammar": "start: x"}, "unknown name"),
        ({"grammar": 'start: x\nx: x "a"'}, "No answer"),
        ({"grammar": ""}, "Empty grammar"),
        ({"regex": "a", "choices": ["a"]}, "'regex' and 'choices' exclude each other"),
        ({"regex": "a", "stop": "a"}, "'stop' and 'regex' exclude each other"),
    ],
)
def test_a_form_that_cannot_be_is_refused(model: Model, form: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidOption, match=named) as caught:
        model.respond("?", **form)
    assert "\n" not in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from(["", "a", "#", "#/$defs/a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=4,
)
_KEYWORDS = [
    "type",
    "properties",
    "required",
    "items",
    "prefixItems",
    "anyOf",
    "allOf",
    "oneOf",
    "$ref",
    "$defs",
    "const",
    "enum",
    "minItems",
    "additionalProperties",
    "minProperties",
    "minimum",
    "maxLength",
    "pattern",
    "format",
    "not",
]
_SCHEMAS = st.recursive(
    st.dictionaries(st.sampled_from(_KEYWORDS), _JSON, max_size=3),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "string", "integer"]),
            "properties": st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
            "required": st.lists(st.sampled_from("abc"), max_size=2),
            "items": inner,
            "minItems": st.integers(0, 2),
            "anyOf": st.lists(inner, max_size=2),
            "$defs": st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
            "$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/b"]),
        },
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("keyword", ["pattern", "minimum", "maxLength", "format"])
def test_where_llguidance_panics_the_schema_is_refused(keyword: str) -> None:
    # It cuts the value for its message, in the middle of a letter.
    part = {keyword: {"a": "x" + "é" * 60}}
    with pytest.raises(InvalidOption, match=keyword):
        format_of_schema({"type": "object", "properties": {"b": part}})


@settings(max_examples=150, deadline=None)
@given(schema=_SCHEMAS)
def test_any_schema_is_either_enforced_or_refused_clearly(schema: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidOption):
        format_of_schema(schema)

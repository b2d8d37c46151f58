"""Values are checked as jsonschema checks them, without its backtracking patterns."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk.errors import InvalidOption
from edgesdk.structured.schema_check import SchemaChecker

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from(["", "a", "ab", "b1", "xyz"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "a1", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False},
    {"patternProperties": {"^a": {"type": "string"}}, "additionalProperties": {"type": "null"}},
    {"properties": {"a": True}, "patternProperties": {"1$": False}, "additionalProperties": False},
    {"anyOf": [{"pattern": "^[ab]+$"}, {"type": "array", "items": {"pattern": "1"}}]},
    {"$defs": {"t": {"items": {"$ref": "#/$defs/t"}, "maxItems": 2}}, "$ref": "#/$defs/t"},
    {"type": "object", "required": ["a"], "minProperties": 2, "propertyNames": {"pattern": "a"}},
    {"prefixItems": [{"const": 1}], "items": {"enum": ["a", 2]}, "uniqueItems": True},
    True,
]


@pytest.mark.parametrize("schema", [s for s in SCHEMAS if isinstance(s, dict)], ids=str)
@settings(max_examples=60, deadline=None)
@given(value=VALUES)
def test_verdicts_are_those_of_jsonschema(schema: dict[str, Any], value: Any) -> None:
    checker = SchemaChecker(schema)
    expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert checker.accepts(value) == expected
    assert (not checker.errors(value)) == expected


def test_errors_name_their_place() -> None:
    checker = SchemaChecker({"properties": {"a": {"items": {"type": "string"}}}, "required": ["b"]})
    assert checker.errors({"a": ["x", 5]}) == [
        "a.1: 5 is not of type 'string'",
        "'b' is a required property",
    ]


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "^(a+)+$"},
        {"patternProperties": {"^(a+)+$": {"type": "null"}}, "additionalProperties": False},
    ],
)
def test_patterns_take_linear_time(schema: dict[str, Any]) -> None:
    bad = "a" * 2000 + "!"
    begun = perf_counter()
    checker = SchemaChecker(schema)
    assert not checker.accepts(bad if "pattern" in schema else {bad: None})
    assert checker.accepts("aa" if "pattern" in schema else {"aa": None})
    # A backtracking engine would need longer than the universe has.
    assert perf_counter() - begun < 30


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": 3}, "JSON Schema"),
        ({"properties": {"a": {"type": "strnig"}}}, "JSON Schema"),
        ({"$schema": []}, "JSON Schema"),
        ({"properties": {"a": {"pattern": "(?=a)"}}}, "'properties.a'.*look-around"),
        ({"patternProperties": {r"(a)\1": {}}}, "back-references"),
        ({"properties": {"a": {"$ref": "https://a.b/c"}}}, "'properties.a'.*same schema"),
        ({"patternProperties": {"a": {}}, "unevaluatedProperties": False}, "together"),
    ],
)
def test_schemas_that_cannot_be_checked_are_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidOption, match=words):
        SchemaChecker(schema)


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a schema was fetched")

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    checker = SchemaChecker({"properties": {"a": {"$dynamicRef": "http://localhost:1/x"}}})
    assert not checker.accepts({"a": 1})
    assert checker.errors({"a": 1}) == ["the schema cannot be followed (_WrappedReferencingError)"]

"""Whether arguments fit a client's schema."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk.server.api_errors import ApiError
from edgesdk.server.callable_tools import argument_check

SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {},
            {"type": "string", "pattern": "^a"},
            {"type": "integer", "minimum": 1},
            {"enum": [1, "a"]},
            {"$ref": "#"},
            {"$ref": "#/properties/a"},
            {"$ref": "#/nowhere"},
            {"pattern": 5},
            {"type": 3},
            {"$id": "http://a.b/c", "$ref": "#x"},
            {"$dynamicRef": "http://a.b/c"},
            True,
        ]
    ),
    lambda inner: (
        st.builds(
            lambda key, part: {key: part},
            st.sampled_from(["items", "not", "if", "contains"]),
            inner,
        )
        | st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts})
    ),
    max_leaves=4,
)


@settings(deadline=None)
@given(
    parts=st.dictionaries(st.sampled_from("ab"), SCHEMAS, max_size=2),
    arguments=st.dictionaries(
        st.sampled_from("ab"), st.integers() | st.text(max_size=3) | st.lists(st.integers())
    ),
)
def test_no_schema_makes_the_check_fail(parts: dict[str, Any], arguments: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": parts}
    # It may be refused, and then clearly, but nothing else may happen.
    with suppress(ApiError):
        assert argument_check(schema, param="tools")(arguments) in (True, False)


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a schema was fetched")

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    schema = {"type": "object", "properties": {"a": {"$dynamicRef": "http://localhost:1/x"}}}
    assert not argument_check(schema, param="tools")({"a": 1})

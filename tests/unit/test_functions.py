"""Functions as tools: their schemas, and calls with checked arguments."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError
from typing_extensions import NotRequired, TypedDict

from edgesdk.errors import InvalidOption
from edgesdk.structured.output_format import json_grammar
from edgesdk.tools.call_grammar import arguments_schema
from edgesdk.tools.functions import Tool, tool_from_function
from edgesdk.tools.tool_set import tools_by_name


class Place(BaseModel):
    city: str
    country: str = "Peru"


def forecast(
    place: Place,
    day: datetime.date,
    unit: Literal["C", "F"] = "C",
    hours: Annotated[int, Field(ge=1, le=24)] = 24,
) -> str:
    """Tell the weather
    that will be.

    Args:
        place: where
            it is.
        day (date): when it is.

    Returns:
        A sentence.
    """
    return f"{place.city}, {place.country}, {day:%d.%m.}, {unit}, {hours}"


def test_a_tool_is_described_by_type_hints_and_docstring() -> None:
    function = tool_from_function(forecast).spec["function"]

    assert function["name"] == "forecast"
    assert function["description"] == "Tell the weather that will be."
    parameters = function["parameters"]
    assert parameters["required"] == ["place", "day"]
    assert parameters["additionalProperties"] is False
    assert parameters["properties"]["place"]["description"] == "where it is."
    assert parameters["properties"]["day"] == {
        "type": "string",
        "format": "date",
        "description": "when it is.",
    }
    assert parameters["properties"]["hours"]["maximum"] == 24


def test_sphinx_docstrings_are_read() -> None:
    def add(a: int, b: int) -> int:
        """Add numbers.

        :param a: the first
        :param int b: the second
        :returns: the sum
        """
        return a + b

    tool = tool_from_function(add)
    assert tool.description == "Add numbers."
    assert [p["description"] for p in tool.parameters["properties"].values()] == [
        "the first",
        "the second",
    ]


def test_a_tool_gets_arguments_of_its_types() -> None:
    given = {"place": {"city": "Lima"}, "day": "2026-01-02", "hours": 3}
    assert tool_from_function(forecast).run(given) == "Lima, Peru, 02.01., C, 3"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"place": {"city": "Lima"}, "day": "soon"},
        {"place": {"city": 3}, "day": "2026-01-02"},
        {"place": {"city": "Lima"}, "day": "2026-01-02", "hours": 25},
        {"place": {"city": "Lima"}, "day": "2026-01-02", "mood": "good"},
    ],
)
def test_wrong_arguments_never_reach_the_function(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        tool_from_function(forecast).run(given)


def _positional(a: int, /) -> None:
    pass


def _any_number(*numbers: int) -> None:
    pass


def _unknown_type(a: threading.Lock) -> None:  # type: ignore[name-defined]  # noqa: F821
    pass


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        ([], "no tools"),
        ([forecast, forecast], "Two tools"),
        ([lambda: None], "not a function with a name"),
        (["forecast"], "not a function with a name"),
        ([_any_number], r"\*numbers"),
        ([{"type": "function"}], "no function with a name"),
        ([{"function": {"name": "f", "parameters": 3}}], "no JSON Schema"),
        (forecast, "not a list"),
        ("forecast", "not a list"),
        ([_positional], "positional-only"),
        ([_unknown_type], "no JSON Schema"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(functions: Any, said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        tools_by_name(functions)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Size(TypedDict):
    """How large."""

    width: Annotated[int, Field(description="In pixels.")]
    height: NotRequired[int]


def draw(
    colour: Colour,
    at: Point,
    size: Size,
    label: str | None = None,
    style: Literal["thin", "thick"] = "thin",
    weight: Annotated[float, Field(gt=0, description="In grams.")] = 1.5,
    tags: tuple[str, ...] = (),
    **extra: int,
) -> dict[str, Any]:
    return locals()


def test_hints_of_many_kinds_become_schemas_and_values() -> None:
    tool = tool_from_function(draw)
    properties = tool.parameters["properties"]
    definitions = tool.parameters["$defs"]

    assert tool.parameters["required"] == ["colour", "at", "size"]
    assert definitions["Colour"]["enum"] == ["red", "blue"]
    # Models are held to what a tool names, also further in.
    assert definitions["Point"]["additionalProperties"] is False
    assert definitions["Point"]["required"] == ["x"]
    assert definitions["Size"]["properties"]["width"]["description"] == "In pixels."
    assert definitions["Size"]["required"] == ["width"]
    assert properties["label"]["anyOf"] == [{"type": "string"}, {"type": "null"}]
    assert properties["style"]["enum"] == ["thin", "thick"]
    assert (properties["weight"]["default"], properties["weight"]["exclusiveMinimum"]) == (1.5, 0)
    assert properties["weight"]["description"] == "In grams."

    given = {"colour": "blue", "at": {"x": 3}, "size": {"width": 4}, "tags": ["a"], "depth": 2}
    drawn = tool.run(given)
    assert drawn["colour"] is Colour.BLUE
    assert drawn["at"] == Point(3)
    assert (drawn["label"], drawn["style"], drawn["weight"]) == (None, "thin", 1.5)
    assert (drawn["tags"], drawn["extra"]) == (("a",), {"depth": 2})


def test_a_method_is_a_tool_of_its_object() -> None:
    class Lamp:
        lit = False

        def switch(self, on: bool) -> bool:
            """Switch it.

            Parameters
            ----------
            on : bool
                Whether it shines
                from now on.

            Returns
            -------
            bool
                As before.
            """
            self.lit = on
            return on

    lamp = Lamp()
    tool = tool_from_function(lamp.switch)
    assert tool.run({"on": True})
    assert lamp.lit
    assert tool.description == "Switch it."
    assert list(tool.parameters["properties"]) == ["on"]
    assert tool.parameters["properties"]["on"]["description"] == "Whether it shines from now on."


def test_arguments_are_checked_without_a_call() -> None:
    ran: list[int] = []

    def note(number: int) -> None:
        ran.append(number)

    tool = tool_from_function(note)
    assert tool.bind({"number": 5}) == ((), {"number": 5})
    with pytest.raises(ValidationError):
        tool.bind({"number": "five"})
    assert ran == []


@pytest.mark.parametrize("hinted", [tool_from_function(draw), tool_from_function(forecast)])
def test_schemas_of_tools_can_be_enforced(hinted: Tool) -> None:
    assert json_grammar(arguments_schema(hinted.parameters))

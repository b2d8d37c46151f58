"""Recipes by name, or from a TOML file."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from edgesdk.errors import RequestError
from edgesdk_export.recipes.model import Recipe
from edgesdk_export.recipes.sections import CalibrationRecipe, GgufRecipe, OnnxRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).parent
_SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): Recipe,
    ("onnx",): OnnxRecipe,
    ("gguf",): GgufRecipe,
    ("calibration",): CalibrationRecipe,
}


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with edgesdk."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_recipe(name: str) -> Recipe:
    """A recipe by its name, or the one in a file whose name ends in ".toml".

    Raises:
        RequestError: there is none of that name, or the file is no recipe; a wrong key is named,
            and the one that it is near to.
    """
    if name in recipe_names():
        return _read(_FOLDER / f"{name}.toml")
    if name.endswith(".toml"):
        return _read(Path(name))
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    raise RequestError(
        f"There is no recipe {name!r}; there are {', '.join(recipe_names())}, and files whose "
        "names end in .toml.",
        hint=f"Did you mean {near[0]}?" if near else None,
    )


def _read(path: Path) -> Recipe:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"The recipe {path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"The recipe {path} is not TOML: {error}.") from None
    try:
        return Recipe.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        raise _refusal(path, error.errors()[0]) from None


def _refusal(path: Path, error: Any) -> RequestError:
    place = tuple(str(part) for part in error["loc"])
    shown = ".".join(place)
    if error["type"] != "extra_forbidden":
        return RequestError(f"The recipe {path}: {shown}: {error['msg']}.")
    fields = list(_SECTIONS[place[:-1]].model_fields)
    near = difflib.get_close_matches(place[-1], fields, n=1)
    return RequestError(
        f"The recipe {path} has the unknown key '{shown}'.",
        hint=f"Did you mean '{near[0]}'?" if near else f"Known are {', '.join(fields)}.",
    )

"""The tree in the docstring is the tree in the code, and every leaf is catchable as a builtin."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from edgesdk import errors
from edgesdk.errors import EdgeError, MissingExtra, requires_extra

TROUBLESHOOTING = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
CLASSES = {
    name: found
    for name, found in vars(errors).items()
    if inspect.isclass(found) and issubclass(found, EdgeError)
}


def _drawn() -> dict[str, str]:
    """Name -> parent, read off the drawing."""
    parents: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│ ]*(?:[├└]── )?)(\w+)", line)
        if found and found[2] in CLASSES:
            depth = len(found[1]) // 4
            stack = [entry for entry in stack if entry[0] < depth]
            if stack:
                parents[found[2]] = stack[-1][1]
            stack.append((depth, found[2]))
    return parents


def test_the_drawing_is_the_tree() -> None:
    real = {
        name: found.__mro__[1].__name__ for name, found in CLASSES.items() if found is not EdgeError
    }
    assert _drawn() == real


def test_each_has_an_entry_that_says_what_it_means_why_and_what_to_do() -> None:
    pieces = re.split(r"^### `(\w+)`$", TROUBLESHOOTING.read_text(encoding="utf-8"), flags=re.M)
    names, entries = pieces[1::2], pieces[2::2]
    assert sorted(names) == sorted(CLASSES)
    for name, entry in zip(names, entries, strict=True):
        marks = re.findall(r"^- \*\*(\w+):\*\* \S", entry, flags=re.M)
        assert marks == ["Means", "Why", "Do"], name


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"EdgeError", "StoreError"}))
def test_every_error_is_a_builtin_too(name: str) -> None:
    builtins = [base for base in CLASSES[name].__mro__ if base.__module__ == "builtins"]
    assert any(base not in (Exception, BaseException, object) for base in builtins)


def test_the_message_ends_with_what_to_do() -> None:
    error = EdgeError("It broke.", hint="Mend it.")
    assert str(error) == "It broke. Mend it."
    assert (error.message, error.hint) == ("It broke.", "Mend it.")


def test_a_missing_extra_is_a_runnable_line() -> None:
    error = MissingExtra("gguf", extra="export", needed_for="Reading a GGUF file")
    assert error.hint == "Run: pip install 'edgesdk[export]'"
    assert isinstance(error, ImportError)


def test_an_import_of_a_package_that_is_absent_names_its_extra() -> None:
    with (
        pytest.raises(
            MissingExtra, match=r"Exporting needs the package 'no_such_package'"
        ) as raised,
        requires_extra("export", needed_for="Exporting"),
    ):
        import_module("no_such_package.part")
    assert raised.value.hint == "Run: pip install 'edgesdk[export]'"


@pytest.mark.parametrize("module", ["edgesdk.no_such_module", "numpy.no_such_module"])
def test_a_module_that_a_package_lacks_is_no_missing_extra(module: str) -> None:
    with (
        pytest.raises(ModuleNotFoundError, match="no_such_module") as raised,
        requires_extra("export", needed_for="Exporting"),
    ):
        import_module(module)
    assert not isinstance(raised.value, MissingExtra)

"""Names of models in the store: what one may be, and which ones are near a misspelt one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from edgesdk.errors import InvalidOption

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")


def is_name(text: str) -> bool:
    """Whether `text` may name a model: up to 96 of a-z, 0-9, dot, dash, underscore."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """`name` itself.

    Raises:
        InvalidOption: it may not name a model.
    """
    if not is_name(name):
        raise InvalidOption(
            f"{name!r} cannot be the name of a model.",
            hint="Use up to 96 of a-z, 0-9, dot, dash and underscore, a letter or digit first.",
        )
    return name


def derive_name(text: str) -> str:
    """A name made from a file's or a repository's, such as 'qwen2.5-0.5b' from 'Qwen2.5 0.5B'."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).lstrip("._-")[:96].rstrip("._-")
    return plain or "model"


def safe_file_name(name: str) -> str:
    """A file's relative path with every character replaced that a manifest may not hold."""
    return re.sub(r"[^A-Za-z0-9._/-]", "_", name)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that are most like `name`, the most alike first."""
    choices = sorted(set(known))
    alike = difflib.get_close_matches(name, choices, n=3, cutoff=0.65)
    holding = [choice for choice in choices if len(name) >= 3 and name in choice]
    return list(dict.fromkeys([*holding, *alike]))[:3]


def suggestion(name: str, known: Iterable[str]) -> str | None:
    """'Did you mean …?' with the nearest of the known names, or None where none is near."""
    near = nearest(name, known)
    return f"Did you mean {' or '.join(near)}?" if near else None

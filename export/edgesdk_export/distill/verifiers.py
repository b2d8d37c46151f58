"""Say how good an answer is: by an app's own function, or by the answer that is expected."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.confidence.threshold import same_answer

# A sample as its line in the file has it, and an answer to it; gives 0 (wrong) to 1 (right).
Verifier: TypeAlias = Callable[[Mapping[str, Any], str], float]


def same_as_expected(sample: Mapping[str, Any], answer: str) -> float:
    """1 where the answer says the same as the sample's "answer"; see
    `edgesdk.hybrid.confidence.threshold.same_answer`."""
    return float(same_answer(str(sample["answer"]), answer))


def verifier_named(name: str) -> Verifier:
    """Import a verifier by "module:function".

    Raises:
        InvalidOption: there is none of that name.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidOption(
            f"The verifier {name!r} cannot be imported: {error}.",
            hint="Name it as module:function; the module must be on PYTHONPATH.",
        ) from None
    if not callable(found):
        raise InvalidOption(f"{name!r} is no function.")
    return found  # type: ignore[no-any-return]

"""Check option values in one way everywhere: enumerated words, and hosts that need no TLS."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterable, Sequence
from typing import TypeVar

from edgesdk.errors import InvalidOption

_Word = TypeVar("_Word", bound=str)


def checked_choice(name: str, value: object, choices: Sequence[_Word]) -> _Word:
    """Return `value` if it is one of `choices`.

    Args:
        name: of the option, as the beginning of the error's sentence.

    Raises:
        InvalidOption: it is none of them; the error lists them, and suggests the nearest.
    """
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    near = suggestion(value.strip(), choices) if isinstance(value, str) else None
    raise InvalidOption(f"{name} must be one of {', '.join(choices)}, not {value!r}.", hint=near)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that are most like `name`, the most alike first.

    Letter case does not matter.
    """
    by_letters = {choice.casefold(): choice for choice in sorted(set(known), reverse=True)}
    choices, wanted = sorted(by_letters), name.casefold()
    alike = difflib.get_close_matches(wanted, choices, n=3, cutoff=0.65)
    holding = [choice for choice in choices if len(wanted) >= 3 and wanted in choice]
    return [by_letters[choice] for choice in dict.fromkeys([*holding, *alike])][:3]


def suggestion(name: str, known: Iterable[str]) -> str | None:
    """'Did you mean …?' with the nearest of the known names, or None where none is near."""
    near = nearest(name, known)
    return f"Did you mean {' or '.join(near)}?" if near else None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine for certain, so that nothing sent to it can be overheard.

    That is a literal loopback address (127.0.0.0/8, ::1) or exactly "localhost". Any other name
    is not, whatever it begins with: its owner decides where it leads.

    Args:
        host: a name or an address, without port and brackets.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)

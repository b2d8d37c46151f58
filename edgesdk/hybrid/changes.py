"""The keyword arguments of a question to the hybrid client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgesdk.decode.options import OptionChanges
from edgesdk.hybrid.privacy.policy import Upload
from edgesdk.tools.offer import ToolChanges

Prefer = Literal["local", "cloud"]


class HybridChanges(ToolChanges, total=False):
    """Those of `edgesdk.tools.offer.ToolChanges`, and:

    upload: the privacy rule of this question, in place of the default and the tags'.
    tags: of this question, for the policy's rules.
    prefer: "cloud" asks there first, "local" keeps whatever the device says.
    """

    upload: Upload | None
    tags: Iterable[str]
    prefer: Prefer | None


class HybridActChanges(OptionChanges, total=False):
    """The fields of `Options`, and those of `HybridChanges` that say who may answer."""

    upload: Upload | None
    tags: Iterable[str]
    prefer: Prefer | None


@dataclass(frozen=True)
class Rules:
    """Who may answer a question; see `HybridChanges`."""

    upload: Upload | None
    tags: tuple[str, ...]
    prefer: Prefer | None


def parted(changes: Mapping[str, Any]) -> tuple[Rules, dict[str, Any]]:
    """What is said of who may answer, and of the answer."""
    others = dict(changes)
    rules = Rules(
        others.pop("upload", None), tuple(others.pop("tags", ())), others.pop("prefer", None)
    )
    return rules, others

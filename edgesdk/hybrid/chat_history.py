"""What a hybrid chat consists of, and how a saved chat file stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from edgesdk.errors import RequestError
from edgesdk.hybrid.privacy.placeholders import Placeholder
from edgesdk.hybrid.privacy.policy import Upload, UploadVerdict
from edgesdk.hybrid.request import Messages
from edgesdk.session import SavedChat


@dataclass(frozen=True)
class HybridHistory:
    """Attributes:
    turns: the system message left out.
    strictest: the rule that holds for all later turns; None where there was none yet.
    values: what the conversation's placeholders stand for.
    """

    turns: Messages = field(default_factory=list)
    strictest: UploadVerdict | None = None
    values: Mapping[Placeholder, str] = field(default_factory=dict)

    def extra(self) -> dict[str, JsonValue]:
        """What a file keeps besides the turns; it has the private values as the turns do."""
        strictest = self.strictest
        values = [
            _StoredValue(kind=p.kind, number=p.number, value=v) for p, v in self.values.items()
        ]
        upload = None if strictest is None else strictest.upload
        return _StoredHistory(strictest=upload, values=values).model_dump()


def history_of(saved: SavedChat) -> HybridHistory:
    """What `edgesdk.session.restore_chat` gave. A chat that was none of a hybrid client has no
    rules of its own: those of the client it goes on with hold.

    Raises:
        RequestError: what it keeps besides the turns is none of a hybrid chat's.
    """
    turns: Messages = [dict(message) for message in saved.turns]
    if not saved.extra:
        return HybridHistory(turns)
    try:
        kept = _StoredHistory.model_validate(saved.extra)
    except ValidationError as error:
        raise RequestError(
            f"The chat's rules cannot be read: {error.errors()[0]['msg']}."
        ) from None
    rule = kept.strictest
    verdict = None if rule is None else UploadVerdict(rule, "an earlier turn")
    return HybridHistory(
        turns, verdict, {Placeholder(v.kind, v.number): v.value for v in kept.values}
    )


class _StoredValue(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    kind: str
    number: int
    value: str


class _StoredHistory(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    strictest: Upload | None
    values: list[_StoredValue]

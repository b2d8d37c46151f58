"""What a conversation with the hybrid client is made of, and how it is kept in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from edgesdk.errors import RequestError
from edgesdk.hybrid.ask import Messages
from edgesdk.hybrid.privacy.placeholder import Placeholder
from edgesdk.hybrid.privacy.policy import Upload, Verdict
from edgesdk.saved_chat import SavedChat


@dataclass(frozen=True)
class Past:
    """Attributes:
    turns: the system message left out.
    strictest: the rule that holds for all later turns; None where there was none yet.
    values: what the conversation's placeholders stand for.
    """

    turns: Messages = field(default_factory=list)
    strictest: Verdict | None = None
    values: Mapping[Placeholder, str] = field(default_factory=dict)

    def beside(self) -> dict[str, JsonValue]:
        """What a file keeps beside the turns; it has the private values as the turns do."""
        strictest = self.strictest
        values = [_Value(kind=p.kind, number=p.number, value=v) for p, v in self.values.items()]
        upload = None if strictest is None else strictest.upload
        return _Beside(strictest=upload, values=values).model_dump()


def past_of(saved: SavedChat) -> Past:
    """What `edgesdk.saved_chat.restore_chat` gave. A chat that was none of a hybrid client has no
    rules of its own: those of the client it goes on with hold.

    Raises:
        RequestError: what is beside the turns is none of a hybrid chat's.
    """
    turns: Messages = [dict(message) for message in saved.turns]
    if not saved.beside:
        return Past(turns)
    try:
        kept = _Beside.model_validate(saved.beside)
    except ValidationError as error:
        raise RequestError(
            f"The chat's rules cannot be read: {error.errors()[0]['msg']}."
        ) from None
    rule = kept.strictest
    verdict = None if rule is None else Verdict(rule, "an earlier turn")
    return Past(turns, verdict, {Placeholder(v.kind, v.number): v.value for v in kept.values})


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    kind: str
    number: int
    value: str


class _Beside(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    strictest: Upload | None
    values: list[_Value]

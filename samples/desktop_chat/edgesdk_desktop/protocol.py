"""What the window and the engine process tell each other: one JSON object on a line.

The window asks with requests, the engine process answers with events. Both are frozen dataclasses
of JSON's types; a line has the name of the class as "type", and its fields.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

Messages: TypeAlias = list[dict[str, Any]]
# Some models never end an answer by themselves.
MAX_TOKENS = 2048
Privacy = Literal["local_only", "ask", "redact"]


@dataclass(frozen=True)
class ListModels:
    """Asks for the models of the store and the catalogue."""


@dataclass(frozen=True)
class Pull:
    """Fetches a model."""

    reference: str


@dataclass(frozen=True)
class Load:
    """Loads a model in place of the one that is loaded."""

    model: str
    device: str = "auto"


@dataclass(frozen=True)
class SetCloud:
    """Sets the cloud endpoint; without a URL there is none.

    Attributes:
        base_url: of an OpenAI-compatible endpoint, or a preset and a model as "groq:llama-3.3".
        api_key: to store in the system's keyring; None for the one that is stored there.
        daily_limit: what it may cost in 24 hours; None for no limit.
        input_price, output_price: of a million tokens; None where the preset knows it.
        budget_file: where spending is counted; "" for memory.
    """

    base_url: str = ""
    model: str = ""
    api_key: str | None = field(default=None, repr=False)
    daily_limit: float | None = None
    input_price: float | None = None
    output_price: float | None = None
    budget_file: str = ""


@dataclass(frozen=True)
class Ask:
    """Asks the user's next message.

    Attributes:
        answer: the id of the answer, which its events have.
        path: the messages before it.
        session: a file with the KV cache of a conversation that may start like `path`; "" for none.
        max_tokens: most tokens of the answer.
    """

    answer: str
    path: Messages
    text: str
    privacy: Privacy
    session: str = ""
    max_tokens: int = MAX_TOKENS


@dataclass(frozen=True)
class Stop:
    """Ends the answer that is under way."""


@dataclass(frozen=True)
class Permit:
    """Answers `PermissionAsked`."""

    permission: Literal["no", "redact", "allow"]


@dataclass(frozen=True)
class Preview:
    """Asks what a cloud would be sent of the user's next message."""

    path: Messages
    text: str
    privacy: Privacy


@dataclass(frozen=True)
class Count:
    """Counts the tokens of a conversation with the user's next message."""

    path: Messages
    text: str


@dataclass(frozen=True)
class SaveSession:
    """Writes the KV cache of a conversation, so that it goes on without being computed again."""

    path: Messages
    file: str


@dataclass(frozen=True)
class ModelsListed:
    """The models. Each has name, kind, size (bytes), note, and usable, pulled (bool)."""

    models: list[dict[str, Any]]


@dataclass(frozen=True)
class PullProgress:
    """How far a pull is; total is 0 where it is not known."""

    reference: str
    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Pulled:
    """A pull has ended well."""

    reference: str
    model: str


@dataclass(frozen=True)
class ExportAdvanced:
    """How far an export is; total is 0 where it is not known."""

    stage: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class CheckpointExported:
    """An export has ended well; `quality` is one line."""

    name: str
    quality: str


@dataclass(frozen=True)
class Loaded:
    """A model is loaded."""

    model: str
    placement: str


@dataclass(frozen=True)
class CloudSet:
    """The endpoint that is asked now; "" for none. `note` says what is to be known of its key."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class AnswerPiece:
    """A piece of an answer."""

    answer: str
    text: str
    reasoning: bool = False


@dataclass(frozen=True)
class Restarted:
    """All pieces of an answer so far are void."""

    answer: str
    reason: str


@dataclass(frozen=True)
class Answered:
    """An answer has ended. `badge` says who gave it and what it took; see `badge_of`."""

    answer: str
    text: str
    state: Literal["complete", "cut", "stopped"]
    badge: dict[str, Any]


@dataclass(frozen=True)
class UploadShown:
    """What an upload would send.

    Attributes:
        asked: whether the engine waits for a `Permit`.
        messages: as "allow" would send them.
        redacted: as "redact" would.
        upload: the rule that holds, and its reason.
    """

    asked: bool
    messages: Messages
    redacted: Messages
    kinds: list[str]
    endpoints: list[str]
    upload: str
    reason: str


@dataclass(frozen=True)
class Counted:
    """Tokens of what was asked to be counted, and of the model's context."""

    tokens: int
    context: int


@dataclass(frozen=True)
class Failed:
    """A request failed.

    Attributes:
        request: its type.
        answer: the answer that failed; "" where it was none.
    """

    request: str
    message: str
    hint: str = ""
    answer: str = ""


Request: TypeAlias = (
    ListModels | Pull | Load | SetCloud | Ask | Stop | Permit | Preview | Count | SaveSession
)
Event: TypeAlias = (
    ModelsListed | PullProgress | Pulled | ExportAdvanced | CheckpointExported | Loaded | CloudSet
    | AnswerPiece | Restarted | Answered | UploadShown | Counted | Failed
)  # fmt: skip
_CLASSES = {cls.__name__: cls for cls in (*Request.__args__, *Event.__args__)}


def to_line(message: Request | Event) -> str:
    """Encode a message as a line."""
    return json.dumps({"type": type(message).__name__, **asdict(message)}) + "\n"


def from_line(line: str) -> Request | Event:
    """Decode a line.

    Raises:
        ValueError: it is no message.
    """
    values = json.loads(line)
    if not isinstance(values, dict) or values.get("type") not in _CLASSES:
        raise ValueError(f"{line[:80]!r} is no message")
    kind = _CLASSES[values.pop("type")]
    try:
        return kind(**values)  # type: ignore[no-any-return]
    except TypeError as error:
        raise ValueError(str(error)) from None

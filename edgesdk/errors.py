"""Every error that edgesdk raises on purpose.

Each one inherits a builtin as well, so that code which knows nothing of edgesdk still catches
it sensibly, and each message ends with what to do about it.

    EdgeError
    ├── StoreError                      (a model could not be fetched or found)
    │   ├── UnknownModel                LookupError
    │   ├── DownloadFailed              ConnectionError
    │   ├── HashMismatch                ValueError
    │   ├── NotEnoughSpace              OSError
    │   └── StoreBusy                   TimeoutError
    ├── CheckpointError                 ValueError   (what came in cannot be exported)
    │   ├── DamagedCheckpoint
    │   ├── ConfigMismatch
    │   └── UnknownArchitecture
    ├── ExportError                     RuntimeError (the export itself failed)
    ├── TrainingError                   RuntimeError (training could not start, or broke off)
    │   ├── TooLittleData
    │   └── VocabulariesDiffer
    ├── BundleError                     ValueError   (a bundle cannot be opened)
    │   ├── DamagedBundle
    │   ├── UnsupportedBundle
    │   └── AdapterMismatch
    ├── TemplateError                   ValueError   (a chat template failed or overstepped)
    ├── EngineError                     RuntimeError (an engine failed to load or to run)
    │   └── DeviceUnavailable
    ├── NotEnoughMemory                 MemoryError  (the device cannot hold the model)
    ├── MissingExtra                    ImportError  (an optional dependency is absent)
    ├── RequestError                    ValueError   (the caller asked for the impossible)
    │   ├── EmptyPrompt
    │   ├── InvalidText
    │   ├── InvalidOption
    │   └── ContextOverflow
    ├── StructureError                  ValueError   (an answer in a given format did not succeed)
    │   ├── IncompleteStructure
    │   └── RejectedStructure
    ├── CloudError                      ConnectionError (no whole answer came from the cloud)
    │   ├── CloudUnreachable
    │   ├── CloudRefused
    │   ├── CloudBusy
    │   └── CloudBroken
    ├── BudgetExceeded                  RuntimeError (the answer might cost more than is left)
    ├── ToolRoundsExceeded              RuntimeError (a model did not stop calling tools)
    └── DeadlineExceeded                TimeoutError
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


class EdgeError(Exception):
    """Base of every error that edgesdk raises on purpose.

    Args:
        message: what was wrong, and where; one sentence without a trailing newline.
        hint: what to do about it; one sentence, or None where nothing can be done.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message} {hint}")
        self.message = message
        self.hint = hint


class StoreError(EdgeError):
    """A model could not be fetched into, found in or removed from the store."""


class UnknownModel(StoreError, LookupError):
    """No model of that name is known; the hint carries the nearest names."""


class DownloadFailed(StoreError, ConnectionError):
    """The network or the far side failed; what had arrived is kept for a resume."""


class HashMismatch(StoreError, ValueError):
    """What arrived is not what the catalog promised; nothing of it was kept."""


class NotEnoughSpace(StoreError, OSError):
    """The disk cannot hold the model."""


class StoreBusy(StoreError, TimeoutError):
    """Another process holds the store's lock on this model."""


class CheckpointError(EdgeError, ValueError):
    """The checkpoint that came in cannot be exported."""


class DamagedCheckpoint(CheckpointError):
    """A file is truncated, or its header says what its bytes do not."""


class ConfigMismatch(CheckpointError):
    """The configuration contradicts the tensors."""


class UnknownArchitecture(CheckpointError):
    """No family file describes this architecture."""


class ExportError(EdgeError, RuntimeError):
    """The export failed; no bundle was left behind."""


class TrainingError(EdgeError, RuntimeError):
    """Training could not start, or ended before its time; the last good checkpoint is kept."""


class TooLittleData(TrainingError):
    """The data is too small to train on."""


class VocabulariesDiffer(TrainingError):
    """Teacher and student read different tokens, so their answers cannot be compared."""


class BundleError(EdgeError, ValueError):
    """A bundle cannot be opened."""


class DamagedBundle(BundleError):
    """A file of the bundle is missing, has another size or another hash."""


class UnsupportedBundle(BundleError):
    """The bundle was written for a newer edgesdk, or for a device that is not here."""


class AdapterMismatch(BundleError):
    """The adapter was made for another bundle, or does not fit this one."""


class TemplateError(EdgeError, ValueError):
    """A chat template failed, or tried to leave its sandbox."""


class EngineError(EdgeError, RuntimeError):
    """An engine failed to load a model or to run it."""


class DeviceUnavailable(EngineError):
    """The device that was asked for is not here, or does not work; the hint is what mends it."""


class NotEnoughMemory(EdgeError, MemoryError):
    """The model, or the context that was asked for, does not fit the device's free memory.

    Attributes:
        needed: bytes.
        available: bytes.
    """

    def __init__(
        self, message: str, *, needed: int, available: int, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.needed = needed
        self.available = available


class MissingExtra(EdgeError, ImportError):
    """An optional dependency is absent; the hint is the pip line that installs it."""

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package '{package}', which is not installed.",
            hint=f"Run: pip install 'edgesdk[{extra}]'",
        )


@contextmanager
def requires_extra(extra: str, *, needed_for: str) -> Iterator[None]:
    """Report a package that an import in the block misses as one of the extra's.

    A module that a package lacks although the package is there is a fault, no missing extra.

    Raises:
        MissingExtra: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or importlib.util.find_spec(package) is not None:
            raise
        raise MissingExtra(package, extra=extra, needed_for=needed_for) from None


class RequestError(EdgeError, ValueError):
    """The caller asked for something that cannot be done."""


class EmptyPrompt(RequestError):
    """There is nothing to answer."""


class InvalidText(RequestError):
    """The text is not valid Unicode (a lone surrogate)."""


class InvalidOption(RequestError):
    """An option is unknown or out of its range."""


class ContextOverflow(RequestError):
    """The tokens do not fit the context. Nothing was truncated.

    Attributes:
        tokens: how many tokens the prompt has.
        limit: how many the prompt may have.
    """

    def __init__(self, message: str, *, tokens: int, limit: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.tokens = tokens
        self.limit = limit


class StructureError(EdgeError, ValueError):
    """An answer that was asked for in a given form could not be made.

    Attributes:
        text: what there is of it.
    """

    def __init__(self, message: str, *, text: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.text = text


class IncompleteStructure(StructureError):
    """The answer was cut short (tokens, context or time ran out) before its form was complete."""


class RejectedStructure(StructureError):
    """The answer has the form of its schema, but the schema's own type refuses the value."""


@dataclass(frozen=True)
class FailedAttempt:
    """Why one request to a cloud endpoint brought no whole answer.

    Attributes:
        endpoint: model and host.
        kind: "unreachable": no connection, or too slow; "refused": asking again would not help;
            "busy": it cannot answer now; "broken": what came is no whole answer.
        status: of HTTP, where there was one.
        code: the endpoint's own word for the reason, such as "insufficient_quota".
        message: what the endpoint said, without secrets and without the request's text; where it
            said nothing, what happened.
    """

    endpoint: str
    kind: Literal["unreachable", "refused", "busy", "broken"]
    status: int | None
    code: str | None
    message: str


class CloudError(EdgeError, ConnectionError):
    """A cloud endpoint gave no whole answer.

    Attributes:
        endpoint: model and host.
        status: of HTTP, where there was one.
        code: the endpoint's own word for the reason, such as "insufficient_quota".
        reason: what the endpoint said, without secrets and without the request's text.
        retry_after: seconds that the endpoint asked to wait.
        attempts: all requests that failed before the answer was given up, this one included.
    """

    def __init__(
        self,
        message: str,
        *,
        endpoint: str,
        status: int | None = None,
        code: str | None = None,
        reason: str | None = None,
        retry_after: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.endpoint = endpoint
        self.status = status
        self.code = code
        self.reason = reason
        self.retry_after = retry_after
        self.attempts: tuple[FailedAttempt, ...] = ()

    @property
    def attempt(self) -> FailedAttempt:
        """The request that this error ended, as a value."""
        kind: Literal["unreachable", "refused", "busy", "broken"] = "unreachable"
        if isinstance(self, CloudRefused):
            kind = "refused"
        elif isinstance(self, CloudBusy):
            kind = "busy"
        elif isinstance(self, CloudBroken):
            kind = "broken"
        message = self.reason or self.message
        return FailedAttempt(self.endpoint, kind, self.status, self.code, message)


class CloudUnreachable(CloudError):
    """No connection: no network, no such host, refused, not trusted, or too slow."""


class CloudRefused(CloudError):
    """The endpoint does not want this request or this key; asking again would not help."""


class CloudBusy(CloudError):
    """The endpoint cannot answer now."""


class CloudBroken(CloudError):
    """What came is not an answer, or not a whole one."""


class BudgetExceeded(EdgeError, RuntimeError):
    """An answer might cost more than the budget has left; nothing was sent.

    Attributes:
        limit: which one, as "per_day".
        free_in: seconds until enough of the limit is free again; None where it never will be.
    """

    def __init__(
        self, message: str, *, limit: str, free_in: float | None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.limit = limit
        self.free_in = free_in


class ToolRoundsExceeded(EdgeError, RuntimeError):
    """The model still called tools after the rounds that it was given."""


class DeadlineExceeded(EdgeError, TimeoutError):
    """The request ran past its deadline.

    Attributes:
        attempts: requests to cloud endpoints that failed before.
    """

    attempts: tuple[FailedAttempt, ...] = ()

"""Read the TOML file that makes `edgesdk serve` hybrid, and build its clients from it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from edgesdk.errors import InvalidOption
from edgesdk.system.checks import suggestion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from edgesdk.hybrid.cloud.endpoint import Cloud
    from edgesdk.hybrid.cloud.spending import SpendingLimits
    from edgesdk.server.hybrid_routing import HybridClients

EXAMPLE = """\
upload = "redact"         # the most that may leave the device: local_only, redact, allow
media = "local_only"      # the same for pictures, sounds and files: local_only, redact
journal = "decisions.db"  # a log of who answered, why, and what it cost
profile = "my-app"        # whose learned confidence and calibration hold; without it, nobody's
hold = "decision"         # what a stream keeps back: until the decision, the answer, or nothing
audits = 0.03             # share of the device's answers that the cloud is asked about too
hedge_after = 2.0         # seconds until the next cloud is asked as well

[[cloud]]                 # one or more; the next one is asked where the first fails
preset = "openai"         # or groq, ollama, ...: knows the url, what is special, the key's variable
model = "gpt-5-mini"
api_key_env = "OPENAI_API_KEY"
input_price = 0.25        # for a million tokens; else from pip install 'edgesdk[prices]'
output_price = 2.0

[[cloud]]
url = "https://cloud.example/v1"
model = "another-model"
input_price = 0.5
output_price = 4.0

[budget]
money_per_day = 1.0       # also tokens_per_hour and the like
file = "spending.db"      # counts over restarts

[confidence]
threshold = 0.5           # from here on the device's answer is kept
tries = 2                 # further answers of the device where it is unsure
"""
_HINT = "See the example in: edgesdk serve --help"

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CloudTable(_Table):
    """One OpenAI-compatible endpoint: a URL, or a preset that knows it."""

    url: str | None = None
    preset: str | None = None
    model: str
    api_key_env: str | None = None
    input_price: Amount | None = None
    output_price: Amount | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    omit: tuple[str, ...] | None = None
    verify: str | None = None
    proxy: str | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        if self.url is None and self.preset is None:
            raise ValueError("a cloud needs a url or a preset")
        with _as_value_error():
            self.endpoint()
        return self

    def endpoint(self) -> Cloud:
        """The endpoint, with its key from the environment.

        Raises:
            InvalidOption: the variable is not set, the URL is none, or there is no such preset.
        """
        from edgesdk.hybrid.cloud.endpoint import Cloud

        key = None
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env, "").strip()
            if not key:
                raise InvalidOption(f"{self.api_key_env} is not set in the environment.")
        changes = self.model_dump(
            exclude={"url", "preset", "model", "api_key_env"}, exclude_none=True
        )
        if self.preset is not None:
            return Cloud.preset(self.preset, self.model, key, base_url=self.url, **changes)
        return Cloud(self.url or "", self.model, key, **changes)


class BudgetTable(_Table):
    """What the clouds may cost, and the file that counts it."""

    file: Path | None = None
    money_per_call: Amount | None = None
    money_per_hour: Amount | None = None
    money_per_day: Amount | None = None
    tokens_per_call: Count | None = None
    tokens_per_hour: Count | None = None
    tokens_per_day: Count | None = None

    def limits(self) -> SpendingLimits | None:
        """The limits that the file sets; None where it sets none."""
        from edgesdk.hybrid.cloud.spending import SpendingLimits

        given = self.model_dump(exclude={"file"}, exclude_none=True)
        return SpendingLimits(**given) if given else None


class ConfidenceTable(_Table):
    """How sure the device has to be."""

    threshold: Amount | None = None
    tries: Annotated[int, Field(ge=1)] | None = None


class HybridConfig(_Table):
    """The whole file."""

    cloud: Annotated[tuple[CloudTable, ...], Field(min_length=1)]
    upload: Literal["local_only", "redact", "allow"] = "redact"
    media: Literal["local_only", "redact"] = "local_only"
    journal: Path | None = None
    profile: str | None = None
    hold: Literal["decision", "answer", "nothing"] = "decision"
    audits: Annotated[float, Field(ge=0, le=1)] | None = None
    hedge_after: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    budget: BudgetTable | None = None
    confidence: ConfidenceTable = ConfidenceTable()

    @field_validator("profile")
    @classmethod
    def _is_a_profile(cls, name: str | None) -> str | None:
        if name is not None:
            from edgesdk.hybrid.confidence.artifacts import profile_store

            with _as_value_error():
                profile_store(name)
        return name

    @field_validator("upload", mode="before")
    @classmethod
    def _nobody_to_ask(cls, value: object) -> object:
        if value == "ask":
            raise ValueError("a server has nobody to ask: choose local_only, redact or allow")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.audits is not None and self.journal is None:
            raise ValueError("audits needs a journal, where they are written down")
        if self.hedge_after is not None and len(self.cloud) == 1:
            raise ValueError("hedge_after needs another [[cloud]] to ask")
        if self.budget is not None:
            limits = self.budget.limits()
            if limits is None:
                raise ValueError("budget has no limit, such as money_per_day or tokens_per_hour")
            with _as_value_error():
                limits.check_prices(cloud.endpoint() for cloud in self.cloud)
        return self

    def in_folder(self, folder: Path) -> HybridConfig:
        """The same with relative paths taken from `folder`."""
        budget = self.budget
        if budget is not None and budget.file is not None:
            budget = budget.model_copy(update={"file": folder / budget.file})
        journal = None if self.journal is None else folder / self.journal
        return self.model_copy(update={"journal": journal, "budget": budget})


def read_hybrid_config(path: Path) -> HybridConfig:
    """Read the file; its paths are relative to the folder that it is in.

    Raises:
        InvalidOption: it cannot be read, or a key or value is wrong; the message names it.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidOption(f"{path} cannot be read: {error.strerror}.", hint=_HINT) from None
    except ValueError as error:
        raise InvalidOption(f"{path} is not TOML: {error}.", hint=_HINT) from None
    return _validated(values, f"{path}: ").in_folder(path.parent)


def cloud_config(url: str, model: str | None, api_key_env: str | None) -> HybridConfig:
    """The configuration with one cloud and everything else as by default.

    Args:
        url: or a preset and a model there, as "groq:llama-3.3-70b-versatile".
        model: None where `url` names it.

    Raises:
        InvalidOption: the URL is none, or the variable of the key is not set.
    """
    table = {"url": url, "model": model or "", "api_key_env": api_key_env}
    return _validated({"cloud": [table]}, "")


def hybrid_clients(config: HybridConfig, opened: ExitStack) -> HybridClients:
    """Build what makes a server hybrid.

    Args:
        opened: closes the files at the end.

    Raises:
        RequestError: a file cannot be used.
    """
    from edgesdk.hybrid.client import HybridClient
    from edgesdk.hybrid.cloud.spending import Budget
    from edgesdk.hybrid.confidence.confidence import Confidence
    from edgesdk.hybrid.monitor.audits import Audits
    from edgesdk.hybrid.privacy.policy import Policy
    from edgesdk.hybrid.self_consistency import SelfConsistency
    from edgesdk.hybrid.storage.journal import Journal
    from edgesdk.model import Model
    from edgesdk.server.hybrid_routing import HybridClients

    sure = config.confidence
    clouds = [table.endpoint() for table in config.cloud]
    policy = Policy(config.upload, media=config.media)
    budget = journal = confidence = None
    if config.budget is not None:
        limits = config.budget.limits()
        assert limits is not None, "checked above"
        budget = Budget(limits, config.budget.file)
        opened.callback(budget.close)
    if config.journal is not None:
        journal = Journal(config.journal)
        opened.callback(journal.close)
    if sure.threshold is not None:
        low = min(sure.threshold, Confidence.abort_below)
        confidence = Confidence(threshold=sure.threshold, abort_below=low)

    def make(model: Model) -> HybridClient:
        return HybridClient(
            model,
            cloud=clouds,
            policy=policy,
            budget=budget,
            journal=journal,
            confidence=confidence,
            self_consistency=None if sure.tries is None else SelfConsistency(tries=sure.tries),
            profile=config.profile,
            audits=None if config.audits is None else Audits(config.audits),
            hedge_after=config.hedge_after,
        )

    return HybridClients(make, policy, hold=config.hold)


def _validated(values: Mapping[str, object], where: str) -> HybridConfig:
    try:
        return HybridConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
    place = ".".join(str(part + 1) if isinstance(part, int) else part for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    hint = _HINT
    if first["type"] == "literal_error":
        near = suggestion(str(first["input"]), re.findall(r"'([^']+)'", first["ctx"]["expected"]))
        hint = f"{near} {_HINT}" if near else _HINT
    if first["type"] == "extra_forbidden":
        tables = (HybridConfig, CloudTable, BudgetTable, ConfidenceTable)
        known = [name for table in tables for name in table.model_fields]
        near = suggestion(str(first["loc"][-1]), known)
        message = "there is no such key"
        hint = f"{near} {_HINT}" if near else _HINT
    raise InvalidOption(f"{where}{place + ': ' if place else ''}{message}.", hint=hint)


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Let pydantic say where in the file the error is."""
    try:
        yield
    except InvalidOption as error:
        raise ValueError(str(error)) from None

"""What the options of `edgesdk serve` say of the cloud."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

if TYPE_CHECKING:
    from edgesdk.hybrid.cloud.endpoint import Cloud
    from edgesdk.hybrid.cloud.spending import SpendingLimits
    from edgesdk.server.hybrid_routing import HybridClients


@dataclass(frozen=True)
class CloudChoices:
    """The values of `edgesdk.cli.cloud_options`, by their names."""

    clouds: tuple[str, ...]
    cloud_model: tuple[str, ...]
    cloud_key_env: tuple[str, ...]
    cloud_price: tuple[str, ...]
    upload: str | None
    media: str | None
    journal: Path | None
    budgets: tuple[str, ...]
    budget_file: Path | None
    confidence: float | None
    calibrations: str | None
    tries: int | None
    audits: float | None
    hedge_after: float | None
    hold: str | None

    def setup(self, opened: ExitStack) -> HybridClients | None:
        """What the server is told; None without a cloud.

        Args:
            opened: closes the files at the end.

        Raises:
            click.UsageError: the options do not go together.
            InvalidOption, RequestError: a value is out of its range, or a file cannot be used.
        """
        if not self.clouds:
            said = (
                each.name for each in fields(self) if getattr(self, each.name) not in (None, ())
            )
            stray = next(said, None)
            if stray is not None:
                raise click.UsageError(f"--{_FLAGS.get(stray, stray)} goes with --cloud only.")
            return None
        from edgesdk.hybrid.client import HybridClient
        from edgesdk.hybrid.cloud.spending import Budget
        from edgesdk.hybrid.confidence.confidence import Confidence
        from edgesdk.hybrid.monitor.audits import Audits
        from edgesdk.hybrid.monitor.calibrations import calibration_store
        from edgesdk.hybrid.privacy.policy import Policy, check_upload
        from edgesdk.hybrid.self_consistency import SelfConsistency
        from edgesdk.hybrid.storage.journal import Journal
        from edgesdk.model import Model
        from edgesdk.server.hybrid_routing import HoldPolicy, HybridClients

        if self.upload == "ask":
            raise click.UsageError("A server has nobody to ask: choose another --upload.")
        if self.audits is not None and self.journal is None:
            raise click.UsageError("--audits needs a --journal, where they are written down.")
        if self.hedge_after is not None and len(self.clouds) == 1:
            raise click.UsageError("--hedge-after needs another --cloud to ask.")
        if self.calibrations is not None:
            # The name is checked now, not when the first model is loaded.
            calibration_store(self.calibrations)
        clouds = self._endpoints()
        limits = self._limits(clouds)
        policy = Policy(
            check_upload(self.upload or "redact"), media=check_upload(self.media or "local_only")
        )
        budget = journal = confidence = None
        if limits is not None:
            budget = Budget(limits, self.budget_file)
            opened.callback(budget.close)
        if self.journal is not None:
            journal = Journal(self.journal)
            opened.callback(journal.close)
        if self.confidence is not None:
            low = min(self.confidence, Confidence.abort_below)
            confidence = Confidence(threshold=self.confidence, abort_below=low)

        def make(model: Model) -> HybridClient:
            return HybridClient(
                model,
                cloud=clouds,
                policy=policy,
                budget=budget,
                journal=journal,
                confidence=confidence,
                self_consistency=None if self.tries is None else SelfConsistency(tries=self.tries),
                calibrations=self.calibrations,
                audits=None if self.audits is None else Audits(self.audits),
                hedge_after=self.hedge_after,
            )

        hold: HoldPolicy = next(
            (one for one in get_args(HoldPolicy) if one == self.hold), "decision"
        )
        return HybridClients(make, policy, hold=hold)

    def _endpoints(self) -> list[Cloud]:
        from edgesdk.hybrid.cloud.endpoint import Cloud

        number = len(self.clouds)
        if len(self.cloud_model) != number:
            raise click.UsageError("Each --cloud needs one --cloud-model, in the same order.")
        keys = _one_each("cloud-key-env", self.cloud_key_env, number)
        prices = _one_each("cloud-price", self.cloud_price, number)
        found = []
        for url, model, key, price in zip(self.clouds, self.cloud_model, keys, prices, strict=True):
            asked, answered = (0.0, 0.0) if price is None else _price(price)
            api_key = None if key is None else _key(key)
            found.append(Cloud(url, model, api_key, input_price=asked, output_price=answered))
        return found

    def _limits(self, clouds: Sequence[Cloud]) -> SpendingLimits | None:
        from edgesdk.hybrid.cloud.spending import SpendingLimits

        if not self.budgets:
            if self.budget_file is not None:
                raise click.UsageError("--budget-file goes with --budget only.")
            return None
        kinds = {each.name: each.name.startswith("money") for each in fields(SpendingLimits)}
        given: dict[str, Any] = {}
        for text in self.budgets:
            name, _, amount = text.partition("=")
            if name not in kinds:
                raise click.UsageError(
                    f"--budget {text}: write LIMIT=AMOUNT, where LIMIT is one of"
                    f" {', '.join(kinds)}."
                )
            number = _number(f"--budget {text}", amount)
            given[name] = number if kinds[name] else int(number)
            if kinds[name] and any(cloud.input_price + cloud.output_price == 0 for cloud in clouds):
                raise click.UsageError(f"--budget {name} needs a --cloud-price to reckon with.")
        return SpendingLimits(**given)


_FLAGS = {
    "cloud_model": "cloud-model",
    "cloud_key_env": "cloud-key-env",
    "cloud_price": "cloud-price",
    "budgets": "budget",
    "budget_file": "budget-file",
    "hedge_after": "hedge-after",
}


def _one_each(name: str, values: Sequence[str], number: int) -> Sequence[str | None]:
    if len(values) not in (0, number):
        raise click.UsageError(f"Give --{name} once for each --cloud, or not at all.")
    return values or [None] * number


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise click.UsageError(f"--cloud-key-env: {variable} is not set in the environment.")
    return key


def _price(text: str) -> tuple[float, float]:
    asked, comma, answered = text.partition(",")
    if not comma:
        raise click.UsageError(f"--cloud-price {text}: write two prices, such as 0.25,2.")
    where = f"--cloud-price {text}"
    return _number(where, asked), _number(where, answered)


def _number(where: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise click.UsageError(f"{where}: {text!r} is no amount.")
    return number

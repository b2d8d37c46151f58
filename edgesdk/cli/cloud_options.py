"""The command-line options that make `edgesdk serve` hybrid; `edgesdk.cli.clouds` reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

_UPLOADS = ("local_only", "ask", "redact", "allow")
_MEDIA = ("local_only", "redact")
_HOLDS = ("decision", "answer", "nothing")
_OPTIONS = (
    click.option(
        "--cloud",
        "clouds",
        multiple=True,
        metavar="BASE_URL",
        help="OpenAI-compatible endpoint that answers where the device is not sure; another one is"
        " asked where the first fails.",
    ),
    click.option("--cloud-model", multiple=True, metavar="NAME", help="Its model; one each."),
    click.option(
        "--cloud-key-env",
        multiple=True,
        metavar="VAR",
        help="Environment variable that holds its key; none, or one each.",
    ),
    click.option(
        "--cloud-price",
        multiple=True,
        metavar="IN,OUT",
        help="What it asks for a million tokens in and out; none, or one each.",
    ),
    click.option(
        "--upload",
        type=click.Choice(_UPLOADS),
        help="What may leave the device at most; a request may be stricter. redact, the default,"
        " puts placeholders in the place of what is private.",
    ),
    click.option(
        "--media",
        type=click.Choice(_MEDIA),
        help="The rule for pictures, sounds and files where --upload is redact, which cannot hide"
        " anything in them: local_only, the default, or redact to send them beside redacted texts.",
    ),
    click.option(
        "--journal", type=click.Path(dir_okay=False, path_type=Path), help="Log of decisions."
    ),
    click.option(
        "--budget",
        "budgets",
        multiple=True,
        metavar="LIMIT=AMOUNT",
        help="Most that the cloud may cost, such as money_per_day=5 or tokens_per_hour=100000.",
    ),
    click.option(
        "--budget-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Where spending is counted, also over restarts; in memory by default.",
    ),
    click.option(
        "--confidence",
        type=click.FloatRange(min=0),
        help="From here on the device's answer is kept, in place of what is kept for its model.",
    ),
    click.option(
        "--calibrations",
        metavar="APP",
        help="Use what the app of that name calibrated on this device, in place of a threshold.",
    ),
    click.option(
        "--tries",
        type=click.IntRange(min=1),
        help="Where the device is in between, it answers up to so often again, and what most of its"
        " answers say counts; none by default.",
    ),
    click.option(
        "--audits",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        help="Share of the device's answers that the cloud is asked about too, such as 0.03, within"
        " --upload and --budget; needs --journal. None by default.",
    ),
    click.option(
        "--hedge-after",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Ask the next --cloud too where one has not begun after so long, and take the faster;"
        " never by default.",
    ),
    click.option(
        "--hold",
        type=click.Choice(_HOLDS),
        help="What a stream keeps back, because a client cannot unsay it: the device's pieces until"
        " the decision (the default), all until the answer is whole, or nothing.",
    ),
)


def cloud_options(command: _Command) -> _Command:
    """Add --cloud and what belongs to it; see `edgesdk.cli.clouds.CloudChoices`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command

"""Write the report of a distillation: one HTML file that needs nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

import edgesdk
from edgesdk.bundle.opening import Bundle
from edgesdk.system.atomic_files import write_atomically
from edgesdk_export.distill.measure import HeldOut

REPORT_FILE, PAGE_FILE = "distillation.json", "distillation.html"
# What a bundle is timed with.
_TIMED_PROMPT, _TIMED_TOKENS = "Once upon a time", 64

_WIDTH, _HEIGHT, _MARGIN = 640, 220, 44
_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Writing:
    """How teacher and student go on with a text, greedily."""

    given: str
    teacher: str
    before: str
    after: str


@dataclass(frozen=True)
class StudentBundle:
    """A bundle that was made of a student.

    Attributes:
        size: bytes.
        kl: KL(checkpoint || bundle), nats a token; None where it was not measured.
        tokens_per_second: of one greedy answer on this machine, timed once.
    """

    name: str
    weights: str
    size: int
    kl: float | None
    tokens_per_second: float | None


def measure_bundle(bundle: Bundle) -> StudentBundle:
    """What the report says about a bundle; it runs for a moment."""
    with edgesdk.load(bundle.path) as model:
        receipt = model.complete(
            _TIMED_PROMPT, max_tokens=_TIMED_TOKENS, temperature=0, stop_on_repetition=False
        ).receipt
    manifest = bundle.manifest
    quality = manifest.quality
    return StudentBundle(
        manifest.name,
        manifest.quantization.weights,
        bundle.size,
        None if quality is None else quality.kl_mean,
        receipt.tokens_per_second,
    )


def add_bundles(student: Path, bundles: Sequence[StudentBundle]) -> None:
    """Tell of bundles in the report that lies in a student's folder."""
    report = json.loads((student / REPORT_FILE).read_text())
    report["bundles"] = [asdict(bundle) for bundle in bundles]
    write_report(student, report)


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write a report for programs, and the page for people.

    Args:
        report: of JSON's types: what `report_html` takes, by its names.
    """
    page = report_html(
        report["title"],
        layers=report["layers"],
        before=HeldOut(**report["before"]),
        after=HeldOut(**report["after"]),
        losses=[(step, loss) for step, loss in report["losses"]],
        writings=[Writing(**one) for one in report["writings"]],
        recipe=json.dumps(report["recipe"], indent=2),
        bundles=[StudentBundle(**one) for one in report.get("bundles", ())],
    )
    write_atomically(folder / REPORT_FILE, json.dumps(report, indent=2) + "\n")
    write_atomically(folder / PAGE_FILE, page)


def report_html(
    title: str,
    *,
    layers: Sequence[int],
    before: HeldOut,
    after: HeldOut,
    losses: Sequence[tuple[int, float]],
    writings: Sequence[Writing],
    recipe: str,
    bundles: Sequence[StudentBundle] = (),
) -> str:
    """The report's HTML.

    Args:
        losses: (step, loss); the curve is left out where there are fewer than two.
    """
    values = [loss for _, loss in losses]
    return _PAGE.render(
        title=title,
        layers=layers,
        before=before,
        after=after,
        losses=losses,
        curve=_curve(losses) if len(losses) > 1 else "",
        highest=max(values, default=0.0),
        lowest=min(values, default=0.0),
        writings=writings,
        recipe=recipe,
        bundles=bundles,
        width=_WIDTH,
        height=_HEIGHT,
        margin=_MARGIN,
    )


def _curve(losses: Sequence[tuple[int, float]]) -> str:
    """The points of the curve, in the picture's coordinates."""
    steps, values = [step for step, _ in losses], [loss for _, loss in losses]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    across = (steps[-1] - steps[0]) or 1

    def point(step: int, loss: float) -> str:
        x = _MARGIN + (step - steps[0]) / across * (_WIDTH - 2 * _MARGIN)
        y = _MARGIN + (high - loss) / span * (_HEIGHT - 2 * _MARGIN)
        return f"{x:.1f},{y:.1f}"

    return " ".join(point(step, loss) for step, loss in losses)

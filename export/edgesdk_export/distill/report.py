"""Write the report of a distillation: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from edgesdk_export.distill.measure import HeldOut

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


def report_html(
    title: str,
    *,
    layers: Sequence[int],
    before: HeldOut,
    after: HeldOut,
    losses: Sequence[tuple[int, float]],
    writings: Sequence[Writing],
    recipe: str,
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

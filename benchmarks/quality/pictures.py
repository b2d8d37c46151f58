"""Draw what quantizing costs, for the documentation, from what was measured.

    python -m benchmarks.quality.pictures

It reads benchmarks/results/quality-*.json, whose rows are those of `python -m benchmarks.quality`,
and writes SVGs into docs/images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

RESULTS = Path(__file__).parents[1] / "results"
IMAGES = Path(__file__).parents[2] / "docs" / "images"


def draw_costs(measured: dict[str, Any], path: Path) -> None:
    """Write an SVG: bits per weight against KL divergence, and against top-1 agreement."""
    # Text stays text, and the same figures give the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgesdk"}):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2)
        _points(left, measured["rows"], "kl_mean")
        left.set(yscale="log", ylabel="KL divergence (lower is better)")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_formatter(NullFormatter())
        _points(right, measured["rows"], "top1")
        right.set(ylabel="top-1 agreement (higher is better)")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
        figure.suptitle(f"{measured['title']}: {measured['text']}", fontsize="medium")
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _points(axes: Axes, rows: list[dict[str, Any]], key: str) -> None:
    for row, marker in zip(rows, "osD^v", strict=True):
        axes.plot(row["bits"], row[key], marker, label=row["name"], markersize=8)
    axes.set_xlabel("bits per weight of the whole file")
    axes.margins(0.12)
    axes.grid(alpha=0.3, which="both")


@click.command(help=__doc__)
def main() -> None:
    for found in sorted(RESULTS.glob("quality-*.json")):
        picture = IMAGES / f"{found.stem}.svg"
        draw_costs(json.loads(found.read_text(encoding="utf-8")), picture)
        click.echo(picture)


if __name__ == "__main__":
    main()

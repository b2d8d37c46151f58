"""Plot cost against quality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.hybrid.replays import Routing
from benchmarks.hybrid.routing_curves import RoutingCurve


def draw_curves(
    path: Path, title: str, policies: Mapping[str, Routing], oracle: RoutingCurve
) -> None:
    """Write a PNG: share of right answers for each share of calls to the cloud."""
    figure = Figure(figsize=(7, 4.5), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, routing in policies.items():
        _line(axes, routing.curve, label=f"{name} ({routing.apgr.value:.2f})")
    _line(axes, oracle, label="oracle (1.00)", color="black", linestyle=":")
    axes.axhline(oracle.local, color="grey", linewidth=0.7)
    axes.axhline(oracle.cloud, color="grey", linewidth=0.7)
    axes.annotate("always local", (0.5, oracle.local), ha="center", va="bottom", color="grey")
    axes.annotate("always cloud", (0.0, oracle.cloud), ha="left", va="bottom", color="grey")
    axes.set_xlabel("share of calls that go to the cloud")
    axes.set_ylabel("share of right answers")
    axes.set_title(title)
    axes.legend(title="APGR / oracle's", loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(path)


def _line(axes: Axes, curve: RoutingCurve, **style: str) -> None:
    axes.plot(np.linspace(0, 1, len(curve.quality)), curve.quality, **style)

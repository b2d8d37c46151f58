"""Plot size against KL divergence, one point for each recipe and tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Write a PNG; nothing where matplotlib (the extra `plot`) is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row in rows:
        theirs = row["name"].startswith(("llama.cpp", "genai"))
        point = (row["bits"], row["kl_mean"])
        axes.plot(*point, marker="s" if theirs else "o", color="tab:red" if theirs else "tab:blue")
        axes.annotate(
            row["name"], point, textcoords="offset points", xytext=(6, 3), fontsize="small"
        )
    axes.set(
        title=title,
        xlabel="stored bits per weight",
        ylabel="mean KL divergence from fp32 (nats per token)",
        yscale="log",
    )
    axes.margins(x=0.25, y=0.1)
    figure.savefig(path, dpi=120)

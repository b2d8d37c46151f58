"""Plot what quantizing cost: by layer, and against the size."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from edgesdk.errors import MissingExtra
from edgesdk.system.atomic_files import atomic_file
from edgesdk_export.quality.report import BundleQuality

_LOWEST = 1e-9  # a bundle that lost nothing has no place on a logarithmic scale


def require_plotting() -> None:
    """Say at once, and not after minutes of measuring, that a plot cannot be drawn.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", extra="plot", needed_for="Drawing a plot")


def draw_quality(measured: Sequence[BundleQuality], path: Path) -> None:
    """Write a PNG: left, KL divergence from the checkpoint by layer; right, bits per weight against
    mean KL divergence, one point for each bundle. No display is needed.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    by_layer, by_size = figure.subplots(1, 2)
    for entry in measured:
        manifest, size = entry.bundle.manifest, f"{entry.bundle.size / 1e6:,.1f} MB"
        shown = [max(kl, _LOWEST) for kl in entry.kl_by_layer]
        layers = range(1, len(shown) + 1)
        (line,) = by_layer.plot(layers, shown, marker=".", label=manifest.name)
        point = (manifest.quantization.bits_per_weight, max(entry.quality.kl_mean, _LOWEST))
        by_size.plot(*point, marker="o", linestyle="none", color=line.get_color())
        by_size.annotate(
            f"{manifest.quantization.weights}, {manifest.format}\n{size}",
            point,
            textcoords="offset points",
            xytext=(7, 3),
            fontsize="small",
        )
    by_layer.set(
        title="After each layer, read with the checkpoint's head",
        xlabel="layer",
        ylabel="mean KL divergence from the checkpoint (nats per token)",
        yscale="log",
    )
    by_layer.locator_params(axis="x", integer=True)
    by_layer.legend(fontsize="small")
    by_size.set(
        title="Size against quality",
        xlabel="stored bits per weight",
        ylabel="mean KL divergence from the checkpoint (nats per token)",
        yscale="log",
    )
    by_size.margins(x=0.2, y=0.15)
    first = measured[0].quality
    figure.suptitle(f"{first.tokens:,} tokens of {first.text_name}")
    with atomic_file(path) as stream:
        # Without the version of what drew it the same figures give the same bytes.
        figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})

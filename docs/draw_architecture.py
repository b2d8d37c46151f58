"""Draw the houses of edgesdk and the imports between them: python docs/draw_architecture.py.

The picture is made from the import graph, so it shows what is, not what was meant. A test holds
that the file in the repository is the one that this script writes. An arrow that follows from
others is left out; one that leads upwards is red.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PICTURE = Path(__file__).with_name("architecture.svg")
PACKAGES = {
    "edgesdk": ROOT / "edgesdk",
    "edgesdk_quantize": ROOT / "quantize" / "edgesdk_quantize",
    "edgesdk_export": ROOT / "export" / "edgesdk_export",
    "edgesdk_desktop": ROOT / "samples" / "desktop_chat" / "edgesdk_desktop",
}
# What an app touches: the modules that lie directly in edgesdk/, without the errors and the
# options, which all use.
APP = "app"
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 170, 54, 36, 66, 24

Edges = Mapping[tuple[str, str], int]


def house_of(module: str) -> str | None:
    """The house that a module belongs to; None for what belongs to none."""
    package, *rest = module.split(".")
    if package != "edgesdk":
        return package
    if not rest or rest[0] in ("errors", "options", "__main__"):
        return None
    folder = PACKAGES[package] / rest[0]
    return rest[0] if folder.is_dir() else APP


def import_counts() -> Counter[tuple[str, str]]:
    """How many imports lead from one house to another."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    counts: Counter[tuple[str, str]] = Counter()
    for module in sorted(graph.modules):
        for target in graph.find_modules_directly_imported_by(module):
            start, end = house_of(module), house_of(target)
            if start is not None and end is not None and start != end:
                counts[start, end] += 1
    return counts


def sizes() -> dict[str, tuple[int, int]]:
    """Files and lines of each house."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            house = house_of(".".join((package, *parts)).removesuffix(".__init__"))
            if house is not None:
                files, lines = found[house]
                found[house] = files + 1, lines + len(path.read_text(encoding="utf-8").splitlines())
    return dict(found)


def levels(edges: Edges, houses: list[str]) -> dict[str, int]:
    """How far each house stands above those that import nothing; circles count once."""
    level = dict.fromkeys(houses, 0)
    for _ in houses:
        for (start, end), count in edges.items():
            # Of two houses that import each other the busier direction counts.
            if count >= edges.get((end, start), 0):
                level[start] = max(level[start], min(level[end] + 1, len(houses)))
    order = sorted(set(level.values()))
    return {house: order.index(found) for house, found in level.items()}


def drawing() -> str:
    """The picture as SVG."""
    edges, size = import_counts(), sizes()
    houses = sorted(size)
    level = levels(edges, houses)
    rows = [sorted(h for h in houses if level[h] == n) for n in range(max(level.values()) + 1)]
    width = 2 * _MARGIN + max(len(row) for row in rows) * (_WIDTH + _GAP_X) - _GAP_X
    height = 2 * _MARGIN + len(rows) * (_HEIGHT + _GAP_Y) - _GAP_Y
    place: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(reversed(rows)):
        left = (width - len(row) * (_WIDTH + _GAP_X) + _GAP_X) / 2
        # Rows of one house step aside, so that an arrow that passes one is seen to pass.
        left += (len(row) == 1) * (_WIDTH / 2) * (-1) ** number
        for column, house in enumerate(row):
            place[house] = left + column * (_WIDTH + _GAP_X), _MARGIN + number * (_HEIGHT + _GAP_Y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}"'
        ' font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="11"'
        ' markerHeight="11" markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#607d8b"/></marker></defs>',
    ]
    parts += [
        _arrow(place[start], place[end], edges[start, end])
        for start, end in sorted(edges)
        if not _follows(start, end, edges, level)
    ]
    parts += [_box(house, place[house], size[house]) for house in houses]
    return "\n".join([*parts, "</svg>", ""])


def _follows(start: str, end: str, edges: Edges, level: Mapping[str, int]) -> bool:
    """Whether other arrows lead down from `start` to `end` as well."""
    todo = [house for first, house in edges if first == start and house != end]
    seen = set()
    while todo:
        house = todo.pop()
        if house == end:
            return True
        if house not in seen and level[end] < level[house] < level[start]:
            seen.add(house)
            todo += [further for first, further in edges if first == house]
    return False


def _arrow(start: tuple[float, float], end: tuple[float, float], count: int) -> str:
    down = end[1] > start[1]
    x1, y1 = start[0] + _WIDTH / 2, start[1] + (_HEIGHT if down else 0)
    x2, y2 = end[0] + _WIDTH / 2, end[1] + (0 if down else _HEIGHT)
    bend = (y2 - y1) / 2
    return (
        f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f}'
        f' {x2:.0f} {y2:.0f}" fill="none" stroke="{"#90a4ae" if down else "#c62828"}"'
        f' stroke-width="{1 + min(count, 40) / 14:.1f}" marker-end="url(#tip)"/>'
    )


def _box(house: str, place: tuple[float, float], size: tuple[int, int]) -> str:
    x, y = place
    centre = x + _WIDTH / 2
    files, lines = size
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="#eceff1"'
        ' stroke="#455a64"/>'
        f'<text x="{centre:.0f}" y="{y + 23:.0f}" text-anchor="middle" font-weight="bold"'
        f' fill="#263238">{escape(house)}</text>'
        f'<text x="{centre:.0f}" y="{y + 41:.0f}" text-anchor="middle" fill="#546e7a">'
        f"{files} files, {lines:,} lines</text>"
    )


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")

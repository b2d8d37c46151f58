"""Write the table of devices from their records: python docs/write_device_table.py."""

from __future__ import annotations

from pathlib import Path

from edgesdk.engines.devices import DEVICES, DeviceRecord, Proof

PAGE = Path(__file__).parent / "explanation" / "devices.md"
_START, _END = "<!-- devices -->\n", "<!-- end of devices -->"
_TITLES = ("provider", "device", "kind", "to install", "graph", "rests on", "shown by")
_WORDS: dict[Proof, str] = {
    "hardware": "proven on hardware",
    "simulator": "proven in its simulator",
    "software": "proven in software",
    "interpreted": "its files interpreted, its engine on recorded answers",
    "recorded": "recorded API",
    "not run": "not run",
}
_HEAD = f"| {' | '.join(_TITLES)} |\n{'|---' * len(_TITLES)}|\n"


def page() -> str:
    """The page with the table as the records are now."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(_START)
    _, _, after = rest.partition(_END)
    rows = "".join(row for record in DEVICES for row in _rows(record))
    return f"{before}{_START}{_HEAD}{rows}{_END}{after}"


def _rows(record: DeviceRecord) -> list[str]:
    """A row for each variant of graph that a provider runs, or one that says that it runs none."""
    if not record.runs:
        return [_row(record, "runs nothing yet", record.proof, record.tests)]
    return [
        _row(record, f"{each.graph} ({each.format.upper()})", each.proof, each.tests)
        for each in record.runs
    ]


def _row(record: DeviceRecord, graph: str, proof: Proof, tests: tuple[str, ...]) -> str:
    extra = f"edgesdk[{record.extra}]" if record.extra else record.package
    cells = (
        record.name,
        record.device,
        ", ".join(kind.upper() for kind in record.kinds),
        "no package" if extra is None else f"`{extra}`",
        graph,
        _WORDS[proof],
        ", ".join(f"`{path}`" for path in tests) or "no test",
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

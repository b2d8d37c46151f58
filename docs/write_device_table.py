"""Write the table of devices from their records: python docs/write_device_table.py."""

from __future__ import annotations

from pathlib import Path

from edgesdk.engines.devices import DEVICES, DeviceRecord

PAGE = Path(__file__).parent / "explanation" / "devices.md"
_START, _END = "<!-- devices -->\n", "<!-- end of devices -->"
_TITLES = ("provider", "device", "kind", "to install", "runs", "rests on", "shown by")
_HEAD = f"| {' | '.join(_TITLES)} |\n{'|---' * len(_TITLES)}|\n"


def page() -> str:
    """The page with the table as the records are now."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(_START)
    _, _, after = rest.partition(_END)
    return f"{before}{_START}{_HEAD}{''.join(map(_row, DEVICES))}{_END}{after}"


def _row(record: DeviceRecord) -> str:
    extra = f"edgesdk[{record.extra}]" if record.extra else record.package
    runs = ", ".join(name.upper() for name in record.formats) or "nothing yet"
    cells = (
        record.name,
        record.device,
        record.kind.upper(),
        "no package" if extra is None else f"`{extra}`",
        runs,
        record.proof,
        ", ".join(f"`{path}`" for path in record.tests),
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

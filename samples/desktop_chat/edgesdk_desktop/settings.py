"""What a person has set: kept in a file, from one start of the window to the next."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QSettings

from edgesdk_desktop.protocol import SetCloud


class WindowSettings:
    """Settings in a folder's settings.ini."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = QSettings(str(folder / "settings.ini"), QSettings.Format.IniFormat)

    def get(self, name: str) -> str:
        """A setting; "" where it was never set."""
        return str(self._file.value(name) or "")

    def set(self, name: str, value: str) -> None:
        """Keep a setting."""
        self._file.setValue(name, value)

    @property
    def cloud(self) -> SetCloud:
        """The endpoint that was used last, without its key."""
        return SetCloud(
            self.get("cloud_url"),
            self.get("cloud_model"),
            daily_limit=_number(self.get("cloud_daily_limit")),
            input_price=_number(self.get("cloud_input_price")),
            output_price=_number(self.get("cloud_output_price")),
            budget_file=str(self._folder / "spending.db"),
        )

    @cloud.setter
    def cloud(self, cloud: SetCloud) -> None:
        self.set("cloud_url", cloud.base_url)
        self.set("cloud_model", cloud.model)
        for name in ("daily_limit", "input_price", "output_price"):
            value = getattr(cloud, name)
            self.set(f"cloud_{name}", "" if value is None else repr(value))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

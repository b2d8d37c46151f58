"""Starts the window."""

from __future__ import annotations

import sys
from pathlib import Path

from platformdirs import user_data_path
from PySide6.QtWidgets import QApplication

from edgesdk_desktop.engine_client import EngineClient
from edgesdk_desktop.main_window import MainWindow


def main(data: Path | None = None) -> int:
    """Show the window until it is closed.

    Args:
        data: the folder of conversations and settings; None for the user's data folder.
    """
    app = QApplication(sys.argv[:1])
    app.setApplicationName("edgesdk")
    # The one style that looks the same everywhere and takes all of its colours from the theme.
    app.setStyle("Fusion")
    engine = EngineClient()
    engine.start()
    window = MainWindow(data or user_data_path("edgesdk") / "desktop", engine)
    window.show()
    return app.exec()

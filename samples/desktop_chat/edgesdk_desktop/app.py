"""Starts the window."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

from platformdirs import user_data_path
from PySide6.QtWidgets import QApplication, QMessageBox

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
    folder = data or user_data_path("edgesdk") / "desktop"
    engine = EngineClient()
    engine.start()
    try:
        window = MainWindow(folder, engine)
    except (OSError, sqlite3.OperationalError) as error:
        QMessageBox.critical(None, "edgesdk", unusable_folder(folder, error))
        engine.close()
        return 1
    window.show()
    return app.exec()


def unusable_folder(folder: Path, error: Exception) -> str:
    """What a person is told whose conversations cannot be kept."""
    why = getattr(error, "strerror", None) or error
    return (
        f"Conversations cannot be kept in {folder}: {why}.\n\nMake it a folder that you may write"
        " to, or choose another one: edgesdk desktop --data FOLDER."
    )

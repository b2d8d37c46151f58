"""Fetch models and keep them."""

from __future__ import annotations

from edgesdk.store.progress import SILENT, Progress
from edgesdk.store.record import CheckpointRecord, Entry
from edgesdk.store.store import Store, default_root, is_usable

__all__ = [
    "SILENT",
    "CheckpointRecord",
    "Entry",
    "Progress",
    "Store",
    "default_root",
    "is_usable",
]

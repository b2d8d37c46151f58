"""Fetch models and keep them."""

from __future__ import annotations

from edgesdk.store.disk import SILENT, StoreProgress
from edgesdk.store.layout import CheckpointRecord, StoreEntry
from edgesdk.store.store import Store, find_checkpoint, require_usable
from edgesdk.system.home import default_root

__all__ = [
    "SILENT",
    "CheckpointRecord",
    "Store",
    "StoreEntry",
    "StoreProgress",
    "default_root",
    "find_checkpoint",
    "require_usable",
]

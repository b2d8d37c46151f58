"""Read checkpoints lazily: safetensors and GGUF."""

from edgesdk_export.checkpoint.base import Checkpoint as Checkpoint
from edgesdk_export.checkpoint.opening import open_checkpoint as open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]

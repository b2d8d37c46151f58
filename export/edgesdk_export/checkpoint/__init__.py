"""Read checkpoints lazily: safetensors and GGUF."""

from edgesdk_export.checkpoint.checkpoint import Checkpoint as Checkpoint
from edgesdk_export.checkpoint.containers import open_checkpoint as open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]

"""Read the text side of a checkpoint: tokenizer, chat template, special tokens."""

from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.tokenizers.folder_text import read_folder_text
from edgesdk_export.tokenizers.gguf_tokenizer import read_gguf_text
from edgesdk_export.tokenizers.text_files import TextFiles

__all__ = ["TextFiles", "read_text"]


def read_text(checkpoint: Checkpoint) -> TextFiles:
    """The tokenizer, chat template and special tokens of a checkpoint.

    Raises:
        CheckpointError: there is no tokenizer, or one of a kind that is not supported.
        DamagedCheckpoint: its parts contradict each other.
    """
    if checkpoint.container == "gguf":
        return read_gguf_text(checkpoint)
    return read_folder_text(checkpoint)

"""The text side of a checkpoint: tokenizer, chat template, special tokens."""

from edgesdk_export.tokenizers.base import TextFiles as TextFiles
from edgesdk_export.tokenizers.reading import read_text as read_text

__all__ = ["TextFiles", "read_text"]

"""The text side of a checkpoint: tokenizer, chat template, special tokens."""

from edgesdk_export.tokenizers.reading import read_text as read_text
from edgesdk_export.tokenizers.text_files import TextFiles as TextFiles

__all__ = ["TextFiles", "read_text"]

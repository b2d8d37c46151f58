"""Write GGUF files for llama.cpp, from a checkpoint of any container in one step."""

from edgesdk_export.gguf.file_types import FileType as FileType
from edgesdk_export.gguf.file_types import file_type_named as file_type_named
from edgesdk_export.gguf.file_types import file_type_names as file_type_names
from edgesdk_export.gguf.tokenizer_metadata import vocabulary_metadata as vocabulary_metadata
from edgesdk_export.gguf.writer import Importance as Importance
from edgesdk_export.gguf.writer import WrittenGguf as WrittenGguf
from edgesdk_export.gguf.writer import write_gguf as write_gguf

__all__ = [
    "FileType",
    "Importance",
    "WrittenGguf",
    "file_type_named",
    "file_type_names",
    "vocabulary_metadata",
    "write_gguf",
]

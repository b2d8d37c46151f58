"""Cut the text that quality is measured on into windows of tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgesdk.errors import ExportError

WINDOW = 512


@dataclass(frozen=True)
class EvaluationText:
    """A text and what to call it in a report."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Windows:
    """Token windows: `ids` int64 [windows, length]; position j predicts position j + 1."""

    ids: npt.NDArray[np.int64]

    @property
    def predictions(self) -> int:
        """The number of positions that are compared: every one that another one follows."""
        return int(self.ids.shape[0] * (self.ids.shape[1] - 1))


def default_text() -> EvaluationText:
    """English reference prose that every CPython carries, so that nothing has to be fetched."""
    from pydoc_data.topics import topics

    joined = "\n\n".join(topics[name] for name in sorted(topics))
    return EvaluationText(name="the Python language reference", text=joined)


def text_from_file(path: Path) -> EvaluationText:
    """A UTF-8 text file.

    Raises:
        ExportError: it cannot be read, or is not UTF-8.
    """
    try:
        return EvaluationText(name=path.name, text=path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ExportError(
            f"{path} is not UTF-8 text (byte {error.start}).", hint="Convert it to UTF-8."
        ) from None
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}.") from None


def cut_windows(
    text: EvaluationText, tokenizer_json: bytes, *, tokens: int, bos: int | None, context: int
) -> Windows:
    """The first `tokens` tokens of the text (or a window more), in equal windows.

    Each window starts with `bos` where the model wants one: windows are separate documents.

    Raises:
        ExportError: the text is too short for one window.
    """
    length = min(WINDOW, context)
    body = length - (bos is not None)
    wanted = -(-tokens // body)
    # Prose has 3-5 characters a token; what lies past 8 is never reached.
    piece = text.text[: wanted * body * 8]
    ids = Tokenizer.from_str(tokenizer_json.decode()).encode(piece, add_special_tokens=False).ids
    count = min(wanted, len(ids) // body)
    if count == 0:
        raise ExportError(
            f"The text {text.name!r} has {len(ids)} tokens; one window takes {body}.",
            hint="Give a longer text.",
        )
    grid = np.asarray(ids[: count * body], dtype=np.int64).reshape(count, body)
    if bos is not None:
        grid = np.concatenate([np.full((count, 1), bos, np.int64), grid], axis=1)
    return Windows(ids=grid)

"""Which files of a folder or repository a checkpoint needs."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from edgesdk.bundle.manifest import MANIFEST_NAME
from edgesdk.errors import DownloadFailed

# Weights that can hold code when they are read (pickle: *.bin, *.pt) are left out on purpose.
_CHECKPOINT = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.*", "*.jinja"),
    *("LICENSE*", "LICENCE*"),
)


def choose_files(names: Iterable[str], patterns: Sequence[str], *, where: str) -> list[str]:
    """Choose among `names` (relative POSIX paths), in name order.

    With patterns: the files that fit one. Without: all files of a bundle; or the safetensors with
    their configuration and tokenizer; or the only GGUF file.

    Raises:
        DownloadFailed: nothing fits, or there are several GGUF files to choose from.
    """
    present = sorted(names)
    if patterns:
        chosen = [n for n in present if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
        if not chosen:
            raise DownloadFailed(
                f"No file of {where} fits {', '.join(patterns)}.", hint=_listing(present)
            )
        return chosen
    top = [name for name in present if "/" not in name]
    if MANIFEST_NAME in top:
        return present
    if any(name.endswith(".safetensors") for name in top):
        return [n for n in top if any(fnmatch.fnmatchcase(n, p) for p in _CHECKPOINT)]
    ggufs = [name for name in present if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise DownloadFailed(
            f"{where} has {len(ggufs)} GGUF files.", hint=f"Name one. {_listing(ggufs)}"
        )
    raise DownloadFailed(
        f"{where} has no safetensors and no GGUF file at its top level.", hint=_listing(present)
    )


def _listing(names: list[str]) -> str:
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    return f"It has: {', '.join(names[:12]) or 'no files'}{more}."

"""What the decode loop needs of a tokenizer: ids in, bytes out.

Bytes, not text, because a token may end in the middle of a character.
"""

from __future__ import annotations

from typing import Protocol


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end an answer."""

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        """Ids of `text`. Special tokens that stand in the text become their ids.

        `add_bos` prepends the BOS token where the model wants one.

        Raises:
            InvalidText: `text` has a lone surrogate.
        """

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes that `token` stands for; may be part of a character, and is empty for
        control tokens such as `<|im_end|>`."""

"""Bytes that only a key opens, and where that key comes from."""

from __future__ import annotations

import base64
import binascii
import secrets

from edgesdk.errors import InvalidOption, MissingExtra, RequestError

KEY_BYTES = 32
_NONCE_BYTES = 12
_SERVICE = "edgesdk queue"
_HINT = "Give the queue a key of the app's: Queue(path, key=...)."


class SealBroken(Exception):
    """It was sealed with another key, or for another place, or changed. Never leaves the SDK."""


class Seal:
    """AES-256-GCM (NIST SP 800-38D) with a random nonce of 96 bits in front.

    Raises:
        InvalidOption: the key has not 32 bytes.
        MissingExtra: cryptography is not installed.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise InvalidOption(
                f"A key has {KEY_BYTES} bytes, not {len(key)}.",
                hint="Make one with secrets.token_bytes(32), and keep it where secrets are kept.",
            )
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ModuleNotFoundError:
            raise MissingExtra(
                "cryptography", extra="queue", needed_for="An encrypted queue"
            ) from None
        self._cipher = AESGCM(key)

    def close(self, data: bytes, place: bytes) -> bytes:
        """`data` sealed; it opens for the same `place` only."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, place)

    def open(self, sealed: bytes, place: bytes) -> bytes:
        """What `close` sealed.

        Raises:
            SealBroken: it is not that.
        """
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise SealBroken from None


def key_of_keyring(name: str, *, make: bool) -> bytes:
    """The key that the system's keyring has under `name`.

    Args:
        make: put a new one there if there is none.

    Raises:
        MissingExtra: keyring is not installed.
        RequestError: the system has no keyring, or it does not give the key.
    """
    try:
        import keyring
    except ModuleNotFoundError:
        raise MissingExtra(
            "keyring", extra="queue", needed_for="A queue without a key of the app's"
        ) from None
    try:
        found = keyring.get_password(_SERVICE, name)
        if found is None and make:
            key = base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii")
            keyring.set_password(_SERVICE, name, key)
            # Some backends take everything and keep nothing.
            found = keyring.get_password(_SERVICE, name)
    except Exception as error:
        # Its backends raise errors of their own besides keyring's.
        words = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(
            f"The system's keyring cannot be used: {words.removesuffix('.')}.", hint=_HINT
        ) from error
    if found is None:
        raise RequestError(
            f"The system's keyring {'keeps' if make else 'has'} no key of this queue ({name}).",
            hint=_HINT if make else "Without it the queue cannot be read; delete its file.",
        )
    try:
        return base64.b64decode(found, validate=True)
    except binascii.Error:
        raise RequestError(
            f"What the system's keyring has as key of this queue ({name}) is none."
        ) from None

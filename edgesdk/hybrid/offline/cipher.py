"""Encrypts what the offline queue keeps, with a key of the app's or of the system's keyring."""

from __future__ import annotations

import base64
import binascii
import secrets

from edgesdk.errors import InvalidOption, MissingExtra, RequestError

KEY_BYTES = 32
_KEYRING_SERVICE = "edgesdk queue"
_KEY_HINT = "Give the queue a key of the app's: OfflineQueue(path, key=...)."


class DecryptionFailed(Exception):
    """The key or the context is another, or the bytes were changed. Never leaves the SDK."""


class QueueCipher:
    """Encrypts bytes with Fernet, each for a context without which they cannot be decrypted."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise InvalidOption(
                f"A key has {KEY_BYTES} bytes, not {len(key)}.",
                hint="Make one with secrets.token_bytes(32), and keep it where secrets are kept.",
            )
        try:
            from cryptography.fernet import Fernet
        except ModuleNotFoundError:
            raise MissingExtra(
                "cryptography", extra="queue", needed_for="An encrypted queue"
            ) from None
        self._fernet = Fernet(base64.urlsafe_b64encode(key))

    def encrypt(self, data: bytes, context: str) -> bytes:
        """Encrypt `data`; it can be decrypted with the same `context` only."""
        return self._fernet.encrypt(_prefix(context) + data)

    def decrypt(self, token: bytes, context: str) -> bytes:
        """Decrypt what `encrypt` gave."""
        from cryptography.fernet import InvalidToken

        try:
            found = self._fernet.decrypt(token)
        except InvalidToken:
            raise DecryptionFailed from None
        if not found.startswith(_prefix(context)):
            raise DecryptionFailed
        return found.removeprefix(_prefix(context))


def key_of_keyring(name: str, *, make: bool) -> bytes:
    """Return the key that the system's keyring has under `name`.

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
        found = keyring.get_password(_KEYRING_SERVICE, name)
        if found is None and make:
            key = base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii")
            keyring.set_password(_KEYRING_SERVICE, name, key)
            # Some backends take everything and keep nothing.
            found = keyring.get_password(_KEYRING_SERVICE, name)
    except Exception as error:
        # Its backends raise errors of their own besides keyring's.
        words = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(
            f"The system's keyring cannot be used: {words.removesuffix('.')}.", hint=_KEY_HINT
        ) from error
    if found is None:
        raise RequestError(
            f"The system's keyring {'keeps' if make else 'has'} no key of this queue ({name}).",
            hint=_KEY_HINT if make else "Without it the queue cannot be read; delete its file.",
        )
    try:
        return base64.b64decode(found, validate=True)
    except binascii.Error:
        raise RequestError(
            f"What the system's keyring has as key of this queue ({name}) is none."
        ) from None


def _prefix(context: str) -> bytes:
    return f"{context}\0".encode()

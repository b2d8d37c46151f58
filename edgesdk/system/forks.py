"""Notices that a process was forked after something was opened that a fork cannot use."""

from __future__ import annotations

import ctypes
import os
import weakref

from edgesdk.errors import EdgeError, RequestError

_HINT = "Open it after the fork, or start processes by 'spawn'."


class ForkGuard:
    """Refuses work in a forked process.

    A fork has none of its parent's threads, and every lock as it was, so that it may wait for
    ever; and it shares the parent's sockets and files.

    Args:
        what: was opened, as the beginning of a sentence.
    """

    def __init__(self, what: str, error: type[EdgeError] = RequestError) -> None:
        self._what = what
        self._error = error
        self._process = os.getpid()

    @property
    def crossed(self) -> bool:
        """Whether this process is a fork of the one that opened it."""
        return os.getpid() != self._process

    def check(self) -> None:
        """Let the process go on that opened it; to be called before any lock is taken.

        Raises:
            RequestError, or the error that was given: this process is a fork of that one.
        """
        if self.crossed:
            raise self._error(
                f"{self._what} was opened before this process was forked, and cannot be used in"
                " the fork.",
                hint=_HINT,
            )


def never_freed_in_forks(thing: object) -> None:
    """Have forks keep an object to their end: freeing it would wait for threads that they lack."""
    reference = weakref.ref(thing)

    def keep() -> None:
        found = reference()
        if found is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(found))

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=keep)

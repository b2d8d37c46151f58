"""Addresses that carry a password or a token."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgesdk.hybrid.privacy.finding import Finding

_URL = re.compile(r"(?<![A-Za-z0-9+.\-])[A-Za-z][A-Za-z0-9+.\-]{1,20}://[^\s<>\"']+")
# RFC 3986: user information stands before the host, which ends at the first of / ? and #.
_USER = re.compile(r"[^:]+://[^/?#@]+@")
_TOKEN = re.compile(
    r"[?&#;](?:[\w\-]*(?:token|key|secret|password|passwd|pwd|signature|auth)|sig)=[^&#]",
    re.IGNORECASE,
)


class PrivateUrls:
    """URLs with user information, or with a secret among their parameters."""

    def find(self, text: str) -> Iterator[Finding]:
        """See `Detector.find`."""
        for found in _URL.finditer(text):
            url = found[0]
            if _USER.match(url) or _TOKEN.search(url):
                yield Finding("URL", found.start(), found.end())

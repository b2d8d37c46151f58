"""The page at `/`: a chat with the server's models, in one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response


async def chat_page(request: Request) -> Response:
    """The page. Its policy lets it run its own script, and speak to this server alone."""
    page, policy = _page()
    return HTMLResponse(page, headers={"content-security-policy": policy, **_HEADERS})


@cache
def _page() -> tuple[str, str]:
    page = files("edgesdk.server").joinpath("page/chat.html").read_text(encoding="utf-8")
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


_HEADERS = {
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

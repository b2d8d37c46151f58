"""Download one file over HTTP; a download that was cut off, or killed, goes on where it stopped.

The bytes go to `NAME.partial`, what they are a part of to `NAME.validator`. A later try asks for
the rest with Range and If-Range (RFC 9110, sections 13.1.5 and 14), so that bytes of two versions
never meet in one file. A server that names no version is asked for the rest only where a hash,
known beforehand, will tell whether it all fits together.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from edgesdk.errors import DownloadFailed
from edgesdk.store.disk import StoreProgress, removes_on_full_disk, require_space, size_of
from edgesdk.store.download_plan import UrlPart
from edgesdk.system.atomic_files import write_atomically
from edgesdk.system.checks import is_loopback

# Seconds to wait before each further try; tries that brought new bytes are not counted.
_DELAYS = (0.3, 1.0, 3.0)
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_RESUME = "What had arrived is kept: the same command goes on from there."


@dataclass(frozen=True)
class _Validator:
    """The server's name for the version that the partial file is part of."""

    etag: str | None
    modified: str | None

    @property
    def if_range(self) -> str | None:
        """The value of an If-Range header; a weak ETag may not stand in one."""
        strong = self.etag if self.etag and not self.etag.startswith("W/") else None
        return strong or self.modified


class _TransferBroken(Exception):
    """This try ended early; another one may bring the rest."""


def make_client(*, certificates: str | None = None, proxy: str | None = None) -> httpx.Client:
    """A client that follows redirects, but never from TLS to an unprotected other machine.

    Args:
        certificates: a file of CA certificates, instead of the default ones.
        proxy: the proxy's address, instead of the environment's.
    """
    default = certificates is None
    return httpx.Client(
        verify=True if default else ssl.create_default_context(cafile=certificates),
        proxy=proxy,
        follow_redirects=True,
        timeout=httpx.Timeout(60.0, connect=15.0),
        event_hooks={"request": [_refuse_unprotected]},
    )


def download(
    client: httpx.Client, part: UrlPart, target: Path, *, stage: str, progress: StoreProgress
) -> None:
    """Download `part` to `target`, which appears only when every byte is there.

    Raises:
        DownloadFailed: the network or the server failed; the partial file is kept.
        NotEnoughSpace: the rest does not fit the disk.
    """
    partial = target.with_name(f"{target.name}.partial")
    validator = target.with_name(f"{target.name}.validator")
    if target.exists():
        return
    furthest, failures = size_of(partial), 0
    while True:
        try:
            with removes_on_full_disk(partial, validator):
                _try_once(client, part, partial, validator, stage, progress)
            break
        except (_TransferBroken, httpx.TransportError) as error:
            arrived = size_of(partial)
            failures = 0 if arrived > furthest else failures + 1
            furthest = max(furthest, arrived)
            never_connected = isinstance(error, httpx.ConnectError) and not arrived
            if never_connected or failures > len(_DELAYS):
                raise _download_failed(part, error, arrived) from error
            progress.note(f"{stage}: {error or type(error).__name__}; trying again")
            time.sleep(_DELAYS[max(failures - 1, 0)])
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _download_failed(part, error, size_of(partial)) from error
    partial.replace(target)
    validator.unlink(missing_ok=True)


def _try_once(
    client: httpx.Client,
    part: UrlPart,
    partial: Path,
    validator: Path,
    stage: str,
    progress: StoreProgress,
) -> None:
    before = _read_validator(validator)
    if_range = before.if_range if before is not None else None
    resumable = before is not None and (if_range is not None or part.hash_known)
    have = size_of(partial) if resumable else 0
    headers = dict(part.headers) | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    if have and if_range is not None:
        headers["If-Range"] = if_range
    with client.stream("GET", part.url, headers=headers) as response:
        if response.status_code == 416 and _whole_length(response) == have:
            return
        _check_status(response, part, partial)
        now = _Validator(response.headers.get("etag"), response.headers.get("last-modified"))
        if response.status_code == 206 and (_range_start(response) != have or now != before):
            partial.unlink(missing_ok=True)
            raise _TransferBroken("the file changed on the server")
        have = have if response.status_code == 206 else 0
        length = response.headers.get("content-length", "")
        total = have + int(length) if length.isdecimal() else None
        if total is not None:
            require_space(partial.parent, total - have)
        if not have:
            # Before its validator is replaced, or a kill would leave old bytes under a new one.
            partial.unlink(missing_ok=True)
        write_atomically(validator, json.dumps(asdict(now)).encode())
        progress.start(stage, total, have)
        with partial.open("ab" if have else "wb") as stream:
            # In the pieces that arrive: gathering larger ones would lose the last on a cut.
            for chunk in response.iter_raw():
                stream.write(chunk)
                progress.advance(len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and size_of(partial) != total:
        raise _TransferBroken(f"{size_of(partial):,} of {total:,} bytes arrived")


def _check_status(response: httpx.Response, part: UrlPart, partial: Path) -> None:
    status = response.status_code
    if status in _TRANSIENT_STATUSES:
        raise _TransferBroken(f"the server answered {status} {response.reason_phrase}")
    if status == 416:
        partial.unlink(missing_ok=True)
        raise _TransferBroken("the file changed on the server")
    if status not in (200, 206):
        hint = {
            401: "The server wants a login; for Hugging Face, run: hf auth login",
            403: "The server wants a login, or forbids this file.",
            404: "Check the reference: the server has no such file.",
        }.get(status, "Try again later.")
        raise DownloadFailed(
            f"{_without_secrets(part.url)}: the server answered {status} {response.reason_phrase}.",
            hint=hint,
        )
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise DownloadFailed(
            f"{_without_secrets(part.url)}: the server sends the file only as {encoding}.",
            hint="Download the file yourself and pull its path.",
        )


def _download_failed(part: UrlPart, error: Exception, arrived: int) -> DownloadFailed:
    where = _without_secrets(part.url)
    if isinstance(error, httpx.ConnectError):
        return DownloadFailed(
            f"{where}: cannot connect ({error}).",
            hint="Check the network and the proxy settings." + (f" {_RESUME}" if arrived else ""),
        )
    reason = str(error) or type(error).__name__
    return DownloadFailed(f"{where}: the download failed: {reason}.", hint=_RESUME)


def _without_secrets(url: str) -> str:
    """The address without its query and credentials, either of which may be a secret."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _refuse_unprotected(request: httpx.Request) -> None:
    if request.url.scheme == "http" and not is_loopback(request.url.host):
        raise DownloadFailed(
            f"The download leads to http://{request.url.host}, which is unprotected.",
            hint="Use another source.",
        )


def _read_validator(path: Path) -> _Validator | None:
    try:
        return _Validator(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _range_start(response: httpx.Response) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return int(match[1]) if match else None


def _whole_length(response: httpx.Response) -> int | None:
    match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("content-range", ""))
    return int(match[1]) if match else None

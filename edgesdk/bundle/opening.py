"""Open a bundle folder: sizes are checked always, hashes on demand."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgesdk.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest, Role, parse_manifest
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.errors import BundleError, DamagedBundle, UnsupportedBundle

MAX_MANIFEST_BYTES = 16 * 2**20
_CHUNK = 4 * 2**20
_HINT = "Pull or export the model again."
_SPEC = TypeAdapter(DecoderSpec)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `sha256` is the manifest's hash, and so stands for every file in it."""

    path: Path
    manifest: Manifest
    sha256: str

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files."""
        return self.path / name

    def role_file(self, role: Role) -> Path:
        """The path of the file in that role.

        Raises:
            UnsupportedBundle: it has none.
        """
        name = self.manifest.roles.get(role)
        if name is None:
            raise UnsupportedBundle(
                f"The bundle {self.path} has no file in the role {role!r}, only"
                f" {', '.join(self.manifest.roles)}.",
                hint="Export the model for a device that this edgesdk runs.",
            )
        return self.file(name)

    def decoder_spec(self) -> DecoderSpec | None:
        """What the decoder is; None where its exporter does not say.

        Raises:
            DamagedBundle: a field is missing or of another type.
        """
        if self.manifest.spec is None:
            return None
        try:
            return _SPEC.validate_python(self.manifest.spec)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DamagedBundle(f"{self.path}: spec.{place}: {first['msg']}.", hint=_HINT) from None

    def text(self, name: str) -> str:
        """What one of its files says.

        Raises:
            DamagedBundle: it is no UTF-8.
        """
        return read_utf8(self.file(name))

    @property
    def size(self) -> int:
        """Bytes of all its files, the manifest left out."""
        return sum(entry.size for entry in self.manifest.files)


def is_bundle(path: Path) -> bool:
    """Whether `path` is a folder with a manifest."""
    return (path / MANIFEST_NAME).is_file()


def open_bundle(path: Path) -> Bundle:
    """Open the bundle in folder `path`; every file must be there with its size.

    Raises:
        BundleError: there is no bundle there.
        DamagedBundle: the manifest is malformed, or a file is missing or has another size.
        UnsupportedBundle: the manifest is of another version.
    """
    if not is_bundle(path):
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST_NAME}.",
            hint="Make one with: edgesdk export CHECKPOINT",
        )
    manifest_path = path / MANIFEST_NAME
    if manifest_path.stat().st_size > MAX_MANIFEST_BYTES:
        raise DamagedBundle(f"{manifest_path} is larger than a manifest can be.", hint=_HINT)
    text = manifest_path.read_bytes()
    manifest = parse_manifest(text, where=str(manifest_path))
    for entry in manifest.files:
        _check_size(path / entry.name, entry)
    return Bundle(path=path, manifest=manifest, sha256=hashlib.sha256(text).hexdigest())


def verify_bundle(bundle: Bundle, *, progress: Callable[[int], None] | None = None) -> None:
    """Hash every file; `progress` is called with the number of bytes just read.

    Raises:
        DamagedBundle: a file's hash is not the manifest's.
    """
    for entry in bundle.manifest.files:
        path = bundle.file(entry.name)
        _check_size(path, entry)
        found = hash_file(path, progress=progress)
        if found != entry.sha256:
            raise DamagedBundle(
                f"{path} is damaged: its SHA-256 is {found}, the manifest says {entry.sha256}.",
                hint=_HINT,
            )


def read_utf8(path: Path) -> str:
    """The text of a file of a bundle.

    Raises:
        DamagedBundle: it is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedBundle(
            f"{path} is damaged: it is no UTF-8 at byte {error.start}.", hint=_HINT
        ) from None


def hash_file(path: Path, *, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()


def _check_size(path: Path, entry: FileEntry) -> None:
    try:
        found = path.stat()
    except OSError as error:
        # Not there, or of a name that no file can have.
        raise DamagedBundle(
            f"{path} is missing from the bundle: {error.strerror}.", hint=_HINT
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise DamagedBundle(f"{path} is not a file.", hint=_HINT)
    size = found.st_size
    if size != entry.size:
        raise DamagedBundle(
            f"{path} has {size:,} bytes; the manifest says {entry.size:,}.", hint=_HINT
        )

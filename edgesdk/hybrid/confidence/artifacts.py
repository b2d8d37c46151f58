"""Stores what was learned of models, in small files that are found by profile and bundle.

FOLDER/BUNDLE/NAME.json   {"format": "edgesdk-artifact", "version": 1, "bundle", "name", "value"}

FOLDER is that of a profile: what one app learned and calibrated from prompts like its own. Another
app has other prompts and another profile, so that neither is given the other's thresholds, nor
makes the other's guarantee stale. BUNDLE is the identity of the model as engines give it
(`KvIdentity.model`): a model that changes has another one, and nothing stored. NAME says what it
is, such as "confidence". The value is any JSON; what it depends on beside the bundle, such
as a template or a cloud model, belongs into the value or the name.

A bundle may bring such a folder, too (`SHIPPED`). Clients of all profiles find what is there, where
their own profile has nothing.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from edgesdk.bundle.opening import Bundle
from edgesdk.errors import InvalidOption, RequestError
from edgesdk.system.atomic_files import write_atomically

# Of a bundle folder, where what is shipped with it lies.
SHIPPED = "artifacts"
_MAX_BYTES = 16 * 2**20
_PROFILE = r"[a-z0-9][a-z0-9._-]{0,63}"
_NAME = r"^[a-z0-9][a-z0-9._-]{0,95}$"
_HINT = "Remove it, and train or calibrate again."

_LOG = logging.getLogger("edgesdk.hybrid")

_Name = Annotated[str, Field(pattern=_NAME)]
_Value = TypeVar("_Value")


class _ArtifactFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["edgesdk-artifact"] = "edgesdk-artifact"
    version: Literal[1] = 1
    bundle: _Name
    name: _Name
    value: JsonValue


class ArtifactStore:
    """Reads and writes what was learned about models. Any number of processes may share a folder.

    Args:
        folder: where it is written, and looked for first; made when something is first stored.
        shipped: folders that are only read, such as a bundle's.
    """

    def __init__(
        self, folder: str | PathLike[str], *, shipped: Iterable[str | PathLike[str]] = ()
    ) -> None:
        self.folder = Path(folder)
        self._shipped = tuple(map(Path, shipped))

    def read(self, bundle: str, name: str) -> JsonValue | None:
        """Read the artifact `name` of `bundle`; None where there is none.

        Raises:
            RequestError: the file is damaged, of a later version, or cannot be read.
        """
        for folder in (self.folder, *self._shipped):
            file = _read_file(_path(folder, bundle, name), bundle, name)
            if file is not None:
                return file.value
        return None

    def load(self, bundle: str, name: str, kind: type[_Value]) -> _Value | None:
        """Read an artifact as a dataclass; None where there is none.

        A damaged artifact, or one of another version of edgesdk, is ignored with a warning: an app
        must start all the same.
        """
        try:
            value = self.read(bundle, name)
            return None if value is None else value_from_json(kind, value)
        except RequestError as error:
            _LOG.warning("the artifact %r is not used: %s", name, error)
            return None

    def write(self, bundle: str, name: str, value: JsonValue) -> Path:
        """Store `value` in place of what was there before, and return the file.

        Raises:
            RequestError: the value is no JSON, or the file cannot be written; what was there
                before is untouched.
        """
        path = _path(self.folder, bundle, name)
        try:
            text = json.dumps(
                _ArtifactFile(bundle=bundle, name=name, value=value).model_dump(),
                indent=1,
                sort_keys=True,
                allow_nan=False,
            )
        except ValueError as error:
            raise RequestError(f"The artifact {name!r} is no JSON: {error}.") from None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text, private=True)
        except OSError as error:
            raise RequestError(f"{path} cannot be written: {error.strerror}.") from error
        return path


def value_to_json(value: object) -> JsonValue:
    """Convert a dataclass, and those in it, to what JSON has; `value_from_json` reads it."""
    converted: JsonValue = TypeAdapter(type(value)).dump_python(value, mode="json")
    return converted


def value_from_json(kind: type[_Value], value: JsonValue) -> _Value:
    """Read what `value_to_json` gave of a `kind`."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]["msg"]
        raise RequestError(f"This is no stored {kind.__name__}: {first}.") from None


def profile_store(profile: str | Path, source: Bundle | Path | None = None) -> ArtifactStore:
    """Open the store of a profile.

    Args:
        profile: its name, for a folder in the device's own store; or a folder of the app's own.
        source: where the model comes from; what its bundle brings is read, too.
    """
    if isinstance(profile, Path):
        folder = profile
    elif re.fullmatch(_PROFILE, profile):
        from edgesdk.store import default_root

        folder = default_root() / "profiles" / profile
    else:
        raise InvalidOption(
            f"{profile!r} cannot be the name of a profile.",
            hint="Use up to 64 of a-z, 0-9, dot, dash and underscore, a letter or digit first; or"
            " give a folder as a Path.",
        )
    return ArtifactStore(folder, shipped=_shipped_with(source))


def shipped_artifacts(source: Bundle | Path | None) -> ArtifactStore | None:
    """Open what a model's bundle brings, for a client without a profile; None where it brings
    nothing."""
    for folder in _shipped_with(source):
        return ArtifactStore(folder)
    return None


def _shipped_with(source: Bundle | Path | None) -> tuple[Path, ...]:
    return (source.path / SHIPPED,) if isinstance(source, Bundle) else ()


def _read_file(path: Path, bundle: str, name: str) -> _ArtifactFile | None:
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.", hint=_HINT) from None
    if len(text) > _MAX_BYTES:
        raise RequestError(f"{path} is larger than an artifact can be.", hint=_HINT)
    try:
        file = _ArtifactFile.model_validate_json(text)
    except ValidationError as error:
        raise RequestError(f"{path} is damaged: {error.errors()[0]['msg']}.", hint=_HINT) from None
    if (file.bundle, file.name) != (bundle, name):
        raise RequestError(
            f"{path} is of {file.name!r} of another bundle, {file.bundle}.", hint=_HINT
        )
    return file


def _path(folder: Path, bundle: str, name: str) -> Path:
    return folder / _checked(bundle) / f"{_checked(name)}.json"


def _checked(part: str) -> str:
    if not re.fullmatch(_NAME, part):
        raise RequestError(f"{part!r} is no name of an artifact.", hint="As 'confidence-2'.")
    return part

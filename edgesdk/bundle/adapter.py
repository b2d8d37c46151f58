"""An adapter: low-rank weights (LoRA; Hu et al., 2021, arXiv:2106.09685) for one bundle.

A folder with `edgesdk-adapter.json`, which names the bundle by its hash, and

    adapter.onnx_adapter   for an ONNX bundle: the weights, as onnxruntime stores adapters
    decoder.onnx           and the bundle's graph with inputs for them; its other weights stay in
                           the bundle's files
    adapter.gguf           for a GGUF bundle: the weights, as llama.cpp reads them

An adapter with another scale or rank has the same graph, so adapters that change the same matrices
run in one session.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgesdk.bundle.manifest import Count, FileEntry, Sha256, parse_versioned
from edgesdk.bundle.opening import hash_file
from edgesdk.errors import AdapterMismatch, BundleError, DamagedBundle

ADAPTER_MANIFEST = "edgesdk-adapter.json"
ADAPTER_FORMAT_VERSION = 1
_MAX_MANIFEST_BYTES = 2**20
_HINT = "Export the adapter again: edgesdk export --adapter PEFT_FOLDER BUNDLE."

AdapterFormat = Literal["onnx", "gguf"]
AdapterRole = Literal["adapter", "decoder"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,95}$")]


class BaseBundle(BaseModel):
    """The bundle that an adapter is for. `sha256` is that of its manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: Sha256


class AdapterManifest(BaseModel):
    """The whole of `edgesdk-adapter.json`.

    Attributes:
        roles: "adapter" has the low-rank weights, "decoder" the graph that takes them.
        rank: the largest of its matrices' ranks.
        targets: the linear layers that it changes, such as "q" or "down", without their layers.
        parameters: how many low-rank weights it has.
        source_sha256: of the PEFT folder's weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    name: Name
    format: AdapterFormat
    base: BaseBundle
    roles: dict[AdapterRole, str]
    rank: Annotated[int, Field(gt=0)]
    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    parameters: Count
    dtype: Literal["float16", "float32"]
    source_sha256: Sha256
    exporter: str
    files: tuple[FileEntry, ...]

    @model_validator(mode="after")
    def _has_its_roles(self) -> AdapterManifest:
        needed = {"adapter", "decoder"} if self.format == "onnx" else {"adapter"}
        if set(self.roles) != needed:
            raise ValueError(f"its roles are not {', '.join(sorted(needed))}")
        if missing := set(self.roles.values()) - {entry.name for entry in self.files}:
            raise ValueError(f"{min(missing)!r} is not among its files")
        return self

    def to_json(self) -> str:
        """Canonical text: the same manifest always gives the same bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Adapter:
    """An opened adapter, whose files were hashed. `sha256` is its manifest's hash, and so stands
    for every file in it."""

    path: Path
    manifest: AdapterManifest
    sha256: str

    @property
    def name(self) -> str:
        """What receipts and servers call it."""
        return self.manifest.name

    @property
    def size(self) -> int:
        """Bytes of its files, the manifest left out."""
        return sum(entry.size for entry in self.manifest.files)

    def role_file(self, role: AdapterRole) -> Path:
        """The path of the file in that role."""
        return self.path / self.manifest.roles[role]

    def file_sha256(self, role: AdapterRole) -> str:
        """The hash of the file in that role."""
        name = self.manifest.roles[role]
        return next(entry.sha256 for entry in self.manifest.files if entry.name == name)

    def identity(self, model: str) -> str:
        """What stands for a model (a hash) with this adapter; saved states, prefix caches and
        artifacts of the model alone, or with another adapter, have another one."""
        return hashlib.sha256(f"{model}+{self.sha256}".encode()).hexdigest()

    def require_base(self, bundle_sha256: str, where: Path) -> None:
        """Refuse any other bundle than the one that it was made for.

        Raises:
            AdapterMismatch: it is another.
        """
        base = self.manifest.base
        if bundle_sha256 != base.sha256:
            raise AdapterMismatch(
                f"The adapter {self.path} is for another bundle than {where}: for {base.name} with"
                f" the hash {base.sha256[:12]}, not {bundle_sha256[:12]}.",
                hint="Export it for this bundle: edgesdk export --adapter PEFT_FOLDER BUNDLE.",
            )


def adapted_name(model: str, adapter: Adapter) -> str:
    """What a model with an adapter is called: "base:adapter"."""
    return f"{model.partition(':')[0]}:{adapter.name}"


def is_adapter(path: Path) -> bool:
    """Whether `path` is a folder with an adapter's manifest."""
    return (path / ADAPTER_MANIFEST).is_file()


def open_adapter(path: Path) -> Adapter:
    """Open the adapter in folder `path`, and hash its files.

    Raises:
        BundleError: there is no adapter there.
        DamagedBundle: the manifest is malformed, or a file is missing or has another hash.
        UnsupportedBundle: the manifest is of another version.
    """
    manifest_path = path / ADAPTER_MANIFEST
    if not manifest_path.is_file():
        raise BundleError(
            f"{path} is not an adapter of edgesdk: it has no {ADAPTER_MANIFEST}.",
            hint="Make one of a PEFT folder: edgesdk export --adapter PEFT_FOLDER BUNDLE.",
        )
    if manifest_path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise DamagedBundle(f"{manifest_path} is larger than a manifest can be.", hint=_HINT)
    text = manifest_path.read_bytes()
    manifest = parse_versioned(
        AdapterManifest,
        ADAPTER_FORMAT_VERSION,
        text,
        where=str(manifest_path),
        of="adapter",
        hint=_HINT,
    )
    for entry in manifest.files:
        file = path / entry.name
        if not file.is_file():
            raise DamagedBundle(f"{file} is missing from the adapter.", hint=_HINT)
        if file.stat().st_size != entry.size or hash_file(file) != entry.sha256:
            raise DamagedBundle(f"{file} is damaged: its hash is another.", hint=_HINT)
    return Adapter(path, manifest, hashlib.sha256(text).hexdigest())

"""Finds and loads the models that a server may use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.registry import footprint
from edgesdk.errors import InvalidOption
from edgesdk.loading import find, load
from edgesdk.model import Model
from edgesdk.store import Store, StoreEntry
from edgesdk.store.reference import is_model_name


@dataclass(frozen=True)
class ModelInfo:
    """A model that can be loaded.

    Attributes:
        size: bytes of its files.
        created: when its files were written, in seconds since 1970.
    """

    name: str
    size: int
    created: int


class ModelSource(Protocol):
    """Finds models by name. Several threads call it."""

    def list_models(self) -> list[ModelInfo]:
        """All models, by name."""

    def find(self, name: str) -> ModelInfo | None:
        """The model of that name, if there is one."""

    def memory(self, name: str) -> int:
        """The bytes that a loaded model needs when one conversation fills its context.

        They count the weights in the engine's own layout, the engine itself, the KV cache and
        scratch memory; see `edgesdk.system.plan`.

        Raises:
            EdgeError: the model cannot be opened.
        """

    def load(self, name: str) -> Model:
        """Load a model; raises as `edgesdk.load` does."""


class StoreModels:
    """Implements `ModelSource` with the store's runnable models and those named at the start.

    Args:
        named: bundle folders, `.gguf` files or names, as `edgesdk.load` takes them. They come
            before models of the store that have the same name.
        device, context, threads: as for `edgesdk.load`.

    Raises:
        InvalidOption: two of `named` have the same name.
        UnknownModel, BundleError: one of them cannot be found or opened.
    """

    def __init__(
        self,
        named: Sequence[str] = (),
        *,
        store: Store | None = None,
        device: str = "auto",
        context: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._store = store or Store()
        self._device = device
        self._context = context
        self._threads = threads
        self._named: dict[str, tuple[str | Path, ModelInfo]] = {}
        for what in named:
            info = _source_info(find(what))
            if info.name in self._named:
                raise InvalidOption(
                    f"Two models are called {info.name!r}.", hint="Serve one of them elsewhere."
                )
            self._named[info.name] = (what, info)

    def list_models(self) -> list[ModelInfo]:
        stored = (_stored_info(entry) for entry in self._store.list())
        found = {info.name: info for info in stored if info is not None}
        found |= {name: info for name, (_, info) in self._named.items()}
        return sorted(found.values(), key=lambda info: info.name)

    def find(self, name: str) -> ModelInfo | None:
        if name in self._named:
            return self._named[name][1]
        entry = self._store.find(name) if is_model_name(name) else None
        return None if entry is None else _stored_info(entry)

    def memory(self, name: str) -> int:
        source = find(self._place(name))
        found = footprint(source, self._device)
        need = found.need(min(self._context or found.context_length, found.context_length))
        # The server's own process is there whichever model it loads.
        return need.total - need.process

    def load(self, name: str) -> Model:
        what = self._place(name)
        return load(what, device=self._device, context=self._context, threads=self._threads)

    def _place(self, name: str) -> str | Path:
        return self._named[name][0] if name in self._named else self._store.get(name).path


def _stored_info(entry: StoreEntry) -> ModelInfo | None:
    """None where the model is damaged, or is a checkpoint that must be exported first."""
    runnable = entry.kind == "bundle" or entry.path.suffix.lower() == ".gguf"
    if entry.problem is not None or not runnable:
        return None
    return ModelInfo(entry.name, entry.size, int(entry.path.stat().st_mtime))


def _source_info(source: Bundle | Path) -> ModelInfo:
    if isinstance(source, Bundle):
        written = source.role_file("decoder").stat()
        return ModelInfo(source.manifest.name, source.size, int(written.st_mtime))
    return ModelInfo(source.stem, source.stat().st_size, int(source.stat().st_mtime))

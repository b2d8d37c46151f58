"""Serves models with adapters beside the models themselves, as `base:adapter`."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgesdk.bundle.adapter import Adapter, adapted_name, open_adapter
from edgesdk.bundle.opening import Bundle
from edgesdk.errors import AdapterMismatch, EngineError, InvalidOption
from edgesdk.loading import find
from edgesdk.model import Model
from edgesdk.server.model_pool import StoreModels
from edgesdk.server.model_source import AnyModel, ModelInfo


class AdaptedModels:
    """Implements `ModelSource` with the models of another one, and adapters of these.

    Where a model is loaded, alone or with another adapter, an adapter joins it; what they share is
    freed with the last of them.

    Args:
        adapters: folders that `edgesdk export --adapter` wrote.

    Raises:
        AdapterMismatch: the bundle that an adapter is for is not among the models.
        BundleError: a folder is no adapter, or is damaged.
        InvalidOption: two of them have the same name.
    """

    def __init__(self, models: StoreModels, adapters: Sequence[str | Path]) -> None:
        self._models = models
        self._adapted: dict[str, tuple[str, Adapter, ModelInfo]] = {}
        self._loaded: dict[str, weakref.WeakSet[Model]] = {}
        for folder in adapters:
            adapter = open_adapter(Path(folder))
            base = adapter.manifest.base.name
            info = models.find(base)
            source = None if info is None else find(models.place(base))
            if info is None or not isinstance(source, Bundle):
                raise AdapterMismatch(
                    f"The adapter {folder} is for {base}, which this server does not have.",
                    hint="Name the bundle's folder among the models.",
                )
            adapter.require_base(source.sha256, source.path)
            name = adapted_name(base, adapter)
            if name in self._adapted:
                raise InvalidOption(
                    f"Two adapters are called {name!r}.", hint="Export one under another --name."
                )
            served = replace(info, name=name, size=info.size + adapter.size)
            self._adapted[name] = (base, adapter, served)

    def list_models(self) -> list[ModelInfo]:
        found = [*self._models.list_models(), *(info for _, _, info in self._adapted.values())]
        return sorted(found, key=lambda info: info.name)

    def find(self, name: str) -> ModelInfo | None:
        return self._adapted[name][2] if name in self._adapted else self._models.find(name)

    def memory(self, name: str) -> int:
        """As if nobody shared the model."""
        if name not in self._adapted:
            return self._models.memory(name)
        base, adapter, _ = self._adapted[name]
        return self._models.memory(base) + adapter.size

    def load(self, name: str) -> AnyModel:
        base, adapter, _ = self._adapted.get(name, (name, None, None))
        model = None if adapter is None else self._joined(base, adapter)
        if model is None:
            found = self._models.load(base, None if adapter is None else adapter.path)
            if not isinstance(found, Model):
                return found
            model = found
        self._loaded.setdefault(base, weakref.WeakSet()).add(model)
        return model

    def _joined(self, base: str, adapter: Adapter) -> Model | None:
        """A loaded model with the adapter; None where none is loaded."""
        for model in list(self._loaded.get(base, ())):
            try:
                return model.with_adapter(adapter.path)
            except EngineError:
                # It was closed, or cannot; loading says better what is wrong.
                continue
        return None

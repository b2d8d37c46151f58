"""Models that a server can load, and the names that clients have for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from edgesdk.embedding.embedder import Embedder
from edgesdk.embedding.reranker import Reranker
from edgesdk.model import Model
from edgesdk.server.api_errors import ApiError, unknown_model

_LATEST = ":latest"
AnyModel: TypeAlias = Model | Embedder | Reranker


@dataclass(frozen=True)
class ModelInfo:
    """A model that can be loaded.

    Attributes:
        size: bytes of its files.
        created: when its files were written, in seconds since 1970.
        context_length: tokens that fit, if that is known.
        capabilities: what it can do.
        named: whether it was named when the server started.
    """

    name: str
    size: int
    created: int
    context_length: int | None = None
    capabilities: tuple[str, ...] = ("completion", "chat")
    named: bool = False


class ModelSource(Protocol):
    """Finds models by name. Several threads call it."""

    def list_models(self) -> list[ModelInfo]:
        """All models, by name."""

    def find(self, name: str) -> ModelInfo | None:
        """The model of that name, if there is one."""

    def memory(self, name: str) -> int:
        """The bytes that a loaded model needs when its conversations fill their contexts.

        They count the weights in the engine's own layout, the engine itself, the KV caches and
        scratch memory; see `edgesdk.system.plan`.

        Raises:
            EdgeError: the model cannot be opened.
        """

    def load(self, name: str) -> AnyModel:
        """Load a model; raises as `edgesdk.load` does."""


def find_model(source: ModelSource, name: str) -> ModelInfo:
    """The model that a client means.

    Letter case and Ollama's ":latest" do not matter. Without a name, it is the only one that was
    named when the server started, or the only one there is.

    Raises:
        ApiError: there is no such model (404), or no name where there are several (400).
    """
    if not name:
        models = source.list_models()
        only = [info for info in models if info.named] or models
        if len(only) != 1:
            known = ", ".join(info.name for info in models)
            raise ApiError(
                400,
                f"The parameter 'model' is missing. There are: {known}.",
                param="model",
                code="missing_required_parameter",
            )
        return only[0]
    short = name.removesuffix(_LATEST)
    found = source.find(name) or source.find(short)
    if found is None:
        models = source.list_models()
        found = next((info for info in models if info.name.lower() == short.lower()), None)
    if found is None:
        raise unknown_model(name)
    return found

"""The seam between writing a model and deciding what its layers' codes are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from edgesdk_quantize.formats import Packed


class LayerQuantizer(Protocol):
    """Quantizes the linear layers of a decoder, one decoder layer after another."""

    @property
    def method(self) -> str:
        """How, in words for the manifest."""

    @property
    def formats(self) -> str:
        """Names of the formats that it uses, joined by "+", for the manifest."""

    def layer(self, index: int) -> Mapping[str, Packed]:
        """Every stored matrix of layer `index` ("layers.{index}.qkv", ...), packed.

        Each may be in a format of its own. Called once for each layer, in order; not for layers
        that an earlier process finished.

        Raises:
            ExportError: a weight is NaN or infinite.
        """

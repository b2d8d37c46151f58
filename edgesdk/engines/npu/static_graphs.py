"""The seam between runtimes that execute graphs of fixed shapes and the state that feeds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

GraphName = Literal["prefill", "decode"]
Array = npt.NDArray[np.generic]
# Runs a graph over the arrays that it was bound to.
BoundGraph = Callable[[], Any]


class StaticGraphs(Protocol):
    """The two graphs of a bundle, opened on a device; see `edgesdk.bundle.static_io`."""

    def bind(
        self, graph: GraphName, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> BoundGraph:
        """Give what runs a graph over the caller's arrays.

        Each call of the result reads all of `inputs` and writes all of `outputs`, in place. The
        arrays are contiguous, have the types and shapes of `edgesdk.bundle.static_io`, and live as
        long as the result. Results of one graph may run on several threads at once.

        Raises:
            EngineError: the graph cannot be bound. The result raises any exception where the
                runtime fails.
        """

    def close(self) -> None:
        """Free the graphs; nothing that is bound runs afterwards."""

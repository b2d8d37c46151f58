"""Compiles the graphs of a bundle with a provider of onnxruntime, each as a whole or not at all.

A compiled graph is an ONNX file with one node, `EPContext`, and what was compiled in a file beside
it (https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html).
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import onnxruntime as ort

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import LoadSettings
from edgesdk.engines.devices import CompileTarget, DeviceRecord
from edgesdk.engines.npu.compile_cache import CompileKey, CompileProgress
from edgesdk.engines.npu.context_model import read_context_model
from edgesdk.engines.npu.static_graphs import GraphName
from edgesdk.engines.onnx.providers import device_for, session_options
from edgesdk.errors import EngineError, InvalidOption

_CONTEXT_NODE = "EPContext"
_COMPATIBILITY = "ep_compatibility_info."
# Where no target is named, the provider finds out what it runs on.
_THIS_DEVICE = "this device"


def graph_file(graph: GraphName) -> str:
    """The name of a compiled graph in the folder of a compilation."""
    return f"{graph}.onnx"


def chosen_target(
    record: DeviceRecord, settings: LoadSettings, *, simulated: bool
) -> CompileTarget | None:
    """The target that the options name; else the first where it is simulated, which has no
    processor of its own; else None: hardware knows itself.

    Raises:
        InvalidOption: there is no such processor.
    """
    telling = {name for target in record.compile_targets for name, _ in target.options}
    given = {name: str(value) for name, value in settings.options.items() if name in telling}
    if not given:
        return record.compile_targets[0] if simulated and record.compile_targets else None
    for target in record.compile_targets:
        if given.items() <= dict(target.options).items():
            return target
    named = ", ".join(f"{name}={value}" for name, value in given.items())
    raise InvalidOption(
        f"{record.name} knows no processor with {named}.",
        hint=f"It has: {', '.join(target.line() for target in record.compile_targets)}.",
    )


def with_target(settings: LoadSettings, target: CompileTarget | None) -> LoadSettings:
    """The settings with the provider options that choose the target."""
    chosen = {} if target is None else dict(target.options)
    return replace(settings, options={**settings.options, **chosen})


@dataclass(frozen=True)
class OnnxCompiler:
    """Implements `edgesdk.engines.npu.compile_cache.Compiler`.

    Attributes:
        target: the processor to compile for; None for the one that is here.
    """

    bundle: Bundle
    record: DeviceRecord
    target: CompileTarget | None
    settings: LoadSettings

    @property
    def key(self) -> CompileKey:
        assert self.record.package is not None, "what compiles is a package"
        version = self.record.version or importlib.metadata.version(self.record.package)
        static = self.bundle.manifest.static
        return CompileKey(
            model=self.bundle.sha256,
            provider=self.record.name,
            versions=(
                f"onnxruntime {ort.__version__}",
                f"{self.record.package} {version}",
            ),
            platform=_THIS_DEVICE if self.target is None else self.target.name,
            options=tuple(f"{name}={value}" for name, value in sorted(self._options().items())),
            shapes="" if static is None else static.model_dump_json(),
        )

    def write(self, folder: Path, progress: CompileProgress) -> str:
        graphs = get_args(GraphName)
        said: set[str] = set()
        for done, graph in enumerate(graphs):
            progress(done, len(graphs))
            said.add(self._compile(self.bundle.role_file(graph), folder / graph_file(graph)))
        progress(len(graphs), len(graphs))
        return ", ".join(sorted(said))

    def _options(self) -> Mapping[str, str]:
        given = with_target(self.settings, self.target).options
        options = dict(self.record.session_options)
        return options | {name: str(value) for name, value in given.items()}

    def _compile(self, source: Path, destination: Path) -> str:
        # Refused at once where a node is left over.
        strict = {"session.disable_cpu_ep_fallback": "1"}
        options = session_options(self.settings, strict)
        device = device_for(self.record, self.settings.requested_device)
        options.add_provider_for_devices([device], self._options())
        try:
            compiler: Any = ort.ModelCompiler(
                options,
                str(source),
                embed_compiled_data_into_model=False,
                # Else it writes the graph as it was, where nothing was compiled.
                flags=int(ort.OrtCompileApiFlags.ERROR_IF_NO_NODES_COMPILED),
            )
            compiler.compile_to_file(str(destination))
        # onnxruntime's exceptions have no common base.
        except Exception as error:
            raise EngineError(
                f"{self.record.name} cannot compile {source} as a whole{self._for()}: {error}",
                hint=f"Export the model with --target {self.record.device}.",
            ) from error
        found = read_context_model(destination.read_bytes())
        others = Counter(operator for operator, _ in found.nodes if operator != _CONTEXT_NODE)
        if others:
            parts = ", ".join(f"{count} {name}" for name, count in others.items())
            raise EngineError(
                f"{self.record.name} does not compile {source} as a whole{self._for()}: it leaves"
                f" {parts}.",
                hint=f"Export the model with --target {self.record.device}.",
            )
        if len(found.nodes) > 1 and not self.settings.allow_fallback:
            names = ", ".join(name for _, name in found.nodes)
            raise EngineError(
                f"{self.record.name} compiles {source}{self._for()} into {len(found.nodes)}"
                f" partitions ({names}), and not as a whole.",
                hint=f"Export the model with --target {self.record.device}, or pass"
                " allow_fallback=True to run it in partitions.",
            )
        return found.metadata.get(f"{_COMPATIBILITY}{self.record.provider}", "")

    def _for(self) -> str:
        return "" if self.target is None else f" for {self.target.line()}"

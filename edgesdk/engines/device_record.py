"""The record of a provider: all that edgesdk knows of it. `edgesdk.engines.devices` lists them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

from edgesdk.bundle.manifest import BundleFormat

Kind = Literal["cpu", "gpu", "npu"]
# How far a provider works on this machine, the least first:
# not installed  its package is absent
# broken         its package is there, and does not load, crashes, or hangs
# no device      it loads, and lists no device of its own here
# virtual        it compiles for a device that is not here, and runs nothing
# software       it runs without its hardware: a simulator, or on the CPU. Right, never fast.
# ready          it runs on its hardware
State = Literal["not installed", "broken", "no device", "virtual", "software", "ready"]

# What a support rests on: it ran on its hardware, in a simulator of it, or in software in its
# place; or what its files say was computed by an interpreter of edgesdk's; or only recorded answers
# of its package were tested; or nothing was run.
Proof = Literal["hardware", "simulator", "software", "interpreted", "recorded", "not run"]


@dataclass(frozen=True)
class DeviceOption:
    """One option of a provider.

    Attributes:
        kind: the type of its value.
        choices: all allowed values; empty where any value of the type is.
    """

    name: str
    kind: type
    choices: tuple[object, ...] = ()


@dataclass(frozen=True)
class GraphSupport:
    """One variant of graph that a provider runs.

    Attributes:
        graph: the variant; bundles for all devices whose records have it run there.
        format: of the bundles that have such a graph.
        opener: "module:function" that loads a model; see `edgesdk.engines.registry.EngineOpener`.
        footprint: "module:function" that says what memory a model takes.
        proof: what the support rests on.
        tests: the files of tests that show it.
        kinds: those of the record's kinds that run it; empty for all.
        joiner: "module:function" that makes one engine of two that such openers gave: the first
            computes prompts, the second answers. Empty where their KV caches cannot go over.
        encoder: "module:function" that loads an encoder; see
            `edgesdk.engines.registry.EncoderOpener`. Empty where it runs none.
    """

    graph: str
    format: BundleFormat
    opener: str
    footprint: str
    proof: Proof
    tests: tuple[str, ...]
    kinds: tuple[Kind, ...] = ()
    joiner: str = ""
    encoder: str = ""


@dataclass(frozen=True)
class CompileTarget:
    """A processor that a provider compiles models for, also where it is not here.

    Attributes:
        name: what `edgesdk compile --platform` calls it.
        title: what it is sold as.
        options: the provider options that choose it, by name.
    """

    name: str
    title: str
    options: tuple[tuple[str, str], ...]

    def line(self) -> str:
        """Both names: "60 (Snapdragon X Elite)"."""
        return f"{self.name} ({self.title})"


@dataclass(frozen=True)
class DeviceRecord:
    """One provider. Those without `runs` can be found, and run nothing yet.

    Attributes:
        name: what `edgesdk doctor` calls it.
        device: the device that it runs on, as callers name it and as a bundle's `target` says.
        kind: what sort of processor that is.
        also: further kinds that it can drive, the best first.
        package: the distribution that has it; None where no package index has one.
        version: of the provider, where it does not come with its package.
        module: the module whose absence means that the package is absent; None where edgesdk
            needs the package anyway.
        extra: the extra of edgesdk that installs the package; None where there is none.
        probe: "module:function" that finds out how far it works here, of this record.
        isolated: whether it is probed in a process of its own, because a driver may crash.
        platforms: values of `sys.platform` where its hardware can be; empty for all.
        device_files: of which Linux has one where a driver found its hardware; empty where that is
            not known. Where the CPU may run a model, too, it is not even probed without one.
        provider: onnxruntime's name of it; None where another library runs the model.
        library: "module:function" that gives the path of the plugin library to register with
            onnxruntime; None where it is built in.
        where: the machines that have such a device, in words.
        runs: the variants of graph that it runs, first the one that an exporter writes for it.
        kv_type: numbers in the KV cache.
        concurrency: how many calls of `extend` are best under way at once.
        options: the options that `edgesdk.load` takes for it.
        session_options: provider options that its sessions always have, by name.
        accuracy_level: what `MatMulNBits` may round its inputs to, as onnxruntime counts: 1 keeps
            float32, 4 rounds to 8 bits. None takes what the graph says.
        compiler: "module:function" that makes what compiles a bundle for a target, from bundle,
            record, target and `LoadSettings`; see `edgesdk.engines.npu.compile_cache.Compiler`.
            Empty where models are loaded as they are.
        compile_targets: the processors that it compiles for, first the one that is simulated
            where none is here.
        proof: what the support of its discovery rests on.
        tests: the files of tests that show that.
    """

    name: str
    device: str
    kind: Kind
    package: str | None
    probe: str
    where: str
    also: tuple[Kind, ...] = ()
    version: str = ""
    module: str | None = None
    extra: str | None = None
    isolated: bool = True
    platforms: tuple[str, ...] = ()
    device_files: tuple[str, ...] = ()
    provider: str | None = None
    library: str | None = None
    runs: tuple[GraphSupport, ...] = ()
    kv_type: Literal["float32", "float16"] = "float32"
    concurrency: int = 1
    options: tuple[DeviceOption, ...] = ()
    session_options: tuple[tuple[str, str], ...] = ()
    accuracy_level: int | None = None
    compiler: str = ""
    compile_targets: tuple[CompileTarget, ...] = ()
    proof: Proof = "recorded"
    tests: tuple[str, ...] = ("tests/unit/test_probes.py",)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """All kinds of processors that it can drive, the best first."""
        return (self.kind, *self.also)


def imported(place: str) -> object:
    """What "module:function" in a record means; the module is imported."""
    module, _, function = place.partition(":")
    found: object = getattr(importlib.import_module(module), function)
    return found


@dataclass(frozen=True)
class DeviceProbe:
    """What was found out about a provider on this device.

    Attributes:
        found: the version and the devices, or what is wrong.
        advice: what to do; None where nothing is to be done.
        kinds: of the processors that it found, where the record has several.
    """

    state: State
    found: str
    advice: str | None = None
    kinds: tuple[Kind, ...] = ()

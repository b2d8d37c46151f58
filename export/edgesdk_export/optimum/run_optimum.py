"""Run optimum over a local checkpoint folder, as a subprocess without network.

transformers 5 keeps everything about rope in `rope_parameters`; 4.57, which optimum needs, does not
know that field and falls back to a theta of 10,000 without a word. So the configuration that it is
given has both spellings.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesdk.errors import ConfigMismatch, DamagedCheckpoint, ExportError
from edgesdk_export.checkpoint.checkpoint import read_json
from edgesdk_export.failure_cause import cause_of
from edgesdk_export.optimum import driver

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class RawExport:
    """The export that optimum made of a checkpoint, and logits of torch to compare it with.

    Attributes:
        model_path: the unfused float32 ONNX decoder, past and present grown by concatenation.
        heads: query heads.
        probe_ids: int64 [n] token ids.
        probe_logits: float32 [n, vocab], torch's logits for them.
        versions: of optimum and of what it ran on.
    """

    model_path: Path
    architecture: str
    hidden_size: int
    heads: int
    context_length: int
    parameters: int
    probe_ids: npt.NDArray[np.int64]
    probe_logits: npt.NDArray[np.float32]
    versions: dict[str, str]


def run_optimum(python: Path, checkpoint: Path, work: Path) -> RawExport:
    """Export the checkpoint in the folder `checkpoint` to plain ONNX inside the folder `work`.

    Args:
        python: the executable of optimum's environment.
        checkpoint: has config.json and safetensors; code in it is never run.

    Raises:
        DamagedCheckpoint: there is no config.json, or it is not JSON.
        ConfigMismatch: the configuration cannot be said in the older transformers' terms.
        ExportError: optimum failed; the message has the cause that it gave.
    """
    config = _read_config(checkpoint / "config.json")
    staged, raw = work / "checkpoint", work / "raw"
    staged.mkdir()
    raw.mkdir()
    text = json.dumps(with_older_fields(config), indent=2)
    (staged / "config.json").write_text(text, encoding="utf-8")
    for pattern in _WEIGHTS:
        for path in checkpoint.glob(pattern):
            _link(path.resolve(), staged / path.name)

    theta = expected_rope_theta(config)
    ran = subprocess.run(
        [str(python), driver.__file__, str(staged), str(raw), "-" if theta is None else str(theta)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=_isolated_environment(),
        cwd=work,
    )
    if ran.returncode or not (raw / "model.onnx").exists():
        raise ExportError(
            f"optimum could not export {checkpoint}: {cause_of(ran.stderr)}.",
            hint="optimum does not know every architecture; its message says what it misses.",
        )
    return _read_back(raw, checkpoint)


def _read_back(raw: Path, checkpoint: Path) -> RawExport:
    facts = json.loads((raw / "facts.json").read_text(encoding="utf-8"))
    if not facts["context_length"]:
        raise ExportError(
            f"{checkpoint / 'config.json'} has no max_position_embeddings.",
            hint="Add it: an engine must know how many tokens the model can hold.",
        )
    with np.load(raw / "probe.npz") as probe:
        ids, logits = probe["ids"].astype(np.int64), probe["logits"].astype(np.float32)
    return RawExport(model_path=raw / "model.onnx", probe_ids=ids, probe_logits=logits, **facts)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DamagedCheckpoint(
            f"{path.parent} has no config.json.",
            hint="--via optimum needs a checkpoint folder as transformers saves it.",
        )
    return read_json(path)


def _isolated_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONWARNINGS": "ignore",
    }


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


Config = dict[str, Any]


def with_older_fields(config: Config) -> Config:
    """A copy of `config` that has 4.57's rope fields as well.

    Raises:
        ConfigMismatch: rope differs by layer type, which 4.57 has no common spelling for.
    """
    result = dict(config)
    rope = config.get("rope_parameters")
    if rope is None:
        return result
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ConfigMismatch(
            "config.json has one rope per layer type (rope_parameters), which the transformers"
            " version that optimum needs cannot read.",
            hint="This architecture cannot be exported through optimum.",
        )
    named = dict(rope)
    theta = named.pop("rope_theta", None)
    if theta is not None:
        # gpt_neox and its relatives call it rotary_emb_base.
        result["rope_theta"] = result["rotary_emb_base"] = theta
    partial = named.pop("partial_rotary_factor", None)
    if partial is not None:
        result["partial_rotary_factor"] = result["rotary_pct"] = partial
    kind = named.get("rope_type", "default")
    result["rope_scaling"] = None if kind == "default" else named
    return result


def expected_rope_theta(config: Config) -> float | None:
    """Theta of a plain rope, None where there is no rope or its frequencies are stretched."""
    rope = config.get("rope_parameters") or {}
    stretched = config.get("rope_scaling") or rope.get("rope_type", "default") != "default"
    theta = rope.get("rope_theta", config.get("rotary_emb_base", config.get("rope_theta")))
    return None if stretched or theta is None else float(theta)

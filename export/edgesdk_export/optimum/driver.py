"""Runs inside optimum's environment, as a script: checkpoint folder -> model.onnx and what torch
says.

It must not import edgesdk, which is not installed there. Its modules are imported by name because
the environment that checks edgesdk's own types has other versions of them.

    python driver.py CHECKPOINT OUT ROPE_THETA|-

OUT gets `model.onnx` (+ data), `facts.json`, and `probe.npz`: token ids [n] and torch's float32
logits [n, vocab] for them.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

PROBE_TOKENS = 24


def main(checkpoint: Path, out: Path, rope_theta: float | None) -> None:
    torch = importlib.import_module("torch")
    numpy = importlib.import_module("numpy")
    transformers = importlib.import_module("transformers")
    convert = importlib.import_module("optimum.exporters.onnx.convert")

    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    for kind in ("missing_keys", "mismatched_keys"):
        if loading[kind]:
            some = ", ".join(str(key) for key in sorted(loading[kind], key=str)[:3])
            raise SystemExit(f"{len(loading[kind])} {kind.replace('_', ' ')}, such as {some}")
    model.eval()
    if getattr(model.config, "attn_logit_softcapping", None):
        raise SystemExit("this transformers drops soft caps on attention scores when it exports")
    _check_rope(model, rope_theta)

    config = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (1, PROBE_TOKENS), generator=generator)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    numpy.savez(out / "probe.npz", ids=ids[0].numpy(), logits=logits.float().numpy())
    facts = {
        "architecture": (config.architectures or [type(model).__name__])[0],
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "context_length": _context_length(config),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": {
            name: importlib.import_module("importlib.metadata").version(name)
            for name in ("optimum", "optimum-onnx", "transformers", "torch")
        },
    }
    (out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    convert.onnx_export_from_model(
        model, out, task="text-generation-with-past", do_validation=False, no_post_process=True
    )


def _context_length(config: Any) -> int | None:
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    return next((getattr(config, name) for name in names if getattr(config, name, None)), None)


def _check_rope(model: Any, theta: float | None) -> None:
    """Stop if this transformers read another rope theta than the checkpoint names."""
    if theta is None:
        return
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and len(buffer) > 1:
            read = float(buffer[1]) ** -len(buffer)
            if abs(read - theta) > 1e-3 * theta:
                raise SystemExit(f"{name} was made with theta {read:.0f}, not {theta:.0f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), None if sys.argv[3] == "-" else float(sys.argv[3]))

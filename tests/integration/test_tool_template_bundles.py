"""A template of its own for prompts with tools comes through an export, in both formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from support.tiny_models import make_tiny
from transformers import AutoTokenizer

from edgesdk.bundle.manifest import BundleFormat
from edgesdk.bundle.opening import verify_bundle
from edgesdk.loading import load

pytestmark = pytest.mark.integration

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_prompts_with_tools_use_their_template(tmp_path: Path, form: BundleFormat) -> None:
    source = tmp_path / "source"
    make_tiny("qwen2", source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    plain = settings["chat_template"]
    settings["pad_token"] = "<extra0>"
    settings["chat_template"] = [
        {"name": "default", "template": plain},
        {"name": "tool_use", "template": "{{ tools | tojson }}{{ pad_token }}" + plain},
    ]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    scheme = "fp32" if form == "onnx" else "f32"
    job = ExportJob(source, tmp_path / "bundle", "tiny", form, scheme=scheme, quality_tokens=0)

    bundle = export(job, SilentProgress())

    verify_bundle(bundle)
    theirs = AutoTokenizer.from_pretrained(source)
    messages = [{"role": "user", "content": "Hi"}]
    places = [bundle.path, bundle.role_file("decoder")] if form == "gguf" else [bundle.path]
    for place in places:
        with load(place) as model:
            for tools in ([], TOOLS):
                expected = theirs.apply_chat_template(
                    messages, tools=tools or None, add_generation_prompt=True, return_dict=False
                )
                ids = model.runtime.encode(messages, tools)
                assert ids == expected, (place, tools)
                assert model.runtime.tool_format.tools

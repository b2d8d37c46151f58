"""What goes into a `.litertlm`, read back with LiteRT-LM's own tools.

That LiteRT-LM itself answers from such a file was seen by hand; see docs/explanation/devices.md.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner
from edgesdk_export.litert.package import write_litertlm
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from google.protobuf import text_format
from litert_lm_builder import litertlm_builder
from litert_lm_builder.runtime.proto import llm_metadata_pb2
from support.tiny_models import make_tiny

from edgesdk.bundle.opening import Bundle
from edgesdk.cli.package import command
from edgesdk.errors import RequestError

pytestmark = pytest.mark.integration


def exported(folder: Path, target: str) -> Bundle:
    make_tiny("llama", folder / "checkpoint")
    job = ExportJob(
        folder / "checkpoint",
        folder / target,
        "tiny",
        format="litert" if target == "litert" else "onnx",
        target=target,
        scheme="int8",
        quality_tokens=0,
    )
    return export(job, SilentProgress())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(tmp_path_factory.mktemp("tiny"), "litert")


def test_all_parts_come_out_as_they_went_in(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "tiny.litertlm"
    write_litertlm(bundle, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.litertlm"]
    litertlm_builder.unpack(str(path), str(tmp_path))
    (graph,) = tmp_path.glob("*.tflite")
    assert graph.read_bytes() == bundle.role_file("decoder").read_bytes()
    tokenizer = bundle.manifest.tokenizer
    (packed,) = tmp_path.glob("*.zlib")
    # Eight bytes of length come first.
    assert zlib.decompress(packed.read_bytes()[8:]) == bundle.file(tokenizer.file).read_bytes()
    metadata = llm_metadata_pb2.LlmMetadata()
    (stored,) = tmp_path.glob("*.pbtext")
    text_format.Parse(stored.read_text(encoding="utf-8"), metadata)
    assert metadata.max_num_tokens == bundle.manifest.shape.context_length
    ends = [list(stop.token_ids.ids) for stop in metadata.stop_tokens]
    assert ends == [[end] for end in tokenizer.eos_token_ids]
    assert tokenizer.chat_template is not None
    assert metadata.jinja_prompt_template == bundle.text(tokenizer.chat_template)
    assert not metadata.HasField("start_token")


def test_the_command_line_packs_a_bundle_once(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "tiny.litertlm"
    done = CliRunner().invoke(command, [str(bundle.path), "--output", str(path)])
    assert done.exit_code == 0, done.output
    assert str(path.stat().st_size)[:3] in done.output.replace(".", "")
    again = CliRunner().invoke(command, [str(bundle.path), "--output", str(path)])
    assert isinstance(again.exception, RequestError)
    assert "exists already" in str(again.exception)
    other = CliRunner().invoke(command, [str(bundle.path), "--output", str(tmp_path / "x.zip")])
    assert "does not end in .litertlm" in str(other.exception)


def test_a_bundle_of_another_target(tmp_path: Path) -> None:
    other = exported(tmp_path, "cpu")
    with pytest.raises(RequestError, match="is a bundle for 'cpu', which LiteRT-LM does not run"):
        write_litertlm(other, tmp_path / "tiny.litertlm")
    assert not (tmp_path / "tiny.litertlm").exists()

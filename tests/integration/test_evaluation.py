"""lm-evaluation-harness on an fp32 bundle, against its own model for transformers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from edgesdk_export.pipeline import ExportJob, export
from edgesdk_export.progress import SilentProgress
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from support.command_line import edgesdk as run_edgesdk
from support.tiny_models import make_tiny

from edgesdk.errors import UnsupportedBundle
from edgesdk.evaluation import HarnessModel, evaluate, register

pytestmark = pytest.mark.integration

TEXTS = ["The cat sat", "a b c d", "x" * 40, "Zwölf Boxkämpfer", "1 + 1 = 2"]
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["yes", "no", "perhaps"]
doc_to_target: answer
metric_list: [{metric: acc}]
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny("llama", folder)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    where = tmp_path_factory.mktemp("bundle") / "b"
    job = ExportJob(checkpoint, where, "tiny", scheme="fp32", quality_tokens=0)
    return export(job, SilentProgress()).path


@pytest.fixture(scope="module")
def ours(bundle):
    return HarnessModel(str(bundle), threads=1)


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return HFLM(pretrained=str(checkpoint), device="cpu", batch_size=1, dtype="float32")


def requests(kind, arguments):
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def test_log_likelihoods_of_continuations(ours, theirs):
    pairs = [(a, b) for a in ["", *TEXTS] for b in (" sat", " no", "xyz")]
    asked = requests("loglikelihood", pairs)
    for one, other in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-3)
        assert one[1] == other[1]


def test_log_likelihoods_of_texts_longer_than_the_context(ours, theirs):
    asked = requests("loglikelihood_rolling", [(text,) for text in (*TEXTS, "long " * 120)])
    one, other = ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked)
    assert one == pytest.approx(other, abs=2e-2, rel=1e-5)


@pytest.mark.parametrize("until", [["\n"], ["a", "e"], []])
def test_greedy_answers(until, ours, theirs):
    settings = {"until": until, "max_gen_toks": 12, "do_sample": False}
    asked = requests("generate_until", [(text, settings) for text in TEXTS])
    # Where the last token ends within a character, transformers writes a replacement for it.
    expected = [text.rstrip("\ufffd") for text in theirs.generate_until(asked)]
    assert [text.rstrip("\ufffd") for text in ours.generate_until(asked)] == expected


def test_prompts_of_the_chat_template(ours, theirs):
    history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
    for more in (True, False):
        assert ours.apply_chat_template(history, more) == theirs.apply_chat_template(history, more)
    text = ours.apply_chat_template(history)
    assert ours.tok_encode(text) == theirs.tok_encode(text)


@pytest.fixture
def task(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [{"question": f"Is {i} odd?", "answer": i % 3} for i in range(12)]
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    (folder / "tiny_choice.yaml").write_text(TASK.replace("DATA", str(data)))
    return folder


def test_a_task_of_ones_own_gives_what_transformers_gives(bundle, task, theirs):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = evaluate(str(bundle), ["tiny_choice"], include_path=task, threads=1)
    expected = simple_evaluate(
        model=theirs,
        tasks=["tiny_choice"],
        task_manager=TaskManager(include_path=str(task)),
        bootstrap_iters=1000,
    )["results"]
    assert found["tiny_choice"]["acc,none"] == expected["tiny_choice"]["acc,none"]
    limited = evaluate(str(bundle), ["tiny_choice"], include_path=task, threads=1, limit=3)
    assert limited["tiny_choice"]["acc,none"] in (0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)


def test_the_command_prints_a_table(bundle, task):
    done = run_edgesdk("eval", str(bundle), "tiny_choice", "--include", str(task), "--limit", "4")
    assert done.returncode == 0, done.stderr
    assert b"tiny_choice" in done.stdout
    assert b"acc" in done.stdout


@pytest.mark.nightly
def test_the_harness_own_command_line_knows_the_model(bundle, task):
    command = [sys.executable, "-m", "edgesdk.evaluation", "run", "--model", "edgesdk"]
    command += ["--model_args", f"bundle={bundle},threads=1", "--tasks", "tiny_choice"]
    command += ["--include_path", str(task), "--limit", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "|tiny_choice|" in done.stdout


def test_a_model_without_a_template_says_so(ours, monkeypatch):
    import dataclasses

    bare = dataclasses.replace(ours._encoder, template=None)
    monkeypatch.setattr(ours, "_encoder", bare)
    with pytest.raises(UnsupportedBundle, match="has no chat template"):
        ours.apply_chat_template([{"role": "user", "content": "x"}])


def test_registering_twice_is_fine():
    register()
    register()

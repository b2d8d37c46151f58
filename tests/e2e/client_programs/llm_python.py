"""Simon Willison's llm: its command line with a model of extra-openai-models.yaml."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    entry = {"model_id": "mine", "api_base": sys.argv[1]}
    models = [
        {**entry, "model_name": "small"},
        {**entry, "model_id": "agent", "model_name": "agent", "supports_schema": True,
         "supports_tools": True},
    ]  # fmt: skip
    # YAML reads JSON.
    (Path(folder) / "extra-openai-models.yaml").write_text(json.dumps(models))

    def llm(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            env={**os.environ, "LLM_USER_PATH": folder},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert llm("-m", "mine", "Hi", "-o", "max_tokens", "5").strip()
    assert llm("-m", "mine", "Hi", "-o", "max_tokens", "5", "--no-stream").strip()
    schema = '{"type": "object", "properties": {"city": {"type": "string"}}}'
    assert "city" in json.loads(llm("-m", "agent", "Weather in Lima?", "--schema", schema))
    functions = "def weather(city: str) -> str:\n    return '21'"
    assert "21" in llm("-m", "agent", "Weather in Lima?", "--functions", functions)

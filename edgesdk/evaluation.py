"""Evaluate models with EleutherAI's lm-evaluation-harness, the field's own.

`register()` makes the harness know the model `edgesdk`; `python -m edgesdk.evaluation` is the
harness's own command line with it:

    python -m edgesdk.evaluation run --model edgesdk --model_args bundle=NAME --tasks TASK
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from edgesdk.errors import UnsupportedBundle
from edgesdk.loading import load
from edgesdk.model import Model

MODEL_NAME = "edgesdk"
# The harness's own, where a task says nothing.
_MAX_TOKENS = 256


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """A model as the harness asks it: log-likelihoods of texts, and greedy or sampled answers.

    Args:
        bundle: what `edgesdk.load` takes: a name in the store, a folder, or a `.gguf`; or a model
            that is loaded already, for which the others do not count.
        run_device: where it runs, as `edgesdk.load` names devices.
        threads, context: as `edgesdk.load` has them.
        device, batch_size, max_batch_size: the harness gives them to every model, the device as
            torch names it. They are not used: requests are asked one after another.
    """

    def __init__(
        self,
        bundle: str | Model,
        run_device: str = "auto",
        threads: int | None = None,
        context: int | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(bundle, str):
            bundle = load(bundle, device=run_device, threads=threads, context=context)
        self._model = bundle
        self._encoder = self._model.runtime.encoder

    @property
    def max_length(self) -> int:
        """Most tokens of a text and its continuation."""
        return self._model.info.context_length

    @property
    def eot_token_id(self) -> int:
        return self._token_named(self._encoder.eos_token)

    @property
    def prefix_token_id(self) -> int:
        bos = self._encoder.bos_token
        return self.eot_token_id if bos is None else self._token_named(bos)

    @property
    def tokenizer_name(self) -> str:
        return self._model.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, which the harness puts into its results."""
        template = self._encoder.template
        return None if template is None or not chat_template else template.source

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the text that the model would be given.

        Without a generation prompt the text ends within the last message, which the model goes on
        with, as transformers has it.
        """
        template = self._encoder.template
        if template is None:
            raise UnsupportedBundle(
                f"{self._model.name} has no chat template.", hint="Leave --apply_chat_template out."
            )
        text = template.render(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            bos_token=self._encoder.bos_token,
            eos_token=self._encoder.eos_token,
            special_tokens=self._encoder.special_tokens,
        ).plain
        if add_generation_prompt:
            return text
        last = str(chat_history[-1]["content"]).strip()
        return text[: text.rindex(last) + len(last)]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text; with the BOS token where the model wants one, unless that is in the
        text already or `add_special_tokens` is False."""
        bos = self._encoder.bos_token
        has_bos = bos is not None and string.startswith(bos)
        add = add_special_tokens is not False and not has_bos
        return self._encoder.tokenizer.encode(string, add_bos=add)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihoods of whole texts, over windows of the model's context."""
        return [self._rolling(request.args[0]) for request in requests]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers up to a task's stop texts."""
        return [self._generated(*request.args) for request in requests]

    def _rolling(self, text: str) -> float:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return sum(self._log_likelihood(*make_disjoint_window(window))[0] for window in windows)

    def _generated(self, context: str, gen_kwargs: dict[str, Any]) -> str:
        options = normalize_gen_kwargs(gen_kwargs, _MAX_TOKENS)
        sampling: dict[str, Any] = {"temperature": 0.0}
        if options.get("do_sample"):
            names = ("temperature", "top_p", "top_k", "min_p")
            sampling = {name: options[name] for name in names if name in options}
        reply = self._model.complete(
            context,
            max_tokens=options["max_gen_toks"],
            stop=[text for text in options["until"] if text],
            # What a benchmark counts is what the model says, cycles and all.
            stop_on_repetition=False,
            **sampling,
        )
        return reply.text

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return [self._log_likelihood(context, ids) for _, context, ids in requests]

    def _log_likelihood(self, context: list[int], ids: list[int]) -> tuple[float, bool]:
        """The log-likelihood of `ids` after `context`, and whether each is the likeliest."""
        whole = [*context, *ids][-(self.max_length + 1) :]
        before, read = len(whole) - len(ids) - 1, whole[:-1]
        state = self._model.runtime.engine.new_state()
        try:
            # Logits of the context would take more memory than everything else.
            if before > 0:
                state.extend(read[:before])
            logits = state.extend(read[before:], logits="all").astype(np.float64)
        finally:
            state.close()
        top = logits.max(axis=1)
        normalizers = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        said = logits[np.arange(len(ids)), ids] - normalizers
        return float(said.sum()), bool((logits.argmax(axis=1) == ids).all())

    def _token_named(self, text: str | None) -> int:
        token = None if text is None else self._encoder.tokenizer.added_tokens.get(text)
        if token is None:
            raise UnsupportedBundle(
                f"{self._model.name} names no token that ends a text, which the harness needs.",
                hint="Export the model again from a checkpoint whose tokenizer names one.",
            )
        return token


def register() -> None:
    """Make the harness know the model `edgesdk`."""
    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=HarnessModel)


def evaluate(
    bundle: str | Model,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> dict[str, Any]:
    """Run tasks of the harness on a model.

    Args:
        tasks: names of tasks that the harness has, or finds in `include_path`.
        include_path: a folder with tasks of one's own (YAML files).
        limit: examples of each task; None for all.

    Returns:
        The harness's results, by task.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model=HarnessModel(bundle, run_device=device, threads=threads),
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=apply_chat_template,
        task_manager=TaskManager(include_path=None if include_path is None else str(include_path)),
        bootstrap_iters=1000,
        log_samples=False,
    )
    results: dict[str, Any] = found["results"]
    return results


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()

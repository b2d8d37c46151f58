"""The cloud's part of an answer: may it be asked, what is sent, what comes back."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from edgesdk.decode.options import Options
from edgesdk.errors import (
    BudgetExceeded,
    CloudBroken,
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudUnreachable,
    DeadlineExceeded,
)
from edgesdk.hybrid.cloud.answer import CloudAnswer, Piece, Restart
from edgesdk.hybrid.cloud.attempts import OnBreak
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.outgoing import request_body
from edgesdk.hybrid.privacy.policy import Policy, Question, Verdict
from edgesdk.hybrid.privacy.restoring import RestoringStream, restore
from edgesdk.hybrid.privacy.vault import Vault
from edgesdk.hybrid.spending.budget import Budget
from edgesdk.hybrid.spending.call import CallSpending
from edgesdk.hybrid.spending.limits import Cost

# Prompts are counted by the device's tokenizer; another one makes more of the same text, but not
# so many more.
_TOKENIZER_MARGIN = 1.5
# What endpoints say of a request, not of the key or the model.
_UNFIT = (400, 413, 422)

Why = Literal["policy", "budget", "away", "unfit", "failed"]


@dataclass(frozen=True)
class Asked:
    """What the cloud said, with private values in their places, and what it cost."""

    answer: CloudAnswer
    cost: Cost


class NotAsked(Exception):
    """The cloud gave no answer. Never leaves the SDK.

    Its text is of the SDK's own words, because it is written down; what an endpoint or a callable
    said may quote the prompt.

    Args:
        why: "policy": it may not be asked; "budget": not now; "away": it could not be reached, or
            was busy; "unfit": it does not take this request; "failed": anything else.
        cost: of attempts that came to nothing.
    """

    def __init__(self, reason: str, why: Why = "failed", cost: Cost | None = None) -> None:
        super().__init__(reason)
        self.why = why
        self.cost = cost or Cost()


class CloudAsker:
    """Asks the endpoints within policy and budget.

    Args:
        clouds: in order of preference; without any, every question is refused.
        on_break, hedge_after: see `edgesdk.hybrid.cloud.client.CloudClient`.
    """

    def __init__(
        self,
        clouds: Sequence[Cloud],
        policy: Policy,
        budget: Budget | None,
        on_break: OnBreak,
        hedge_after: float | None = None,
    ) -> None:
        self._clouds = tuple(clouds)
        self._policy = policy
        self._budget = budget
        self._on_break = on_break
        self._hedge_after = hedge_after
        self._client: CloudClient | None = None

    @property
    def possible(self) -> bool:
        """Whether there is anybody to ask."""
        return bool(self._clouds)

    def ask(
        self,
        messages: list[dict[str, Any]],
        options: Options,
        verdict: Verdict,
        vault: Vault,
        *,
        prompt_tokens: int,
        deadline: Deadline,
    ) -> Generator[Piece | Restart, None, Asked]:
        """Yield the answer as it comes, with values restored; return how it ended.

        Raises:
            NotAsked: the policy, the app, the budget or the network are against it; a `Restart`
                comes before it where pieces were given out.
        """
        self._check(messages, verdict)
        hides = vault if verdict.upload == "redact" else None
        most = options.max_tokens or max(cloud.max_output_tokens for cloud in self._clouds)
        body = request_body(messages, options, vault=hides, max_output_tokens=most)
        worst_prompt = int(prompt_tokens * _TOKENIZER_MARGIN)
        spending = CallSpending(self._budget, worst_prompt, most)
        if self._client is None:
            self._client = CloudClient(
                self._clouds, on_break=self._on_break, hedge_after=self._hedge_after
            )
        restoring = RestoringStream(vault)
        try:
            with self._client.stream(body, deadline=deadline.seconds, charges=spending) as stream:
                for event in stream:
                    if isinstance(event, Restart):
                        restoring = RestoringStream(vault)
                        yield event
                    elif isinstance(event, Piece) and (text := restoring.feed(event.text)):
                        yield Piece(text)
                if text := restoring.flush():
                    yield Piece(text)
                answer = stream.answer
        except BudgetExceeded as error:
            raise NotAsked(f"budget: {error.limit}", "budget") from error
        except (CloudError, DeadlineExceeded) as error:
            why = _why(error, spending.cost)
            raise NotAsked(_reason(error), why, spending.cost) from error
        finally:
            spending.settle()
        return Asked(replace(answer, text=restore(vault, answer.text)), spending.cost)

    def close(self) -> None:
        """End all requests."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _check(self, messages: list[dict[str, Any]], verdict: Verdict) -> None:
        if not self._clouds:
            raise NotAsked("there is no cloud")
        if verdict.upload == "local_only":
            raise NotAsked(f"policy: {verdict.reason}", "policy")
        if verdict.upload == "ask":
            question = Question(
                tuple(messages), verdict.kinds, tuple(cloud.name for cloud in self._clouds)
            )
            if self._policy.ask is None:
                raise NotAsked("policy: nobody to ask for permission", "policy")
            try:
                allowed = self._policy.ask(question) is True
            except Exception as error:
                raise NotAsked(
                    f"policy: asking for permission failed with {type(error).__name__}", "policy"
                ) from error
            if not allowed:
                raise NotAsked("policy: permission was not given", "policy")


def _why(error: CloudError | DeadlineExceeded, cost: Cost) -> Why:
    # A deadline may also pass while no endpoint hears anything.
    unheard = isinstance(error, DeadlineExceeded) and cost == Cost()
    if unheard or isinstance(error, CloudUnreachable | CloudBusy):
        return "away"
    return "unfit" if isinstance(error, CloudRefused) and error.status in _UNFIT else "failed"


def _reason(error: CloudError | DeadlineExceeded) -> str:
    if isinstance(error, DeadlineExceeded):
        return "the cloud was too slow for the deadline"
    words = {
        CloudUnreachable: "could not be reached",
        CloudRefused: "refused",
        CloudBusy: "was busy",
        CloudBroken: "broke off",
    }
    status = f" ({error.status})" if error.status else ""
    return f"the cloud {words[type(error)]}{status}"

"""The cloud's part of an answer: may it be asked, what is sent, what comes back."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgesdk.decode.options import Options
from edgesdk.engines.caller import Interrupted
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
from edgesdk.scheduling import Cancel

# Prompts are counted by the device's tokenizer; another one makes more of the same text, but not
# so many more.
_TOKENIZER_MARGIN = 1.5


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
        cost: of attempts that came to nothing.
        later: it may answer at another time: it could not be reached, or was busy.
    """

    def __init__(self, reason: str, *, cost: Cost | None = None, later: bool = False) -> None:
        super().__init__(reason)
        self.cost = cost or Cost()
        self.later = later


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
        cancel: Cancel | None = None,
    ) -> Generator[Piece | Restart, None, Asked]:
        """Yield the answer as it comes, with values restored; return how it ended.

        Raises:
            NotAsked: the policy, the app, the budget or the network are against it; a `Restart`
                comes before it where pieces were given out. Or `cancel` was set, from any thread.
        """
        self._check(messages, verdict)
        cancel = Cancel() if cancel is None else cancel
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
            with (
                self._client.stream(body, deadline=deadline.seconds, charges=spending) as stream,
                cancel.caller().heeding(stream.close),
            ):
                for event in stream:
                    if isinstance(event, Restart):
                        restoring = RestoringStream(vault)
                        yield event
                    elif isinstance(event, Piece) and (text := restoring.feed(event.text)):
                        yield Piece(text)
                if cancel.is_set():
                    raise NotAsked("cancelled", cost=spending.cost)
                if text := restoring.flush():
                    yield Piece(text)
                answer = stream.answer
        except Interrupted as error:
            raise NotAsked("cancelled", cost=spending.cost) from error
        except BudgetExceeded as error:
            raise NotAsked(f"budget: {error.limit}") from error
        except (CloudError, DeadlineExceeded) as error:
            later = isinstance(error, CloudUnreachable | CloudBusy)
            raise NotAsked(_reason(error), cost=spending.cost, later=later) from error
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
            raise NotAsked(f"policy: {verdict.reason}")
        if verdict.upload == "ask":
            question = Question(
                tuple(messages), verdict.kinds, tuple(cloud.name for cloud in self._clouds)
            )
            if self._policy.ask is None:
                raise NotAsked("policy: nobody to ask for permission")
            try:
                allowed = self._policy.ask(question) is True
            except Exception as error:
                raise NotAsked(
                    f"policy: asking for permission failed with {type(error).__name__}"
                ) from error
            if not allowed:
                raise NotAsked("policy: permission was not given")


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

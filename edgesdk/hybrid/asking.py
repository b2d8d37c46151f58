"""The cloud's part of an answer: may it be asked, what is sent, what comes back."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence

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
from edgesdk.hybrid.answering import Asked, NotAsked, Restoring, Why, asked_of
from edgesdk.hybrid.ask import Ask
from edgesdk.hybrid.cloud.answer import CloudAnswer, Restart
from edgesdk.hybrid.cloud.attempts import OnBreak
from edgesdk.hybrid.cloud.charges import Charges
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.outgoing import Outgoing, outgoing, tokens_besides
from edgesdk.hybrid.privacy.policy import Policy, Question, Verdict
from edgesdk.hybrid.spending.budget import Budget
from edgesdk.hybrid.spending.call import CallSpending
from edgesdk.hybrid.spending.limits import Cost
from edgesdk.hybrid.stream import HybridEvent

# Prompts are counted by the device's tokenizer; another one makes more of the same text, but not
# so many more.
_TOKENIZER_MARGIN = 1.5
# What endpoints say of a request, not of the key or the model.
_UNFIT = (400, 413, 422)


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
        self._guard = threading.Lock()

    @property
    def possible(self) -> bool:
        """Whether there is anybody to ask."""
        return bool(self._clouds)

    def ask(
        self, ask: Ask, verdict: Verdict, *, prompt_tokens: int, deadline: Deadline
    ) -> Generator[HybridEvent, None, Asked]:
        """Yield the answer as it comes, with values restored; return how it ended.

        Raises:
            NotAsked: the policy, the app, the budget or the network are against it, or what came
                is of no use; a `Restart` comes before it where pieces were given out, unless they
                were the whole answer. Or the caller cancelled it, from any thread.
        """
        self._check(ask, verdict)
        most = ask.options.max_tokens or max(cloud.max_output_tokens for cloud in self._clouds)
        try:
            sent = outgoing(ask, hide=verdict.upload == "redact", max_output_tokens=most)
        except Exception as error:
            # A detector's, which may quote the prompt. What cannot be hidden is not sent.
            reason = f"policy: hiding failed with {type(error).__name__}"
            raise NotAsked(reason, "policy") from error
        worst_prompt = int((prompt_tokens + tokens_besides(sent)) * _TOKENIZER_MARGIN)
        spending = CallSpending(self._budget, worst_prompt, most)
        try:
            answer = yield from self._read(sent, ask, deadline, spending)
        except Interrupted as error:
            raise NotAsked("cancelled", cost=spending.cost) from error
        except BudgetExceeded as error:
            raise NotAsked(f"budget: {error.limit}", "budget") from error
        except (CloudError, DeadlineExceeded) as error:
            why = _why(error, spending.cost)
            raise NotAsked(_reason(error), why, cost=spending.cost) from error
        finally:
            spending.settle()
        return asked_of(answer, sent, ask, spending.cost)

    def _read(
        self, sent: Outgoing, ask: Ask, deadline: Deadline, charges: Charges
    ) -> Generator[HybridEvent, None, CloudAnswer]:
        """The events, restored, and the answer as the endpoint gave it."""
        restoring = Restoring(ask)
        with (
            self._opened().stream(
                sent.body,
                deadline=deadline.seconds,
                charges=charges,
                on_break=ask.on_break,
                key=ask.key,
            ) as stream,
            ask.cancel.caller().heeding(stream.close),
        ):
            for event in stream:
                if isinstance(event, Restart):
                    restoring = Restoring(ask)
                    yield event
                elif not isinstance(event, CloudAnswer):
                    yield from restoring.feed(event)
            if ask.cancel.is_set():
                raise Interrupted
            yield from restoring.flush()
            return stream.answer

    def close(self) -> None:
        """End all requests."""
        with self._guard:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _opened(self) -> CloudClient:
        with self._guard:
            if self._client is None:
                self._client = CloudClient(
                    self._clouds, on_break=self._on_break, hedge_after=self._hedge_after
                )
            return self._client

    def _check(self, ask: Ask, verdict: Verdict) -> None:
        if not self._clouds:
            raise NotAsked("there is no cloud")
        if verdict.upload == "local_only":
            raise NotAsked(f"policy: {verdict.reason}", "policy")
        if ask.form is not None and ask.form.response_format is None:
            raise NotAsked("the cloud cannot be held to this form")
        if verdict.upload == "ask":
            question = Question(
                tuple(ask.messages), verdict.kinds, tuple(cloud.name for cloud in self._clouds)
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

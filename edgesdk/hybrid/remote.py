"""The cloud's part of an answer: whether it may be asked, what is sent, what comes back."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Literal, get_args

from edgesdk.errors import (
    BudgetExceeded,
    CloudBroken,
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudUnreachable,
    DeadlineExceeded,
    FailedAttempt,
    RequestError,
    StructureError,
)
from edgesdk.hybrid.cloud.attempt import BAD_REQUEST_STATUSES
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.cloud_reply import CloudReply, Restart, TextDelta
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.failover import OnBreak
from edgesdk.hybrid.cloud.spending import Budget, CallSpending, Cost
from edgesdk.hybrid.cloud_request import CloudRequest, cloud_request, format_tokens
from edgesdk.hybrid.privacy.policy import Policy, UploadQuestion, UploadVerdict
from edgesdk.hybrid.privacy.redaction import StreamRestorer, restore, restore_json
from edgesdk.hybrid.reply import HybridReply, cut_phrase
from edgesdk.hybrid.request import HybridRequest
from edgesdk.hybrid.stream import HybridEvent
from edgesdk.reply import ReasoningDelta
from edgesdk.request import Request
from edgesdk.system.cancellation import Cancelled
from edgesdk.system.checks import checked_choice
from edgesdk.tools.call_messages import used_ids
from edgesdk.tools.calls import ToolCall, ToolCalls

# Prompts are counted by the device's tokenizer; another one makes more of the same text, but not
# so many more.
_TOKENIZER_MARGIN = 1.5
# Shorter keys are for tests and machines of one's own, and may be words.
_MIN_KEY_LENGTH = 12


class RemoteModel:
    """Asks the clouds, within policy and budget.

    Arguments and errors are those of `edgesdk.hybrid.client.HybridClient`; without a cloud, every
    question is refused.
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
        if budget is not None:
            budget.limits.check_prices(self._clouds)
        self._on_break: OnBreak = checked_choice("on_break", on_break, get_args(OnBreak))
        self._hedge_after = hedge_after
        self._keys = [
            cloud.api_key
            for cloud in self._clouds
            if cloud.api_key is not None and len(cloud.api_key) >= _MIN_KEY_LENGTH
        ]
        self._client: CloudClient | None = None
        self._guard = threading.Lock()

    @property
    def available(self) -> bool:
        """Whether there is a cloud to ask."""
        return bool(self._clouds)

    def ask(
        self,
        hybrid: HybridRequest,
        verdict: UploadVerdict,
        *,
        prompt_tokens: int,
        fallback: bool = False,
    ) -> Generator[HybridEvent, None, HybridReply]:
        """Yield the cloud's answer as it comes, with values restored; return the reply.

        Args:
            prompt_tokens: of the prompt with its tools.
            fallback: the device would have to answer yet, so that a part of the deadline is left
                for it.

        Raises:
            NoCloudAnswer: the policy, the app, the budget or the network are against it, or what
                came is of no use; a `Restart` comes before it where pieces were given out, unless
                they were the whole answer. Or the caller cancelled it, from any thread.
        """
        hide = self._kinds_to_hide(hybrid, verdict)
        most = hybrid.request.options.max_tokens or max(
            cloud.max_output_tokens for cloud in self._clouds
        )
        sent = _hidden(hybrid, hide, max_output_tokens=most)
        written = json.dumps(sent.body, ensure_ascii=False)
        if any(key in written for key in self._keys):
            raise NoCloudAnswer("policy: the request quotes the key of a cloud", "policy")
        worst_prompt = int((prompt_tokens + format_tokens(sent)) * _TOKENIZER_MARGIN)
        spending = CallSpending(self._budget, worst_prompt, most)
        try:
            answer = yield from self._read(sent, hybrid, spending, fallback)
        except Cancelled as error:
            raise NoCloudAnswer("cancelled", cost=spending.cost) from error
        except BudgetExceeded as error:
            raise NoCloudAnswer(f"budget: {error.limit}", "budget") from error
        except (CloudError, DeadlineExceeded) as error:
            cause = _cause(error, spending.cost)
            raise NoCloudAnswer(
                _reason(error), cause, cost=spending.cost, failures=error.attempts
            ) from error
        except RequestError as error:
            # A value that JSON does not know, or certificates that cannot be read.
            raise NoCloudAnswer("the request could not be sent", "unfit") from error
        finally:
            spending.settle()
        try:
            return cloud_reply_of(answer, sent, hybrid, spending.cost)
        except NoCloudAnswer as error:
            error.failures = answer.failures
            raise

    def _read(
        self, sent: CloudRequest, hybrid: HybridRequest, spending: CallSpending, fallback: bool
    ) -> Generator[HybridEvent, None, CloudReply]:
        """Yield the events, restored; return the answer as the endpoint gave it."""
        request, restoring = hybrid.request, AttemptRestorer(hybrid)
        cancellation = request.cancellation.child(request.options.deadline, started=request.started)
        with (
            self._opened().stream(
                sent.body,
                cancellation=cancellation,
                spending=spending,
                on_break="incomplete" if hybrid.append_only else None,
                key=hybrid.key,
                fallback=fallback,
            ) as stream,
            # The stream itself ends at the deadline, with what there is.
            request.cancellation.on_cancel(stream.close),
        ):
            for event in stream:
                if isinstance(event, Restart):
                    restoring = AttemptRestorer(hybrid)
                    yield event
                elif not isinstance(event, CloudReply):
                    yield from restoring.feed(event)
            if request.cancellation.cancelled:
                raise Cancelled
            yield from restoring.flush()
            return stream.reply

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

    def preview(self, hybrid: HybridRequest, verdict: UploadVerdict) -> UploadQuestion:
        """What a cloud would be sent of a request; nothing is sent.

        Raises:
            NoCloudAnswer: a detector failed.
        """
        as_it_is, redacted = (
            _hidden(hybrid, hide, max_output_tokens=1).body["messages"]
            for hide in (self._policy.always_hidden, None)
        )
        names = tuple(cloud.name for cloud in self._clouds)
        return UploadQuestion(
            as_it_is, redacted, verdict.kinds, names, verdict.upload, verdict.reason
        )

    def _kinds_to_hide(
        self, hybrid: HybridRequest, verdict: UploadVerdict
    ) -> AbstractSet[str] | None:
        """What is hidden of a request that may leave; None for all that is private.

        Raises:
            NoCloudAnswer: it may not leave.
        """
        request = hybrid.request
        if not self._clouds:
            raise NoCloudAnswer("there is no cloud")
        if verdict.upload == "local_only":
            raise NoCloudAnswer(f"policy: {verdict.reason}", "policy")
        if request.output_format is not None and request.output_format.response_format is None:
            raise NoCloudAnswer("the cloud cannot be held to this output format")
        if verdict.upload != "ask":
            return None if verdict.upload == "redact" else self._policy.always_hidden
        if self._policy.ask is None:
            raise NoCloudAnswer("policy: nobody to ask for permission", "policy")
        question = self.preview(hybrid, verdict)
        try:
            permission = self._policy.ask(question)
        except Exception as error:
            raise NoCloudAnswer(
                f"policy: asking for permission failed with {type(error).__name__}", "policy"
            ) from error
        if permission == "redact":
            return None
        # Nothing else that is true counts: a permission is given in so many words.
        if permission is not True:
            raise NoCloudAnswer("policy: permission was not given", "policy")
        return self._policy.always_hidden


def _hidden(
    hybrid: HybridRequest, hide: AbstractSet[str] | None, *, max_output_tokens: int
) -> CloudRequest:
    """What a cloud is sent.

    Raises:
        NoCloudAnswer: a detector failed. What cannot be hidden is not sent.
    """
    try:
        return cloud_request(hybrid, hide=hide, max_output_tokens=max_output_tokens)
    except Exception as error:
        # It may quote the prompt.
        reason = f"policy: hiding failed with {type(error).__name__}"
        raise NoCloudAnswer(reason, "policy") from error


def _cause(error: CloudError | DeadlineExceeded, cost: Cost) -> NoAnswerCause:
    # A deadline may also pass before any endpoint was reached.
    unheard = isinstance(error, DeadlineExceeded) and cost == Cost()
    if unheard or isinstance(error, CloudUnreachable | CloudBusy):
        return "away"
    bad_request = isinstance(error, CloudRefused) and error.status in BAD_REQUEST_STATUSES
    return "unfit" if bad_request else "failed"


def _reason(error: CloudError | DeadlineExceeded) -> str:
    if isinstance(error, DeadlineExceeded):
        return "the cloud was too slow for the deadline"
    words = {
        CloudUnreachable: "could not be reached",
        CloudRefused: "refused",
        CloudBusy: "was busy",
        CloudBroken: "broke off",
    }
    details = [] if error.status is None else [str(error.status)]
    # A word of a fixed vocabulary quotes nobody.
    if error.code is not None and re.fullmatch(r"[a-z_]{3,40}", error.code):
        details.append(error.code)
    return f"the cloud {words[type(error)]}" + (f" ({' '.join(details)})" if details else "")


NoAnswerCause = Literal["policy", "budget", "away", "unfit", "failed"]


class NoCloudAnswer(Exception):
    """The cloud gave no answer, or none of use. Never leaves the SDK.

    Its text is of the SDK's own words, because it is written down; what an endpoint or a callable
    said may quote the prompt.

    Args:
        cause: "policy": it may not be asked; "budget": not now; "away": it could not be reached, or
            was busy; "unfit": it does not take this request; "failed": anything else.
        cost: of attempts that came to nothing, or of an answer of no use.
        failures: of the requests that were made.
    """

    def __init__(
        self,
        reason: str,
        cause: NoAnswerCause = "failed",
        *,
        cost: Cost | None = None,
        failures: tuple[FailedAttempt, ...] = (),
    ) -> None:
        super().__init__(reason)
        self.cause = cause
        self.cost = cost or Cost()
        self.failures = failures


class AttemptRestorer:
    """Restores private values in the pieces of one attempt: its reasoning, and its text."""

    def __init__(self, hybrid: HybridRequest) -> None:
        self._restorers: dict[type[TextDelta | ReasoningDelta], StreamRestorer] = {
            ReasoningDelta: StreamRestorer(hybrid.redactor),
            TextDelta: StreamRestorer(hybrid.redactor, is_json=_is_json(hybrid.request)),
        }

    def feed(self, event: TextDelta | ReasoningDelta) -> Iterator[TextDelta | ReasoningDelta]:
        """What can be given out after `event`."""
        kind = type(event)
        if text := self._restorers[kind].feed(event.text):
            yield kind(text)

    def flush(self) -> Iterator[TextDelta | ReasoningDelta]:
        """Return what is left at the end."""
        for kind, restorer in self._restorers.items():
            if text := restorer.flush():
                yield kind(text)


def cloud_reply_of(
    answer: CloudReply, sent: CloudRequest, hybrid: HybridRequest, cost: Cost
) -> HybridReply:
    """Restore and check an answer, so that the app can have it.

    Raises:
        NoCloudAnswer: the answer is empty, or does not fit the tools or the output format; half a
            call or half a value never does.
    """
    request, redactor = hybrid.request, hybrid.redactor
    must_call = request.tools is not None and request.tools.must_call
    empty = not (answer.text.strip() or answer.calls)
    needs_whole = bool(answer.calls) or must_call or request.output_format is not None
    if not answer.complete and (empty or needs_whole):
        cause: NoAnswerCause = "away" if answer.broke_off else "failed"
        reason = f"the cloud's answer {cut_phrase(answer.finish_reason)}"
        raise NoCloudAnswer(reason, cause, cost=cost)
    text = restore(redactor, answer.text, is_json=_is_json(request))
    restored = replace(answer, text=text, reasoning=restore(redactor, answer.reasoning))
    calls, parsed = ToolCalls(), None
    if answer.calls:
        calls = _checked_calls(answer, sent, hybrid)
        if not calls or any(call.problem for call in calls):
            raise NoCloudAnswer("the cloud's call does not fit the tools", cost=cost)
    elif must_call:
        raise NoCloudAnswer("the cloud called no tool", cost=cost)
    elif empty:
        raise NoCloudAnswer("the cloud said nothing", cost=cost)
    elif request.output_format is not None:
        try:
            parsed = (request.output_format.validate or request.output_format.read)(text)
        except StructureError as error:
            raise NoCloudAnswer(
                "the cloud's answer does not fit the output format", cost=cost
            ) from error
    return HybridReply(
        text, "cloud", "the cloud answered", not answer.complete, cloud=restored, cost=cost,
        parsed=parsed, tool_calls=calls, failures=answer.failures,
    )  # fmt: skip


def _checked_calls(answer: CloudReply, sent: CloudRequest, hybrid: HybridRequest) -> ToolCalls:
    """Restore the arguments of the calls and check them; empty where no tools are allowed."""
    request = hybrid.request
    if request.tools is None:
        return ToolCalls()
    return request.tools.check(
        (
            ToolCall(
                sent.names.get(call.name, call.name),
                # As values, because a value may have what JSON escapes.
                restore_json(hybrid.redactor, call.arguments),
                id=call.id,
            )
            for call in answer.calls
        ),
        used_ids(request.messages),
    )


def _is_json(request: Request) -> bool:
    """Whether the cloud's answer is JSON: it is sent no other output format."""
    return request.output_format is not None

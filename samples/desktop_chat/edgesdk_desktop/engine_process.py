"""The engine's side: does what the window asks, in a process of its own.

A native crash, a long load or a busy interpreter here never stops the window. Requests come on
standard input, events go to standard output; see `edgesdk_desktop.protocol`.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import edgesdk
from edgesdk.errors import EdgeError, RequestError
from edgesdk.hybrid import (
    Budget,
    HybridReply,
    HybridStream,
    ReasoningDelta,
    Restart,
    SpendingLimits,
    TextDelta,
)
from edgesdk.hybrid import UploadQuestion as Upload
from edgesdk_desktop.chats import ChatCache
from edgesdk_desktop.event_process import event_writer
from edgesdk_desktop.models import known_models, pull_model
from edgesdk_desktop.protocol import (
    Answered,
    AnswerPiece,
    Ask,
    CloudSet,
    Count,
    Counted,
    Event,
    Failed,
    ListModels,
    Load,
    Loaded,
    ModelsListed,
    Permit,
    Preview,
    Pull,
    Pulled,
    Request,
    Restarted,
    SaveSession,
    SetCloud,
    Stop,
    UploadShown,
    from_line,
)

_LOG = logging.getLogger("edgesdk_desktop")
_KEYRING_SERVICE = "edgesdk desktop"


class EngineProcess:
    """Does requests, one at a time but for those of the store and those that end others.

    Args:
        send: gets each event, from any thread.
    """

    def __init__(self, send: Callable[[Event], None]) -> None:
        self._send = send
        self._jobs: queue.Queue[Request | None] = queue.Queue()
        self._model: edgesdk.Model | None = None
        self._client: edgesdk.HybridClient | None = None
        self._chats: ChatCache | None = None
        self._cloud: edgesdk.Cloud | None = None
        self._budget: Budget | None = None
        self._guard = threading.Lock()
        self._stream: HybridStream | None = None
        self._stopped = False
        self._permission: queue.Queue[Permit] = queue.Queue()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def handle(self, request: Request) -> None:
        """Begin to do a request; returns at once."""
        if isinstance(request, Stop):
            self._stop()
        elif isinstance(request, Permit):
            self._permission.put(request)
        elif isinstance(request, ListModels | Pull):
            threading.Thread(target=self._run, args=(request,), daemon=True).start()
        else:
            self._jobs.put(request)

    def close(self) -> None:
        """End what is under way, do what is still asked, and free the model."""
        self._stop()
        self._jobs.put(None)
        self._worker.join()
        self._unload()

    def _work(self) -> None:
        while (request := self._jobs.get()) is not None:
            self._run(request)

    def _run(self, request: Request) -> None:
        answer = request.answer if isinstance(request, Ask) else ""
        try:
            self._do(request)
        except EdgeError as error:
            hint = error.hint or ""
            self._send(Failed(type(request).__name__, error.message, hint, answer))
        except Exception as error:
            _LOG.exception("%s failed", type(request).__name__)
            words = f"Something went wrong: {type(error).__name__}: {error}"
            self._send(Failed(type(request).__name__, words, "", answer))

    def _do(self, request: Request) -> None:
        match request:
            case ListModels():
                self._send(ModelsListed(known_models()))
            case Pull():
                self._send(Pulled(request.reference, pull_model(request.reference, self._send)))
            case Load():
                self._load(request)
            case SetCloud():
                self._set_cloud(request)
            case Ask():
                self._ask(request)
            case Preview():
                self._preview(request)
            case Count():
                messages = [*request.path, {"role": "user", "content": request.text or " "}]
                model = self._loaded()
                self._send(Counted(model.count(messages), model.info.context_length))
            case SaveSession():
                self._save(request)
            case _:
                raise RequestError(f"{type(request).__name__} is not done here.")

    def _load(self, request: Load) -> None:
        self._unload()
        plan = edgesdk.plan(request.model)
        context = None if plan.fits else plan.longest_context or None
        self._model = edgesdk.load(request.model, device=request.device, context=context)
        self._connect()
        info = self._model.info
        self._send(Loaded(request.model, str(info.placement)))

    def _unload(self) -> None:
        self._disconnect()
        model, self._model = self._model, None
        if model is not None:
            model.close()

    def _connect(self) -> None:
        """Make the client of the model and the cloud that are there now."""
        self._disconnect()
        if self._model is None:
            return
        cloud = () if self._cloud is None else self._cloud
        policy = edgesdk.Policy("local_only", ask=self._ask_permission)
        self._client = edgesdk.HybridClient(
            self._model, cloud=cloud, policy=policy, budget=self._budget
        )
        self._chats = ChatCache(self._client)

    def _disconnect(self) -> None:
        chats, self._chats = self._chats, None
        client, self._client = self._client, None
        if chats is not None:
            chats.close()
        if client is not None:
            client.close()

    def _set_cloud(self, request: SetCloud) -> None:
        cloud, budget, note = None, None, ""
        if request.base_url.strip():
            key, note = _stored_key(request)
            cloud = edgesdk.Cloud(
                request.base_url.strip(),
                request.model.strip(),
                key,
                input_price=request.input_price,
                output_price=request.output_price,
            )
            if request.daily_limit is not None:
                limits = SpendingLimits(money_per_day=request.daily_limit)
                limits.check_prices([cloud])
                budget = Budget(limits, request.budget_file or None)
        self._cloud, self._budget = cloud, budget
        self._connect()
        self._send(CloudSet("" if cloud is None else cloud.name, note))

    def _ask(self, request: Ask) -> None:
        chats = self._opened_chats()
        with self._guard:
            self._stopped = False
        chat = chats.chat_of(request.path, request.session)
        with chat.stream(
            request.text, upload=request.privacy, max_tokens=request.max_tokens
        ) as stream:
            with self._guard:
                self._stream = stream
                if self._stopped:
                    stream.cancel()
            try:
                for event in stream:
                    match event:
                        case TextDelta():
                            self._send(AnswerPiece(request.answer, event.text))
                        case ReasoningDelta():
                            self._send(AnswerPiece(request.answer, event.text, reasoning=True))
                        case Restart():
                            self._send(Restarted(request.answer, event.reason))
                reply = stream.reply
            finally:
                with self._guard:
                    self._stream, stopped = None, self._stopped
        state = "stopped" if stopped else "complete" if reply.complete else "cut"
        self._send(Answered(request.answer, reply.text, state, badge_of(reply)))  # type: ignore[arg-type]

    def _stop(self) -> None:
        with self._guard:
            self._stopped = True
            if self._stream is not None:
                self._stream.cancel()
        # It may wait for a permission.
        self._permission.put(Permit("no"))

    def _ask_permission(self, question: Upload) -> bool | Literal["redact"]:
        while not self._permission.empty():
            self._permission.get_nowait()
        with self._guard:
            if self._stopped:
                return False
        self._send(_shown(question, asked=True))
        permission = self._permission.get().permission
        return "redact" if permission == "redact" else permission == "allow"

    def _preview(self, request: Preview) -> None:
        chat = self._opened_chats().chat_of(request.path)
        question = chat.preview(request.text, upload=request.privacy)
        self._send(_shown(question, asked=False))

    def _save(self, request: SaveSession) -> None:
        if self._chats is None or not request.path:
            return
        Path(request.file).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._chats.chat_of(request.path).save(request.file)
        except EdgeError as error:
            # The conversation itself is stored; it only has to be computed again.
            _LOG.warning("%s", error)

    def _loaded(self) -> edgesdk.Model:
        if self._model is None:
            raise RequestError("No model is loaded.", hint="Choose one in the list of models.")
        return self._model

    def _opened_chats(self) -> ChatCache:
        self._loaded()
        assert self._chats is not None, "a loaded model has a client"
        return self._chats


def badge_of(reply: HybridReply) -> dict[str, Any]:
    """What the window shows of how an answer came about."""
    receipt, local = reply.receipt, reply.receipt.local
    on_device = reply.route == "local" and local is not None
    return {
        "route": reply.route,
        "reason": reply.reason,
        "where": receipt.endpoint if not on_device else str(local and local.placement),
        "tokens_per_second": local.tokens_per_second if on_device and local else None,
        "first_token": receipt.time_to_first_token,
        "output_tokens": receipt.output_tokens,
        "cached_tokens": local.cached_tokens if local else 0,
        "confidence": receipt.confidence,
        "low_confidence": reply.low_confidence,
        "finish_reason": reply.finish_reason,
        "money": receipt.cost.money,
        "seconds": receipt.seconds,
    }


def _shown(question: Upload, *, asked: bool) -> UploadShown:
    return UploadShown(
        asked,
        [dict(message) for message in question.messages],
        [dict(message) for message in question.redacted],
        sorted(question.kinds),
        list(question.endpoints),
        question.upload,
        question.reason,
    )


def _stored_key(request: SetCloud) -> tuple[str | None, str]:
    """The key of an endpoint, and what is to be known of where it is."""
    import keyring
    from keyring.errors import KeyringError

    account = request.base_url.strip()
    try:
        if request.api_key is None:
            return keyring.get_password(_KEYRING_SERVICE, account), ""
        if request.api_key:
            keyring.set_password(_KEYRING_SERVICE, account, request.api_key)
        elif keyring.get_password(_KEYRING_SERVICE, account) is not None:
            keyring.delete_password(_KEYRING_SERVICE, account)
    except KeyringError:
        note = "This system has no keyring: the key is forgotten when the window closes."
        return request.api_key or None, note if request.api_key else ""
    return request.api_key or None, ""


def main() -> int:
    """Do the window's requests until it closes the line."""
    send = event_writer()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    process = EngineProcess(send)
    for line in sys.stdin:
        try:
            message = from_line(line)
        except ValueError as error:
            _LOG.error("%s", error)
            continue
        process.handle(message)  # type: ignore[arg-type]
    process.close()
    return 0

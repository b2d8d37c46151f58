"""A loaded model: ask it, stream it, chat with it."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from typing_extensions import Unpack

from edgesdk.bundle.adapter import adapted_name, open_adapter
from edgesdk.bundle.opening import Bundle
from edgesdk.chat import Chat
from edgesdk.engines.base import EngineInfo, Placement
from edgesdk.engines.registry import footprint
from edgesdk.errors import RequestError
from edgesdk.generation.streaming import read_all, read_all_async
from edgesdk.overflow import OverflowPolicy
from edgesdk.reply import AsyncReplyStream, Reply, ReplyStream
from edgesdk.request import Request
from edgesdk.runtime import Runtime
from edgesdk.session import restore_chat
from edgesdk.structured.output_format import FormatKwargs
from edgesdk.system.closing import Closeable
from edgesdk.system.plan import Plan, plan
from edgesdk.system.resources import private_bytes
from edgesdk.text.prompts import Prompt, as_messages
from edgesdk.tools.tool_set import RequestKwargs
from edgesdk.warm_start import WarmStart


class Model(Closeable):
    """A loaded model; `edgesdk.load` makes one. May be used by several threads.

    A prompt is a text, or a list of messages such as `{"role": "user", "content": "Hello"}`.
    Options are those of `edgesdk.Options`, as keyword arguments. At most one of `schema`, `regex`,
    `choices` and `grammar` sets the output format (see
    `edgesdk.structured.output_format.FormatKwargs`); the reply's `parsed` is then its value. With
    `tools` (see `edgesdk.tools.tool_set.RequestKwargs`) the reply may have `tool_calls`, which the
    caller runs. The next prompt then ends with `reply.message` and, for each call, `{"role":
    "tool", "tool_call_id": call.id, "name": call.name, "content": "..."}`.

    After a warm start, `warm_start` says how far the device is, and answers come from the CPU until
    it is ready (see `edgesdk.load`).

    All ways to ask raise:
        EmptyPrompt: there is nothing to answer.
        InvalidText: the prompt has a lone surrogate.
        InvalidOption: an option is unknown or out of its range, or an output format cannot be
            enforced.
        TemplateError: the model cannot chat, or its template refuses the messages.
        ContextOverflow: the prompt does not fit the context. Nothing is ever truncated. An answer
            that fills the context ends with the finish reason "length".
        IncompleteStructure: max_tokens, the context or the deadline cut an answer short that has
            an output format.
        RejectedStructure: the schema's type refuses a value of the right form (a validator, say).
        MissingExtra: an output format is set, and llguidance is not installed.
        DeadlineExceeded: the deadline passed before the first token.
        EngineError: the engine failed.
    """

    def __init__(
        self,
        name: str,
        runtime: Runtime,
        source: Bundle | Path | None = None,
        warm_start: WarmStart | None = None,
    ) -> None:
        self.name = name
        self._latest = runtime
        self._source = source
        self.warm_start = warm_start

    @property
    def info(self) -> EngineInfo:
        """What runs, and where."""
        return self.runtime.engine.info

    @property
    def adapter(self) -> str | None:
        """The name of the adapter that changes its answers; None for the model alone."""
        return self.info.adapter

    @property
    def device(self) -> Placement:
        """Where it runs, as its engine read it back; as text it is one line for people."""
        return self.info.placement

    @property
    def runtime(self) -> Runtime:
        """Its parts, for callers that keep decode states of their own, as the server does.

        After a warm start they are those of the device, once it is ready; see `edgesdk.load`.
        """
        self._latest = self._latest.latest()
        return self._latest

    @property
    def source(self) -> Bundle | Path | None:
        """The bundle or the file that it was loaded from; None for one made otherwise."""
        return self._source

    def respond(self, prompt: Prompt, **options: Unpack[RequestKwargs]) -> Reply:
        """Answer a prompt."""
        return read_all(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: Unpack[RequestKwargs]) -> ReplyStream:
        """Answer a prompt piece by piece."""
        started = perf_counter()
        runtime = self.runtime
        request = runtime.request(as_messages(prompt), options, started=started)
        return self._once(runtime, request, runtime.shared_tokens(request))

    async def arespond(self, prompt: Prompt, **options: Unpack[RequestKwargs]) -> Reply:
        """`respond` for asyncio; cancelling the task stops the decoding."""
        return await read_all_async(self.astream(prompt, **options))

    def astream(self, prompt: Prompt, **options: Unpack[RequestKwargs]) -> AsyncReplyStream:
        """`stream` for asyncio; cancelling the task stops the decoding."""
        return AsyncReplyStream(self.stream(prompt, **options))

    def complete(self, text: str, **options: Unpack[FormatKwargs]) -> Reply:
        """Go on with a text as it is, without a chat template; see `stream_completion`."""
        return read_all(self.stream_completion(text, **options))

    def stream_completion(self, text: str, **options: Unpack[FormatKwargs]) -> ReplyStream:
        """Go on with a text piece by piece, without a chat template.

        The text is the prompt as a whole, so control tokens that stand in it become control
        tokens, as in llama.cpp and transformers. Put no text of others into it unchecked.
        """
        started = perf_counter()
        runtime = self.runtime
        ids = runtime.encoder.plain(text)
        request = runtime.request([], options, started=started)
        return self._once(runtime, request.replaced(encode=lambda messages, specs: ids))

    def chat(self, system: str | None = None, *, overflow: OverflowPolicy = "error") -> Chat:
        """A conversation, with a KV cache of its own.

        Args:
            system: the system message; None for the one that the template has, if it has one.
            overflow: what to do when a turn leaves the answer no room in the context. "error"
                raises ContextOverflow when there is none at all. "drop_oldest_turns" leaves out
                the oldest turns for good; "summarize" puts a summary in their place, which the
                model writes first. The system message always stays, and a turn stays or goes as
                a whole. The receipt says what was done.
        """
        return Chat(self.runtime, system=system, overflow=overflow)

    def restore(self, path: str | Path, *, overflow: OverflowPolicy = "error") -> Chat:
        """The conversation that `Chat.save` wrote; its next turn starts without prefill.

        Raises:
            RequestError: the file is damaged, holds no chat, or was saved with another model,
                engine or KV layout.
            ContextOverflow: it holds more tokens than this model was loaded for.
        """
        runtime = self.runtime
        state = runtime.engine.new_state()
        try:
            saved = restore_chat(Path(path), state)
            return Chat(
                runtime,
                system=saved.system,
                overflow=overflow,
                turns=saved.turns,
                state=state,
            )
        except BaseException:
            state.close()
            raise

    def count(self, prompt: Prompt) -> int:
        """Tokens of a plain text, or of a list of messages as the template writes them."""
        if isinstance(prompt, str):
            return len(self.runtime.encoder.tokenizer.encode(prompt))
        return len(self.runtime.encode(as_messages(prompt)))

    def cache_prefix(self, prompt: Prompt) -> int:
        """Compute the beginning of later prompts now and keep it on disk, for this process or
        another; what they begin with is then read instead of computed.

        Args:
            prompt: a text that later prompts start with, or messages that later conversations
                start with.

        Returns:
            How many tokens are stored.

        Raises:
            RequestError: the model was loaded without a prefix cache, there are too few tokens
                to keep, or the cache's folder cannot be written.
        """
        return self.runtime.cache_prefix(as_messages(prompt))

    def plan(self, context: int | None = None) -> Plan:
        """What this model needs in memory, against what the device has; see `edgesdk.plan`.

        What this process holds already counts as available, since the model is in it.

        Raises:
            InvalidOption: `context` is not between 1 and the model's limit.
            RequestError: the model does not come from a file.
        """
        if self._source is None:
            raise RequestError("A model that does not come from a file cannot be planned for.")
        return plan(
            footprint(self._source, self.info.device),
            context=context,
            reusable=private_bytes(),
        )

    def with_adapter(self, adapter: str | Path) -> Model:
        """This model with an adapter (a folder), as a model of its own, which shares the base.

        Both answer, at once if they are asked at once; so do any number of adapters. Chats, saved
        chats and cached prefixes belong to one of them. Close each when it is not needed any more.
        A draft model stays with this one.

        Raises:
            AdapterMismatch: the adapter was made for another bundle.
            BundleError: there is no adapter there, or it is damaged.
            EngineError: the engine that runs this model runs no adapters.
        """
        opened = open_adapter(Path(adapter))
        runtime = self.runtime.with_adapter(opened)
        return Model(adapted_name(self.name, opened), runtime, self._source)

    def close(self) -> None:
        """Free the model. Its chats must not be used afterwards."""
        self.runtime.close()

    def _once(self, runtime: Runtime, request: Request, shared: int = 0) -> ReplyStream:
        """An answer on a decode state of its own."""
        state = runtime.engine.new_state()

        def on_end(reply: Reply | None) -> None:
            state.close()

        try:
            return runtime.answer(state, request, on_end=on_end, shared=shared)
        except BaseException:
            state.close()
            raise

"""A loaded model: ask it, stream it, chat with it."""

from __future__ import annotations

from time import perf_counter
from types import TracebackType

from typing_extensions import Self, Unpack

from edgesdk.chat import Chat
from edgesdk.decode.options import OptionChanges, Options, options_from
from edgesdk.engines.base import EngineInfo
from edgesdk.receipt import Reply
from edgesdk.runtime import Runtime
from edgesdk.streaming import AsyncReplyStream, ReplyStream, read_all, read_all_async
from edgesdk.text.prompts import Prompt, messages_of


class Model:
    """A loaded model; `edgesdk.load` makes one. May be used by several threads.

    A prompt is a text, or a list of messages such as `{"role": "user", "content": "Hello"}`.
    Options are those of `edgesdk.Options`, as keyword arguments.

    All ways to ask raise:
        EmptyPrompt: there is nothing to answer.
        InvalidText: the prompt has a lone surrogate.
        InvalidOption: an option is unknown or out of its range.
        TemplateError: the model cannot chat, or its template refuses the messages.
        ContextOverflow: the prompt does not fit the context. Nothing is ever truncated. An answer
            that fills the context ends with the finish reason "length".
        DeadlineExceeded: the deadline passed before the first token.
        EngineError: the engine failed.
    """

    def __init__(self, name: str, runtime: Runtime) -> None:
        self.name = name
        self._runtime = runtime

    @property
    def info(self) -> EngineInfo:
        """What runs, and where."""
        return self._runtime.engine.info

    @property
    def runtime(self) -> Runtime:
        """Its parts, for those who keep sequences of their own, as the server does."""
        return self._runtime

    def respond(self, prompt: Prompt, **options: Unpack[OptionChanges]) -> Reply:
        """Answer a prompt."""
        return read_all(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: Unpack[OptionChanges]) -> ReplyStream:
        """Answer a prompt piece by piece."""
        started = perf_counter()
        ids = self._runtime.encoder.chat(messages_of(prompt))
        return self._once(ids, options_from(options), started)

    async def arespond(self, prompt: Prompt, **options: Unpack[OptionChanges]) -> Reply:
        """`respond` for asyncio; cancelling the task stops the decoding."""
        return await read_all_async(self.astream(prompt, **options))

    def astream(self, prompt: Prompt, **options: Unpack[OptionChanges]) -> AsyncReplyStream:
        """`stream` for asyncio; cancelling the task stops the decoding."""
        return AsyncReplyStream(self.stream(prompt, **options))

    def complete(self, text: str, **options: Unpack[OptionChanges]) -> Reply:
        """Go on with a text as it is, without a chat template."""
        started = perf_counter()
        ids = self._runtime.encoder.plain(text)
        return read_all(self._once(ids, options_from(options), started))

    def chat(self, system: str | None = None) -> Chat:
        """A conversation, with a KV cache of its own.

        Args:
            system: what the assistant is told before the conversation; None for what the
                template says by itself.
        """
        return Chat(self._runtime, system=system)

    def count(self, prompt: Prompt) -> int:
        """Tokens of a plain text, or of a list of messages as the template writes them."""
        if isinstance(prompt, str):
            return len(self._runtime.encoder.tokenizer.encode(prompt))
        return len(self._runtime.encoder.chat(messages_of(prompt)))

    def close(self) -> None:
        """Free the model. Its chats must not be used afterwards."""
        self._runtime.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _once(self, ids: list[int], options: Options, started: float) -> ReplyStream:
        """An answer on a sequence of its own."""
        sequence = self._runtime.engine.sequence()

        def on_end(reply: Reply | None) -> None:
            sequence.close()

        try:
            return self._runtime.answer(sequence, ids, options, started=started, on_end=on_end)
        except BaseException:
            sequence.close()
            raise

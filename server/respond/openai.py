"""Answers of an OpenAI-compatible chat endpoint (``POST {url}/chat/completions``, streamed), by the package openai (extra ``respond``)."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from time import monotonic
from typing import Any

import msgspec

from qwen3_jax.messages import shorten
from qwen3_jax.runtime.extras import needed
from server.respond.base import Said, Unanswered

WHOLE = 6  # times the limit of a piece: the limit of an answer
log = logging.getLogger(__name__)


class OpenAI:
    """See ``server.respond.base.Responder``.

    Args:
        url: what comes before ``/chat/completions``; some end with ``/v1``.
        model: as the endpoint calls it.
        key: sent as a bearer token; None: the endpoint needs none.
        instructions: the system message; empty: none.
        timeout: seconds for the first piece, and for each that follows.
        most: characters of an answer. A longer one is cut after a word.

    Raises:
        MissingExtra: the package openai is not installed.
    """

    def __init__(self, url: str, model: str, key: str | None, instructions: str, timeout: float, most: int) -> None:
        self._openai = needed("openai", "respond", "TTS_RESPONDER_URL")
        # No retries: who waits for a spoken answer is served better by being told. Proxies and keys of the environment are not for it.
        self._client = self._openai.AsyncOpenAI(base_url=url, api_key=key or "none", timeout=timeout, max_retries=0)
        self._model, self._instructions, self._timeout, self._most = model, instructions, timeout, most
        # Of these ends the package tells as they are: garbage in the stream is a ValueError (of JSON, UTF-8 or pydantic), one cut short an
        # error of the HTTP package below, which openai wraps before the first byte only.
        http = needed(type(self._client._client).__mro__[1].__module__.partition(".")[0], "respond", "TTS_RESPONDER_URL")
        self._broken = (self._openai.OpenAIError, http.HTTPError, http.StreamError, ValueError, TypeError, AttributeError, LookupError)

    async def answer(self, history: Sequence[Said]) -> AsyncIterator[str]:
        messages = [{"role": said.role, "content": said.text} for said in history]
        if self._instructions:
            messages.insert(0, {"role": "system", "content": self._instructions})
        left, end = self._most, monotonic() + WHOLE * self._timeout
        async with contextlib.aclosing(self._pieces(messages, end)) as pieces:
            async for piece in pieces:
                if len(piece) > left:
                    yield piece[:left].rpartition(" ")[0]
                    log.info("an answer of the chat endpoint was cut after %d characters (TTS_RESPONDER_MAX_CHARS)", self._most)
                    return
                left -= len(piece)
                yield piece
        if left == self._most:
            raise Unanswered("the chat endpoint sent an answer without text")

    async def close(self) -> None:
        await self._client.close()

    async def _pieces(self, messages: list[dict[str, str]], end: float) -> AsyncGenerator[str, None]:
        """The pieces of text, with the endpoint's faults as Unanswered."""
        stream: Any = None
        try:
            async with asyncio.timeout(self._timeout):
                stream = await self._client.chat.completions.create(model=self._model, messages=messages, stream=True)
            chunks = aiter(stream)
            finished = False
            while True:
                async with asyncio.timeout(min(self._timeout, end - monotonic())):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                for choice in chunk.choices[:1]:
                    finished = finished or choice.finish_reason is not None
                    if isinstance(text := choice.delta.content, str) and text:
                        yield text
            if not finished:
                raise Unanswered("the chat endpoint ended in the middle of an answer")
        except (TimeoutError, self._openai.APITimeoutError) as error:
            raise Unanswered(f"the chat endpoint sent nothing for {self._timeout:g} s, or no end (TTS_RESPONDER_TIMEOUT)") from error
        except self._openai.APIStatusError as error:
            raise Unanswered(f"the chat endpoint refused with HTTP {error.status_code}{_hint(error.status_code)}") from error
        except self._broken as error:
            if isinstance(error, self._openai.APIConnectionError):
                raise Unanswered("the chat endpoint cannot be reached (TTS_RESPONDER_URL)") from error
            log.warning("the chat endpoint: %s: %s", type(error).__name__, shorten(str(error)))
            raise Unanswered("the chat endpoint's answer broke off, or is none that a chat endpoint gives") from error
        finally:
            if stream is not None:
                with contextlib.suppress(*self._broken):
                    await stream.close()


def _hint(status: int) -> str:
    """What an operator may put right."""
    return {
        401: ": see TTS_RESPONDER_KEY",
        403: ": see TTS_RESPONDER_KEY",
        404: ": see TTS_RESPONDER_URL and TTS_RESPONDER_MODEL",
        429: ": it is asked too often, or its quota is used up",
    }.get(status, "")


_ = msgspec

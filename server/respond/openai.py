"""Answers of an OpenAI-compatible chat endpoint: ``POST {url}/chat/completions``, streamed as server-sent events (extra ``respond``)."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from time import monotonic
from typing import Any

import msgspec

from qwen3_jax.messages import shorten
from qwen3_jax.runtime.extras import needed
from server.respond.base import Said, Unanswered

WHOLE = 6  # times the limit of a piece: the limit of an answer
LONGEST_LINE = 1 << 20  # bytes of an event
_LINES = re.compile(rb"\r\n|\n|\r")
_HINTS = {
    401: ": see TTS_RESPONDER_KEY",
    403: ": see TTS_RESPONDER_KEY",
    404: ": see TTS_RESPONDER_URL and TTS_RESPONDER_MODEL",
    429: ": it is asked too often, or its quota is used up",
}
log = logging.getLogger(__name__)


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None  # some endpoints tell an error so, inside the stream


_chunk = msgspec.json.Decoder(_Chunk)


class OpenAI:
    """See ``server.respond.base.Responder``.

    Args:
        url: what comes before ``/chat/completions``, such as ``http://127.0.0.1:11434/v1``.
        model: as the endpoint calls it.
        key: sent as a bearer token; None: the endpoint needs none.
        instructions: the system message; empty: none.
        timeout: seconds for the first piece, and for each that follows.
        most: characters of an answer. A longer one is cut after a word.

    Raises:
        MissingExtra: the package httpx is not installed.
    """

    def __init__(self, url: str, model: str, key: str | None, instructions: str, timeout: float, most: int) -> None:
        self._http = needed("httpx", "respond", "TTS_RESPONDER_URL")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # A redirect would carry the key elsewhere; each wait has its limit below.
        self._client = self._http.AsyncClient(headers=headers, timeout=None, follow_redirects=False)
        self._url = url.rstrip("/") + "/chat/completions"
        self._model, self._instructions, self._timeout, self._most = model, instructions, timeout, most

    async def answer(self, history: Sequence[Said]) -> AsyncGenerator[str, None]:
        messages = [{"role": said.role, "content": said.text} for said in history]
        if self._instructions:
            messages.insert(0, {"role": "system", "content": self._instructions})
        left = self._most
        async with aclosing(self._pieces(messages)) as pieces:
            async for piece in pieces:
                if len(piece) > left:
                    log.info("an answer of the chat endpoint is cut after %d characters (TTS_RESPONDER_MAX_CHARS)", self._most)
                    if kept := piece[:left].rpartition(" ")[0]:
                        yield kept
                    return
                left -= len(piece)
                yield piece
        if left == self._most:
            raise Unanswered("the chat endpoint sent an answer without text")

    async def close(self) -> None:
        await self._client.aclose()

    async def _pieces(self, messages: list[dict[str, str]]) -> AsyncGenerator[str, None]:
        """The pieces of text, with the endpoint's faults as Unanswered."""
        body = {"model": self._model, "messages": messages, "stream": True}
        end, done = monotonic() + WHOLE * self._timeout, False
        request = self._client.build_request("POST", self._url, json=body)
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.send(request, stream=True)
            async with aclosing(response):
                if response.status_code != 200:
                    raise Unanswered(f"the chat endpoint refused with HTTP {response.status_code}{_HINTS.get(response.status_code, '')}")
                async with aclosing(_events(response.aiter_bytes())) as events:
                    while not done:
                        async with asyncio.timeout(min(self._timeout, end - monotonic())):
                            event = await anext(events, None)
                        if event is None:
                            raise Unanswered("the chat endpoint's answer broke off")
                        if event == b"[DONE]":
                            return
                        for choice in self._read(event)[:1]:
                            if choice.delta.content:
                                yield choice.delta.content
                            done = choice.finish_reason is not None
        except TimeoutError as error:
            raise Unanswered(f"the chat endpoint sent nothing for {self._timeout:g} s, or no end (TTS_RESPONDER_TIMEOUT)") from error
        except msgspec.DecodeError as error:
            raise Unanswered("the chat endpoint sent something that is no chat completion") from error
        except self._http.ConnectError as error:
            raise Unanswered("the chat endpoint cannot be reached (TTS_RESPONDER_URL)") from error
        except self._http.HTTPError as error:
            raise Unanswered(f"the connection to the chat endpoint broke off ({type(error).__name__})") from error

    def _read(self, event: bytes) -> list[_Choice]:
        chunk = _chunk.decode(event)
        if chunk.error is not None:
            log.warning("the chat endpoint: %s", shorten(str(chunk.error)))
            raise Unanswered("the chat endpoint told of an error of its own; the server's log says more")
        return chunk.choices


async def _events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The data of server-sent events (WHATWG HTML, 9.2.6): each of one line, as chat endpoints send them."""
    rest = b""
    async for piece in pieces:
        *lines, rest = _LINES.split(rest + piece)
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
        if len(rest) > LONGEST_LINE:
            raise Unanswered("the chat endpoint sent something that is no stream of events")
    if rest.startswith(b"data:"):
        yield rest[5:].strip()

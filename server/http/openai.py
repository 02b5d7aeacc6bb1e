"""OpenAI's speech endpoint on the same engine: ``POST /v1/audio/speech``, ``GET /v1/models``, ``GET /v1/audio/voices``.

Whatever speaks to OpenAI speaks to this: the ``openai`` package, LiveKit, Pipecat, SillyTavern, Open WebUI, wyoming_openai.
"""

import asyncio
import base64
import contextlib
import uuid
import weakref
from collections.abc import AsyncGenerator
from time import monotonic
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from quart import Quart, Response, ResponseReturnValue, request

from qwen3_jax.audio.samples import check_finite
from qwen3_jax.messages import shorten
from qwen3_jax.shapes import F32
from qwen3_jax.text.nfc import AROUND
from server.admission import reading, speech
from server.admission.speech import Denied, Tries
from server.admission.text import normal_form, too_long
from server.context import Context
from server.engines.base import SpeechHandle, SpeechRequest
from server.http.encode import CONTENT_TYPES, FileEncoder, Tempo, Unavailable, encoder
from server.http.web import HttpError, authenticated, denied, route_of
from server.ops.auth import Principal
from server.voices.store import StoredVoice
from server.ws import protocol
from server.ws.machine import End

SPEECH = "/v1/audio/speech"
MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")  # what clients have in their menus; all are this server's one engine


class VoiceId(msgspec.Struct):
    """``voice`` as an object."""

    id: protocol.Name = ""


class CreateSpeechRequest(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/audio/speech``. ``instructions`` are taken and not followed: a Base model has none."""

    input: str
    model: str | None = None
    voice: protocol.Name | VoiceId | None = None
    instructions: str | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Meta(ge=0.25, le=4)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    language: protocol.Name | None = None  # ours
    seed: protocol.Seed | None = None  # ours

    def __post_init__(self) -> None:
        if self.seed == -1:
            self.seed = None


def install(app: Quart, context: Context) -> None:
    """Add the routes."""

    @app.get("/v1/models")
    @app.get("/v1/audio/models")  # where Open WebUI asks
    @authenticated(context)
    async def models(principal: Principal) -> ResponseReturnValue:
        return {"object": "list", "data": [_model(name) for name in (context.settings.model_id, *MODELS)]}

    @app.get("/v1/models/<path:model_id>")
    @authenticated(context)
    async def model(principal: Principal, model_id: str) -> ResponseReturnValue:
        names = (context.settings.model_id, *MODELS)
        for name in names:
            if name.strip("/").casefold() == model_id.strip("/").casefold():
                return _model(name)
        raise HttpError(404, "MODEL_NOT_FOUND", f"model {shorten(model_id)!r} is not here: {', '.join(names)}", param="model")

    @app.get("/v1/audio/voices")
    @authenticated(context)
    async def speech_voices(principal: Principal) -> ResponseReturnValue:
        await asyncio.to_thread(context.store.refresh)
        return {"voices": [{"id": name, "name": _title(context, name)} for name in context.voices(principal.id)]}

    @app.after_request
    async def count(response: Response) -> Response:
        if request.method == "POST" and route_of(request) == SPEECH:
            context.access.answered(SPEECH, response.status_code)
        return response

    @app.post(SPEECH)
    @authenticated(context)
    async def create_speech(principal: Principal) -> ResponseReturnValue:
        wanted = _parse(await request.get_data(as_text=False))
        text = await _text(context, wanted)
        name = wanted.voice.id.strip() if isinstance(wanted.voice, VoiceId) else wanted.voice or ""
        voice, language = await speech.voice(context, name, principal.id), speech.language(context, wanted.language)
        speech.check_engine(context, principal)
        context.limits.count(principal, "characters", len(text))
        context.limits.count(principal, "utterances")
        try:
            encoding, tempo = encoder(wanted.response_format), None if wanted.speed == 1 else Tempo(wanted.speed)
        except Unavailable as error:
            raise HttpError(400, "FORMAT_UNAVAILABLE", str(error), param="response_format") from error
        asked = SpeechRequest(text=text, voice=voice, language=language, seed=wanted.seed, owner=principal.bucket)
        work = _Work(context, asked, encoding, tempo, principal.id)
        first = await work.first()
        body = work.rest(first) if wanted.stream_format == "audio" else _events(work.rest(first), text)
        kind = CONTENT_TYPES[wanted.response_format] if wanted.stream_format == "audio" else "text/event-stream"
        response = Response(body, content_type=kind)
        response.timeout = None
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Request-Id"] = str(uuid.uuid4())
        response.headers["X-Accel-Buffering"] = "no"  # proxies: pass it on as it comes
        return response


class _Work:
    """One utterance on its way through an encoder."""

    def __init__(self, context: Context, wanted: SpeechRequest, encoding: FileEncoder, tempo: Tempo | None, principal_id: str) -> None:
        self._context, self._wanted, self._encoding, self._tempo = context, wanted, encoding, tempo
        self._principal_id = principal_id
        self._handle: SpeechHandle | None = None
        self._begun = monotonic()
        self._sounds: float | None = None  # when its first bytes went out
        self._seconds = 0.0  # of audio that has been encoded
        self._end: End | None = None

    async def first(self) -> F32[np.ndarray, " F"] | None:
        """The first piece, so that what goes wrong before any sound is an HTTP error."""
        self._context.metrics.begun.inc()
        try:
            return await self._first()
        except Denied as error:
            told = denied(error)
            self._ended("failed", "error" if error.reason in ("memory", "fault") else None, told.status)
            raise told from error
        except BaseException as error:
            self._ended("left" if isinstance(error, asyncio.CancelledError) else "failed")
            raise

    def rest(self, piece: F32[np.ndarray, " F"] | None) -> AsyncGenerator[bytes, None]:
        """The file. A failure in its middle cuts the connection, for there is no other way to say so; a client that goes away ends it."""
        body = self._rest(piece)
        gone = weakref.finalize(body, self._ended, "left", "client_left")  # a body whose client goes before its first byte never begins
        gone.atexit = False
        return body

    def _ended(self, end: End, reason: str | None = None, status: int = 200) -> None:
        """It has ended; the first time counts. With a ``reason`` it has a line in the log; a refusal has another there."""
        if self._end is None:
            self._end = end
            self._context.metrics.ended.labels(end).inc()
            if reason is not None:
                self._tell(status, reason)
        if self._handle is not None:
            self._handle.cancel()

    async def _first(self) -> F32[np.ndarray, " F"] | None:
        tries = Tries(self._context)
        while True:
            self._handle = handle = tries.submit(self._wanted)
            broken, piece = None, None
            try:
                await tries.turn(handle)
                piece = await self._next(handle)
            except TimeoutError as error:
                raise tries.late() from error
            except FloatingPointError as error:  # an engine that handed out what is no sound
                handle.cancel()
                broken = error
            if (failure := handle.failure or broken) is None:
                self._context.metrics.ttfa.observe(monotonic() - self._begun)
                return piece
            tries.failed(failure, heard=False)

    async def _rest(self, piece: F32[np.ndarray, " F"] | None) -> AsyncGenerator[bytes, None]:
        handle = self._handle
        assert handle is not None
        ended = self._context.streams[handle] = asyncio.get_running_loop().create_future()
        try:
            while piece is not None:
                sound = piece if self._tempo is None else await asyncio.to_thread(self._tempo.write, piece)
                seconds = len(sound) / self._context.engine.sample_rate
                self._seconds += seconds
                self._context.metrics.audio.inc(seconds)
                if data := await asyncio.to_thread(self._encoding.write, sound):
                    self._sounds = self._sounds or monotonic()
                    yield data
                piece = await self._next(handle)
            if handle.failure is not None:
                raise handle.failure
            if handle.finish_reason == "cancelled":
                raise ConnectionAbortedError("the server goes down")
            if self._tempo is not None:
                yield await asyncio.to_thread(self._encoding.write, await asyncio.to_thread(self._tempo.finish))
            yield await asyncio.to_thread(self._encoding.finish)
            reason = handle.finish_reason or "eos"
            self._context.metrics.utterances.labels(reason).inc()
            self._ended("completed", reason)
        except (GeneratorExit, asyncio.CancelledError):
            self._ended("left", "client_left")
            raise
        finally:
            cancelled = handle.finish_reason == "cancelled"
            self._ended("cancelled" if cancelled else "failed", "cancelled" if cancelled else "error")
            del self._context.streams[handle]
            ended.set_result(None)

    def _tell(self, status: int, reason: str) -> None:
        """One line of the log, with what an utterance of a session has, too."""
        voice, settings = self._wanted.voice, self._context.settings
        fields: dict[str, object] = {
            "route": SPEECH,
            "principal": shorten(self._principal_id),
            "voice": shorten(voice.id if isinstance(voice, StoredVoice) else voice),
            "characters": len(self._wanted.text),
            "audio_ms": round(1000 * self._seconds),
            "ttfa_ms": None if self._sounds is None else round(1000 * (self._sounds - self._begun)),
            "status": status,
            "finish_reason": reason,
            "text": self._wanted.text if settings.log_texts else None,
        }
        self._context.access.spoke(fields, complete=reason in ("eos", "length"))

    async def _next(self, handle: SpeechHandle) -> F32[np.ndarray, " F"] | None:
        try:
            async with asyncio.timeout(self._context.settings.chunk_timeout):
                return check_finite(await anext(handle))
        except StopAsyncIteration:
            return None


async def _events(body: AsyncGenerator[bytes, None], text: str) -> AsyncGenerator[bytes, None]:
    """Server-sent events. Usage counts characters of input and chunks of output, since the clients want numbers there."""
    chunks = 0
    async with contextlib.aclosing(body):
        async for data in body:
            if data:
                chunks += 1
                yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
    usage = {"input_tokens": len(text), "output_tokens": chunks, "total_tokens": len(text) + chunks}
    yield _event({"type": "speech.audio.done", "usage": usage})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _parse(body: str | bytes) -> CreateSpeechRequest:
    try:
        wanted: CreateSpeechRequest = reading.convert(reading.decode(body), CreateSpeechRequest)
        return wanted
    except reading.BAD as error:
        raise HttpError(400, "INVALID_MESSAGE", reading.said(error), param=getattr(error, "field", None)) from error


async def _text(context: Context, wanted: CreateSpeechRequest) -> str:
    most = context.settings.max_text_chars
    try:
        text = (await normal_form(wanted.input, most)).strip(AROUND)
        if not 1 <= len(text) <= most:
            raise too_long(len(text), most)
    except ValueError as error:
        raise Denied("text", str(error)) from error
    return text


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "qwen3-jax"}


def _title(context: Context, name: str) -> str:
    voice = context.store.voices.get(name)
    return voice.metadata.name or name if voice is not None else name

"""OpenAI's speech endpoint on the same engine: ``POST /v1/audio/speech``, ``GET /v1/models``, ``GET /v1/audio/voices``.

Whatever speaks to OpenAI speaks to this: the ``openai`` package, LiveKit, Pipecat, SillyTavern, Open WebUI, wyoming_openai.
"""

import asyncio
import base64
import contextlib
import uuid
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from quart import Quart, Response, ResponseReturnValue, request

from qwen3_jax.messages import shorten
from qwen3_jax.text.nfc import AROUND
from server.admission import reading, speech
from server.admission.speech import Denied
from server.admission.text import normal_form, too_long
from server.context import Context
from server.engines.base import SpeechRequest
from server.http.encode import CONTENT_TYPES, Tempo, Unavailable, encoder
from server.http.playback import SPEECH, FilePlayback
from server.http.web import HttpError, authenticated, route_of
from server.ops.auth import Principal
from server.ws import protocol

MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")  # what clients have in their menus; all are this server's one engine


class VoiceObject(msgspec.Struct):
    """``voice`` as an object: by its ``id``, or by a ``name``, which is the same here."""

    id: protocol.Name | None = None
    name: protocol.Name | None = None

    def __post_init__(self) -> None:
        if self.id is None and self.name is None:
            raise ValueError("neither id nor name")

    @property
    def named(self) -> str:
        """What it is called."""
        return str(self.name if self.id is None else self.id).removeprefix(reading.BOM).strip()


class CreateSpeechRequest(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/audio/speech``. ``instructions`` are taken and not followed: a Base model has none."""

    input: str
    model: str | None = None
    voice: protocol.Name | VoiceObject | None = None
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
        name = wanted.voice.named if isinstance(wanted.voice, VoiceObject) else wanted.voice or ""
        voice, language = await speech.voice(context, name, principal.id), speech.language(context, wanted.language)
        speech.check_engine(context, principal)
        await context.limits.count(principal, "characters", len(text))
        await context.limits.count(principal, "utterances")
        try:
            encoding, tempo = encoder(wanted.response_format), None if wanted.speed == 1 else Tempo(wanted.speed)
        except Unavailable as error:
            raise HttpError(400, "FORMAT_UNAVAILABLE", str(error), param="response_format") from error
        asked = SpeechRequest(text=text, voice=voice, language=language, seed=wanted.seed, owner=principal.bucket)
        playback = FilePlayback(context, asked, encoding, tempo, principal.id)
        file = playback.rest(await playback.first())
        body = file if wanted.stream_format == "audio" else _events(file, text)
        kind = CONTENT_TYPES[wanted.response_format] if wanted.stream_format == "audio" else "text/event-stream"
        response = Response(body, content_type=kind)
        response.timeout = None
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Request-Id"] = str(uuid.uuid4())
        response.headers["X-Accel-Buffering"] = "no"  # proxies: pass it on as it comes
        return response


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

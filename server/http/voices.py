"""``/api/v1/voices``: list, listen, upload, delete. Voices of other principals do not exist for whoever asks."""

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Sequence

import msgspec
from quart import Quart, Response, ResponseReturnValue, request
from quart.datastructures import FileStorage

from qwen3_jax.messages import shorten
from server.context import Context
from server.engines.base import EngineClosed, OutOfMemory, Refused
from server.http.sample import CONDITIONS, holds, respond, version
from server.http.web import HttpError, authenticated
from server.languages import LANGUAGES, language
from server.ops.auth import Principal
from server.ops.connections import here
from server.voices import checks
from server.voices.names import aliases
from server.voices.store import Metadata, StoredVoice, VoiceGone, VoiceStore

UPLOADS_AT_ONCE = 2  # each may hold a decoded clip in memory
MAX_NAME, MAX_CONSENT = 100, 1000
FIELDS = ("name", "consent", "transcript", "language", "description", "licence")  # of an upload, besides audio
log = logging.getLogger(__name__)


class VoiceDescription(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A voice as clients see it."""

    id: str
    name: str
    language: str = ""
    description: str = ""
    is_default: bool
    modes: list[str] = []
    duration_seconds: float = 0.0
    licence: str = ""
    consent: str = ""
    aliases: list[str] = []  # other names that it answers to: OpenAI's, and those of TTS_VOICE_ALIASES
    deletable: bool = False  # by whoever asks: the voice is an upload of theirs


class VoiceList(msgspec.Struct, frozen=True):
    """``GET /api/v1/voices``."""

    voices: list[VoiceDescription]


def describe(voice: StoredVoice, default: str, principal_id: str, others: Sequence[str] = ()) -> VoiceDescription:
    """A voice as the list shows it to a principal, with the other names that it answers to."""
    about = voice.metadata
    return VoiceDescription(
        id=voice.id,
        name=about.name or voice.id,
        language=about.language,
        description=about.description,
        is_default=voice.id == default,
        modes=[voice.mode] if voice.transcript is None else ["icl", "xVector"],
        duration_seconds=about.duration_seconds,
        licence=about.licence,
        consent=about.consent,
        aliases=list(others),
        deletable=about.owner == principal_id,
    )


def install(app: Quart, context: Context) -> None:
    """Add the routes."""
    store = context.store
    uploading = asyncio.Semaphore(UPLOADS_AT_ONCE)

    @app.get("/api/v1/voices")
    @authenticated(context)
    async def list_voices(principal: Principal) -> ResponseReturnValue:
        await asyncio.to_thread(store.refresh)
        default = context.default_voice(principal.id)
        others = aliases(context.voices(principal.id), default, context.settings.voice_aliases)
        if context.engine.presets is not None:
            presets = context.engine.presets
            return _answer(
                VoiceList(
                    [VoiceDescription(id=name, name=name, is_default=name == default, aliases=others.get(name, [])) for name in presets]
                )
            )
        visible = [voice for voice in store.voices.values() if voice.visible_to(principal.id)]
        return _answer(VoiceList([describe(voice, default, principal.id, others.get(voice.id, ())) for voice in visible]))

    @app.get("/api/v1/voices/<voice_id>/sample.wav")
    @authenticated(context)
    async def sample(principal: Principal, voice_id: str) -> ResponseReturnValue:
        voice = await _visible(context, principal, voice_id)
        here().keep(context.limits.place(principal, "recording"))
        async with _storage(context, f"read from {voice.folder}"):
            file = await asyncio.to_thread(store.open_reference, voice)
        return respond(request._get_current_object(), file)  # type: ignore[attr-defined]  # a proxy, typed as what it stands for

    @app.delete("/api/v1/voices/<voice_id>")
    @authenticated(context)
    async def delete(principal: Principal, voice_id: str) -> ResponseReturnValue:
        voice = await _visible(context, principal, voice_id)
        if voice.metadata.owner != principal.id:
            raise HttpError(
                403,
                "VOICE_PROTECTED",
                f"voice {voice_id} was not uploaded by you: only the operator can remove it, with qwen3-jax voices remove",
            )
        if any(name in request.headers for name in CONDITIONS):
            async with _storage(context, f"read from {voice.folder}"):
                etag = await asyncio.to_thread(_version_of, store, voice)
            holds(request._get_current_object(), etag)  # type: ignore[attr-defined]  # as above
        try:
            async with _storage(context, f"deleted from {voice.folder}"):
                await asyncio.to_thread(store.remove, voice)
        finally:
            context.engine.forget(voice.id)
        _tell("voice deleted", voice, principal)
        return "", 204

    @app.post("/api/v1/voices")
    @authenticated(context)
    async def upload(principal: Principal) -> ResponseReturnValue:
        await context.limits.count(principal, "uploads")
        if context.engine.presets is not None:
            raise HttpError(409, "VOICES_FIXED", f"this model speaks in its own voices: {', '.join(context.engine.presets) or 'none'}")
        with context.limits.place(principal, "upload"):
            async with _storage(context, "kept for a moment in the temporary folder"):
                audio, form = await _form()
            async with uploading:  # when the body is there: a client that sends none holds nobody up
                try:
                    voice = await _keep(context, audio, form, principal)
                except checks.Refusal as error:
                    raise HttpError(error.status, error.code, str(error)) from error
        await _prepare(context, voice)
        _tell("voice uploaded", voice, principal)
        return _answer(describe(voice, context.default_voice(principal.id), principal.id), 201)


def _tell(done: str, voice: StoredVoice, principal: Principal) -> None:
    fields = {"voice": shorten(voice.id), "principal": shorten(principal.id), "seconds": voice.metadata.duration_seconds}
    log.info(done, extra={"fields": fields})


async def _keep(context: Context, audio: FileStorage, form: dict[str, str], principal: Principal) -> StoredVoice:
    """Check a recording and what is said about it, and store them. Raises HttpError or Refusal."""
    most, store = context.settings.max_upload_bytes, context.store
    about = _about(form, principal)
    given = checks.check_words("transcript", form.get("transcript", ""))  # a form's empty field is none
    clip = await asyncio.to_thread(checks.check, await asyncio.to_thread(audio.read, most + 1), most)
    transcript = await asyncio.to_thread(checks.check_transcript, given, clip.seconds) if given else None
    async with _storage(context, f"kept in {store.layers.destination or 'any folder'}"):
        return await asyncio.to_thread(store.add, clip, transcript, about)


async def _prepare(context: Context, voice: StoredVoice) -> None:
    """Clone it now, so that the first utterance need not wait; a voice that the model refuses does not stay."""
    if not context.engine.is_ready:
        return
    try:
        async with asyncio.timeout(context.settings.chunk_timeout):
            await context.engine.prepare(voice)
    except Refused as error:
        with contextlib.suppress(VoiceGone):
            await asyncio.to_thread(context.store.remove, voice)
        raise HttpError(422, "VOICE_REFUSED", str(error)) from error
    except (OSError, OutOfMemory, EngineClosed) as error:  # a TimeoutError is an OSError
        log.warning("voice %s is prepared later: %s", voice.id, str(error) or "the engine is busy")
    if not await asyncio.to_thread(context.store.holds, voice):
        raise HttpError(404, "VOICE_NOT_FOUND", f"voice {voice.id!r} has been deleted while it was being prepared")


@contextlib.asynccontextmanager
async def _storage(context: Context, done: str) -> AsyncIterator[None]:
    """What goes wrong with a voice's files, as an answer without paths; the log says what could not be done, and where."""
    try:
        yield
    except VoiceGone as error:
        raise HttpError(404, "VOICE_NOT_FOUND", str(error)) from error
    except OSError as error:
        context.store.failures += 1
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "make room there" if full else "let the server's user write there"
        log.error("a voice could not be %s: %s; %s, or set TTS_VOICES_DIR", done, error, advice)
        said = f"the voice could not be {done.split()[0]}; the server's log says why"
        raise HttpError(507 if full else 500, "STORAGE_FULL" if full else "STORAGE_FAILED", said) from error


async def _form() -> tuple[FileStorage, dict[str, str]]:
    """The recording and the other fields, each of which came once. Of a long form the recording goes to a temporary file as it comes.

    Raises:
        HttpError: a field came twice, as a file where it is text, or the other way round.
    """
    files, form = await request.files, await request.form
    for field in ("audio", *FIELDS):
        texts, sent = len(form.getlist(field)), len(files.getlist(field))
        if texts + sent > 1:
            raise HttpError(422, "FIELD_REPEATED", f"the form has {texts + sent} fields {field}: send one", param=field)
        if sent and field != "audio":
            message = f"the field {field} is a file: send it as text, with curl -F '{field}=<FILE'"
            raise HttpError(422, "FIELD_IS_FILE", message, param=field)
    if "audio" in form:
        raise HttpError(400, "AUDIO_MISSING", "the field audio is text: send it as a file, with curl -F audio=@FILE", param="audio")
    if "audio" not in files:
        raise HttpError(
            400, "AUDIO_MISSING", "the field audio is missing: send multipart/form-data with a file of that name", param="audio"
        )
    return files["audio"], dict(form)


def _about(form: dict[str, str], principal: Principal) -> Metadata:
    """The fields that describe a voice, checked. Raises HttpError 400 or Refusal."""
    names = (name for name in FIELDS if name != "transcript")
    values = {name: checks.check_words(name, form.get(name, ""), lines=name in ("consent", "description")) for name in names}
    for name, most in (("name", MAX_NAME), ("consent", MAX_CONSENT)):
        if not 1 <= len(values[name]) <= most:
            what = "a statement that the speaker agrees" if name == "consent" else "what people call the voice"
            raise HttpError(400, f"{name.upper()}_MISSING", f"the field {name} is required: {what}, 1 to {most} characters", param=name)
    if values["language"]:
        known = language(values["language"])
        if known is None:
            raise HttpError(
                400,
                "LANGUAGE_UNKNOWN",
                f"language {shorten(values['language'])!r}: use one of {', '.join(LANGUAGES)}",
                param="language",
            )
        values["language"] = known
    for name in ("description", "licence"):
        if len(values[name]) > MAX_CONSENT:
            raise HttpError(400, f"{name.upper()}_TOO_LONG", f"the field {name} may have {MAX_CONSENT} characters", param=name)
    return Metadata(owner=principal.id, **values)  # type: ignore[arg-type]  # all of these are strings


async def _visible(context: Context, principal: Principal, voice_id: str) -> StoredVoice:
    found = await context.find_voice(voice_id, principal.id)
    if not isinstance(found, StoredVoice):
        raise HttpError(404, "VOICE_NOT_FOUND", f"voice {shorten(voice_id)!r} is not here")
    return found


def _version_of(store: VoiceStore, voice: StoredVoice) -> str:
    with store.open_reference(voice) as file:
        return version(file)


def _answer(value: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status=status, content_type="application/json")

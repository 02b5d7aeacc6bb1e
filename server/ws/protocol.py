"""The messages of ``/api/v1/speak``: JSON text <-> structs. Pure: no socket, no engine.

Field names are camelCase on the wire. Unknown fields are ignored, and so is a message whose ``type`` nobody knows.
"""

from enum import IntEnum
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from qwen3_jax.messages import shorten
from qwen3_jax.model.sampling import LEAST_TOP_P, TEMPERATURES
from server.admission import reading

SPEAK = "/api/v1/speak"  # the route
ENCODINGS, TRANSPORTS, INTERRUPTIONS = ("pcm16", "pcm32f"), ("binary", "json"), ("immediate", "confirm", "off")
SAMPLE_RATES = (8000, 16000, 22050, 24000, 44100, 48000)

MOST_NAME = 128  # characters
MOST_SAID = 2000  # characters of an error's message, whatever it repeats
Name: TypeAlias = Annotated[str, Meta(max_length=MOST_NAME)]
Milliseconds: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seed: TypeAlias = Annotated[int, Meta(ge=-1, lt=2**32, description="-1, like null, is a fresh one")]
Code: TypeAlias = Literal[
    "MODEL_LOADING",
    "SYNTHESIS_ERROR",
    "INVALID_TEXT",
    "INVALID_MESSAGE",
    "VOICE_NOT_FOUND",
    "UNAUTHORIZED",
    "RATE_LIMITED",
    "TIMEOUT",
    "CANCELLED",
    "GPU_OUT_OF_MEMORY",
    "OVERLOADED",
    "RECOGNITION_ERROR",
    "RESPONDER_ERROR",
]
UNRECOVERABLE: frozenset[Code] = frozenset({"INVALID_TEXT"})  # the same input will fail again; the session lives on all the same


class Close(IntEnum):
    """Close codes of the WebSocket."""

    NORMAL = 1000
    TOO_BIG = 1009  # sent by the transport
    INTERNAL = 1011
    GOING_AWAY = 1012
    OVERLOADED = 1013
    UNAUTHORIZED = 4401
    IDLE = 4408
    RATE_LIMITED = 4429


class InvalidMessage(ValueError):
    """Not JSON, or a field that is missing or of the wrong type; the message says which. ``request_id``: if the message had a good one."""

    def __init__(self, message: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", rename="camel"):
    """Base of all messages."""


class Start(_Message, tag="start", frozen=True, kw_only=True):
    """Configure the session. What is not given keeps its default."""

    sample_rate: Annotated[int, Meta(extra_json_schema={"enum": SAMPLE_RATES})] = (
        24000  # checked by the session, which names what is allowed
    )
    encoding: Annotated[str, Meta(extra_json_schema={"enum": ENCODINGS})] = "pcm16"
    transport: Annotated[str, Meta(extra_json_schema={"enum": TRANSPORTS})] = "binary"
    voice: Name | None = None
    language: Name | None = None
    auth_token: str | None = None
    contract_id: Name | None = None
    interruption: Annotated[str, Meta(extra_json_schema={"enum": INTERRUPTIONS})] = "confirm"
    word_times: bool = False  # of all that the session speaks, answers included


class Speak(_Message, tag="speak", frozen=True, kw_only=True):
    """Speak a text. With ``continue`` it is a piece of one: the first opens an utterance, later ones extend it, ``flush`` ends it."""

    text: str
    priority: Literal["normal", "high"] = "normal"
    voice: Name | None = None
    request_id: Name | None = None
    continue_: bool = msgspec.field(default=False, name="continue")
    language: Name | None = None
    seed: Seed | None = None
    temperature: Annotated[float, Meta(ge=0, le=10, description="0 is greedy decoding")] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2048)] | None = None
    top_p: Annotated[float, Meta(ge=LEAST_TOP_P, le=1)] | None = None
    word_times: bool = False

    def __post_init__(self) -> None:
        if self.temperature is not None and 0 < self.temperature < TEMPERATURES[0]:
            allowed = f"0 (greedy decoding), or a number from {TEMPERATURES[0]} to 10"
            raise ValueError(f"temperature {self.temperature} must be {allowed}")
        if self.seed == -1:
            msgspec.structs.force_setattr(self, "seed", None)


class Flush(_Message, tag="flush", frozen=True, kw_only=True):
    """End of a text that came in pieces; ``requestId``, if given, must be that text's."""

    request_id: Name | None = None


class Cancel(_Message, tag="cancel", frozen=True, kw_only=True):
    """Stop what is spoken and what waits; with ``requestId``, only that one."""

    request_id: Name | None = None


class Stop(_Message, tag="stop", frozen=True, kw_only=True):
    """End the session."""

    reason: Name = "user_requested"


class Played(_Message, tag="played", frozen=True, kw_only=True):
    """How much of an utterance has sounded so far: of the one with that ``requestId``; without it, of the one that sounds."""

    ms: Milliseconds
    request_id: Name | None = None


class Resume(_Message, tag="resume", frozen=True, kw_only=True):
    """The first message of a socket in the place of one that was lost: ``started``, then audio from ``playedMs`` of that utterance on."""

    session_id: Name
    request_id: Name | None = None
    played_ms: Milliseconds | None = None
    auth_token: str | None = None


ClientMessage: TypeAlias = Start | Speak | Flush | Cancel | Played | Resume | Stop


class Capabilities(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Part of ``ready``."""

    streaming: bool
    languages: tuple[str, ...]
    encodings: tuple[str, ...]
    sample_rates: tuple[int, ...]
    max_text_chars: int
    voices: tuple[str, ...]


class SessionLimits(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Part of ``ready``."""

    max_message_bytes: int
    max_waiting: int
    idle_timeout_ms: int


class Ready(_Message, tag="ready", frozen=True, kw_only=True):
    """Sent at once; ``voiceLoaded`` is empty while the model loads."""

    session_id: str
    voice_loaded: str
    capabilities: Capabilities
    limits: SessionLimits


class Started(_Message, tag="started", frozen=True, kw_only=True):
    """What is really in force."""

    sample_rate: int
    encoding: str
    voice: str
    language: str
    transport: str


class AudioChunk(_Message, tag="audioChunk", frozen=True, kw_only=True):
    """Audio where ``transport`` is ``json``; the last chunk of an utterance has ``isFinal``, and may be empty."""

    data: str
    sequence_number: int  # from 1, per utterance
    is_final: bool
    timestamp_ms: int  # since 1970
    request_id: str | UnsetType = UNSET


class Complete(_Message, tag="complete", frozen=True, kw_only=True):
    """After the last byte of an utterance. Times run from the arrival of ``speak``."""

    duration_ms: int
    characters_processed: int
    audio_length_ms: int
    ttfa_ms: int | None
    finish_reason: str
    request_id: str | UnsetType = UNSET


class Error(_Message, tag="error", frozen=True, kw_only=True):
    """Something failed; the session lives on unless the socket closes."""

    code: Code
    message: str
    recoverable: bool
    final: bool  # whether nothing more follows of what it answers; False: the session, or the utterance, goes on as it was
    request_id: str | UnsetType = UNSET
    retry_after_ms: int | UnsetType = UNSET


class Ducked(_Message, tag="ducked", frozen=True, kw_only=True):
    """Somebody may be speaking: no audio is released until ``resumed`` or ``interrupted``. The utterance has been heard up to ``atMs``."""

    at_ms: int
    request_id: str | UnsetType = UNSET


class Resumed(_Message, tag="resumed", frozen=True, kw_only=True):
    """It was no speech: audio goes on from the very sample."""

    request_id: str | UnsetType = UNSET


class Interrupted(_Message, tag="interrupted", frozen=True, kw_only=True):
    """Somebody speaks: stop the sound. No audio of it follows; ``error`` ``CANCELLED`` does, unless ``complete`` has come before.

    The texts together are the utterance's, cut at the end of a word.
    """

    audio_end_ms: int
    spoken_text: str
    remaining_text: str
    request_id: str | UnsetType = UNSET


class SpokenWord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Part of ``words``. Milliseconds from the first sample of the utterance; null where unknown."""

    word: str
    start_ms: int | None
    end_ms: int | None


class SpokenWords(_Message, tag="words", frozen=True, kw_only=True):
    """When words are heard, before the audio in which they begin. ``first``: the index of the first of these; they replace earlier ones."""

    first: int
    words: list[SpokenWord]
    request_id: str | UnsetType = UNSET


class AnswerText(_Message, tag="answer", frozen=True, kw_only=True):
    """A piece of the text of an utterance that the server itself speaks; its audio follows under the same ``requestId``."""

    request_id: str
    text: str
    is_final: bool


class Stopped(_Message, tag="stopped", frozen=True, kw_only=True):
    """The last message of a session."""

    reason: str


ServerMessage: TypeAlias = (
    Ready | Started | AudioChunk | Complete | Ducked | Resumed | Interrupted | SpokenWords | AnswerText | Error | Stopped
)


class _Identified(msgspec.Struct, rename="camel"):
    request_id: Name | None = None


_identified = msgspec.json.Decoder(_Identified)
_KNOWN = frozenset({"start", "speak", "flush", "cancel", "played", "resume", "stop"})


def parse(data: str | bytes | None) -> ClientMessage | None:
    """A frame -> its message, or None for a type that nobody knows.

    Raises:
        InvalidMessage: a binary frame (an empty one arrives as None), not JSON, or a field missing, mistyped or out of range.
    """
    if not isinstance(data, str):
        raise InvalidMessage("binary frames are not expected here: send JSON text")
    try:
        message: ClientMessage | None = reading.message(reading.decode(data), ClientMessage, _KNOWN)
        return message
    except reading.BAD as error:
        raise InvalidMessage(reading.said(error), _request_id(data)) from error


def _request_id(data: str) -> str | None:
    """That of a message with something else wrong, be it a number that is none of JSON's."""
    try:
        return _identified.decode(data.removeprefix(reading.BOM)).request_id
    except reading.BAD:
        return None


def named(request_id: str | None) -> str | UnsetType:
    """As messages have it."""
    return UNSET if request_id is None else request_id


def encode(message: msgspec.Struct) -> str:
    """A message -> JSON text."""
    return msgspec.json.encode(message).decode()


def error(
    code: Code,
    message: str,
    request_id: str | None = None,
    *,
    recoverable: bool | None = None,
    final: bool = True,
    retry_after_ms: int | None = None,
) -> Error:
    """An ``error`` with the code's own ``recoverable``, unless told otherwise."""
    return Error(
        code=code,
        message=shorten(message, MOST_SAID),
        recoverable=code not in UNRECOVERABLE if recoverable is None else recoverable,
        final=final,
        request_id=UNSET if request_id is None else request_id,
        retry_after_ms=UNSET if retry_after_ms is None else retry_after_ms,
    )

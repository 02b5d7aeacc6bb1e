"""The messages of ``/api/v1/listen``: JSON text <-> structs, beside binary frames of PCM. Pure, as server.ws.protocol."""

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from server.admission import reading
from server.listen.audio_in import BYTES, SAMPLE_RATES
from server.listen.base import HeardWord
from server.listen.turns import Detection
from server.ws.protocol import Error, InvalidMessage, Name, Stop, Stopped

LISTEN = "/api/v1/listen"  # the route
ENCODINGS = tuple(BYTES)
KINDS, EAGERNESS = ("vad", "semantic", "none"), ("low", "medium", "high")
RANGES = {"threshold": (0.05, 0.95), "silenceMs": (100, 5000), "minSpeechMs": (0, 2000)}  # of turnDetection


class _ListenMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", rename="camel"):
    """Base of these messages."""


def _range(name: str) -> Any:
    low, high = RANGES[name]
    return Meta(extra_json_schema={"minimum": low, "maximum": high})


class TurnDetection(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Part of ``start``: what begins and ends a turn. Checked by the session, which names what is allowed."""

    type: Annotated[str, Meta(extra_json_schema={"enum": KINDS})] = "vad"
    threshold: Annotated[float, _range("threshold")] | None = None
    silence_ms: Annotated[int, _range("silenceMs")] | None = None
    min_speech_ms: Annotated[int, _range("minSpeechMs")] | None = None
    eagerness: Annotated[str, Meta(extra_json_schema={"enum": EAGERNESS})] = "medium"


class ListenStart(_ListenMessage, tag="start", frozen=True, kw_only=True):
    """Configure the session; what was heard is forgotten. ``respond``: the server answers, into a Speak session of the same contractId."""

    sample_rate: Annotated[int, Meta(extra_json_schema={"enum": SAMPLE_RATES})] = 16000
    encoding: Annotated[str, Meta(extra_json_schema={"enum": ENCODINGS})] = "pcm16"
    language: Name | None = None
    auth_token: str | None = None
    contract_id: Name | None = None
    turn_detection: TurnDetection | None = None
    respond: bool = False


class Audio(_ListenMessage, tag="audio", frozen=True, kw_only=True):
    """Audio for a client that cannot send binary frames: base64 of the same bytes."""

    data: str


class Commit(_ListenMessage, tag="commit", frozen=True, kw_only=True):
    """End the turn now. Always answered by ``final``, be its text empty."""


class Clear(_ListenMessage, tag="clear", frozen=True, kw_only=True):
    """Forget what was heard: no ``final`` follows for it."""


ListenClientMessage: TypeAlias = ListenStart | Audio | Commit | Clear | Stop


class ListenCapabilities(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Part of ``ready``."""

    languages: tuple[str, ...]
    sample_rates: tuple[int, ...]
    encodings: tuple[str, ...]
    vad: str
    end_of_turn: tuple[str, ...]
    recogniser: str


class ListenReady(_ListenMessage, tag="ready", frozen=True, kw_only=True):
    """Sent at once."""

    session_id: str
    capabilities: ListenCapabilities


class ListenStarted(_ListenMessage, tag="started", frozen=True, kw_only=True):
    """What is really in force; ``language`` is empty where the recogniser finds out."""

    sample_rate: int
    encoding: str
    language: str
    turn_detection: Detection
    respond: bool
    contract_id: str | UnsetType = UNSET


class SpeechStarted(_ListenMessage, tag="speechStarted", frozen=True, kw_only=True):
    """Somebody speaks. ``audioMs`` counts from the session's first sample, here and below."""

    audio_ms: int


class Partial(_ListenMessage, tag="partial", frozen=True, kw_only=True):
    """The turn so far, in place of the one before."""

    text: str
    audio_ms: int


class TurnPredicted(_ListenMessage, tag="turnPredicted", frozen=True, kw_only=True):
    """Speech pauses, and the turn is over with that probability (``semantic``)."""

    audio_ms: int
    probability: float


class TurnResumed(_ListenMessage, tag="turnResumed", frozen=True, kw_only=True):
    """It was not."""

    audio_ms: int


class Final(_ListenMessage, tag="final", frozen=True, kw_only=True):
    """A turn is over. ``words`` is missing where the recogniser has none."""

    text: str
    start_ms: int
    end_ms: int
    language: str
    words: tuple[HeardWord, ...] | UnsetType = UNSET


ListenServerMessage: TypeAlias = (
    ListenReady | ListenStarted | SpeechStarted | Partial | TurnPredicted | TurnResumed | Final | Error | Stopped
)
_KNOWN = frozenset({"start", "audio", "commit", "clear", "stop"})


class StartRefused(InvalidMessage):
    """A ``start`` that cannot be read."""


def parse(data: str) -> ListenClientMessage | None:
    """A text frame -> its message, or None for a type that nobody knows.

    Raises:
        StartRefused: a ``start`` with a field mistyped or out of range.
        InvalidMessage: not JSON, or a field missing, mistyped or out of range.
    """
    value = None
    try:
        value = reading.decode(data)
        message: ListenClientMessage | None = reading.message(value, ListenClientMessage, _KNOWN)
        return message
    except reading.BAD as error:
        kind = StartRefused if isinstance(value, dict) and value.get("type") == "start" else InvalidMessage
        raise kind(reading.said(error)) from error


def detection(asked: TurnDetection | None, possible: tuple[str, ...], absent: str) -> Detection:
    """What is in force.

    Args:
        possible: kinds that this server has.
        absent: why one that it has not is not there.

    Raises:
        InvalidMessage: a value that is not allowed.
    """
    if asked is None:
        return Detection()
    chosen: dict[str, Any] = {}
    for name, value, allowed in (("type", asked.type, KINDS), ("eagerness", asked.eagerness, EAGERNESS)):
        folded = value.strip().casefold()
        if folded not in allowed:
            raise InvalidMessage(f"turnDetection.{name} {value!r} must be one of {', '.join(allowed)}")
        chosen[name] = folded
    if chosen["type"] not in possible:
        raise InvalidMessage(absent)
    for name, field in (("threshold", "threshold"), ("silenceMs", "silence_ms"), ("minSpeechMs", "min_speech_ms")):
        if (number := getattr(asked, field)) is not None:
            low, high = RANGES[name]
            if not low <= number <= high:
                raise InvalidMessage(f"turnDetection.{name} {number} must be from {low} to {high}")
            chosen[field] = number
    return Detection(**chosen)

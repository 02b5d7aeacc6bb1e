"""What the server and the recogniser's process tell each other: MessagePack, each message after its length."""

import struct
from typing import Literal, TypeAlias

import msgspec

from server.listen.base import HeardSpeech

LENGTH = struct.Struct("<I")
MOST_BYTES = 16 * 1024 * 1024  # of a message


class Job(msgspec.Struct, frozen=True, kw_only=True, tag="job"):
    """Hear speech, or judge the end of a turn. ``pcm`` is float32 at 16 kHz."""

    number: int
    kind: Literal["hear", "turn"]
    pcm: bytes
    language: str = ""
    words: bool = False


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """The models are loaded."""

    languages: tuple[str, ...]


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """A job's result, or why there is none."""

    number: int
    heard: HeardSpeech | None = None
    probability: float | None = None
    failure: str = ""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The models cannot be loaded; the process ends."""

    message: str


Reply: TypeAlias = Hello | Done | Failed
job_decoder = msgspec.msgpack.Decoder(Job)
reply_decoder: "msgspec.msgpack.Decoder[Reply]" = msgspec.msgpack.Decoder(Reply)


def packed(message: Job | Reply) -> bytes:
    """A message with its length."""
    data = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(data)) + data

"""The environment (``TTS_*``) -> one frozen Settings. Every setting is listed in the README."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0, le=3600)]


class Settings(BaseSettings):
    """What an operator can choose; ``TTS_PORT=9000`` sets ``port``."""

    model_config = SettingsConfigDict(env_prefix="TTS_", frozen=True, extra="forbid", env_ignore_empty=True)

    engine: Literal["qwen3"] = "qwen3"
    model_id: str = "Qwen/Qwen3-TTS-12Hz-0.6B-Base"  # a folder, or a hub id
    device: str | None = None  # cpu, cuda:0, ...; None: JAX's own choice
    dtype: Literal["float32", "bfloat16"] | None = None
    voices_dir: Path = Path("voices")
    default_voice: str = "makima"
    default_language: str = "English"
    slots: Annotated[int, Field(ge=1, le=256)] = 10  # utterances that are spoken at a time; more wait for their turn
    warmup: Literal["all", "first"] = "all"  # compiled before readyz: every common size, or what the default voice's first words need

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_text_chars: Annotated[int, Field(ge=1, le=100_000)] = 2000
    max_message_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024
    max_waiting: Annotated[int, Field(ge=1)] = 8  # utterances of one session, the spoken one included
    max_inbound: Annotated[int, Field(ge=1)] = 32  # messages read from a socket but not yet looked at
    max_chunks: Annotated[int, Field(ge=1)] = 32  # pieces of audio made but not yet sent

    turn_timeout: Seconds = 60.0  # waiting while others speak
    chunk_timeout: Seconds = 300.0  # one piece of audio; the first may include compiling
    send_timeout: Seconds = 10.0  # a client that does not read

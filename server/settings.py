"""The environment (``TTS_*``) -> one frozen Settings. Every setting is listed in the README."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from qwen3_jax.hub import EMBEDDED

Seconds = Annotated[float, Field(gt=0, le=3600)]
Count = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[str, ...], NoDecode]  # from the environment: separated by commas
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _alias(name: str, *others: str) -> Any:
    return Field(validation_alias=AliasChoices(name, f"TTS_{name.upper()}", *others))


class Settings(BaseSettings):
    """What an operator can choose; ``TTS_PORT=9000`` sets ``port``."""

    model_config = SettingsConfigDict(env_prefix="TTS_", frozen=True, extra="forbid", env_ignore_empty=True, protected_namespaces=())

    engine: Literal["qwen3", "chatterbox"] = "qwen3"
    model_id: str = EMBEDDED  # a folder, a hub id such as Qwen/Qwen3-TTS-12Hz-0.6B-Base, or the small voice that ships
    device: str | None = None  # cpu, cuda:0, ...; None: JAX's own choice
    dtype: Literal["float32", "bfloat16"] | None = None
    slots: Annotated[int, Field(ge=1, le=256)] | None = None  # utterances spoken at a time; None: see server.engines.slots
    columns: Annotated[int, Field(ge=64, le=32_768, multiple_of=64)] = 1024  # positions of a slot: prompt, and a frame each
    load: Literal["start", "lazy"] = "start"  # lazy: at the first utterance that an authorised client asks for
    warmup: Literal["all", "first"] = "all"  # compiled before readyz: every program, or what the default voice's first words need

    voices_dir: str | Path | None = None  # a folder, or a bucket that fsspec knows: s3://bucket/voices; None: ./voices if it exists
    shipped_voices: bool = True  # the voices of the package are there too, below those of the folder and of the user
    default_voice: str = "makima"
    default_language: str = "English"
    normalize: bool | None = None  # numbers, dates, Markdown, SSML and the like are read as words (English); default: the model's
    voice_cache: Count = 32  # voices kept ready in memory

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    grace: Seconds = 20.0  # after SIGTERM, for speech under way
    lead: Seconds = 1.0  # audio is sent at most so far ahead of real time
    max_sessions: Count = 100
    max_text_chars: Annotated[int, Field(ge=1, le=100_000)] = 4096  # as OpenAI's
    max_message_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024
    max_waiting: Count = 8  # utterances of one session, the spoken one included
    max_queue: Count = 200  # utterances of all sessions
    max_inbound: Count = 32  # messages read from a socket but not yet looked at
    max_buffer_ms: Annotated[int, Field(ge=100)] = 30_000  # audio made but not yet sent, of one utterance
    max_upload_bytes: Annotated[int, Field(ge=1024)] = 10 * 1024 * 1024

    turn_timeout: Seconds = 60.0  # waiting while others speak
    chunk_timeout: Seconds = 300.0  # one piece of audio; the first may include compiling
    text_timeout: Seconds = 30.0  # an utterance whose text comes in pieces, and no more comes
    send_timeout: Seconds = 10.0  # a client that does not read
    start_timeout: Seconds = 60.0  # from connecting to the first start or speak
    idle_timeout: Seconds = 300.0  # neither speech nor messages
    auth_timeout: Seconds = 10.0  # from connecting to a valid token

    proxies: Annotated[int, Field(ge=0, le=10)] = 0  # trusted ones in front, whose X-Forwarded-For is believed
    auth: Literal["auto", "off"] = "auto"  # auto: on as soon as there is any key below; without one, only loopback is served
    api_keys: Path | None = None  # lines of name:sha256, made by python -m server key NAME
    jwt_secret: SecretStr | None = None  # HS256
    jwt_public_key: Annotated[str | None, _alias("jwt_public_key", "SUPABASE_JWT_PUBLIC_KEY")] = None  # PEM or its file: ES256
    jwt_rsa_public_key: Annotated[str | None, _alias("jwt_rsa_public_key", "SUPABASE_JWT_RSA_PUBLIC_KEY")] = None  # the same: RS256
    jwks: str | None = None  # a JWKS file, or its https address; RS256 and ES256
    supabase_url: Annotated[str | None, _alias("supabase_url", "SUPABASE_URL")] = None  # stands for its JWKS and its issuer
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    allowed_origins: Names = ()  # of browsers, besides the server's own; * is any

    limit_sessions: Count = 20  # of one principal at once
    limit_connects: Count = 120  # a minute
    limit_utterances: Count = 240  # a minute
    limit_characters: Count = 60_000  # a minute
    limit_uploads: Count = 20  # an hour

    metrics_open: bool = False  # /metrics without a token, where auth is on
    log_format: Literal["text", "json"] = "text"
    log_texts: bool = False  # what users say, in the log
    voice_aliases: Annotated[dict[str, str], NoDecode] = {}  # alloy=makima,nova=anna; other names of OpenAI's: server/voices/names.py

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("voice_aliases", mode="before")
    @classmethod
    def _mapped(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if any(not (sign and name.strip() and voice.strip()) for name, sign, voice in pairs):
            raise ValueError("must be pairs such as alloy=makima,nova=anna")
        return {name.strip(): voice.strip() for name, _, voice in pairs}

    @model_validator(mode="after")
    def _closed(self) -> "Settings":
        if self.auth == "auto" and not self.auth_required and self.host not in LOOPBACK:
            raise ValueError(
                f"host {self.host} can be reached from other machines and there is no key: set TTS_API_KEYS, TTS_JWT_SECRET, "
                "TTS_JWT_PUBLIC_KEY, TTS_JWT_RSA_PUBLIC_KEY or TTS_JWKS, or TTS_AUTH=off if that is meant"
            )
        return self

    @property
    def auth_required(self) -> bool:
        """Whether clients have to say who they are."""
        keys = (self.api_keys, self.jwt_secret, self.jwt_public_key, self.jwt_rsa_public_key, self.jwks, self.supabase_url)
        return self.auth == "auto" and any(key is not None for key in keys)

    @property
    def max_json_bytes(self) -> int:
        """Of a body of JSON: as much as a message, and room for the longest text with each character escaped (12 bytes)."""
        return self.max_message_bytes + 12 * self.max_text_chars

    def table(self) -> str:
        """What is in force, a line each, with secrets masked."""
        shown = {name: getattr(self, name) for name in type(self).model_fields}
        secret = ("jwt_public_key", "jwt_rsa_public_key")  # not secret, but long
        lines = [f"TTS_{name.upper():22} {'(set)' if name in secret and value else value}" for name, value in shown.items()]
        return "\n".join(lines)

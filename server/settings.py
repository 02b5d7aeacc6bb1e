"""The environment (``TTS_*``) -> one frozen Settings. What is said of each setting here is also the help and docs/settings.md."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from qwen3_jax.checkpoint.hub import EMBEDDED
from qwen3_jax.voices.layers import DEFAULT_VOICE
from server.ops.address import HOST, PORT, check_host, is_loopback, port_of

Seconds = Annotated[float, Field(gt=0, le=3600)]
Count = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[str, ...], NoDecode]  # from the environment: separated by commas
LONG = ("jwt_public_key", "jwt_rsa_public_key")  # not secret


def _alias(name: str, *others: str) -> Any:
    return Field(validation_alias=AliasChoices(f"TTS_{name.upper()}", *others))


class Settings(BaseSettings):
    """What an operator can choose; ``TTS_PORT=9000`` sets ``port``."""

    model_config = SettingsConfigDict(
        env_prefix="TTS_",
        validate_by_name=True,  # those with an alias, too: Settings(supabase_url=...)
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    engine: Literal["qwen3", "chatterbox"] = "qwen3"
    """Which engine speaks. `chatterbox` needs the extra of that name."""
    model_id: str = EMBEDDED
    """A folder, a hub id such as `Qwen/Qwen3-TTS-12Hz-0.6B-Base`, or `embedded`, the small voice that ships."""
    device: str | None = None
    """`cpu`, `gpu`, `tpu`, or one of several: `cuda:1`; several of one kind: `cuda:0,cuda:1`; or `all`. Each speaks for `TTS_SLOTS`.
    Unset: JAX's choice."""
    tensor_parallel: Count = 1
    """Devices that one set of weights is split over; they speak as one. It must divide the number of devices, and the model's heads."""
    dtype: Literal["float32", "bfloat16", "int8"] | None = None
    """Of the talker and the predictor; `int8` rounds their matrices, under float32 arithmetic. Unset: int8 if the folder was converted to
    it, else float32 on a CPU and bfloat16 elsewhere."""
    slots: Annotated[int, Field(ge=1, le=256)] | None = None
    """Utterances spoken at a time on each device, in one batch; more wait. Unset: 16; on a CPU as many of 10 as it can speak without gaps
    (timed at the first start), or 4 of a large model; in each case fewer if the memory ends."""
    columns: Annotated[int, Field(ge=64, le=32_768, multiple_of=64)] = 1024
    """Length of a slot in tokens: the prompt plus one for each 80 ms. Memory use is logged at start."""
    load: Literal["start", "lazy"] = "start"
    """When the model is loaded: at `start`, or (`lazy`) at the first utterance that an authorised client asks for."""
    warmup: Literal["all", "first"] = "all"
    """Which programs are compiled before `/readyz` answers 200: `all`, or `first`, those for the default voice's first words."""

    voices_dir: str | Path | None = None
    """A folder of voices, or a bucket that fsspec knows (`s3://bucket/voices`, with the package s3fs), above the user's; uploads go
    there. Unset: `./voices` if it exists; else uploads go to the user's folder."""
    shipped_voices: bool = True
    """Whether the voices that ship are there too, below all others. They are only read."""
    default_voice: str = DEFAULT_VOICE
    """The voice of a client that names none. A voice that is set must be there at start; unset, and without `makima`: the first one."""
    default_language: str = "English"
    """The language of a client that names none. The model must speak it. `Auto`: the model chooses."""
    normalize: bool | None = None
    """Whether numbers, dates, abbreviations, Markdown and SSML are read as English words. Unset: the model's choice (`embedded` does)."""
    voice_cache: Count = 32
    """Voices kept ready in memory."""
    voice_aliases: Annotated[dict[str, str], NoDecode] = {}
    """Other names of voices: `alloy=makima,nova=anna`. OpenAI's names without an alias are voices of the same sex."""

    host: str = HOST
    """The name or address of this machine to listen on; `0.0.0.0` or `::` for all. Other than loopback needs a key, or `TTS_AUTH=off`."""
    port: Annotated[int, Field(ge=0, le=65535)] = PORT
    """The TCP port; 0 takes a free one, which the log names."""
    proxies: Annotated[int, Field(ge=0, le=10)] = 0
    """Trusted proxies in front, whose `X-Forwarded-For` is believed."""

    max_sessions: Count = 100
    """WebSocket sessions of clients that have said who they are; more are closed with 1013."""
    max_queue: Count = 200
    """Utterances of all sessions that wait; more are refused."""
    max_waiting: Count = 8
    """Utterances of one session, the spoken one included."""
    max_text_chars: Annotated[int, Field(ge=1, le=100_000)] = 4096
    """Characters of one utterance, in NFC, with at most 30 combining marks in a row; blanks around it are not counted.
    OpenAI takes 4096."""
    max_message_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024
    """Bytes of a WebSocket message; a larger one closes with 1009. A JSON body may have 12 bytes more for each character of
    the longest text; a larger one gets 413."""
    max_upload_bytes: Annotated[int, Field(ge=1024)] = 10 * 1024 * 1024
    """Bytes of an uploaded recording; a larger one gets 413."""
    max_connections: Count = 500
    """TCP connections: a quarter of them from one address, three quarters from this machine. More are answered with 503."""
    max_buffer_ms: Annotated[int, Field(ge=100)] = 30_000
    """Milliseconds of audio of one utterance that are made and not yet sent; then the slot waits."""
    lead: Seconds = 1.0
    """Seconds that audio is sent ahead of real time, at most (WebSocket)."""
    limit_sessions: Count = 20
    """Sessions of one principal at once."""
    limit_connects: Count = 120
    """Connects of one principal, or of one address, a minute."""
    limit_utterances: Count = 240
    """Utterances of one principal a minute."""
    limit_characters: Count = 60_000
    """Characters of one principal a minute."""
    limit_uploads: Count = 20
    """Uploads of one principal an hour."""
    limit_interrupts: Count = 600
    """Interrupts over HTTP (`POST /api/v1/contracts/{contractId}/interrupt`) of one principal a minute."""

    recogniser: str = "tiny.en"
    """What recognises speech on `/api/v1/listen` (extra `listen`): `tiny.en`, which comes with the extra; a folder of a Whisper model that
    CTranslate2 reads; or what faster-whisper fetches from the hub (`small`, `large-v3`, an id)."""
    smart_turn: Path | None = None
    """The file smart-turn-v3.2-cpu.onnx, which judges whether a turn is over. Unset: the one in the package pipecat-ai,
    if that is installed."""
    listen_queue: Annotated[float, Field(ge=30, le=3600)] = 60.0
    """Seconds of speech of one client that wait to be recognised; more is lost, and the client told (`OVERLOADED`)."""

    turn_timeout: Seconds = 60.0
    """Seconds that an utterance waits while others speak."""
    chunk_timeout: Seconds = 300.0
    """Seconds for one piece of audio; the first may include compiling."""
    text_timeout: Seconds = 30.0
    """Seconds that an utterance whose text comes in pieces waits for more of it."""
    send_timeout: Seconds = 10.0
    """Seconds for a client to read a message."""
    idle_timeout: Seconds = 300.0
    """Seconds of a session with neither speech nor messages; then closed with 4408."""
    auth_timeout: Seconds = 10.0
    """Seconds from connecting to a valid token; then closed with 4408."""
    grace: Seconds = 20.0
    """Seconds after SIGTERM, SIGINT or SIGHUP for speech under way."""

    interrupt_ms: Annotated[int, Field(ge=0, le=10_000)] = 500
    """Milliseconds of speech that interrupt an answer; until then it is held (docs/contracts.md)."""
    interrupt_words: Count = 1
    """Recognised words that interrupt an answer, however short the speech is."""
    resume_after: Annotated[float, Field(ge=0, le=10)] = 2.0
    """Seconds of silence after speech that did not interrupt; then the answer that was held goes on."""
    redis_url: SecretStr | None = None
    """`redis://host:port/0`, for several processes: what is heard in one interrupts what is spoken in another, and limits a minute or hour
    are counted together (docs/scaling.md). Needs the extra `redis`. Unset: one process."""

    auth: Literal["auto", "off"] = "auto"
    """`auto`: clients need a token as soon as there is any key below; without one, only this machine is served. `off`: everybody is."""
    api_keys: Path | None = None
    """File of `name:sha256` lines, made by `python -m server key NAME`. It is read again when it changes."""
    jwt_secret: SecretStr | None = None
    """The secret of HS256 tokens."""
    jwt_public_key: Annotated[str | None, _alias("jwt_public_key", "SUPABASE_JWT_PUBLIC_KEY")] = None
    """The public key of ES256 tokens: PEM, or its file."""
    jwt_rsa_public_key: Annotated[str | None, _alias("jwt_rsa_public_key", "SUPABASE_JWT_RSA_PUBLIC_KEY")] = None
    """The public key of RS256 tokens: PEM, or its file."""
    jwks: str | None = None
    """A JWKS file, or its https address, for RS256 and ES256."""
    jwks_ttl: Seconds = 300.0
    """Seconds within which a key that was taken out of the JWKS is refused: it is read twice as often. Where it cannot be read, the last
    keys stand for an hour."""
    supabase_url: Annotated[str | None, _alias("supabase_url", "SUPABASE_URL")] = None
    """A Supabase project; stands for its JWKS, issuer and audience."""
    jwt_audience: str | None = None
    """The audience that tokens must have. Unset: any."""
    jwt_issuer: str | None = None
    """The issuer that tokens must have. Unset: any."""
    allowed_origins: Names = ()
    """Origins whose browser pages may ask, besides the server's own, separated by commas: `https://app.example`.
    `*` is any part of a name."""
    allowed_hosts: Names = ()
    """Names that clients may call the server by, besides its own, separated by commas: `tts.example`.
    [security.md](security.md) says when that is needed."""

    responder_url: str | None = None
    """An OpenAI-compatible chat endpoint that answers what is heard, up to `/chat/completions`: `http://127.0.0.1:11434/v1`. Unset: the
    answer is what was heard. Needs the extra `respond`."""
    responder_model: str | None = None
    """The model of that endpoint."""
    responder_key: SecretStr | None = None
    """The key of that endpoint, sent as a bearer token. Unset: none is sent."""
    responder_instructions: str = "You are heard, not read: answer in one to three short sentences, without lists, tables or Markdown."
    """The system message of each conversation."""
    responder_timeout: Seconds = 20.0
    """Seconds for each piece of an answer; a whole answer may take six times as long."""
    responder_max_chars: Annotated[int, Field(ge=1, le=100_000)] = 2000
    """Characters of an answer, and at most those of an utterance; a longer one is cut after a word."""

    log_format: Literal["text", "json"] = "text"
    """Lines of text, or of JSON, on stderr."""
    log_texts: bool = False
    """Whether texts that are spoken are logged."""
    metrics_open: bool = False
    """Whether `/metrics` answers without a token, where clients need one."""

    @field_validator("port", mode="before")
    @classmethod
    def _no_service_link(cls, value: object) -> object:
        return port_of(value) if isinstance(value, str) else value

    @field_validator("host")
    @classmethod
    def _plain(cls, value: str) -> str:
        return check_host(value)

    @field_validator("allowed_origins", "allowed_hosts", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """As browsers send them."""
        for origin in value:
            if origin not in ("*", "null") and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#]+/?", origin):
                raise ValueError(f"{origin!r} is no origin: write scheme://host or scheme://host:port, null, or *")
        return tuple(origin.removesuffix("/").lower() for origin in value)

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Without ports, in small letters."""
        for host in value:
            if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]+)(:\d+)?", host):
                raise ValueError(f"{host!r} is no host: write its name, such as tts.example.com, without http://")
        return tuple(re.sub(r":\d+$", "", host).strip("[]").lower() for host in value)

    @field_validator("voice_aliases", mode="before")
    @classmethod
    def _mapped(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if any(not (sign and name.strip() and voice.strip()) for name, sign, voice in pairs):
            raise ValueError("must be pairs such as alloy=makima,nova=anna")
        return {name.strip(): voice.strip() for name, _, voice in pairs}

    @field_validator("supabase_url")
    @classmethod
    def _project(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https://[^\s/?#]+[^\s?#]*", value):
            raise ValueError("must be the https address of a project: https://PROJECT.supabase.co")
        return value

    @field_validator("responder_url")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", value):
            raise ValueError("must be the address of a chat endpoint, up to /chat/completions: http://127.0.0.1:11434/v1")
        return None if value is None else value.rstrip("/").removesuffix("/chat/completions")

    @model_validator(mode="after")
    def _answered(self) -> "Settings":
        if (self.responder_url is None) != (self.responder_model is None):
            raise ValueError("TTS_RESPONDER_URL and TTS_RESPONDER_MODEL go together: set both, or none of them")
        return self

    @model_validator(mode="after")
    def _closed(self) -> "Settings":
        if self.auth == "auto" and not self.auth_required and not is_loopback(self.host):
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

    def changed(self) -> str:
        """The settings that differ from their defaults, as the environment spells them, on one line; secrets are masked."""
        values = {name: getattr(self, name) for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        return " ".join(f"TTS_{name.upper()}={'(set)' if name in LONG else spelled(value)}" for name, value in values.items())


def spelled(value: object) -> str:
    """A setting's value as the environment has it; in an address, users, passwords and the query are masked."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        value = ",".join(f"{name}={other}" for name, other in value.items())
    elif isinstance(value, tuple):
        value = ",".join(value)
    return re.sub(r"(://[^?]*\?).*", r"\1***", re.sub(r"://[^/@]*@", "://***@", str(value)))

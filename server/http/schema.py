"""The API's description, made from the message types: OpenAPI (REST), AsyncAPI (WebSocket), and TypeScript types of the messages.

Served as ``/openapi.json``, ``/asyncapi.json`` and ``/types.ts``.
"""

from collections.abc import Iterable
from typing import Any, get_args

import msgspec
from quart import Quart, Response, ResponseReturnValue

import qwen3_jax
from server.context import Context
from server.http import contracts, openai
from server.http.encode import CONTENT_TYPES
from server.http.voices import VoiceDescription, VoiceList
from server.ws import listen_protocol, protocol

CLIENT, SERVER = get_args(protocol.ClientMessage), get_args(protocol.ServerMessage)
LISTEN_CLIENT, LISTEN_SERVER = get_args(listen_protocol.ListenClientMessage), get_args(listen_protocol.ListenServerMessage)
MESSAGES = tuple(dict.fromkeys((*CLIENT, *SERVER, *LISTEN_CLIENT, *LISTEN_SERVER)))  # some are of both routes
JSON = "application/json"
_REF = "#/components/schemas/{name}"


class ErrorBody(msgspec.Struct, rename="camel", kw_only=True):
    """Part of ErrorAnswer."""

    code: str
    message: str
    type: str
    param: str | None
    retry_after_ms: int | msgspec.UnsetType = msgspec.UNSET


class ErrorAnswer(msgspec.Struct):
    """What every refused request gets."""

    error: ErrorBody


class SpeechVoice(msgspec.Struct):
    """One of SpeechVoices."""

    id: str
    name: str


class SpeechVoices(msgspec.Struct):
    """``GET /v1/audio/voices``."""

    voices: list[SpeechVoice]


class ModelInfo(msgspec.Struct):
    """One of Models."""

    id: str
    object: str
    created: int
    owned_by: str


class Models(msgspec.Struct):
    """``GET /v1/models``."""

    object: str
    data: list[ModelInfo]


class Status(msgspec.Struct, rename="camel"):
    """``GET /healthz`` and ``/readyz``."""

    status: str
    loading_seconds: float | msgspec.UnsetType = msgspec.UNSET  # while the model loads: how long it has been
    devices: dict[str, str] | msgspec.UnsetType = msgspec.UNSET  # of several devices, the state of each, by its name
    listen: str | msgspec.UnsetType | None = msgspec.UNSET  # of ``/readyz``: what is missing for listening; null where nothing is


def schemas(types: Iterable[Any]) -> dict[str, Any]:
    """JSON Schema of types, by name."""
    made: dict[str, Any] = msgspec.json.schema_components(types, ref_template=_REF)[1]
    return made


def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3.0 of ``/api/v1/speak`` and ``/api/v1/listen``."""

    def refs(types: Iterable[Any], place: str) -> list[dict[str, str]]:
        return [{"$ref": f"#/{place}/{one.__name__}"} for one in types]

    def channel(name: str, address: str, about: str, types: Iterable[Any]) -> dict[str, Any]:
        messages = {one.__name__: {"$ref": f"#/components/messages/{one.__name__}"} for one in types}
        return {name: {"address": address, "description": about, "messages": messages}}

    def operations(name: str, client: Iterable[Any], server: Iterable[Any], tell: str, hear: str) -> dict[str, Any]:
        reference, place = {"$ref": f"#/channels/{name}"}, f"channels/{name}/messages"
        return {
            tell: {"action": "receive", "channel": reference, "messages": refs(client, place)},
            hear: {"action": "send", "channel": reference, "messages": refs(server, place)},
        }

    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Speech over a WebSocket", "version": qwen3_jax.__version__},
        "channels": {
            **channel(
                "speak",
                protocol.SPEAK,
                "JSON text frames both ways; audio of the transport binary as binary frames of PCM",
                (*CLIENT, *SERVER),
            ),
            **channel(
                "listen",
                listen_protocol.LISTEN,
                "JSON text frames both ways; the client's audio as binary frames of PCM, of any length",
                (*LISTEN_CLIENT, *LISTEN_SERVER),
            ),
        },
        "operations": {
            **operations("speak", CLIENT, SERVER, "tell", "hear"),
            **operations("listen", LISTEN_CLIENT, LISTEN_SERVER, "tellListen", "hearListen"),
        },
        "components": {
            "messages": {one.__name__: {"contentType": JSON, "payload": {"$ref": _REF.format(name=one.__name__)}} for one in MESSAGES},
            "schemas": schemas(MESSAGES),
        },
    }


def openapi() -> dict[str, Any]:
    """OpenAPI 3.1 of the REST part."""
    voice_id = {"name": "voice_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    text = {"type": "string"}
    form = {
        "type": "object",
        "required": ["audio", "name", "consent"],
        "properties": {"audio": {"type": "string", "format": "binary"}}
        | dict.fromkeys(("name", "consent", "transcript", "language", "description", "licence"), text),
    }
    sounds = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in sorted(CONTENT_TYPES.values())}
    prometheus = {"text/plain": {"schema": text}}
    paths: dict[str, dict[str, Any]] = {
        "/healthz": {"get": _operation("The process lives", _json("200", "Status"))},
        "/readyz": {"get": _operation("The model is warm and the server stays", {**_json("200", "Status"), **_json("503", "Status")})},
        "/metrics": {"get": _operation("Prometheus", {"200": {"description": "the page", "content": prometheus}}, 401)},
        "/api/v1/voices": {
            "get": _operation("Voices that the caller may use", _json("200", "VoiceList"), 401),
            "post": _operation(
                "Clone a voice",
                _json("201", "VoiceDescription"),
                400,
                401,
                404,
                409,
                413,
                415,
                422,
                429,
                500,
                507,
                body=("multipart/form-data", form),
            ),
        },
        "/api/v1/voices/{voice_id}": {
            "parameters": [voice_id],
            "delete": _operation("Remove one's own voice", {"204": {"description": "it is gone"}}, 401, 403, 404, 412, 500),
        },
        "/api/v1/voices/{voice_id}/sample.wav": {
            "parameters": [voice_id],
            "get": _operation(
                "The recording, or a range of it",
                {
                    "200": {"description": "WAV", "content": {"audio/wav": sounds["audio/wav"]}},
                    "206": {"description": "a range of it", "content": {"audio/wav": sounds["audio/wav"]}},
                    "304": {"description": "the client has it"},
                },
                *(401, 404, 412, 416, 500),
            ),
        },
        "/api/v1/contracts/{contract_id}/interrupt": {
            "parameters": [{"name": "contract_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}],
            "post": _operation(
                "Interrupt what the sessions of a contract of one's own speak",
                {"204": {"description": "nothing of it is spoken any more"}},
                *(400, 401, 404, 413, 415, 429, 503),
                body=(JSON, {"$ref": _REF.format(name="InterruptRequest")}),
                optional=True,
            ),
        },
        "/v1/models": {"get": _operation("OpenAI: models", _json("200", "Models"), 401)},
        "/v1/models/{model_id}": {
            "parameters": [{"name": "model_id", "in": "path", "required": True, "schema": text}],
            "get": _operation("OpenAI: a model", _json("200", "ModelInfo"), 401, 404),
        },
        "/v1/audio/models": {"get": _operation("Open WebUI: models, as /v1/models", _json("200", "Models"), 401)},
        protocol.SPEAK: {"get": _operation("A WebSocket, which /asyncapi.json describes; no page", {}, 426)},
        listen_protocol.LISTEN: {"get": _operation("A WebSocket, which /asyncapi.json describes; no page", {}, 426)},
        "/v1/audio/voices": {"get": _operation("OpenAI's neighbours: voices", _json("200", "SpeechVoices"), 401)},
        "/v1/audio/speech": {
            "post": _operation(
                "OpenAI: speech",
                {"200": {"description": "audio as it is made", "content": {**sounds, "text/event-stream": {}}}},
                *(400, 401, 404, 413, 415, 429, 500, 503),
                body=(JSON, {"$ref": _REF.format(name="CreateSpeechRequest")}),
            )
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Speech", "version": qwen3_jax.__version__},
        "paths": paths,
        "components": {
            "schemas": schemas(
                (
                    *(Status, ErrorAnswer, VoiceList, VoiceDescription, ModelInfo, Models, SpeechVoices),
                    *(openai.CreateSpeechRequest, contracts.InterruptRequest),
                )
            ),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def typescript() -> str:
    """The messages as TypeScript: an interface each, and the unions of each route."""
    known = schemas(MESSAGES)
    names = {one.__name__: f"{one.__name__}Message" for one in MESSAGES}
    parts = []
    for name, schema in known.items():
        head = f"interface {names.get(name, name)} {{"
        required = set(schema.get("required", ()))
        fields = [
            f"  {field}{'' if field in required or field == 'type' else '?'}: {_type(value, names)};"
            for field, value in schema["properties"].items()
        ]
        parts.append("\n".join([f"export {head}", *fields, "}"]))
    for union, members in (
        ("ClientMessage", CLIENT),
        ("ServerMessage", SERVER),
        ("ListenClientMessage", LISTEN_CLIENT),
        ("ListenServerMessage", LISTEN_SERVER),
    ):
        parts.append(f"export type {union} = {' | '.join(names[one.__name__] for one in members)};")
    return "\n\n".join(parts) + "\n"


def _type(schema: dict[str, Any], names: dict[str, str]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return names.get(name, name)
    if "enum" in schema:
        return " | ".join(msgspec.json.encode(value).decode() for value in schema["enum"])
    if "anyOf" in schema:
        kinds = [_type(one, names) for one in schema["anyOf"]]
        return " | ".join(kind for kind in kinds if kind != "null") if "default" in schema else " | ".join(kinds)
    if schema.get("type") == "array":
        return f"{_type(schema['items'], names)}[]"
    return {"integer": "number"}.get(str(schema["type"]), str(schema["type"]))


def _operation(
    summary: str, answers: dict[str, Any], *errors: int, body: tuple[str, dict[str, Any]] | None = None, optional: bool = False
) -> dict[str, Any]:
    refused = {status: answer for code in (*errors, 403) for status, answer in _json(str(code), "ErrorAnswer").items()}
    made: dict[str, Any] = {"summary": summary, "responses": {**refused, **answers}}
    if body is not None:
        made["requestBody"] = {"required": not optional, "content": {body[0]: {"schema": body[1]}}}
    return made


def _json(status: str, name: str) -> dict[str, Any]:
    return {status: {"description": name, "content": {JSON: {"schema": {"$ref": _REF.format(name=name)}}}}}


def install(app: Quart, context: Context) -> None:
    """Serve them."""
    made = {name: msgspec.json.encode(value) for name, value in (("openapi", openapi()), ("asyncapi", asyncapi()))}

    @app.get("/openapi.json")
    async def rest() -> ResponseReturnValue:
        return Response(made["openapi"], content_type=JSON)

    @app.get("/asyncapi.json")
    async def socket() -> ResponseReturnValue:
        return Response(made["asyncapi"], content_type=JSON)

    @app.get("/types.ts")
    async def types() -> ResponseReturnValue:
        return Response(typescript(), content_type="application/typescript; charset=utf-8")

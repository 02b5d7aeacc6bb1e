"""The API's description says what is really sent: messages and answers are checked against it, and TypeScript against the specification."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from server.http import schema
from server.ws import protocol
from tests.fake_engine import LIMIT, FakeEngine
from tests.serving import connect, hear, running, say
from tests.test_server_voices import CONSENT, sound, speech

jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="comes with schemathesis")
ROOT = Path(__file__).parent.parent

SPECIFICATION = """
interface StartMessage { type: "start"; sampleRate?: number; encoding?: "pcm16" | "pcm32f"; voice?: string; language?: string;
  authToken?: string; contractId?: string; }
interface SpeakMessage { type: "speak"; text: string; priority?: "normal" | "high"; }
interface CancelMessage { type: "cancel"; }
interface StopMessage { type: "stop"; reason?: string; }
interface ReadyMessage { type: "ready"; sessionId: string; voiceLoaded: string; capabilities: Capabilities; }
interface Capabilities { streaming: boolean; languages: string[]; }
interface StartedMessage { type: "started"; sampleRate: number; encoding: string; voice: string; }
interface AudioChunkMessage { type: "audioChunk"; data: string; sequenceNumber: number; isFinal: boolean; timestampMs: number; }
interface CompleteMessage { type: "complete"; durationMs: number; charactersProcessed: number; audioLengthMs: number; }
interface ErrorMessage { type: "error"; code: string; message: string; recoverable: boolean; }
interface StoppedMessage { type: "stopped"; reason: string; }
"""
NARROWER = {  # where we say more exactly what the specification says
    ("StartMessage", "sampleRate"): "8000 | 16000 | 22050 | 24000 | 44100 | 48000",
    ("ErrorMessage", "code"): " | ".join(f'"{code}"' for code in get_args(protocol.Code)),
}


def interfaces(text: str) -> dict[str, dict[str, str]]:
    """name -> {field, with its question mark: type}."""
    found = {}
    for name, body in re.findall(r"interface (\w+) \{(.*?)\}", text, re.S):
        found[name] = {field: " ".join(kind.split()) for field, kind in re.findall(r"(\w+\??): ([^;]+);", body)}
    return found


def same(one: str, other: str) -> bool:
    return set(one.split(" | ")) == set(other.split(" | "))


def test_typescript_is_the_specifications_and_more() -> None:
    ours = interfaces(schema.typescript())
    for name, fields in interfaces(SPECIFICATION).items():
        for field, kind in fields.items():
            wanted = NARROWER.get((name, field.rstrip("?")), kind)
            assert same(ours[name][field], wanted), (name, field, ours[name].get(field))
        if name in ("StartMessage", "SpeakMessage", "CancelMessage", "StopMessage"):
            assert all(field.endswith("?") for field in set(ours[name]) - set(fields)), "a client of the specification need not know more"
    assert re.search(
        r"export type ClientMessage = StartMessage \| SpeakMessage \| FlushMessage \| CancelMessage \|.* StopMessage;", schema.typescript()
    )


def validator(part: dict[str, Any], name: str) -> Any:
    """Of one component."""
    return jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{name}", "components": part["components"]})


async def test_every_message_is_as_described(voices: Path) -> None:
    described = schema.asyncapi()
    names = {one.__struct_config__.tag: one.__name__ for one in (*schema.CLIENT, *schema.SERVER)}
    told: list[tuple[dict[str, Any], str]] = [  # and the message to wait for before the next
        ({"type": "start", "transport": "json", "sampleRate": 8000}, "started"),
        ({"type": "speak", "text": "Hello.", "requestId": "r", "seed": 1, "priority": "high"}, "complete"),
        ({"type": "speak", "text": "More ", "continue": True}, "audioChunk"),
        ({"type": "flush"}, "complete"),
        ({"type": "speak", "text": "fail"}, "error"),
        ({"type": "cancel"}, "error"),
        ({"type": "stop", "reason": "done"}, "stopped"),
    ]
    heard: list[dict[str, Any]] = []
    async with running(voices, FakeEngine()) as server:
        async with server.http_client() as http:
            assert (await http.get("/asyncapi.json")).json() == json.loads(json.dumps(described))
            assert (await http.get("/types.ts")).text == schema.typescript()
        async with asyncio.timeout(LIMIT), connect(server.url) as connection:
            heard.append(await hear(connection))
            for message, answer in told:
                validator(described, names[message["type"]]).validate(message)
                await say(connection, **message)
                heard.append(await hear(connection))
                while heard[-1]["type"] != answer:
                    heard.append(await hear(connection))
    for message in heard:
        validator(described, names[message["type"]]).validate(message)
    assert {message["type"] for message in heard} == {"ready", "started", "audioChunk", "complete", "error", "stopped"}


async def test_every_answer_is_as_described(voices: Path) -> None:
    described = schema.openapi()
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        assert (await http.get("/openapi.json")).json() == json.loads(json.dumps(described))
        rules = {re.sub("<(?:path:)?(\\w+_id)>", r"{\1}", rule.rule) for rule in server.app.url_map.iter_rules() if not rule.websocket}
        undescribed = {"/", "/page/<name>", "/openapi.json", "/asyncapi.json", "/types.ts"}
        assert set(described["paths"]) == rules - undescribed
        files = {"audio": ("a.wav", sound(speech()))}
        for method, path, name, options in (
            ("GET", "/healthz", "Status", {}),
            ("GET", "/readyz", "Status", {}),
            ("GET", "/api/v1/voices", "VoiceList", {}),
            ("POST", "/api/v1/voices", "VoiceDescription", {"files": files, "data": CONSENT}),
            ("POST", "/api/v1/voices", "ErrorAnswer", {"data": CONSENT}),
            ("GET", "/v1/models", "Models", {}),
            ("GET", "/v1/audio/models", "Models", {}),
            ("GET", "/api/v1/speak", "ErrorAnswer", {}),
            ("GET", "/api/v1/listen", "ErrorAnswer", {}),
            ("GET", "/v1/audio/voices", "SpeechVoices", {}),
            ("POST", "/v1/audio/speech", "ErrorAnswer", {"content": b"nonsense"}),
            ("DELETE", "/api/v1/voices/nobody", "ErrorAnswer", {}),
            ("POST", "/api/v1/contracts/nobody/interrupt", "ErrorAnswer", {"json": {"audioEndMs": 1}}),
        ):
            answer = await http.request(method, path, **options)
            route = path.replace("nobody", "{contract_id}" if "contracts" in path else "{voice_id}")
            assert str(answer.status_code) in described["paths"][route][method.lower()]["responses"]
            validator(described, name).validate(answer.json())


@pytest.mark.slow
def test_schemathesis_finds_nothing(voices: Path) -> None:
    """The REST part against its own description: a few thousand requests, valid and not, made up by schemathesis."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    options = {"TTS_LIMIT_UPLOADS": "100000", "TTS_LIMIT_UTTERANCES": "100000", "TTS_LIMIT_CHARACTERS": "100000000"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TTS_")} | options
    command = [sys.executable, "-m", "tests.serve_fake", str(port), str(voices)]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as server:
        try:
            url = f"http://127.0.0.1:{port}/openapi.json"
            for _ in range(int(10 * LIMIT)):
                try:
                    httpx.get(url)
                    break
                except httpx.TransportError:
                    with pytest.raises(subprocess.TimeoutExpired):
                        server.wait(0.1)
            program = Path(sys.executable).parent / "schemathesis"
            made = subprocess.run(
                [
                    *(str(program), "run", url, "--max-examples", "25", "--seed", "1", "--phases", "examples,coverage,fuzzing"),
                    # JSON Schema cannot say what a recording is, nor that a text must be more than blanks; and what is harmless is
                    # taken although the description does not offer it (server/admission/reading.py)
                    *("--exclude-checks", "positive_data_acceptance,negative_data_rejection"),
                    *("--suppress-health-check", "too_slow", "--request-timeout", str(LIMIT)),
                ],
                capture_output=True,
                text=True,
                timeout=20 * LIMIT,
            )
            assert made.returncode == 0, made.stdout[-6000:]
        finally:
            server.terminate()
        assert server.wait(LIMIT) == 0

"""server/ws/protocol.py: JSON text <-> messages."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.languages import language
from server.ws import protocol
from server.ws.protocol import Cancel, Flush, InvalidMessage, Speak, Start, Stop


def test_start_defaults_are_the_specifications() -> None:
    start = protocol.parse('{"type": "start"}')
    assert start == Start(sample_rate=24000, encoding="pcm16", transport="binary", voice=None, language=None)


def test_every_field_of_speak_arrives() -> None:
    text = '{"type":"speak","text":"Hi","priority":"high","voice":"a","requestId":"r","seed":7,"temperature":1,"topK":5,"topP":0.5}'
    expected = Speak(text="Hi", priority="high", voice="a", request_id="r", seed=7, temperature=1.0, top_k=5, top_p=0.5)
    assert protocol.parse(text) == expected


def test_cancel_and_stop() -> None:
    assert protocol.parse('{"type": "cancel"}') == Cancel(request_id=None)
    assert protocol.parse('{"type": "stop"}') == Stop(reason="user_requested")


def test_unknown_fields_and_unknown_types_are_ignored() -> None:
    assert protocol.parse('{"type": "cancel", "colour": "red"}') == Cancel()
    assert protocol.parse('{"type": "sing"}') is None


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ("not json", "malformed"),
        ("[1]", r"\[1\] is no JSON object: send one in braces"),
        ('"speak"', "is no JSON object"),
        ("{}", "type"),
        ('{"type": 1}', "type"),
        ('{"type": "speak"}', "text"),
        ('{"type": "speak", "text": 1}', "text"),
        ('{"type": "speak", "text": "a", "seed": -2}', "seed"),
        ('{"type": "speak", "text": "a", "seed": "four"}', "seed"),
        ('{"type": "speak", "text": "a", "temperature": "nan"}', "temperature"),
        ('{"type": "speak", "text": null, "requestId": "r"}', "text"),
        ('{"type": "speak", "text": "a", "topP": 0}', "topP"),
        ('{"type": "speak", "text": "a", "topP": 1e-39}', "topP 1e-39 must be a number from 1e-20 to 1$"),
        ('{"type": "speak", "text": "a", "temperature": 1e-39}', "temperature 1e-39 must be 0 .greedy decoding., or a number from"),
        ('{"type": "speak", "text": "a", "temperature": -1}', "temperature -1 must be a number from 0 to 10$"),
        ('{"type": "start", "sampleRate": "high"}', "sampleRate"),
        ('{"type": "speak", "text": "\udc00"}', "surrogates"),
        (b"\0\0", "binary"),
        (None, "binary"),
    ],
)
def test_what_is_wrong_is_named(frame: str | bytes | None, said: str) -> None:
    with pytest.raises(InvalidMessage, match=f"(?i){said}"):
        protocol.parse(frame)


@pytest.mark.parametrize(
    ("frame", "request_id"),
    [
        ('{"type": "speak", "requestId": "r"}', "r"),
        ('{"text": 1, "type": "speak", "requestId": "r"}', "r"),
        ('{"requestId": "r"}', "r"),
        ('{"type": "speak", "text": 1}', None),
        ('{"type": "speak", "requestId": 5}', None),
        ('{"type": "speak", "requestId": "' + "r" * 129 + '"}', None),
        ('{"type": "speak", "requestId": "r", "text"', None),
    ],
)
def test_what_is_wrong_is_told_to_whom_it_belongs(frame: str, request_id: str | None) -> None:
    with pytest.raises(InvalidMessage) as refused:
        protocol.parse(frame)
    assert refused.value.request_id == request_id


def test_errors_repeat_little_of_what_they_were_given() -> None:
    with pytest.raises(InvalidMessage) as refused:
        protocol.parse(json.dumps({"type": "speak", "text": "a", "priority": "x" * 60_000}))
    assert len(str(refused.value)) < 200
    assert len(protocol.error("SYNTHESIS_ERROR", "x" * 60_000).message) < protocol.MOST_SAID + 100


def test_errors_carry_their_codes_recoverability() -> None:
    assert json.loads(protocol.encode(protocol.error("CANCELLED", "m", "r"))) == {
        "type": "error",
        "code": "CANCELLED",
        "message": "m",
        "recoverable": True,
        "final": True,
        "requestId": "r",
    }
    assert json.loads(protocol.encode(protocol.error("INVALID_TEXT", "m"))) == {
        "type": "error",
        "code": "INVALID_TEXT",
        "message": "m",
        "recoverable": False,
        "final": True,
    }


@pytest.mark.parametrize(
    ("lenient", "strict"),
    [
        ({"seed": -1, "voice": None, "requestId": None, "temperature": None, "priority": None, "continue": None}, {}),
        ({"seed": "7", "temperature": "0.5", "topK": "3", "topP": "0.25"}, {"seed": 7, "temperature": 0.5, "top_k": 3, "top_p": 0.25}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": "0.0"}, {"temperature": 0.0}),
        ({"priority": " HIGH "}, {"priority": "high"}),
        ({"voice": " Anna ", "language": " "}, {"voice": "Anna"}),
        ({"text": "\ufeffa", "colour": {"red": None}}, {}),
        ({"continue": "true"}, {"continue_": True}),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_is_harmless_is_taken(lenient: dict[str, object], strict: dict[str, object], mark: str) -> None:
    message = {"type": "speak", "text": "a", **lenient}
    assert protocol.parse(mark + json.dumps(message)) == Speak(**{"text": "a", **strict})


def test_formats_of_start_have_no_case() -> None:
    frame = '{"type": "start", "encoding": "PCM32F", "transport": "JSON", "sampleRate": "16000", "language": null}'
    assert protocol.parse(frame) == Start(encoding="pcm32f", transport="json", sample_rate=16000)


def test_languages_in_any_case() -> None:
    assert language("english") == "English"
    assert language("AUTO") == "Auto"
    assert language("Klingon") is None
    assert {language(name) for name in ("en", "en-US", "en_US", "EN", "eng", " English ")} == {"English"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "text",
        "priority",
        "voice",
        "requestId",
        "continue",
        "seed",
        "temperature",
        "topK",
        "topP",
        "sampleRate",
        "encoding",
        "transport",
        "language",
        "authToken",
        "contractId",
        "reason",
        "x",
    ]
)
KINDS = st.sampled_from(["start", "speak", "flush", "cancel", "stop", "ready", "", "Speak"])
NEAR = st.builds(lambda kind, fields: json.dumps({"type": kind, **fields}), KINDS | VALUES, st.dictionaries(FIELDS, VALUES, max_size=5))


@given(
    frame=st.text(max_size=200)
    | st.binary(max_size=200)
    | st.none()
    | NEAR
    | st.builds(lambda text, cut: text[:cut], NEAR, st.integers(0, 80))
)
@settings(deadline=None, max_examples=500)
def test_no_frame_does_more_than_be_invalid(frame: str | bytes | None) -> None:
    try:
        message = protocol.parse(frame)
    except InvalidMessage:
        return
    assert message is None or isinstance(message, (Start, Speak, Flush, Cancel, Stop))


def test_deep_nesting_is_invalid_too() -> None:
    with pytest.raises(InvalidMessage):
        protocol.parse('{"type": "speak", "text": ' + "[" * 30_000)
    with pytest.raises(InvalidMessage):
        protocol.parse('{"type": "speak", "text": "a", "x": ' + '{"a":' * 10_000 + "1" + "}" * 10_000 + "}")

"""Several devices behind one server: capacity, a device that dies under its sessions, readiness, metrics, settings."""

import asyncio
import functools
import threading
from pathlib import Path
from typing import Any

import pytest

from server.engines import chatterbox
from server.engines.qwen3 import Qwen3Engine
from server.settings import Settings
from server.voices.store import VoiceStore
from tests.fake_engine import LIMIT
from tests.fake_service import LONG, FakeService, HeldDevice
from tests.fake_tts import FakeTTS
from tests.serving import audio, client, running, say, until, utterance

DEVICES = 2


def several(settings: Settings, store: VoiceStore) -> Qwen3Engine:
    """One slot on each of two devices."""
    return Qwen3Engine(settings, store, lambda _: FakeService(FakeTTS(), slots=1, count=DEVICES))


def devices_of(server: Any) -> list[HeldDevice]:
    return [engine._scheduler.device for engine in server.context.engine._service.engine.engines]


async def step(devices: list[HeldDevice], condition: Any) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            for device in devices:
                if device.gate is not None:
                    device.gate.release()
            await asyncio.sleep(0.005)


async def test_one_device_dies_in_mid_speech_and_other_sessions_lose_no_sample(voices: Path) -> None:
    async with running(voices, several) as server, server.http_client() as http:
        engine = server.context.engine
        assert engine.slots == DEVICES
        async with client(server.url) as first, client(server.url) as second, client(server.url) as third:
            devices = devices_of(server)
            for device in devices:
                device.gate = threading.Semaphore(0)
            for connection in (first, second):
                await say(connection, type="speak", text="A long story.", requestId="r")
            await step(devices, lambda: engine.active == DEVICES)
            await say(third, type="speak", text="Hello.")
            await until(lambda: engine.queued == 1)
            page = (await http.get("/metrics")).text
            assert 'tts_device_active_slots{device="fake:0"} 1.0' in page and 'tts_device_active_slots{device="fake:1"} 1.0' in page
            assert "tts_active_slots 2.0" in page
            for device in devices:
                device.gate.release(4)
            await audio(first)
            await audio(second)
            devices[0].poison = RuntimeError("the device is lost")
            for device in devices:
                device.gate.release(10_000)
            ends = [await utterance(connection) for connection in (first, second)]
            [(_, failed)] = [end for end in ends if end[1]["type"] == "error"]
            [(heard, complete)] = [end for end in ends if end[1]["type"] == "complete"]
            assert (failed["code"], failed["requestId"], failed["recoverable"]) == ("SYNTHESIS_ERROR", "r", True)
            assert complete["chunks"] > len(heard) > 0 if "chunks" in complete else heard
            waited, end = await utterance(third)
            assert (len(waited) > 0, end["type"]) == (True, "complete"), "who waited was served by the device that is there"
            answer = await http.get("/readyz")
            assert (answer.status_code, answer.json()["status"]) == (200, "ready") and set(answer.json()["devices"]) == {"fake:0", "fake:1"}
            await until(lambda: engine.devices["fake:0"].state == "running")
            page = (await http.get("/metrics")).text
            assert 'tts_device_restarts{device="fake:0"} 1.0' in page and 'tts_device_up{device="fake:1"} 1.0' in page
            assert (engine.restarts, engine.state) == (1, "ready")
            for connection in (first, second):
                await say(connection, type="speak", text="A long story.")
            for connection in (first, second):
                heard, end = await utterance(connection)
                assert (len(heard), end["type"]) == (2 * 4 * LONG, "complete"), "both devices speak again"


async def test_a_server_is_ready_while_one_device_speaks(voices: Path) -> None:
    async with running(voices, several) as server, server.http_client() as http, client(server.url) as one, client(server.url) as other:
        engine = server.context.engine

        def lost(scheduler: object) -> bool:
            """Whether the first device's engine has got over the end of that scheduler."""
            first = engine._service.engine.engines[0]
            return first.state == "failed" or (first._scheduler is not scheduler and first.state == "running")

        for _ in range(2):  # the second time it is lost for good
            before, devices = engine._service.engine.engines[0]._scheduler, devices_of(server)
            for device in devices:
                device.gate = threading.Semaphore(0)
            for connection in (one, other):
                await say(connection, type="speak", text="Hello.")
            await until(lambda: engine.active == DEVICES)  # so each device has a request
            devices[0].poison = RuntimeError("the device is lost")
            devices[0].gate.release()
            await until(functools.partial(lost, before))
            devices[1].gate.release(2 * LONG)
            for connection in (one, other):
                assert (await utterance(connection))[1]["type"] == "complete", "a request that nobody has heard is tried once more"
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()["devices"]) == (200, {"fake:0": "failed", "fake:1": "running"})
        assert 'tts_device_up{device="fake:0"} 0.0' in (await http.get("/metrics")).text
        assert (engine.slots, engine.state) == (1, "ready")
        await say(one, type="speak", text="Hello.")
        assert (await utterance(one))[1]["type"] == "complete"


async def test_a_single_device_has_its_label_too(voices: Path) -> None:
    def make(settings: Settings, store: VoiceStore) -> Qwen3Engine:
        return Qwen3Engine(settings, store, lambda _: FakeService(FakeTTS()))

    async with running(voices, make) as server, server.http_client() as http:
        assert 'tts_device_slots{device="fake:0"} 2.0' in (await http.get("/metrics")).text
        assert "devices" not in (await http.get("/readyz")).json()


@pytest.mark.parametrize("chosen", [{"device": "cuda:0,cuda:1"}, {"device": "all"}, {"tensor_parallel": 2}])
def test_chatterbox_speaks_on_one_device(chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chatterbox, "needed", lambda *_: None)
    with pytest.raises(ValueError, match="chatterbox speaks on one device"):
        chatterbox.load(Settings(engine="chatterbox", **chosen), None)

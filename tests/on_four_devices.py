"""Tests that need several devices: run by test_devices.py in a process of its own, whose CPU is four devices (XLA_FLAGS).

The real model, of a tiny random checkpoint with four key/value heads.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qwen3_jax import Qwen3TTS, Sampling, Voice
from qwen3_jax import tts as api
from qwen3_jax.checkpoint.sharding import CACHE, check_split
from qwen3_jax.engine import DeviceFailed, Options, Pool, Request, Segment
from qwen3_jax.engine.inline import Inline
from qwen3_jax.engine.plan import memory, plan
from qwen3_jax.runtime.devices import devices_of, places_of
from qwen3_jax.service import SpeechService
from qwen3_jax.testing import write_checkpoint
from tests.test_engine import until

FRAMES = 6
TEXT = "Hello there, this is a text."
GREEDY = Sampling(do_sample=False, subtalker_dosample=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "base", "base", 101, kv_heads=4)


@pytest.fixture(scope="module")
def load(folder: Path) -> Callable[..., Qwen3TTS]:
    """Loaded once for each choice of devices."""
    made: dict[str, Qwen3TTS] = {}

    def get(**how: Any) -> Qwen3TTS:
        return made.setdefault(repr(how), Qwen3TTS.from_pretrained(folder, **how))

    return get


VOICE = Voice(np.random.default_rng(1).normal(0, 1, 48).astype(np.float32), None, None)


def said(tts: Qwen3TTS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A few greedy frames: codes, hidden states, samples."""
    part = tts.prompts.one(TEXT, VOICE, "english", None, streaming_text=None, seed=5, sampling=GREEDY, max_frames=FRAMES)
    inline = Inline(tts.model, slots=1, first=4, each=4, hidden=True)
    packets = [*iter(partial(inline.next, inline.submit(Request((Segment(part.prompt, FRAMES),), GREEDY, 5))), None)]
    hidden = [packet.hidden for packet in packets if packet.hidden is not None]
    return np.concatenate([packet.codes for packet in packets]), np.concatenate(hidden), np.concatenate([packet.pcm for packet in packets])


def test_every_device_says_the_same(load: Callable[..., Qwen3TTS]) -> None:
    first, second = load(device="cpu:0"), load(device="cpu:1")
    assert (first.devices, second.devices) == (("cpu:0",), ("cpu:1",))
    for one, other in zip(said(first), said(second), strict=True):
        assert len(one)
        np.testing.assert_array_equal(one, other)


def test_a_list_of_texts_is_shared_out(load: Callable[..., Qwen3TTS]) -> None:
    how: dict[str, Any] = {"voice": VOICE, "max_frames": FRAMES}
    alone = [load(device="cpu:0").generate(f"Text {seed}.", seed=seed, **how) for seed in range(2)]
    shared = load(devices=["cpu:0", "cpu:1"]).generate([f"Text {seed}." for seed in range(2)], seed=[0, 1], **how)
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
        assert one.seed == other.seed


def test_weights_are_read_once_and_lie_on_every_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    plain = api.load

    def counted(*given: Any, **how: Any) -> Any:
        read.append(given)
        return plain(*given, **how)

    monkeypatch.setattr(api, "load", counted)
    tts = Qwen3TTS.from_pretrained(folder, devices="all")
    assert tts.devices == ("cpu:0", "cpu:1", "cpu:2", "cpu:3") and len(read) == 1
    for model, device in zip(tts.models, jax.devices(), strict=True):
        assert {one for leaf in jax.tree.leaves(model.params) for one in leaf.devices()} == {device}
    assert "cpu:0, cpu:1, cpu:2, cpu:3" in repr(tts)


def test_a_service_speaks_on_all_of_them_and_lives_on_when_one_dies(load: Callable[..., Qwen3TTS]) -> None:
    """In voices with the codes of their references, so that the codec begins where those end."""
    tts = load(devices=["cpu:0", "cpu:1"])
    noise = np.random.default_rng(1).normal(0, 0.1, 84_000).astype(np.float32)
    voice = tts.create_voice((noise, 24_000), "Good evening.")
    how: dict[str, Any] = {"voice": voice, "seed": 5, "max_frames": 40, "sampling": Sampling(temperature=0.9)}
    # A consumer that takes nothing pauses its slot after ten frames.
    with SpeechService(tts, slots=1, columns=192, warm=False, options=Options(buffer_ms=800, stall_seconds=600)) as service:
        pool = service.engine
        assert isinstance(pool, Pool) and pool.stats().slots == 2
        expected = np.concatenate(list(service.speak(TEXT, **how)))
        assert len(expected) > 20 * 1920
        streams = [service.speak(TEXT, **how) for _ in range(2)]
        first = [next(stream) for stream in streams]
        assert {name: one.active for name, one in pool.devices().items()} == {"cpu:0": 1, "cpu:1": 1}
        dies: Any = pool.engines[1]._scheduler  # in mid-speech, with whoever it speaks for
        [lost] = [number for number in range(2) if streams[number].handle is dies.slots[0].handle]

        def launch(*_: Any) -> Any:
            raise RuntimeError("the device is lost")

        dies.device.launch = launch
        with pytest.raises(DeviceFailed, match="is being restarted"):
            list(streams[lost])
        late = service.speak(TEXT, **how)  # it may take the slot of the other, who then goes on on the device that is built again
        for pieces in ([*late], [first[1 - lost], *streams[1 - lost]]):
            np.testing.assert_allclose(np.concatenate(pieces), expected, atol=1e-5)
        until(lambda: pool.devices()["cpu:1"].state == "running")
        assert pool.stats().restarts == 1
        # A voice that is new is cloned on one device and spoken on each.
        noise = np.random.default_rng(2).normal(0, 0.1, 90_000).astype(np.float32)
        new = tts.create_voice((noise, 24_000), "Other words.")
        again = [service.speak(TEXT, **(how | {"voice": new})) for _ in range(2)]
        first = [next(stream) for stream in again]
        assert {name: one.active for name, one in pool.devices().items()} == {"cpu:0": 1, "cpu:1": 1}
        heard = [np.concatenate([piece, *stream]) for piece, stream in zip(first, again, strict=True)]
        np.testing.assert_array_equal(heard[0], heard[1])
        state: Any = tts.prepared.state(new)
        assert not isinstance(state.position, jax.Array), "the host has the one copy"
        assert len(dies.lending.reach.members) == 2
        cancelled = service.speak(TEXT, **how)
        cancelled.cancel()
        assert cancelled.finish_reason == "cancelled"


def test_new_voices_are_made_where_a_device_lives(load: Callable[..., Qwen3TTS]) -> None:
    tts = load(devices=["cpu:0", "cpu:1"])
    with SpeechService(tts, slots=1, columns=192, warm=False) as service:
        assert tts.model is tts.models[0]
        pool: Any = service.engine
        pool.engines[0]._state = "failed"
        assert tts.model is tts.models[1]
        pool.engines[0]._state = "running"


def test_the_memory_of_the_host_is_planned_for_all_of_its_devices(load: Callable[..., Qwen3TTS]) -> None:
    one = jax.devices()[1]
    assert memory(one) == memory(jax.devices()[0]) and 4 * memory(one) > 0.9 * _physical()
    assert 4 * memory(one) <= _physical()
    planned = plan(load(device="cpu:1").model, 2, 128)
    assert planned.device == "cpu:1"
    split = plan(load(tensor_parallel=4).model, 2, 128)
    assert split.cache * 4 == planned.cache and sum(split.weights.values()) < sum(planned.weights.values())
    assert split.device == "cpu:0+cpu:1+cpu:2+cpu:3"


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# Tensor parallelism


def test_weights_that_are_split_say_the_same(load: Callable[..., Qwen3TTS]) -> None:
    """float32 sums come in another order: greedy codes are equal, hidden states within rounding."""
    whole, split = load(device="cpu:0"), load(tensor_parallel=4)
    layer = split.model.params["talker"]["model"]["layers"][0]
    shapes = {name: layer["self_attn"][f"{name}_proj"]["weight"].addressable_shards[0].data.shape for name in ("q", "k", "v", "o")}
    assert shapes == {"q": (16, 48), "k": (16, 48), "v": (16, 48), "o": (48, 16)}
    assert len(layer["mlp"]["up_proj"]["weight"].addressable_shards) == 4
    (codes, hidden, pcm), (codes4, hidden4, pcm4) = said(whole), said(split)
    np.testing.assert_array_equal(codes, codes4)
    np.testing.assert_allclose(hidden, hidden4, atol=2e-5)
    np.testing.assert_allclose(pcm, pcm4, atol=2e-5)


def test_a_split_engine_compiles_nothing_after_its_warm_up(load: Callable[..., Qwen3TTS]) -> None:
    tts = load(tensor_parallel=4)
    with SpeechService(tts, slots=2, columns=128) as service:
        engine: Any = service.engine
        device = engine._scheduler.device
        compiled: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: compiled.append(event))
        streams = [service.speak(TEXT, voice=VOICE, seed=seed, max_frames=12) for seed in range(3)]
        first = [next(stream) for stream in streams[:2]]
        cache = device._speaking.state.caches[0]
        assert cache.k.sharding.shard_shape(cache.k.shape)[1] == 1, f"split by heads: {CACHE}"
        assert all(len(piece) for piece in first) and all(len(np.concatenate([*stream])) for stream in streams)
        assert not [event for event in compiled if event.endswith("backend_compile_duration")]
        assert device.plan.device == "cpu:0+cpu:1+cpu:2+cpu:3"


def test_groups_of_devices_have_a_set_of_weights_each(load: Callable[..., Qwen3TTS]) -> None:
    tts = load(devices="all", tensor_parallel=2)
    assert tts.devices == ("cpu:0+cpu:1", "cpu:2+cpu:3")
    for model, devices in zip(tts.models, (jax.devices()[:2], jax.devices()[2:]), strict=True):
        assert {one for leaf in jax.tree.leaves(model.params) for one in leaf.devices()} == {*devices}


def test_devices_that_cannot_be_used_are_refused_with_those_that_are_there(folder: Path) -> None:
    there = "cpu:0, cpu:1, cpu:2, cpu:3"
    for given, message in (
        ({"devices": "cpu:0,cpu:9"}, f"device 'cpu:9' is not to be had: this machine has {there}"),
        ({"devices": ["cpu:0", "nonsense"]}, f"device 'nonsense' is not to be had: this machine has {there}"),
        ({"devices": ["cpu:0", ""]}, f"device '' is not to be had: this machine has {there}"),
        ({"devices": ","}, f"name at least one of {there}"),
        ({"devices": []}, f"name at least one of {there}"),
        ({"devices": "cpu:1,cpu:1"}, "named twice"),
        ({"devices": "cpu:0", "device": "cpu"}, "give only one of them"),
        ({"device": "all"}, f"device 'all' is not to be had: this machine has {there}"),
        ({"device": "cpu:-1"}, "device 'cpu:-1' is not to be had"),
        ({"tensor_parallel": 0}, "tensor_parallel = 0: must be at least 1"),
        ({"tensor_parallel": 3, "devices": "all"}, "4 devices (.*) are no groups of 3"),
        ({"tensor_parallel": 8}, "4 devices (.*) are no groups of 8"),
        ({"tensor_parallel": 3}, r"tensor_parallel = 3: talker_config.num_attention_heads = 4 .* use one of 1, 2, 4"),
        ({"tensor_parallel": 2, "device": "cpu:1"}, "name all of the devices in devices"),
    ):
        with pytest.raises(ValueError, match=message.replace("(.*)", r"\(.*\)").replace("[", r"\[")):
            Qwen3TTS.from_pretrained(folder, **given)
    assert [device.id for device in devices_of("cpu:3, cpu:1")] == [3, 1]
    assert len(places_of("cpu", None, 2)) == 1


def test_heads_that_cannot_be_divided_are_named(load: Callable[..., Qwen3TTS]) -> None:
    talker = load(device="cpu:0").model.config.talker_config
    check_split(talker, 4)
    with pytest.raises(ValueError, match="tensor_parallel = 8: .* cannot be divided by it; use one of 1, 2, 4"):
        check_split(talker, 8)


def test_int8_is_not_split(folder: Path) -> None:
    with pytest.raises(ValueError, match="tensor_parallel = 2: weights of int8 are not split over devices; use bfloat16 or float32"):
        Qwen3TTS.from_pretrained(folder, dtype="int8", tensor_parallel=2)


def test_a_checkpoint_that_is_loaded_keeps_its_devices(load: Callable[..., Qwen3TTS]) -> None:
    with pytest.raises(ValueError, match="of a checkpoint that is loaded already: give them to from_pretrained"):
        SpeechService(load(device="cpu:0"), devices="all")

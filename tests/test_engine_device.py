"""The engine on a tiny random model: a request's audio is its own whatever the load, text as it comes, runaways, one trace per shape."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from qwen3_jax.checkpoint.mapping import flatten
from qwen3_jax.codec import init_state
from qwen3_jax.engine import Engine, Handle, JaxDevice, NotFinite, Options, Request, Segment, Watch, pace, programs
from qwen3_jax.engine.inline import Inline
from qwen3_jax.engine.plan import plan
from qwen3_jax.engine.scheduler import Scheduler
from qwen3_jax.model.decode import decode, prime
from qwen3_jax.model.frame import NOT_FINITE, RUNNING
from qwen3_jax.model.model import Model, abstract
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.text.prompt import Prompt
from tests.test_generate import prompts
from tests.test_tts import assert_same_sound

LIMIT = 120.0
FRAMES, COLUMNS = 14, 320  # with 3 slots: the programs of tests/test_service.py, which are kept
SAMPLED = Sampling(temperature=1.2, top_k=0, repetition_penalty=1.0)
BIG = Options(buffer_ms=100_000, call_ms=10_000)


@pytest.fixture(scope="module")
def base(model: Callable[[str], Model]) -> Model:
    return model("base")


@pytest.fixture(scope="module")
def device(base: Model) -> JaxDevice:
    made = JaxDevice(base, slots=3, columns=COLUMNS)
    made.warm_up()
    return made


@pytest.fixture
def engine(device: JaxDevice) -> Iterator[Engine]:
    with Engine(lambda slots, on_cpu: device, slots=3, options=BIG) as made:
        yield made


def requests(model: Model, **more: Any) -> list[Request]:
    """Three requests of different forms; the second continues a reference."""
    reference = np.random.RandomState(5).randint(0, 2048, (7, 16))
    states = [None, prime(model, reference), None]
    return [
        Request((Segment(prompt, FRAMES),), SAMPLED, 7 + number, codec_state=state, **more)
        for number, (prompt, state) in enumerate(zip(prompts(model), states, strict=True))
    ]


def heard(handle: Handle) -> tuple[np.ndarray, np.ndarray]:
    """(codes [N 16], pcm)."""
    packets = []
    while (packet := handle.next(LIMIT)) is not None:
        packets.append(packet)
    return np.concatenate([packet.codes for packet in packets]), np.concatenate([packet.pcm for packet in packets])


def test_the_same_as_alone_without_an_engine(base: Model, engine: Engine) -> None:
    """In the caller's thread, in a batch of one row."""
    for request in requests(base):
        inline = Inline(base, slots=1, first=1, each=3)
        packets = list(iter(partial(inline.next, ours := inline.submit(request)), None))
        codes, pcm = heard(handle := engine.submit(request))
        np.testing.assert_array_equal(codes, np.concatenate([packet.codes for packet in packets]))
        np.testing.assert_allclose(pcm, np.concatenate([packet.pcm for packet in packets]), rtol=1e-4, atol=1e-5)
        assert handle.finish_reason == ours.finish_reason


class Play:
    """A scheduler without a thread: the test says what happens before each turn."""

    def __init__(self, device: JaxDevice, options: Options = BIG) -> None:
        self.now = 0.0
        self.scheduler = Scheduler(device, options, lambda: self.now)

    def submit(self, request: Request) -> Handle:
        handle = Handle(request, lambda: None, self.now)
        self.scheduler.submit(handle)
        return handle

    def run_round(self) -> None:
        self.scheduler.run_round()
        self.now += 0.01

    def run(self) -> None:
        """Until nobody is left."""
        while not self.scheduler.idle:
            self.run_round()


@pytest.fixture(scope="module")
def alone(base: Model, device: JaxDevice) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """What each of the requests says when nobody else is there."""
    found = {}
    for number, request in enumerate(requests(base)):
        play = Play(device)
        handle = play.submit(request)
        play.run()
        found[number] = heard(handle)
        assert len(found[number][0]) >= 3
    return found


ARRIVAL = st.fixed_dictionaries(
    {
        "at": st.integers(0, 12), "which": st.integers(0, 2), "cancel": st.none() | st.integers(1, 10), "reads": st.integers(1, 4),
        "priority": st.sampled_from(["high", "normal"]),
    }
)  # fmt: skip


@pytest.mark.slow
def test_no_request_notices_another(base: Model, device: JaxDevice, alone: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    """Random arrivals, cancels, packet sizes, slow consumers: the codes, and up to rounding the samples, of one who is alone."""
    known = requests(base)

    @settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate], database=None)
    @given(st.lists(ARRIVAL, min_size=2, max_size=6), st.sampled_from([1, 40, 10_000]), st.sampled_from([160, 640, 5000]))
    def holds(arrivals: list[dict[str, Any]], call: int, buffer: int) -> None:
        play = Play(device, Options(buffer_ms=buffer, call_ms=call, stall_seconds=1000))
        running: list[tuple[dict[str, Any], Handle, list[Any]]] = []
        for tick in range(600):
            for arrival in arrivals:
                if arrival["at"] == tick:
                    one = known[arrival["which"]]
                    request = Request(one.segments, SAMPLED, one.seed, codec_state=one.codec_state, priority=arrival["priority"])
                    running.append((arrival, play.submit(request), []))
            for arrival, handle, packets in running:
                age = tick - arrival["at"]
                if age == arrival["cancel"]:
                    handle.cancel()
                if age % arrival["reads"] == 0 and (packet := handle.take()) is not None:
                    packets.append(packet)
            play.run_round()
            if tick > 12 and play.scheduler.idle and all(handle.done for _, handle, _ in running):
                break
        else:
            raise AssertionError("it never ends")
        for arrival, handle, packets in running:
            codes, pcm = alone[arrival["which"]]
            count = sum(len(packet.codes) for packet in packets)
            assert handle.cancelled or count == len(codes)
            if packets:
                np.testing.assert_array_equal(np.concatenate([packet.codes for packet in packets]), codes[:count])
                made = np.concatenate([packet.pcm for packet in packets])
                np.testing.assert_allclose(made, pcm[: 1920 * count], atol=3e-5)  # on a Xeon of 2.5 GHz batch shapes round 1.03e-5 apart

    holds()


def test_a_mixed_load_compiles_nothing(base: Model, engine: Engine) -> None:
    """After `warm_up`: prompts of every size, texts, cancels, segments, rewinds, sampling parameters."""
    text = prompts(base)[0]
    long = text._replace(**{name: np.concatenate([getattr(text, name)] * 6) for name in ("text", "codes", "speaker")})
    watch = Watch(hold=2, repeats=3, overdue_base=4, overdue_per_token=0, overdue_span=3)
    known = requests(base)
    with jax.no_tracing(True):
        handles = [engine.submit(request) for request in known]
        handles += [engine.submit(Request((Segment(text, 9), Segment(long, 9)), Sampling(top_k=3), 3, priority="high", watch=watch))]
        handles += [engine.submit(Request((Segment(text, 9),), Sampling(do_sample=False), 3))]
        cancelled = engine.submit(known[0])
        cancelled.cancel()
        live = engine.submit(Request((Segment(cut(text, 2), 1, open=True),), SAMPLED, 1, open=True))
        live.append(text.trailing[2:].tolist())
        live.end_segment(FRAMES)
        live.finish()
        for handle in [*handles, live]:
            heard(handle)
    assert engine.stats().counters["runaways"] > 0


def test_an_utterance_that_loses_its_slot_sounds_like_one_that_keeps_it(base: Model, device: JaxDevice) -> None:
    """Between segments, and inside one whose text is late: it goes on in whichever slot is free, and nothing compiles for that."""
    known = requests(base)
    prompt = known[1].segments[0].prompt
    chain = replace(known[1], segments=tuple(Segment(one.segments[0].prompt, 6) for one in (known[1], known[0], known[2])), owner="a")
    play = Play(device)
    handle = play.submit(chain)
    play.run()
    expected = heard(handle)

    play = Play(device, replace(BIG, call_ms=1, stall_seconds=1000))
    live = play.submit(replace(chain, segments=(Segment(cut(prompt, 2), 1, open=True),), open=True))
    handles = [play.submit(replace(chain)) for _ in range(4)]
    with jax.no_tracing(True):
        for _ in range(8):
            play.run_round()
        others = [play.submit(replace(known[number], owner=number)) for number in range(3)]
        play.now += 1.0
        for _ in range(60):
            play.run_round()
        live.append(prompt.trailing[2:].tolist())
        live.end_segment(6)
        for later in chain.segments[1:]:
            live.add(later)
        live.finish()
        play.run()
    assert play.scheduler.counters.parked > 1, "the test is about that"
    for one in [*handles, live]:
        codes, pcm = heard(one)
        np.testing.assert_array_equal(codes, expected[0])
        np.testing.assert_allclose(pcm, expected[1], atol=3e-5)
    assert [one.finish_reason for one in others] == [None] * 3 and all(len(heard(one)[0]) for one in others)


def cut(prompt: Prompt, tokens: int) -> Prompt:
    return prompt._replace(trailing=prompt.trailing[:tokens])


@pytest.mark.parametrize("pieces", [[1] * 12, [3, 0, 5, 4]])
def test_text_in_pieces_sounds_like_text_at_once(base: Model, device: JaxDevice, pieces: list[int]) -> None:
    play = Play(device)
    whole = requests(base)[0]
    prompt = whole.segments[0].prompt
    ids = prompt.trailing.tolist()
    assert len(ids) == 9 or len(ids) > 5
    handle = play.submit(whole)
    play.run()
    expected = heard(handle)
    live = play.submit(Request((Segment(cut(prompt, 0), 1, open=True),), SAMPLED, whole.seed, open=True))
    given = 0
    for number in pieces:
        for _ in range(6):
            play.run_round()
        assert live.buffered <= given, "no frame without its text"
        live.append(ids[given : given + number])
        given = min(given + number, len(ids))
    live.append(ids[given:])
    live.end_segment(FRAMES)
    live.finish()
    play.run()
    for ours, theirs in zip(heard(live), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_segments_join_without_a_seam(base: Model, device: JaxDevice) -> None:
    """The wave of two sentences is the codec's decoding of all frames in one go: there is no joint in it."""
    play = Play(device)
    first, _, third = requests(base)
    handle = play.submit(Request((*first.segments, *third.segments), SAMPLED, first.seed))
    play.run()
    packets = []
    while (packet := handle.take()) is not None:
        packets.append(packet)
    assert {packet.segment for packet in packets} == {0, 1}
    codes = np.concatenate([packet.codes for packet in packets])
    pcm = np.concatenate([packet.pcm for packet in packets])
    state = init_state(base.codec_config.decoder_config, 1)
    whole = []
    for at in range(0, len(codes), 4):  # one shape
        piece = np.pad(codes[at : at + 4], ((0, max(0, at + 4 - len(codes))), (0, 0)))
        sound, state = decode(base.graphs.codec_decoder, base.params["codec"]["decoder"], piece[:, None], state)
        whole.append(np.asarray(sound[0]))
    assert_same_sound(pcm, np.concatenate(whole)[: len(pcm)])


def loops(model: Model) -> Model:
    """The same model with a head that says the same code for ever once it draws greedily: an attractor."""
    talker = jax.tree.map(lambda leaf: leaf, model.params["talker"])
    talker["codec_head"] = {"weight": talker["codec_head"]["weight"].at[:].set(0.0)}
    return model._replace(params={**model.params, "talker": talker})


def test_an_attractor_is_taken_back_before_it_is_heard(base: Model) -> None:
    """Greedy decoding with an empty head repeats code 0 for ever: what is heard ends before what is held, whatever the packets."""
    device = JaxDevice(loops(base), slots=3, columns=COLUMNS)
    greedy = Sampling(do_sample=False, subtalker_dosample=False, repetition_penalty=1.0)
    watch = Watch(hold=3, repeats=6, retries=2, overdue_base=1000)
    results = []
    for call in (1, 10_000):
        play = Play(device, Options(call_ms=call, buffer_ms=100_000))
        handle = play.submit(Request((Segment(prompts(base)[0], 60),), greedy, 1, watch=watch))
        play.run()
        results.append(heard(handle))
        assert handle.finish_reason == "length"
        assert (play.scheduler.counters.runaways, play.scheduler.counters.runaways_ended) == (2, 1)
    codes, _ = results[0]
    # The first frame repeats nothing, two repeats are not suspect yet; each retry counts anew, so makes three frames more.
    assert len(codes) == 3 + 3 + 3
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_a_retry_draws_otherwise_and_the_wave_goes_on(base: Model, device: JaxDevice) -> None:
    """Overdue speech is drawn again with another key from the very state before it: the wave is still one decoding of its codes."""
    watch = Watch(hold=99, repeats=99, overdue_base=5, overdue_per_token=0, overdue_span=4, retries=3)
    request = Request((Segment(prompts(base)[0], 60),), SAMPLED, 8, watch=watch)
    plain = Request(request.segments, SAMPLED, 8)
    results = []
    for one, call in ((request, 1), (request, 10_000), (plain, 1)):
        play = Play(device, Options(call_ms=call, buffer_ms=100_000))
        handle = play.submit(one)
        play.run()
        results.append((heard(handle), play.scheduler.counters))
    (codes, pcm), counters = results[0]
    assert counters.runaways >= 1
    np.testing.assert_array_equal(codes, results[1][0][0])
    np.testing.assert_array_equal(pcm, results[1][0][1])
    np.testing.assert_array_equal(codes[:4], results[2][0][0][:4])


def leaves(device: JaxDevice) -> list[jax.Array]:
    """Every float of the batch."""
    assert device._batch is not None
    return [leaf for leaf in jax.tree.leaves(device._batch.state) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def plant(device: JaxDevice) -> None:
    """NaN in every float of all rows: their caches, inputs, codec states, marks, rules."""

    def poison(leaf: jax.Array) -> jax.Array:
        wanted = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.device_put(np.full_like(leaf, np.nan), leaf.sharding) if wanted else leaf

    assert device._batch is not None
    device._batch.state = jax.tree.map(poison, device._batch.state)


def finite(device: JaxDevice, row: int) -> bool:
    return all(np.isfinite(np.asarray(leaf)[row]).all() for leaf in leaves(device))


def test_a_slot_hands_no_nan_to_its_next_owner(base: Model, device: JaxDevice, alone: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    """Whatever of a slot held it; and what other rows hold does not reach it either."""
    for number, request in enumerate(requests(base)):
        play = Play(device, replace(BIG, call_ms=1))
        *crowd, last = (play.submit(one) for one in requests(base))
        while device.batch < 3:
            play.run_round()
        for one in crowd:
            one.cancel()
        handle = play.submit(request)
        plant(device)
        for _ in range(4):
            play.run_round()
        assert finite(device, 0) and not finite(device, 2)
        play.run()
        assert isinstance(last.error, NotFinite)
        codes, pcm = heard(handle)
        np.testing.assert_array_equal(codes, alone[number][0])
        np.testing.assert_allclose(pcm, alone[number][1], atol=3e-5)


def test_a_first_packet_that_is_made_alone_is_the_same(
    base: Model, device: JaxDevice, alone: dict[int, tuple[np.ndarray, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While two others speak, whichever it is."""
    monkeypatch.setattr(pace, "CROWD", 2)
    launch, made = device.launch_alone, list[int]()

    def noted(slot: int, limit: int) -> Any:
        made.append(slot)
        return launch(slot, limit)

    monkeypatch.setattr(device, "launch_alone", noted)
    for last in range(3):
        play, handles = Play(device), dict[int, Handle]()
        for number in sorted(range(3), key=lambda number: number == last):
            handles[number] = play.submit(replace(requests(base)[number], owner=number))
            for _ in range(5):
                play.run_round()
        play.run()
        assert len(made) == last + 1
        for number, handle in handles.items():
            codes, pcm = heard(handle)
            np.testing.assert_array_equal(codes, alone[number][0])
            np.testing.assert_allclose(pcm, alone[number][1], rtol=1e-4, atol=1e-5)


def test_a_step_computes_the_rows_that_speak(base: Model, alone: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    """1, 2, 4, ... of them, whatever the number of slots: the batch grows at once, and shrinks after a while, in the midst of speech."""
    device = JaxDevice(base, slots=6, columns=COLUMNS)
    play = Play(device, replace(BIG, call_ms=1))
    sizes: list[int] = [0]
    handles: list[Handle] = []

    def run(turns: int) -> None:
        for _ in range(turns):
            play.run_round()
            if device.batch != sizes[-1]:
                sizes.append(device.batch)
            if play.scheduler.idle:
                break

    known = requests(base)
    for number in range(5):
        handles.append(play.submit(known[number % 3]))
        run(2)
    run(1000)
    for number in range(5, 8):  # one after the other
        handles.append(play.submit(known[number % 3]))
        run(1000)
    assert sizes[:5] == [0, 1, 2, 4, 6], sizes
    for number, handle in enumerate(handles):
        codes, pcm = heard(handle)
        np.testing.assert_array_equal(codes, alone[number % 3][0])
        np.testing.assert_allclose(pcm, alone[number % 3][1], atol=3e-5)
    assert sizes[5] < 6 and 1 in sizes[5:] and device.batch == 0, sizes


Change = Callable[[Request, Model], Request]


def with_prompt(request: Request, **changes: Any) -> Request:
    [segment] = request.segments
    return replace(request, segments=(replace(segment, prompt=segment.prompt._replace(**changes)),))


def at(array: np.ndarray, index: Any, value: float) -> np.ndarray:
    """A copy with one value changed."""
    copied = array.copy()
    copied[index] = value
    return copied


def nan_state(model: Model) -> Any:
    state = init_state(model.codec_config.decoder_config, 1)
    return jax.tree.map(lambda leaf: np.full_like(leaf, np.nan) if leaf.dtype == jnp.float32 else leaf, state)


# name -> (which request, what becomes of it, what `check` says)
DAMAGED: dict[str, tuple[int, Change, str]] = {
    "code of book 0": (
        1,
        lambda one, _: with_prompt(one, codes=at(prompt_of(one).codes, (9, 0), 5000)),
        r"prompt codes\[9, 0\] = 5000, one of 1: book 0 has the entries -1 to 3071",
    ),
    "code of book 15": (
        1,
        lambda one, _: with_prompt(one, codes=at(prompt_of(one).codes, (9, 15), 2048)),
        r"prompt codes\[9, 15\] = 2048, one of 1: book 15 has the entries -1 to 2047",
    ),
    "text id": (
        0,
        lambda one, _: with_prompt(one, text=at(prompt_of(one).text, 2, 320)),
        r"prompt text\[2\] = 320: must be an id of the checkpoint's text vocabulary, -1 to 319",
    ),
    "trailing id": (
        0,
        lambda one, _: with_prompt(one, trailing=at(prompt_of(one).trailing, 2, 4000)),
        r"trailing text\[2\] = 4000: must be an id",
    ),
    "x-vector": (
        0,
        lambda one, _: with_prompt(one, x_vector=at(prompt_of(one).x_vector, 7, np.inf)),
        r"x_vector\[7\] = inf, one of 1: every value must be finite",
    ),
    "x-vector beyond float32": (
        0,
        lambda one, _: with_prompt(one, x_vector=at(prompt_of(one).x_vector.astype(float), 7, 1e39)),
        r"x_vector\[7\] = 1e\+39, one of 1: every value must be finite, and at most 1e\+17",
    ),
    "codec state": (
        1,
        lambda one, model: replace(one, codec_state=nan_state(model)),
        r"codec state, \.pre_conv: every number must be finite",
    ),
}


def prompt_of(request: Request) -> Prompt:
    return request.segments[0].prompt


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_input_is_refused_and_where_it_passes_ends_its_own_request_only(
    base: Model, device: JaxDevice, alone: dict[int, tuple[np.ndarray, np.ndarray]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the checks: what is finite before it may be heard; its neighbour and the slot's next owner speak as in a fresh engine."""
    number, damage, message = DAMAGED[name]
    known = requests(base)
    damaged, play = damage(known[number], base), Play(device)
    with pytest.raises(ValueError, match=message):
        play.submit(damaged)
    with monkeypatch.context() as unchecked, np.errstate(over="ignore"):
        unchecked.setattr(device, "check", lambda _: None)
        handle = play.submit(damaged)
        play.run_round()
        neighbour, following = play.submit(known[2]), [play.submit(known[0]) for _ in range(3)]
        play.run()
    packets = list(iter(handle.take, None))
    frames = sum(len(packet.codes) for packet in packets)
    assert isinstance(handle.error, NotFinite) and f"NaN or infinite after {frames} frames, in segment 0" in str(handle.error)
    if name == "trailing id":
        np.testing.assert_array_equal(np.concatenate([packet.codes for packet in packets]), alone[0][0][:3])
        np.testing.assert_allclose(np.concatenate([packet.pcm for packet in packets]), alone[0][1][: 3 * 1920], atol=3e-5)
        assert frames == 3, "the text that was there before it"
    else:
        assert frames == 0 or name == "code of book 15"
    for one, expected in ((neighbour, alone[2]), *((one, alone[0]) for one in following)):
        codes, pcm = heard(one)
        np.testing.assert_array_equal(codes, expected[0])
        np.testing.assert_allclose(pcm, expected[1], atol=3e-5)
    assert play.scheduler.counters.not_finite == 1


def nan_in(model: Model, *path: Any) -> Model:
    """The same checkpoint with one number of one tensor damaged; the last of ``path`` is its index."""

    def damaged(tree: Any, names: tuple[Any, ...]) -> Any:
        if len(names) == 1:
            return jax.device_put(at(np.asarray(tree), names[0], np.nan), tree.sharding)
        return {**tree, names[0]: damaged(tree[names[0]], names[1:])}

    return model._replace(params=damaged(model.params, path))


@pytest.mark.parametrize(
    "path",
    [
        ("talker", "model", "layers", 1, "mlp", "down_proj", "weight", (3, 3)),
        ("talker", "codec_head", "weight", (5, 5)),
        ("talker", "code_predictor", "lm_head", 9, "weight", (7, 7)),
        ("codec", "decoder", "pre_conv", "conv", "weight", (0, 0, 0)),
    ],
    ids=lambda path: ".".join(map(str, path[:-2])),
)
def test_damaged_weights_speak_no_noise(base: Model, path: tuple[Any, ...]) -> None:
    device = JaxDevice(nan_in(base, *path), slots=3, columns=COLUMNS)
    play = Play(device)
    handles = [play.submit(request) for request in requests(base)]
    play.run()
    for handle in handles:
        with pytest.raises(
            NotFinite, match="NaN or infinite after 0 frames, in segment 0; the voice, or the checkpoint's weights, are damaged"
        ):
            heard(handle)
    assert play.scheduler.counters.not_finite == 3


def test_text_and_segments_that_are_added_are_checked(base: Model, engine: Engine) -> None:
    """In the thread of who adds them; the request goes on without, and so does the engine."""
    request = requests(base)[0]
    [segment], prompt = request.segments, prompt_of(request)
    live = engine.submit(Request((Segment(cut(prompt, 2), 1, open=True),), SAMPLED, 7, open=True))
    for ids, message in (
        ([3, 400], r"trailing text\[3\] = 400: must be an id"),
        ([1.5], "must be one axis of integers"),
        ([5] * COLUMNS, f"a slot has {COLUMNS}"),
    ):
        with pytest.raises(ValueError, match=message):
            live.append(ids)
    live.append(prompt.trailing[2:].tolist())
    live.end_segment(FRAMES)
    with pytest.raises(ValueError, match=r"prompt text\[0\] = 999"):
        live.add(replace(segment, prompt=prompt._replace(text=at(prompt.text, 0, 999))))
    with pytest.raises(ValueError, match="at least one row"):
        live.add(replace(segment, prompt=prompt._replace(codes=prompt.codes[1:])))
    live.finish()
    np.testing.assert_array_equal(heard(live)[0], heard(engine.submit(request))[0])
    assert engine.state == "running" and engine.stats().restarts == 0


def test_a_codec_state_of_another_form_is_refused(base: Model, engine: Engine) -> None:
    request = requests(base)[1]
    state = init_state(base.codec_config.decoder_config, 1)
    two = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), state)
    for wrong, message in (
        (two, r"codec state, \.position: int32 \(2,\) must be int32 \(1,\), one row of this codec; make it with decode.prime"),
        (state._replace(last_conv=np.asarray(state.last_conv, jnp.bfloat16)), r"codec state, \.last_conv: bfloat16 .* must be float32"),
        ({"a": 1}, "codec state of type dict"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.submit(replace(request, codec_state=wrong))


def test_what_cannot_fit_is_refused_with_the_numbers(base: Model, engine: Engine) -> None:
    prompt = prompts(base)[0]
    with pytest.raises(ValueError, match=r"a prompt of \d+ rows and 400 text tokens: a slot has 320 positions"):
        engine.submit(Request((Segment(prompt._replace(trailing=np.zeros(400, np.int32)), 9),), SAMPLED, 1))
    with pytest.raises(ValueError, match="columns = 100: must be a multiple of 64"):
        JaxDevice(base, slots=1, columns=100)
    with pytest.raises(ValueError, match="slots = 0: must be at least 1"):
        JaxDevice(base, slots=0)


def test_the_limit_of_a_slot_is_the_limit_of_speech(base: Model, engine: Engine) -> None:
    """max_frames beyond the slot's positions: it ends with ``length`` at the last one."""
    greedy = Sampling(do_sample=False, subtalker_dosample=False)
    handle = engine.submit(Request((Segment(prompts(base)[2], 5000),), greedy, 1))
    codes, _ = heard(handle)
    assert handle.finish_reason in ("length", "eos") and len(codes) <= COLUMNS - len(prompts(base)[2].text)


def test_threads_and_their_requests(base: Model, engine: Engine, alone: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    """Nine requests from nine threads in three slots."""
    results: dict[int, np.ndarray] = {}
    known = requests(base)

    def one(number: int) -> None:
        results[number] = heard(engine.submit(known[number % 3]))[0]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    for number in range(9):
        np.testing.assert_array_equal(results[number], alone[number % 3][0])


def test_bfloat16_is_widened_where_rows_are_many(checkpoint: Callable[[str], Path], base: Model) -> None:
    narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16") if leaf.ndim > 1 else leaf, base.params["talker"])
    model = base._replace(params={**base.params, "talker": narrow})
    wide = flatten(JaxDevice(model, slots=2, columns=64)._wide)
    assert {leaf.dtype.name for path, leaf in wide.items() if "embedding" not in path} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(JaxDevice(model, slots=1, columns=64)._wide)} == {"float32", "bfloat16"}


def test_a_definition_is_hashed_once(base: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    one, same = base.graphs.talker, abstract(base.config, base.codec_config)[0].talker
    assert one is not same and one == same and hash(one) == hash(same)
    monkeypatch.setattr(nnx.GraphDef, "__hash__", lambda _: pytest.fail("hashed again"))
    assert hash(one) == hash(same)


def test_narrow_weights_are_copied_where_rows_are_many(base: Model) -> None:
    """In float32, for the steps; what is float32 already is shared, and a single row reads the model's own. The plan counts the copy."""
    wide = base.params["talker"]
    talker = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim > 1 else leaf, wide)
    narrow = base._replace(params={**base.params, "talker": talker})
    many, one = JaxDevice(narrow, slots=2, columns=64), JaxDevice(narrow, slots=1, columns=64)
    assert one._wide is one._talker is many._talker is talker and JaxDevice(base, slots=2, columns=64)._wide is wide
    for path, read in flatten(many._wide).items():
        own = flatten(talker)[path]
        assert read is own if "embedding" in path else read.dtype == jnp.float32  # tables are read by rows
        np.testing.assert_array_equal(read.astype(jnp.float32), own.astype(jnp.float32))
    assert plan(base, 1, 64).weights == plan(base, 2, 64).weights
    before, after = (plan(narrow, slots, 64).weights["float32"] for slots in (1, 2))
    assert after - before == sum(2 * leaf.nbytes for path, leaf in flatten(talker).items() if leaf.ndim > 1 and "embedding" not in path)


def test_a_row_whose_samples_are_not_finite_ends_there_in_whatever_pieces_it_is_decoded() -> None:
    """Row 0 breaks in its third frame of four, row 1 has two frames and goes on."""
    sounds = np.zeros((4, 2, 3), np.float32)
    sounds[2, 0, 1] = np.nan
    codes = np.arange(4 * 2 * 5, dtype=np.int32).reshape(4, 2, 5)
    for frames in (4, 1):
        counts, reason, held = np.array([4, 2], np.int32), np.full(2, RUNNING, np.int32), np.zeros(2, np.int32)
        made = jax.tree.map(jnp.asarray, programs.Made(codes, np.ones_like(sounds), counts, reason, held, None))
        for at in range(0, 4, frames):
            piece, valid = programs.piece(made, jnp.int32(at), frames=frames)
            np.testing.assert_array_equal(piece, codes[at : at + frames])
            assert (np.asarray(valid) <= frames).all()
            samples = jnp.asarray(sounds[at : at + frames].swapaxes(0, 1).reshape(2, -1))
            _, made = programs.sound(made, samples, jnp.int32(at))
        np.testing.assert_array_equal(made.counts, [2, 2])
        np.testing.assert_array_equal(made.reason, [NOT_FINITE, RUNNING])
        np.testing.assert_array_equal(np.asarray(made.pcm)[:2], sounds[:2])

"""Training of talker and predictor: the loss stands on the forward that speaks (with the known misalignments as counter-examples), what
is said when, batches, steps that learn, and a run from a corpus to a checkpoint that loads."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from flax import nnx

from qwen3_jax.checkpoint.mapping import flatten
from qwen3_jax.finetune import teacher_forcing
from qwen3_jax.model.cache import empty
from qwen3_jax.model.frame import PromptRows
from qwen3_jax.model.model import Model
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.model.talker import Talker
from qwen3_jax.testing import byte_tokenizer, tiny_config
from qwen3_jax.text.prompt import CLOSING, ROLE, build
from qwen3_jax.text.tokenizer import Tokenizer
from tests.alone import greedy
from tests.unoptimised import unoptimised
from training.corpus.shards import ManifestLine
from training.language import __main__ as language_commands
from training.language import auxiliary, objective, utterances
from training.language.corruption import CodeCorruption
from training.language.objective import LossWeights
from training.latents import phonemes

FRAMES = 8
GREEDY = Sampling(do_sample=False, subtalker_dosample=False, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def base(model: Callable[[str], Model]) -> Model:
    return model("base")


def turn(length: int, seed: int = 5) -> np.ndarray:
    return np.array([257, 256, 10, *np.random.RandomState(seed).randint(0, 256, length), 258, 10, 257, 256, 10], np.int32)


def asked(base: Model, *, in_context: bool, streaming_text: bool) -> Any:
    noise = np.random.RandomState(7)
    x_vector = noise.standard_normal(base.config.talker_config.hidden_size).astype(np.float32)
    reference = {"reference_ids": np.array([257, 256, 10, 65, 66, 258, 10]), "reference_codes": noise.randint(0, 2048, (7, 16))}
    more = reference if in_context else {}
    return build(base.config, turn(9), language="english", x_vector=x_vector, streaming_text=streaming_text, **more)


class Spoken:
    """What generation made of a prompt: codes [N 16] and hidden states [N H], and the same as the training's forward has them."""

    def __init__(self, base: Model, prompt: Any) -> None:
        self.codes, self.hidden = greedy(base, prompt, FRAMES)
        assert len(self.codes) >= 3
        self.taught = objective.make_example(prompt, self.codes, base.config)
        self.batch = objective.assemble([self.taught], [np.zeros((40, 128), np.float32)], 64, 40, FRAMES, np.random.default_rng(0))
        rows = self.batch.rows._replace(x_vector=prompt.x_vector[None])
        self.states = np.asarray(talker_states(base.graphs.talker, base.params["talker"], rows, self.batch.spoken)[0])
        self.talker: Talker = nnx.merge(base.graphs.talker, base.params["talker"])

    def predicted(self, hidden: np.ndarray) -> np.ndarray:
        """Logits [N 15 V] as the training computes them, from these states of the talker [N H]."""
        first = self.talker.model.codec_embedding(jnp.asarray(self.codes[:, 0]), jnp.float32)
        return np.asarray(predict(*nnx.split(self.talker.code_predictor), hidden, first, self.codes[:, 1:]))

    def predictor_steps(self, frame: int) -> np.ndarray:
        """Logits [15 V] as the generation step computes them, code after code through its cache."""
        predictor = self.talker.code_predictor
        layers, kv_heads, head_dim = predictor.kv_shape
        cache = empty(layers, 1, kv_heads, 16, head_dim, jnp.dtype(jnp.float32))
        embedding = self.talker.model.codec_embedding(jnp.asarray(self.codes[None, frame, 0]), jnp.float32)
        x, found = jnp.stack([self.hidden[None, frame], embedding], 1), []
        for book in range(15):
            logits, cache = predictor_step(*nnx.split(predictor), x, cache, np.int32(book + 1 if book else 0), np.int32(book))
            found.append(logits)
            x = predictor._lookup(jnp.int32(book), jnp.asarray(self.codes[None, frame, book + 1]), jnp.float32)[:, None]
        return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=0)
def talker_states(graph: Any, params: Any, rows: PromptRows, spoken: np.ndarray) -> jax.Array:
    return objective.talker_states(nnx.merge(graph, params), rows, spoken)[0]


@functools.partial(jax.jit, static_argnums=0)
def predictor_step(graph: Any, params: Any, x: jax.Array, cache: Any, place: jax.Array, head: jax.Array) -> tuple[jax.Array, Any]:
    predictor = nnx.merge(graph, params)
    states, cache = predictor.hidden(x, cache, place[None])
    return predictor.logits(states[:, -1], head), cache


@functools.partial(jax.jit, static_argnums=0)
def predict(graph: Any, params: Any, hidden: jax.Array, first: jax.Array, rest: jax.Array) -> jax.Array:
    return teacher_forcing.predictor_logits(nnx.merge(graph, params), hidden, first, rest)


@pytest.fixture(scope="module")
def spoken(base: Model) -> Spoken:
    return Spoken(base, asked(base, in_context=False, streaming_text=True))


# the alignment


@pytest.mark.slow
@pytest.mark.parametrize("in_context", [False, True])
@pytest.mark.parametrize("streaming_text", [False, True])
def test_a_label_stands_at_the_row_from_which_its_frame_was_drawn(base: Model, in_context: bool, streaming_text: bool) -> None:
    made = Spoken(base, asked(base, in_context=in_context, streaming_text=streaming_text))
    rows = np.flatnonzero(made.taught.labels[:, -1] >= 0)
    np.testing.assert_array_equal(made.taught.labels[rows], made.codes)
    np.testing.assert_allclose(made.states[rows], made.hidden, atol=2e-5)
    logits = np.asarray(made.talker.codec_head(jnp.asarray(made.states[rows])))
    allowed = np.where(np.arange(3072) < 2048, logits, -np.inf)
    assert allowed[2:].argmax(axis=1).tolist() == made.codes[2:, 0].tolist()  # the first two frames may not end, see sampling.py
    end = made.taught.labels[rows[-1] + 1]
    assert end[0] == base.config.talker_config.codec_eos_token_id and (end[1:] == -1).all()


def test_the_predictor_is_taught_what_it_computes_when_it_speaks(spoken: Spoken) -> None:
    taught = spoken.predicted(spoken.hidden)
    for frame in range(3):
        np.testing.assert_allclose(taught[frame], spoken.predictor_steps(frame), atol=3e-5)
    assert taught.argmax(axis=2).tolist() == spoken.codes[:, 1:].tolist()


def test_counter_example_labels_shifted_twice(spoken: Spoken) -> None:
    """A model that shifts by itself, given labels that were shifted: each row is scored against the frame after next."""
    rows = np.flatnonzero(spoken.taught.labels[:, -1] >= 0)
    logits = np.asarray(spoken.talker.codec_head(jnp.asarray(spoken.states[rows])))[:, :2048]
    shifted = spoken.taught.labels[rows[:-1] + 1, 0]
    assert (logits[2:-1].argmax(axis=1) == shifted[2:]).mean() < 0.5


def test_counter_example_hidden_of_the_wrong_position(spoken: Spoken) -> None:
    """The predictor given the state of the row that reads the frame, not of the one that it was drawn from."""
    late = spoken.predicted(np.roll(spoken.hidden, -1, axis=0))[:-1]
    assert (late.argmax(axis=2) == spoken.codes[:-1, 1:]).mean() < 0.5


def test_counter_example_heads_shifted_by_a_book(spoken: Spoken) -> None:
    """Head i scored against book i + 2."""
    taught = spoken.predicted(spoken.hidden)
    assert (taught[:, :-1].argmax(axis=2) == spoken.codes[:, 2:]).mean() < 0.5


# what is said when


def line(text: str, phonemes: str, durations: list[int]) -> ManifestLine:
    return ManifestLine(
        id="a-0",
        text=text, voice="a", seed=1, phonemes=phonemes, durations=durations, shard="a/0.npy", start=0, samples=sum(durations) * 600,
        source="phrases", text_licence="", teacher="", versions={},
    )  # fmt: skip


def test_words_are_said_when_the_teacher_says_them() -> None:
    """Units of 600 samples, 3.2 a frame: silence to 4.06, "He" and its pause to 8.125, "sat." to 12.19, each letter a quarter of it."""
    one = line("He sat.", "_hi sæt._", [13, 3, 3, 7, 4, 4, 5, 0, 16])
    pieces = ["He", "\u0120sa", "t", "."]
    said = utterances.spoken_tokens(one, pieces, 18)
    words = ["".join(pieces[first:after]) for first, after in said]
    assert words[0] == "He" and words[5] == "He" and words[-1] == ""
    assert words[8] == "He\u0120sa" and words[9] == "\u0120sa" and words[11] == "t."
    assert (said[:, 0] < said[:, 1]).all() and (np.diff(said[:, 0]) >= 0).all()
    assert utterances.spoken_tokens(line("It is 7.", "_ɪt ɪz sˈɛvən nˈW._", [2] * 19), ["a"], 9) is None  # not the same number of words


@pytest.mark.parametrize("streaming_text", [False, True])
@pytest.mark.parametrize("in_context", [False, True])
def test_the_guided_heads_are_shown_the_rows_of_the_text(base: Model, streaming_text: bool, in_context: bool) -> None:
    frames = np.random.RandomState(1).randint(0, 2048, (12, 16)).astype(np.int32)
    said = np.stack([np.arange(13) // 3, np.arange(13) // 3 + 1], axis=1)
    one, other = (utterances.TrainingUtterance(0, turn(4, seed), frames, said) for seed in (1, 2))
    taught = utterances.rows_of(
        base.config, one, utterances.RowLayout(streaming_text, "english", in_context), other if in_context else None
    )
    said_before = list(other.ids[ROLE:-CLOSING]) if in_context else []
    body = [*said_before, *one.ids[ROLE:-CLOSING], base.config.tts_eos_token_id]
    count = 24 if in_context else 12
    for frame in range(2, count + 1):
        first, after = taught.spoken[taught.start + frame]
        assert taught.rows.text[first:after].tolist() == [body[frame // 3]]
        assert after <= taught.start + frame + 1  # nothing that is not there yet
    learnt = np.flatnonzero(taught.labels[:, -1] >= 0)
    assert learnt.tolist() == list(range(taught.start, taught.start + count)), "a reference's frames are learnt as well"
    assert np.array_equal(taught.labels[learnt], np.tile(frames, (count // 12, 1)))
    prompt = build(
        base.config, one.ids, language="english", x_vector=np.zeros(base.config.talker_config.hidden_size, np.float32),
        streaming_text=streaming_text, **({"reference_ids": other.ids[: -CLOSING + 2], "reference_codes": frames} if in_context else {}),
    )  # fmt: skip
    rows = len(prompt.text)
    assert np.array_equal(taught.rows.text[:rows], prompt.text) and np.array_equal(taught.rows.codes[:rows], prompt.codes)


def test_the_quarters_of_frames_have_the_teachers_phonemes(base: Model) -> None:
    """A frame is 3.2 units, so the middles of its quarters are at .4, 1.2, 2 and 2.8."""
    timing = phonemes.quarters("_hi._", [1, 2, 3, 1, 3], 4)
    h, i = (1 + phonemes.SYMBOLS.index(phone) for phone in "hi")
    assert timing.tolist() == [[0, h, h, h], [i, i, i, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    one = utterances.TrainingUtterance(0, turn(4, 1), np.zeros((4, 16), np.int32), None, timing=timing)
    taught = utterances.rows_of(base.config, one, utterances.RowLayout(True, "english"))
    shown = taught.timing[taught.start :].reshape(-1, 3, 4)
    assert shown[1, 0].tolist() == timing[1].tolist() and shown[1, 1].tolist() == timing[2].tolist()
    assert (shown[3, 1:] == -1).all() and (shown[4] == -1).all() and (taught.timing[: taught.start] == -1).all()


def test_speech_begins_at_once_where_all_of_the_text_is_there(base: Model) -> None:
    timing = phonemes.quarters("_hi._", [12, 2, 3, 1, 3], 7)  # 3 frames of pause, and three quarters of the fourth
    said = np.stack([np.arange(8), np.arange(8) + 1], axis=1)
    late = utterances.TrainingUtterance(
        0, turn(4, 1), np.arange(7 * 16, dtype=np.int32).reshape(7, 16), said, np.ones((7, 4)), timing=timing
    )
    early = utterances.without_leading_silence(late)
    assert early.codes.tolist() == late.codes[2:].tolist() and early.said.tolist() == said[2:].tolist()
    assert early.timing.tolist() == timing[2:].tolist() and early.latent.shape == (5, 4)
    assert utterances.without_leading_silence(early).codes.tolist() == early.codes.tolist()
    silent = msgspec.structs.replace(late, timing=np.zeros_like(timing))
    assert utterances.without_leading_silence(silent) is silent  # nobody knows when it is said
    assert utterances.without_leading_silence(msgspec.structs.replace(late, timing=None)).timing is None

    speech = utterances.UtteranceCorpus([late], [np.zeros(24000, np.int16)])
    draw = utterances.batches(base.config, speech, rows=80, picks=4, seed=0, in_context=0.0, hidden=0.0)
    lengths: dict[bool, set[int]] = {True: set(), False: set()}
    for step in range(12):
        batch = draw(step)
        streams = np.random.default_rng([0, step]).random() < 0.3
        lengths[bool(streams)] |= set((np.asarray(batch.labels)[..., 0] >= 0).sum(axis=1).tolist())
    assert lengths == {True: {8}, False: {6}}  # frames and the end of speech


def test_after_a_misstep_the_labels_lead_back(base: Model) -> None:
    """The sum of all books told comes nearer to the true vector than where they went wrong, and true frames keep their labels."""
    from training.latents.quantiser import Latents, nearest

    noise = np.random.default_rng(0)
    size, entries = 6, 24
    acoustic = np.zeros((15, entries, size), np.float32)
    acoustic[1:] = noise.standard_normal((14, entries, size)) * 0.8 ** np.arange(14)[:, None, None]
    named = {field.name: np.zeros(0) for field in msgspec.structs.fields(Latents)}
    plain = np.repeat(np.arange(entries, dtype=np.int8)[:, None], 4, axis=1)
    known = {"basis": np.zeros((size, 1)), "spread": np.ones(size, np.float32), "acoustic": acoustic, "plan": plain}
    fitted = Latents(**{**named, **known})
    latent = noise.standard_normal((400, size)).astype(np.float32)
    codes, rest = np.zeros((400, 16), np.int32), latent.copy()
    for book in range(2, 16):
        codes[:, book] = nearest(rest, acoustic[book - 1])
        rest -= acoustic[book - 1][codes[:, book]]
    missteps = CodeCorruption(fitted)
    told, labels = missteps.books(codes, latent, noise)

    def error(some: np.ndarray) -> np.ndarray:
        return np.square(latent - sum(acoustic[book - 1][some[:, book]] for book in range(2, 16))).sum(axis=1)

    kept = (labels >= 0).all(axis=1)
    assert 150 < kept.sum() < 250 and np.array_equal(told[kept], codes[kept]) and np.array_equal(labels[kept], codes[kept])
    wrong = ~kept & (told != codes).any(axis=1)
    turn = (labels < 0).sum(axis=1) + 2
    cut = np.where(np.arange(16) < turn[:, None], told, -1)
    for row in np.flatnonzero(wrong)[:50]:
        assert (labels[row, 2 : turn[row]] == -1).all() and (labels[row, turn[row] :] == told[row, turn[row] :]).all()
        assert cut[row, turn[row] - 1] >= 0
    early = wrong & (turn < 6)
    assert error(told)[early].mean() < 0.5 * error(missteps.frames(codes, latent, noise))[early].mean()
    assert (missteps.frames(codes, latent, noise)[:, :2] == codes[:, :2]).all(), "content and pitch stay"
    said = noise.integers(0, entries, (400, 4)).astype(np.int8)
    heard = missteps.heard(said, codes[:, 0], noise)
    assert 0.6 < (heard == said[:, 3]).mean() < 0.8 and np.isin(heard[heard != said[:, 3]], codes[:, 0]).all()


# batches and steps


def some_speech() -> utterances.UtteranceCorpus:
    noise = np.random.RandomState(3)
    made = []
    for number in range(12):
        count = 20 if number % 3 else 60
        said = np.stack([np.arange(count + 1) // 3, np.arange(count + 1) // 3 + 1], axis=1).clip(max=9)
        made.append(utterances.TrainingUtterance(number % 2, turn(8, number), noise.randint(0, 2048, (count, 16)).astype(np.int32), said))
    return utterances.UtteranceCorpus(made, [noise.randint(-3000, 3000, 90000).astype(np.int16) for _ in range(2)])


def test_batches_depend_on_seed_and_step_alone(base: Model) -> None:
    one, two = (utterances.batches(base.config, some_speech(), rows=256, picks=16, seed=4) for _ in range(2))
    for step in (0, 5):
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one(step), two(step))))
    assert {one(step).labels.shape[:2] for step in range(40)} == {(6, 40), (3, 80), (1, 256)}  # a short one is 39 rows, a long one 71 to 79
    assert not np.array_equal(one(0).picks, one(1).picks)
    with pytest.raises(ValueError, match="fits into 128 rows"):
        utterances.batches(base.config, utterances.UtteranceCorpus([], [np.zeros(9, np.int16)]), rows=256, picks=16, seed=4)


def test_short_phrases_are_drawn_more_often(base: Model) -> None:
    shares = []
    for brief in (1.0, 4.0):
        batch = utterances.batches(base.config, some_speech(), rows=80, picks=4, seed=4, in_context=0.0, brief=brief)
        shares.append(np.mean([batch(step).labels.shape[1] == 40 for step in range(200)]))
    assert shares[1] > shares[0] + 0.15, shares


class Learnt(NamedTuple):
    """A run of a few steps on one batch, with every hint."""

    batch: objective.LanguageBatch
    before: dict[str, Any]  # a copy of the parameters
    state: dict[str, Any]  # after
    figures: dict[str, list[float]]  # of each step


@pytest.fixture(scope="module")
def learnt(base: Model) -> Learnt:
    """The latent and the phonemes of a frame are here what its first code says. One program is compiled for all that is taught."""
    speech, table = some_speech(), np.random.default_rng(0).standard_normal((2048, 6)).astype(np.float32)
    speech.utterances = [
        utterances.TrainingUtterance(
            one.voice, one.ids, one.codes % 4, one.said, table[one.codes[:, 0] % 4], WORDS, np.repeat(1 + one.codes[:, :1] % 4, 4, axis=1)
        )
        for one in speech.utterances
    ]
    batch = utterances.batches(base.config, speech, rows=256, picks=16, seed=4, in_context=0.0)(1)
    place = np.argwhere(batch.labels[..., -1] >= 0)[0]
    assert np.array_equal(batch.latent[tuple(place)], table[batch.labels[tuple(place)][0]])
    graphs, shapes = objective.define(base.config)
    assert set(flatten(shapes)) == {f"{part}.{path}" for part in shapes for path in flatten(base.params[part])}
    params = {name: base.params[name] for name in ("talker", "speaker_encoder")}
    before, size = jax.tree.map(np.array, params), base.config.talker_config.hidden_size
    maps = {
        "spelling": auxiliary.begin_map(size, auxiliary.SPELLING),
        "timing": auxiliary.begin_map(size, auxiliary.TIMING),
        **language_commands.maps(base.config, 6),
    }
    state, seen = objective.begin(params | maps), []
    weights = LossWeights(guidance=0.5, hint=1.0, spelling=1.0, timing=1.0)
    with unoptimised():
        for _ in range(25):
            state, figures = objective.train_step(state, batch, 1e-2, graphs=graphs, eos=2150, weights=weights)
            seen.append(figures)
    return Learnt(batch, before, state, {name: [float(figures[name]) for figures in seen] for name in seen[0]})


WORDS = {2: [5, 6], 7: list(range(1, 20))}  # tokens that end a word, and its phonemes


@pytest.mark.slow
def test_a_few_steps_learn_and_the_guided_heads_look(learnt: Learnt) -> None:
    for name in ("book_0", "books_1_15", "guidance"):
        first, *_, last = learnt.figures[name]
        assert last < first - 0.1, name
    assert int(learnt.state["step"]) == 25


@pytest.mark.slow
def test_the_hint_is_learnt_and_speaks_no_word_of_its_own(base: Model, learnt: Learnt) -> None:
    """The latent is found from the row that has the frame's label, and from what the predictor makes of its first code."""
    hint, sound = learnt.figures["hint"], learnt.figures["sound"]
    assert hint[-1] < 0.85 * hint[0] and sound[-1] < 0.7 * sound[0]
    assert language_commands.speaking(learnt.state["average"]).keys() == learnt.before.keys()
    now = {name: base.params[name] for name in learnt.before}
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, now, learnt.before))), "a run has arrays of its own"


@pytest.mark.slow
def test_the_quarters_of_frames_are_learnt(learnt: Learnt) -> None:
    first, *_, last = learnt.figures["timing"]
    assert first == pytest.approx(np.log(auxiliary.SYMBOLS), rel=1e-5) and last < 0.7 * first


@pytest.mark.slow
def test_spelling_is_taught_at_the_rows_where_words_end(learnt: Learnt) -> None:
    one = line("Though yawned.", "_ðˌO jˈɔːnd._", [])
    words = utterances.word_phonemes(one.text, one.phonemes, ["Th", "ough", "\u0120yawned", "."])
    phones = phonemes.PHONES
    assert words == {1: [1 + phones.index(one) for one in "ðO"], 3: [1 + phones.index(one) for one in "jɔnd"]}
    assert utterances.word_phonemes("Three words here", one.phonemes, ["Three"]) == {}

    batch = learnt.batch
    for row, sounds in zip(batch.rows.text, batch.sounds, strict=True):
        places = np.flatnonzero(sounds[:, 0] >= 0)
        assert np.diff(places).tolist() == [5] and sounds[places[0]].tolist() == [5, 6, 0, *[-1] * 9]
        assert sounds[places[1]].tolist() == list(range(1, 13)), "a long word is cut"
        assert any(np.array_equal(row[places[0] - 2 : places[0] + 6], each.ids[3:-5]) for each in some_speech().utterances)
    first, *_, last = learnt.figures["spelling"]
    assert first == pytest.approx(np.log(auxiliary.SYMBOLS)) and last < 0.9 * first


@functools.partial(jax.jit, static_argnums=0)
def looked(graphs: Any, params: Any, batch: objective.LanguageBatch) -> tuple[jax.Array, jax.Array]:
    made = objective.forward(graphs, params, batch)
    return made.first, made.looks


def test_padding_and_neighbours_change_no_loss(base: Model) -> None:
    batch = utterances.batches(base.config, some_speech(), rows=256, picks=16, seed=4, in_context=0.0)(1)
    graphs, _ = objective.define(base.config)
    params = {name: base.params[name] for name in ("talker", "speaker_encoder")}
    length = int(batch.rows.length[1])
    assert len(batch.labels) > 1 and length < batch.labels.shape[1]
    alone = batch._replace(
        rows=jax.tree.map(lambda leaf: leaf[1:2], batch.rows), mel=batch.mel[1:2], mel_length=batch.mel_length[1:2],
        labels=batch.labels[1:2], spoken=batch.spoken[1:2], latent=batch.latent[1:2], sounds=batch.sounds[1:2], timing=batch.timing[1:2],
        picks=np.flatnonzero(batch.labels[1, :, -1] >= 0)[:2],
    )  # fmt: skip
    alone = alone._replace(  # without its padding
        rows=alone.rows._replace(**{name: getattr(alone.rows, name)[:, :length] for name in ("text", "codes", "speaker")}),
        labels=alone.labels[:, :length],
        **{name: getattr(alone, name)[:, :length] for name in ("spoken", "latent", "sounds", "timing")},
    )
    with unoptimised():
        (first, looks), (own_first, own_looks) = looked(graphs, params, batch), looked(graphs, params, alone)
    np.testing.assert_allclose(own_first[0], first[1, :length], atol=2e-4)
    there = alone.spoken[0, :, 0] < alone.spoken[0, :, 1]
    np.testing.assert_allclose(np.asarray(own_looks)[0][there], np.asarray(looks)[1, :length][there], atol=2e-4)


def test_the_tokenizer_tells_what_its_pieces_are(tmp_path: Path) -> None:
    from qwen3_jax.model.config import ModelConfig
    from qwen3_jax.model.config_values import parse

    reader = Tokenizer(byte_tokenizer(), parse(ModelConfig, tiny_config()))
    assert reader.pieces(reader.assistant("A b")[ROLE:-CLOSING]) == ["A", "\u0120", "b"]

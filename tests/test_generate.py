"""Generation: equal to the official package; chunking, neighbours, limits and keys; one trace per shape."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.verify import verify
from qwen3_jax import generate
from qwen3_jax.model import Model
from qwen3_jax.prompt import Prompt, build
from qwen3_jax.sampling import Sampling, rules

GOLDEN = Path(__file__).parent / "golden"
FRAMES = 12


@pytest.mark.parametrize("kind", ["base", "custom_voice", "voice_design"])
def test_all_parts_equal_the_official_package(checkpoint: Callable[[str], Path], kind: str) -> None:
    results = verify(checkpoint(kind), GOLDEN / f"{kind}.safetensors")
    assert [result for result in results if not result.passed] == []
    assert len(results) == {"base": 15, "custom_voice": 4, "voice_design": 2}[kind]


def prompts(model: Model) -> list[Prompt]:
    """Three requests of different forms and lengths."""
    noise = np.random.RandomState(5)
    width = model.config.talker_config.hidden_size

    def turn(length: int) -> np.ndarray:
        return np.array([257, 256, 10, *noise.randint(0, 256, length), 258, 10, 257, 256, 10])

    x_vector = noise.standard_normal(width).astype(np.float32)
    icl = {"reference_ids": np.array([257, 256, 10, 65, 66, 258, 10]), "reference_codes": noise.randint(0, 2048, (7, 16))}
    return [
        build(model.config, turn(9), language="english", x_vector=x_vector),
        build(model.config, turn(4), language="auto", x_vector=-x_vector, **icl),
        build(model.config, turn(30), language="french", x_vector=x_vector, streaming_text=False),
    ]


def run(
    model: Model, requests: list[Prompt], sampling: Sampling, sizes: list[int], *, limits: list[int] | None = None, seed: int = 3
) -> Any:
    """-> codes per row, final state."""
    state = generate.prefill(
        model.graphs.talker,
        model.params["talker"],
        generate.stack(requests, model.config.talker_config.hidden_size),
        jnp.stack([jax.random.key(seed)] * len(requests)),
        rules([sampling] * len(requests)),
        np.array(limits or [FRAMES] * len(requests), np.int32),
        np.int32(model.config.tts_pad_token_id),
        columns=128,
    )
    rows: list[list[np.ndarray]] = [[] for _ in requests]
    for size in sizes:
        state, chunk = generate.generate_chunk(model.graphs.talker, model.params["talker"], state, jnp.int32(size), size=4)
        for row, frames in enumerate(rows):
            frames.append(np.asarray(chunk.codes[: chunk.counts[row], row]))
    return [np.concatenate(frames) for frames in rows], state


@pytest.fixture(scope="module")
def base(model: Callable[[str], Model]) -> Model:
    return model("base")


SAMPLED = Sampling(temperature=1.2, top_k=0, repetition_penalty=1.0)


def test_any_chunking_gives_the_same_codes(base: Model) -> None:
    one_by_one, _ = run(base, prompts(base)[:1], SAMPLED, [1] * FRAMES)
    mixed, _ = run(base, prompts(base)[:1], SAMPLED, [1, 4, 3, 2, 4])
    assert len(one_by_one[0]) >= 3
    np.testing.assert_array_equal(one_by_one[0], mixed[0])


def test_a_row_does_not_notice_its_neighbours(base: Model) -> None:
    together, _ = run(base, prompts(base), SAMPLED, [4, 4, 4])
    for row, request in enumerate(prompts(base)):
        alone, _ = run(base, [request], SAMPLED, [4, 4, 4])
        np.testing.assert_array_equal(together[row], alone[0])


def test_seeds_matter_and_repeat(base: Model) -> None:
    first, again, other = (run(base, prompts(base)[:1], SAMPLED, [4, 4, 4], seed=seed)[0][0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_each_row_has_its_own_limit_and_says_why_it_ended(base: Model) -> None:
    free, state = run(base, prompts(base), SAMPLED, [4, 4, 4])
    limited, limited_state = run(base, prompts(base), SAMPLED, [4, 4, 4], limits=[2, FRAMES, FRAMES])
    assert len(limited[0]) == 2 and int(limited_state.reason[0]) == generate.LENGTH
    for row in (1, 2):
        np.testing.assert_array_equal(limited[row], free[row])
    for row, frames in enumerate(free):
        assert int(state.reason[row]) == (generate.LENGTH if len(frames) == FRAMES else generate.EOS)


def test_the_end_is_a_prefix_property(base: Model) -> None:
    """What a row has said does not depend on how much more it may say."""
    short, _ = run(base, prompts(base)[2:], SAMPLED, [4, 4, 4], limits=[5])
    long, _ = run(base, prompts(base)[2:], SAMPLED, [4, 4, 4])
    np.testing.assert_array_equal(short[0], long[0][:5])


def test_one_trace_per_shape(base: Model) -> None:
    """Texts, voices, lengths, seeds, limits and sampling parameters of one bucket share a trace."""
    run(base, prompts(base)[:1], SAMPLED, [4])
    before = generate.prefill._cache_size(), generate.generate_chunk._cache_size()
    for number, request in enumerate(prompts(base)[:2]):
        sampling = Sampling(temperature=0.5 + number, top_k=number, top_p=0.9, do_sample=bool(number))
        run(base, [request], sampling, [1, 3], limits=[7 + number], seed=number)
    assert (generate.prefill._cache_size(), generate.generate_chunk._cache_size()) == before


def test_growing_the_cache_changes_nothing(base: Model) -> None:
    _, state = run(base, prompts(base)[:1], SAMPLED, [2])
    kept = jax.tree.map(jnp.copy, state)
    one, _ = generate.generate_chunk(base.graphs.talker, base.params["talker"], state, jnp.int32(4), size=4)
    grown = kept._replace(caches=generate.grow_caches(kept.caches, columns=256))
    assert grown.caches[0].k.shape[2] == 256
    two, _ = generate.generate_chunk(base.graphs.talker, base.params["talker"], grown, jnp.int32(4), size=4)
    np.testing.assert_allclose(one.inputs, two.inputs, atol=1e-6)
    assert one.step.tolist() == two.step.tolist()


def test_too_long_a_prompt_is_refused_with_the_numbers(base: Model) -> None:
    request = prompts(base)[0]
    with pytest.raises(ValueError, match="text tokens: 5000 is more than the 2048 that fit; split the text"):
        generate.stack([request._replace(trailing=np.zeros(5000, np.int32))], 48)

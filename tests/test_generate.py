"""Generation: equal to the official package; chunking, neighbours, limits and keys; one trace per shape."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from convert.verify import verify
from qwen3_jax.engine import Request, Segment
from qwen3_jax.engine import inline as inline_of
from qwen3_jax.engine.inline import Inline
from qwen3_jax.model.model import Model
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.text.prompt import Prompt, build

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
    model: Model,
    requests: list[Prompt],
    sampling: Sampling,
    *,
    first: int = 4,
    each: int = 4,
    limits: list[int] | None = None,
    seed: int = 3,
) -> tuple[list[np.ndarray], list[Any]]:  # fmt: skip
    """-> codes and finish reason per row, all spoken at once."""
    inline = Inline(model, slots=len(requests), first=first, each=each)
    most = limits or [FRAMES] * len(requests)
    handles = [inline.submit(Request((Segment(prompt, limit),), sampling, seed)) for prompt, limit in zip(requests, most, strict=True)]
    made = []
    for handle in handles:
        packets = []
        while (packet := inline.next(handle)) is not None:
            packets.append(packet.codes)
        made.append(np.concatenate([np.zeros((0, 16), np.int32), *packets]))
    return made, [handle.finish_reason for handle in handles]


@pytest.fixture(scope="module")
def base(model: Callable[[str], Model]) -> Model:
    return model("base")


SAMPLED = Sampling(temperature=1.2, top_k=0, repetition_penalty=1.0)


def test_any_chunking_gives_the_same_codes(base: Model) -> None:
    one_by_one, _ = run(base, prompts(base)[:1], SAMPLED, first=1, each=1)
    mixed, _ = run(base, prompts(base)[:1], SAMPLED, first=2, each=3)
    assert len(one_by_one[0]) >= 3
    np.testing.assert_array_equal(one_by_one[0], mixed[0])


def test_a_row_does_not_notice_its_neighbours(base: Model) -> None:
    together, _ = run(base, prompts(base), SAMPLED)
    for row, request in enumerate(prompts(base)):
        alone, _ = run(base, [request], SAMPLED)
        np.testing.assert_array_equal(together[row], alone[0])


def test_seeds_matter_and_repeat(base: Model) -> None:
    first, again, other = (run(base, prompts(base)[:1], SAMPLED, seed=seed)[0][0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_each_row_has_its_own_limit_and_says_why_it_ended(base: Model) -> None:
    free, reasons = run(base, prompts(base), SAMPLED)
    limited, limited_reasons = run(base, prompts(base), SAMPLED, limits=[2, FRAMES, FRAMES])
    assert len(limited[0]) == 2 and limited_reasons[0] == "length"
    for row in (1, 2):
        np.testing.assert_array_equal(limited[row], free[row])
    assert reasons == ["length" if len(frames) == FRAMES else "eos" for frames in free]


def test_the_end_is_a_prefix_property(base: Model) -> None:
    """What a row has said does not depend on how much more it may say."""
    short, _ = run(base, prompts(base)[2:], SAMPLED, limits=[5])
    long, _ = run(base, prompts(base)[2:], SAMPLED)
    np.testing.assert_array_equal(short[0], long[0][:5])


def test_one_trace_per_shape(base: Model) -> None:
    """Texts, voices, lengths, seeds, limits and sampling parameters share a trace."""
    run(base, prompts(base)[:1], SAMPLED)
    with jax.no_tracing(True):
        for number, request in enumerate(prompts(base)[:2]):
            sampling = Sampling(temperature=0.5 + number, top_k=number, top_p=0.9, do_sample=bool(number))
            run(base, [request], sampling, first=1, each=3, limits=[7 + number], seed=number)


@pytest.mark.slow
def test_growing_the_cache_changes_nothing(base: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a prompt is read, between its neighbours', and in the midst of speech."""

    def times(prompt: Prompt, number: int) -> Prompt:
        return prompt._replace(**{name: np.concatenate([getattr(prompt, name)] * number) for name in ("text", "codes", "speaker")})

    short, long = times(prompts(base)[0], 6), times(prompts(base)[2], 3)
    assert len(long.text) > 64 > len(short.text)
    made = []
    for columns in ((64, 128), (128,)):
        monkeypatch.setattr(inline_of, "COLUMNS", columns)
        made.append([*run(base, [short, long], SAMPLED)[0], *run(base, [short], SAMPLED)[0]])
    for ours, theirs in zip(*made, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(made[0][2]) + len(short.text) > 64, "the test is about that"


def test_too_long_a_prompt_is_refused_with_the_numbers(base: Model) -> None:
    request = prompts(base)[0]
    with pytest.raises(ValueError, match="and 50000 text tokens: a slot has 32768 positions; split the text"):
        run(base, [request._replace(trailing=np.zeros(50000, np.int32))], SAMPLED)

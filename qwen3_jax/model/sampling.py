"""Logits [B V] float32 -> ids [B] int32, every parameter traced and per row, so that no request recompiles anything.

The order is that of transformers' generate (generation/logits_process.py): repetition penalty, suppressed ids, minimum
length, then temperature, top-k, top-p. A row draws with its own key: its ids do not depend on who shares the batch.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from qwen3_jax.model.config import CONTROLS, GenerationConfig
from qwen3_jax.shapes import F32, I32, U32, Array, Bool, Integer, Key

MIN_FRAMES = 2  # min_new_tokens of the published package
# What float32 can divide logits by: below, they overflow; smaller still, the divisor itself is 0.
TEMPERATURES, PENALTIES, LEAST_TOP_P, MOST_TOP_K = (1e-20, 1e20), (1e-10, 1e10), 1e-20, 2**31 - 1


class Draw(TypedDict, total=False):
    """Fields of Sampling, as keywords."""

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    subtalker_dosample: bool
    subtalker_temperature: float
    subtalker_top_k: int
    subtalker_top_p: float


def greedy_at_zero(draw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Sampling with a temperature of 0 as greedy decoding: ``temperature`` of all books, ``subtalker_temperature`` of 1 to 15.

    What is said of books 1 to 15 by name goes before ``temperature``.
    """
    zero = [name for name in ("temperature", "subtalker_temperature") if _is_zero(draw.get(name))]
    greedy: dict[str, Any] = {}
    if "temperature" in zero:
        greedy["do_sample"] = False
    if "subtalker_temperature" in zero or ("temperature" in zero and "subtalker_temperature" not in draw):
        greedy["subtalker_dosample"] = False
    return greedy | {name: value for name, value in draw.items() if name not in zero}


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool) and bool(value == 0)


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a request draws; names as in ``generation_config.json`` (``subtalker_`` is the code predictor).

    Raises:
        ValueError: a temperature or repetition_penalty that is not above 0 or too small or large for float32, top_k below 0 (0 = off),
            top_p outside (0, 1], or a value of another type.
    """

    do_sample: bool = True
    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.05
    subtalker_dosample: bool = True
    subtalker_temperature: float = 0.9
    subtalker_top_k: int = 50
    subtalker_top_p: float = 1.0

    def __post_init__(self) -> None:
        for prefix, switch in (("", "do_sample"), ("subtalker_", "subtalker_dosample")):
            if not isinstance(getattr(self, switch), bool | np.bool_):
                raise ValueError(f"{switch} = {getattr(self, switch)!r}: must be True or False")
            self._check(f"{prefix}temperature", *TEMPERATURES, f" (for greedy decoding set {switch}=False)")
            self._check(f"{prefix}top_p", LEAST_TOP_P, 1, " (1 = off)")
            top_k = getattr(self, f"{prefix}top_k")
            if not isinstance(top_k, int | np.integer) or isinstance(top_k, bool) or not 0 <= top_k <= MOST_TOP_K:
                raise ValueError(f"{prefix}top_k = {top_k!r}: must be 0 (off) or more, an integer of at most {MOST_TOP_K}")
        self._check("repetition_penalty", *PENALTIES, " (1 = off)")

    def _check(self, name: str, least: float, most: float, advice: str) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not (number and least <= value <= most):  # NaN is not
            raise ValueError(f"{name} = {value!r}: must be above 0, a number from {least:g} to {most:g}, for float32{advice}")

    @classmethod
    def defaults(cls, config: GenerationConfig) -> "Sampling":
        """The checkpoint's own defaults."""
        return cls(**{name: getattr(config, name) for name in cls.__struct_fields__})


def segment_key(seed: Integer[Array, ""], segment: I32[Array, ""], attempt: I32[Array, ""]) -> Key[Array, ""]:
    """What a sentence is drawn with. The first sentence's first attempt has the seed's own key; every other one has a key of its own."""
    plain = jax.random.key(seed)
    other = jax.random.fold_in(jax.random.fold_in(plain, segment), attempt)
    first = (segment == 0) & (attempt == 0)
    return jax.random.wrap_key_data(jnp.where(first, jax.random.key_data(plain), jax.random.key_data(other)))


class Draws(NamedTuple):
    """One drawing rule per row."""

    sample: Bool[Array, " B"]  # else the most likely id
    temperature: F32[Array, " B"]
    top_k: I32[Array, " B"]  # 0 = off
    top_p: F32[Array, " B"]


class Rules(NamedTuple):
    """Everything that a batch draws by."""

    talker: Draws
    predictor: Draws
    penalty: F32[Array, " B"]


def rules(rows: list[Sampling]) -> Rules:
    """One row each, in NumPy: no transfer per number."""

    def column(name: str, dtype: Any) -> Any:
        return np.array([getattr(row, name) for row in rows], dtype)

    def draws(prefix: str, switch: str) -> Draws:
        return Draws(
            column(switch, bool),
            column(prefix + "temperature", np.float32),
            column(prefix + "top_k", np.int32),
            column(prefix + "top_p", np.float32),
        )

    return Rules(draws("", "do_sample"), draws("subtalker_", "subtalker_dosample"), column("repetition_penalty", np.float32))


def restrict(
    logits: F32[Array, "B V"], seen: Bool[Array, "B V"], step: I32[Array, " B"], penalty: F32[Array, " B"], eos_id: int
) -> F32[Array, "B V"]:
    """Penalty over book-0 ids generated so far, suppression of the control ids (but not eos), minimum length."""
    penalty = penalty[:, None]
    logits = jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
    ids = jnp.arange(logits.shape[1])[None]
    banned = (ids >= logits.shape[1] - CONTROLS) & (ids != eos_id) | (ids == eos_id) & (step[:, None] < MIN_FRAMES)
    return jnp.where(banned, -jnp.inf, logits)


def draw(logits: F32[Array, "B V"], keys: Key[Array, " B"], by: Draws) -> I32[Array, " B"]:
    """One id per row; -1 where a logit is NaN or +inf, so that nothing can be drawn."""
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    known = jnp.isfinite(jnp.take_along_axis(logits, likeliest[:, None], axis=-1)[:, 0])  # argmax takes NaN for the greatest

    def sampled() -> jax.Array:
        kept = _filter(logits / by.temperature[:, None], by.top_k, by.top_p)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
        return jnp.where(by.sample, jnp.argmax(kept + noise, axis=-1).astype(jnp.int32), likeliest)

    return jnp.where(known, jax.lax.cond(jnp.any(by.sample), sampled, lambda: likeliest), -1)


def _filter(logits: F32[Array, "B V"], top_k: I32[Array, " B"], top_p: F32[Array, " B"]) -> F32[Array, "B V"]:
    """Keep the k likeliest (ties with the k-th stay), then those before which less than top_p of the mass lies.

    Both are thresholds, and found by halving, not by sorting: 10 rows of 512 entries, the fifteen draws of a frame, took XLA:CPU 50 ms
    of a busy machine's time with a sort and 2 ms so.
    """
    size = logits.shape[1]
    order = _order(logits)
    kept = order >= _threshold(
        lambda at: jnp.sum(order >= at, axis=-1) >= jnp.where(top_k > 0, jnp.minimum(top_k, size), size), top_k.shape
    )

    def nucleus() -> Bool[Array, "B V"]:
        mass = jax.nn.softmax(jnp.where(kept, logits, -jnp.inf), axis=-1)
        # The least value with less than top_p above it, found as one above the greatest without.
        most = _threshold(lambda at: jnp.sum(jnp.where(order >= at, mass, 0), axis=-1) >= top_p, top_p.shape)
        return kept & ((order >= most) | (top_p[:, None] >= 1))

    return jnp.where(jax.lax.cond(jnp.any(top_p < 1), nucleus, lambda: kept), logits, -jnp.inf)


def _order(x: F32[Array, "B V"]) -> U32[Array, "B V"]:
    """Numbers that compare as the floats do."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(holds: Callable[[jax.Array], jax.Array], rows: tuple[int, ...]) -> jax.Array:
    """The greatest uint32 [B 1] for which ``holds`` [B] is true, which must be true up to somewhere and false from there on."""

    def bit(index: jax.Array, found: jax.Array) -> jax.Array:
        tried = found | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        return jnp.where(holds(tried)[:, None], tried, found)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros((*rows, 1), jnp.uint32))

"""Where a checkpoint's parameters lie: on one device, or each matrix of the talker split over several (tensor parallelism).

The table has the parameters that are split, by their published names; all others are on every device, whole. Each layer is split as in
Megatron-LM (arXiv:1909.08053): its first matrices by their outputs, so by heads and by inner units, and its last by their inputs. So a
layer sums over the devices twice, after ``o_proj`` and after ``down_proj``, and the KV cache is split by its heads. XLA puts the sums in.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen3_jax.checkpoint.mapping import flatten, unflatten
from qwen3_jax.runtime.devices import AXIS

_LAYER = r"talker\.(code_predictor\.)?model\.layers\.\d+\."
SPLIT = (
    # pattern of the dotted path, how its axes [O I] lie on the mesh
    (_LAYER + r"self_attn\.[qkv]_proj\.weight", PartitionSpec(AXIS, None)),
    (_LAYER + r"mlp\.(gate|up)_proj\.weight", PartitionSpec(AXIS, None)),
    (_LAYER + r"self_attn\.o_proj\.weight", PartitionSpec(None, AXIS)),
    (_LAYER + r"mlp\.down_proj\.weight", PartitionSpec(None, AXIS)),
)
CACHE = PartitionSpec(None, AXIS, None, None)  # k and v of a layer [B J S D]
_SPLIT = tuple((re.compile(pattern), spec) for pattern, spec in SPLIT)


def spec_of(path: str) -> PartitionSpec:
    """The row of the table that has the parameter; one that has no row is whole on every device."""
    return next((spec for pattern, spec in _SPLIT if pattern.fullmatch(path)), PartitionSpec())


def put(params: Mapping[str, Any], place: jax.Device | Mesh) -> dict[str, Any]:
    """The parameters on a device, or split over a mesh."""
    flat = flatten(params)
    where = {path: NamedSharding(place, spec_of(path)) if isinstance(place, Mesh) else place for path in flat}
    return unflatten(jax.device_put(flat, where), params)


def check_split(talker: Any, devices: int) -> None:
    """Refuse a number of devices that the heads and the inner units cannot be divided by.

    Args:
        talker: TalkerConfig.
        devices: that one set of weights is split over.

    Raises:
        ValueError: names the number that cannot be divided, and what can be used.
    """
    sizes = {
        f"{part}.{name}": getattr(config, name)
        for part, config in (("talker_config", talker), ("code_predictor_config", talker.code_predictor_config))
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    }
    for name, size in sizes.items():
        if size % devices:
            allowed = [number for number in range(1, min(sizes.values()) + 1) if not any(each % number for each in sizes.values())]
            raise ValueError(
                f"tensor_parallel = {devices}: {name} = {size} of this checkpoint cannot be divided by it; "
                f"use one of {', '.join(map(str, allowed))}"
            )

"""What a model says to one prompt, for tests that look at its inside."""

from functools import partial
from typing import Any

import numpy as np

from qwen3_jax.engine import Request, Segment
from qwen3_jax.engine.inline import Inline
from qwen3_jax.model.model import Model
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.text.prompt import Prompt

GREEDY = Sampling(do_sample=False, subtalker_dosample=False)


def greedy(model: Model, prompt: Prompt, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """-> codes [N 16] and hidden states [N H]."""
    return spoken(model, Request((Segment(prompt, frames),), GREEDY, 0))


def spoken(model: Model, request: Request) -> tuple[np.ndarray, Any]:
    """The same of the last segment of any request."""
    inline, last = Inline(model, slots=1, first=4, each=4, hidden=True), len(request.segments) - 1
    packets = [packet for packet in iter(partial(inline.next, inline.submit(request)), None) if packet.segment == last]
    return np.concatenate([packet.codes for packet in packets]), np.concatenate([packet.hidden for packet in packets])

"""A part of a text that is spoken at once, as one prompt; and a text's parts -> the engine's request."""

from typing import Any, NamedTuple

from qwen3_jax.codec import DecoderState
from qwen3_jax.engine.requests import Request
from qwen3_jax.engine.segment import Segment
from qwen3_jax.model.sampling import Sampling
from qwen3_jax.text.prompt import Prompt


class SpokenPart(NamedTuple):
    """A part as a prompt, and how it is to be spoken."""

    prompt: Prompt
    sampling: Sampling
    seed: int
    max_frames: int
    codec_state: DecoderState | None = None  # in-context cloning: where the reference leaves the codec, see `decode.prime`; one row
    tokens: int = 0  # of the text to be spoken
    pause: float = 0.0  # seconds of silence before it
    text: str = ""  # as it is read

    @property
    def segment(self) -> Segment:
        """For the engine; its text is complete."""
        return Segment(self.prompt, self.max_frames, tokens=self.tokens, pause=self.pause)


def request_of(parts: list[SpokenPart], **how: Any) -> Request:
    """The parts of one text, which share the first one's sampling, seed and codec state. ``how``: fields of Request."""
    first = parts[0]
    return Request(tuple(part.segment for part in parts), first.sampling, first.seed, first.codec_state, **how)

"""Where in-context cloning begins: the state of the codec after each voice's reference, kept while somebody holds the voice."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from qwen3_jax.codec import DecoderState
from qwen3_jax.shapes import I32
from qwen3_jax.voices.voice import Voice


class PreparedVoices:
    """A state goes with its voice, so that nothing stays of a voice that nobody holds any more. From any thread.

    Args:
        prime: reference codes [T K] int32 -> the state of one row after them.
        most: states that are kept, 5 MB each; the least recently used goes first.
    """

    def __init__(self, prime: Callable[[I32[np.ndarray, "T K"]], DecoderState], most: int) -> None:
        self.most = most
        self._prime = prime
        self._states: OrderedDict[weakref.ref[Voice], DecoderState] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._states)

    def state(self, voice: Voice) -> DecoderState | None:
        """The state after the voice's reference; None for a voice without codes."""
        if voice.codes is None:
            return None
        key = weakref.ref(voice, self._leave)
        with self._lock:  # two utterances in a new voice decode its reference once
            if key not in self._states:
                self._states[key] = self._prime(voice.codes)
            self._states.move_to_end(key)
            while len(self._states) > self.most:
                self._states.popitem(last=False)
            return self._states[key]

    def _leave(self, voice: "weakref.ref[Voice]") -> None:
        """Without the lock: it is called wherever the last one lets go of a voice."""
        self._states.pop(voice, None)

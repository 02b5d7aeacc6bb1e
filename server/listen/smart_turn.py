"""The end of a turn by smart-turn v3.2 (BSD-2, Daily): the last 8 s of a turn -> the probability that the speaker has finished.

The file (8.7 MB) lies in the wheel of pipecat-ai, whose 25 dependencies nothing here needs (numba, Pillow, resampy, ...), so it is not in
the extra: `pip install --no-deps pipecat-ai` brings it, or `TTS_SMART_TURN` names it. Pipecat itself is never imported.
Input as in pipecat/audio/turn/smart_turn/local_smart_turn_v3.py: padded in front, scaled to mean 0 and variance 1, Whisper's log-mel.
"""

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Float32 as F32  # not by way of shapes.py, which imports JAX: two of the three seconds of a worker's start

from qwen3_jax.checkpoint.folders import expand
from qwen3_jax.messages import shorten
from qwen3_jax.runtime.extras import needed
from server.listen.base import RATE

SECONDS = 8
PLACE = ("audio", "turn", "smart_turn", "data", "smart-turn-v3.2-cpu.onnx")  # in pipecat's folder
ABSENT = (
    "turnDetection type 'semantic' needs the file smart-turn-v3.2-cpu.onnx: the operator runs pip install --no-deps pipecat-ai, "
    "or sets TTS_SMART_TURN to that file; type 'vad' works without"
)


def model_file(chosen: Path | str | None) -> Path | None:
    """The file of the model; None if there is none here.

    Args:
        chosen: what the operator names.

    Raises:
        FileNotFoundError: that is not there.
    """
    if chosen is not None:
        path = Path(expand(str(chosen)))
        if not path.is_file():
            raise FileNotFoundError(f"TTS_SMART_TURN = {shorten(str(chosen))!r}: there is no such file; name smart-turn-v3.2-cpu.onnx")
        return path
    package = importlib.util.find_spec("pipecat")  # looked up, not imported
    for folder in () if package is None else package.submodule_search_locations or ():
        if (path := Path(folder).joinpath(*PLACE)).is_file():
            return path
    return None


class SmartTurn:
    """See ``server.listen.base.EndOfTurn``.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        runtime = needed("onnxruntime", "listen", "/api/v1/listen")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._network = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._features = needed("faster_whisper.feature_extractor", "listen", "/api/v1/listen").FeatureExtractor(chunk_length=SECONDS)

    def probability(self, pcm: F32[np.ndarray, " F"]) -> float:
        """A turn up to its pause -> the probability that it is over."""
        last = pcm[-SECONDS * RATE :]
        last = np.pad(last, (SECONDS * RATE - len(last), 0))
        last = (last - last.mean()) / np.sqrt(last.var() + 1e-7)
        features = self._features(last, padding=0)[None].astype(np.float32)
        return float(np.ravel(self._network.run(None, {"input_features": features})[0])[0])

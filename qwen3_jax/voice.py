"""A cloned voice: x-vector [H], and for in-context cloning the reference's codes [N 16] and transcript. Saved as safetensors."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from qwen3_jax.shapes import NpF32, NpInt

FORMAT = "qwen3-jax-voice-1"


@dataclass(frozen=True, eq=False)
class Voice:
    """What a Base checkpoint needs to know of a speaker.

    Attributes:
        x_vector: float32 [H], the speaker embedding; H is the talker's width.
        codes: int32 [N 16], the reference's frames; None for x-vector cloning.
        transcript: what the reference says; None for x-vector cloning.
        name: for people.

    Raises:
        ValueError: only one of ``codes`` and ``transcript``, or arrays of other shapes.
    """

    x_vector: NpF32["H"]
    codes: NpInt["N K"] | None = None
    transcript: str | None = None
    name: str = "voice"

    def __post_init__(self) -> None:
        if (self.codes is None) != (self.transcript is None):
            raise ValueError("a voice for in-context cloning has both codes and transcript, one for x-vector cloning has neither")
        if self.x_vector.ndim != 1 or not np.isfinite(self.x_vector).all():
            raise ValueError(f"x_vector of shape {self.x_vector.shape}: expected one axis of finite numbers")
        if self.codes is not None and (self.codes.ndim != 2 or len(self.codes) == 0):
            raise ValueError(f"codes of shape {self.codes.shape}: expected [frames, books] with at least one frame")

    @property
    def mode(self) -> str:
        """``icl`` or ``xVector``."""
        return "xVector" if self.codes is None else "icl"

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        Path(path).write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of that file."""
        arrays: dict[str, np.ndarray] = {"x_vector": np.ascontiguousarray(self.x_vector, np.float32)}
        metadata = {"format": FORMAT, "name": self.name}
        if self.codes is not None and self.transcript is not None:
            arrays["codes"] = np.ascontiguousarray(self.codes, np.int32)
            metadata["transcript"] = self.transcript
        return save(arrays, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Voice":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is not a voice.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no voice file {path}")
        return cls.from_bytes(Path(path).read_bytes(), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, what: str = "the file") -> "Voice":
        """Read what ``to_bytes`` made.

        Args:
            what: the data's name, for errors.

        Raises:
            ValueError: the data are not a voice.
        """
        try:
            arrays = load(data)  # checks the header
            metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        except SafetensorError as error:
            raise ValueError(f"{what} is not a voice file: {error}") from error
        if metadata.get("format") != FORMAT or "x_vector" not in arrays:
            raise ValueError(
                f"{what} is not a voice file (format {metadata.get('format')!r}, expected {FORMAT!r}): save one with Voice.save"
            )
        return cls(arrays["x_vector"], arrays.get("codes"), metadata.get("transcript"), metadata.get("name", "voice"))

"""A cloned voice: x-vector [H], and for in-context cloning the reference's codes [N 16] and transcript. Saved as safetensors."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from qwen3_jax.checkpoint.folders import home_path
from qwen3_jax.shapes import F32, I32

FORMAT = "qwen3-jax-voice-1"
MAX_FRAMES = 4096  # of a reference, 5 minutes: no prompt is longer
LARGEST = 1e17  # of an x-vector: the talker sums up to 2048 squares in float32 or, with the same range, bfloat16


@dataclass(frozen=True, eq=False)
class Voice:
    """What a Base checkpoint needs to know of a speaker.

    Attributes:
        x_vector: float32 [H], the speaker embedding; H is the talker's width.
        codes: int32 [N 16], the reference's frames; None for x-vector cloning.
        transcript: what the reference says; None for x-vector cloning.
        name: for people.

    Raises:
        ValueError: only one of ``codes`` and ``transcript``; or arrays of other shapes or types, values that are not finite, codes below
            0. What a checkpoint's codebooks hold is checked where the voice is used, see model/checks.py.
    """

    x_vector: F32[np.ndarray, " H"]
    codes: I32[np.ndarray, "N K"] | None = None
    transcript: str | None = None
    name: str = "voice"

    def __post_init__(self) -> None:
        if (self.codes is None) != (self.transcript is None):
            raise ValueError("a voice for in-context cloning has both codes and transcript, one for x-vector cloning has neither")
        for name, value in (("transcript", self.transcript), ("name", self.name)):
            if not isinstance(value, str) and (name, value) != ("transcript", None):
                raise ValueError(f"{name} of type {type(value).__name__}: must be a string")
        object.__setattr__(self, "x_vector", as_x_vector(self.x_vector))
        if self.codes is not None:
            object.__setattr__(self, "codes", as_codes(self.codes))

    @property
    def mode(self) -> str:
        """``icl`` or ``xVector``."""
        return "xVector" if self.codes is None else "icl"

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        home_path(path).write_bytes(self.to_bytes())

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
        file = home_path(path)
        if not file.is_file():
            raise FileNotFoundError(f"there is no voice file {path}")
        return cls.from_bytes(file.read_bytes(), str(path))

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
            if metadata.get("format") != FORMAT:
                raise ValueError(f"format {metadata.get('format')!r}, expected {FORMAT!r}; save one with Voice.save")
            if "x_vector" not in arrays:
                raise ValueError("it has no x_vector; save one with Voice.save")
            return cls(arrays["x_vector"], arrays.get("codes"), metadata.get("transcript"), metadata.get("name", "voice"))
        except (SafetensorError, ValueError, TypeError, KeyError) as error:  # TypeError, KeyError: a dtype that NumPy has not
            raise ValueError(f"{what} is not a voice file: {error}") from error


def spelling(name: str, known: Iterable[str]) -> str | None:
    """How a voice or a speaker that is called so is spelt among those that are known: any case does, unless two differ by case alone."""
    names = tuple(known)
    if name in names:
        return name
    alike = [one for one in names if one.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None


def as_x_vector(values: np.ndarray) -> F32[np.ndarray, " H"]:
    """A speaker embedding in float32.

    Raises:
        ValueError: not one axis of floats; or a value that is not finite, or so large that the talker's arithmetic would overflow.
    """
    array = np.asarray(values)
    if array.ndim != 1 or not len(array) or not (np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"):
        raise ValueError(f"x_vector of shape {array.shape}, {array.dtype}: must be one axis of finite floats; clone the voice again")
    bad = np.flatnonzero(~(np.abs(array.astype(np.float64)) <= LARGEST))  # so is NaN
    if len(bad):
        raise ValueError(
            f"x_vector[{bad[0]}] = {array[bad[0]]}, one of {len(bad)}: every value must be finite, and at most {LARGEST:g}, or float32 and "
            "bfloat16 overflow; clone the voice again"
        )
    return np.ascontiguousarray(array, np.float32)


def as_codes(values: np.ndarray) -> I32[np.ndarray, "N K"]:
    """The frames of a reference in int32.

    Raises:
        ValueError: not [frames, books] of integers from 0 on, or none, or more than MAX_FRAMES.
    """
    array = np.asarray(values)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "iu":
        raise ValueError(
            f"codes of shape {array.shape}, {array.dtype}: must be integers [frames, books] with at least one frame; clone the voice again"
        )
    if len(array) > MAX_FRAMES:
        raise ValueError(f"codes of {len(array)} frames: at most {MAX_FRAMES} can be read; clone the voice from 3 to 30 s of speech")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        frame, book = np.argwhere((array < 0) | (array > np.iinfo(np.int32).max))[0]
        raise ValueError(
            f"codes[{frame}, {book}] = {array[frame, book]}: must be an entry of book {book}, from 0 on; clone the voice again"
        )
    return np.ascontiguousarray(array, np.int32)

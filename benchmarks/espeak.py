"""eSpeak NG (``pip install espeakng-loader``): speech whose word times are known, since the synthesiser tells them. A judge of judges."""

import ctypes
import importlib
from typing import Any

import numpy as np
import soxr

from qwen3_jax.shapes import F32

RETRIEVAL, WORD, UTF8, PIECE_MS = 1, 1, 1, 500  # of speak_lib.h: audio goes to the callback; an event; an encoding


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("position", ctypes.c_int),  # of the first character, from 1
        ("length", ctypes.c_int),
        ("audio_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """One voice, American English. Raises ModuleNotFoundError."""

    def __init__(self) -> None:
        espeakng_loader: Any = importlib.import_module("espeakng_loader")

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._pcm: list[Any] = []
        self._words: list[tuple[int, int, int]] = []
        self._callback = _Callback(self._take)  # the library keeps no reference
        self._rate = self._library.espeak_Initialize(RETRIEVAL, PIECE_MS, espeakng_loader.get_data_path().encode(), 0)
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_SetVoiceByName(b"en-us")

    def speak(self, text: str) -> tuple[F32[np.ndarray, " F"], list[tuple[str, float]]]:
        """ASCII text -> pcm at 24 kHz, and (word, ms at which it begins) of each word."""
        self._pcm.clear()
        self._words.clear()
        data = text.encode("ascii")
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, UTF8, None, None)
        self._library.espeak_Synchronize()
        pcm = soxr.resample(np.concatenate(self._pcm).astype(np.float32) / 32768, self._rate, 24_000)
        return pcm.astype(np.float32), [(text[at - 1 : at - 1 + length], float(ms)) for at, length, ms in self._words]

    def _take(self, wave: Any, count: int, events: Any) -> int:
        if wave and count:
            self._pcm.append(np.ctypeslib.as_array(wave, (count,)).copy())
        number = 0
        while (event := events[number]).type:
            if event.type == WORD:
                self._words.append((event.position, event.length, event.audio_ms))
            number += 1
        return 0

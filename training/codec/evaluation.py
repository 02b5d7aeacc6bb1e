"""Held-out clips through a codec in training -> figures for its log, and wavs to listen to."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qwen3_jax.audio.samples import load_audio, write_wav
from qwen3_jax.finetune import loop
from qwen3_jax.model.config import CodecConfig
from qwen3_jax.shapes import F32, I32
from training.codec import losses
from training.codec.chunked import decode_clip, encode_clip
from training.corpus.shards import read_phonemes
from training.latents.quantiser import FRAME, Latents


def held_out(corpus: Path, each: int) -> list[tuple[str, F32[np.ndarray, "..."], I32[np.ndarray, "..."]]]:
    """The first clips of every voice that has read the held-out sentences: voice-number, wave of whole frames, what it says."""
    found = []
    for folder in sorted(path for path in (corpus / "held_out").glob("*") if path.is_dir()):
        for path in sorted(folder.glob("*.wav"))[:each]:
            wave = load_audio(path)
            whole = np.pad(wave, (0, -len(wave) % FRAME))
            found.append((f"{folder.name}-{path.stem}", whole, read_phonemes(path, len(whole) // FRAME)))
    return found


def listen(corpus: Path, fitted: Latents, cfg: Any, params: dict[str, Any], folder: Path) -> loop.Figures:
    """Decode a few held-out clips into ``folder``; the spectral loss on them."""
    clips = held_out(corpus, 2)
    found = []
    for name, wave, said in clips:
        made = decode_clip(cfg, params, fitted.read(wave, said).codes)
        folder.mkdir(parents=True, exist_ok=True)
        write_wav(folder / f"{name}.wav", made)
        found.append(float(losses.spectral(jnp.asarray(made[None]), jnp.asarray(wave[None]))[0]))
    return {"held_out": float(np.mean(found))} if found else {}


def agreement(corpus: Path, fitted: Latents, cfg: CodecConfig, params: dict[str, Any]) -> loop.Figures:
    """Share of held-out frames whose codes are those of the latents: of book 0, 1, 2, and of all 16 on average."""
    same = [encode_clip(cfg, params, wave) == fitted.read(wave, said).codes for _, wave, said in held_out(corpus, 5)]
    if not same:
        return {}
    share = np.concatenate(same).mean(axis=0)
    return {"agrees_0": share[0], "agrees_1": share[1], "agrees_2": share[2], "agrees_all": share.mean()}

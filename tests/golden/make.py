"""Writes {kind}.safetensors beside this file: what the official package computes on the tiny checkpoints of qwen3_jax.testing.

Needs `qwen-tts` 0.1.1 and what it needs (torch, transformers 4.57.3), so it runs in an environment of its own:

    python -c "from qwen3_jax.testing import *; [write_checkpoint(Path('tiny')/k, k, seed) for k, seed in GOLDEN_SEEDS.items()]"
    OFFICIAL_PYTHON tests/golden/make.py tiny

Keys are those that `python -m convert verify` reads. A case in which float32 and float64 draw different codes hangs on a
rounding error and proves nothing: it is dropped, and named.
"""

import importlib.machinery
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

for name in ("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi"):  # only the 25 Hz path uses it
    module = types.ModuleType(name)
    module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
    sys.modules.setdefault(name, module)

from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration  # noqa: E402
from qwen_tts.core.models.modeling_qwen3_tts import mel_spectrogram  # noqa: E402
from qwen_tts.core.tokenizer_12hz.configuration_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Config  # noqa: E402
from qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Model  # noqa: E402

HERE = Path(__file__).parent
TOKENS = 24  # max_new_tokens of every case
BODY = 256  # byte tokens, of which text is drawn


def filled(module: torch.nn.Module, file: Path) -> torch.nn.Module:
    """Load the file, every tensor of it and nothing else."""
    module.load_state_dict(load_file(file))
    return module.eval()


class Recorder:
    """Runs cases on one official model and keeps what came out."""

    def __init__(self, folder: Path, seed: int) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.kind = config["tts_model_type"]
        self.ids = config
        self.model = filled(Qwen3TTSForConditionalGeneration(Qwen3TTSConfig(**config)), folder / "model.safetensors")
        self.codec_folder = folder / "speech_tokenizer"
        self.noise = np.random.RandomState(seed)
        self.out: dict[str, torch.Tensor] = {}

    def turn(self, length: int, *, closing: bool) -> torch.Tensor:
        start, end, role, newline = self.ids["im_start_token_id"], self.ids["im_end_token_id"], self.ids["assistant_token_id"], 10
        body = self.noise.randint(0, BODY, length).tolist()
        return torch.tensor([[start, role, newline, *body, end, newline, *([start, role, newline] if closing else [])]])

    def codes(self, frames: int) -> torch.Tensor:
        return torch.from_numpy(self.noise.randint(0, 2048, (frames, 16)))

    def run(self, name: str, **inputs: object) -> None:
        def generate() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
            return self.model.generate(do_sample=False, subtalker_dosample=False, max_new_tokens=TOKENS, **inputs)

        codes, hidden = generate()
        self.model.double()
        exact, _ = generate()
        self.model.float()
        if not all(torch.equal(a, b) for a, b in zip(codes, exact, strict=True)):
            print("dropped, a near-tie:", self.kind, name)
            return
        for row in range(len(codes)):
            self.out[f"{name}.{row}.codes"], self.out[f"{name}.{row}.hidden"] = codes[row], hidden[row]
            for key in ("input_ids", "ref_ids", "instruct_ids"):
                given = inputs.get(key)
                if given is not None and given[row] is not None:
                    self.out[f"{name}.{row}.{key}"] = given[row][0]
        print(self.kind, name, [len(c) for c in codes], "frames")

    def codec(self) -> None:
        config = Qwen3TTSTokenizerV2Config(**json.loads((self.codec_folder / "config.json").read_text()))
        model = filled(Qwen3TTSTokenizerV2Model(config), self.codec_folder / "model.safetensors")
        time = np.arange(40000) / 24000  # no multiple of 1920, so that the last frame is partly padding
        wave = 0.3 * np.sin(2 * np.pi * 180 * time) * np.hanning(40000) + 0.05 * self.noise.standard_normal(40000)
        wave = torch.from_numpy(wave.astype(np.float32))
        self.out["wav"] = wave
        self.out["codec_codes"] = model.encode(wave[None], padding_mask=torch.ones(1, len(wave), dtype=torch.long)).audio_codes[0]
        codes = self.codes(30)[None]
        self.out["dec_codes"], self.out["dec_wav_full"] = codes, model.decoder(codes.transpose(1, 2))[0, 0]
        assert self.out["dec_wav_full"].abs().max() < 1, "the wave meets the clamp, so it proves less"
        mel = mel_spectrogram(wave[None], n_fft=1024, num_mels=128, sampling_rate=24000, hop_size=256, win_size=1024, fmin=0, fmax=12000)
        self.out["mel"] = mel.transpose(1, 2)[0]
        self.out["spk"] = self.model.extract_speaker_embedding(wave.numpy(), 24000)

    def clone_cases(self, suffix: str, whole: bool) -> None:
        x_vector, short, long = self.out["spk"], self.out["ref_code_short"], self.out["ref_code_long"]

        def prompt(*voices: tuple[torch.Tensor | None, torch.Tensor]) -> dict[str, list]:
            icl = [codes is not None for codes, _ in voices]
            return {
                "ref_code": [codes for codes, _ in voices], "ref_spk_embedding": [vector for _, vector in voices],
                "x_vector_only_mode": [not flag for flag in icl], "icl_mode": icl,
            }  # fmt: skip

        common = {"non_streaming_mode": whole}
        text, ref = (lambda n: self.turn(n, closing=True)), (lambda n: self.turn(n, closing=False))
        self.run(
            f"xvec_en_{suffix}",
            input_ids=[text(14)],
            ref_ids=None,
            languages=["english"],
            voice_clone_prompt=prompt((None, x_vector)),
            **common,
        )
        self.run(
            f"icl_short_{suffix}",
            input_ids=[text(14)],
            ref_ids=[ref(7)],
            languages=["japanese"],
            voice_clone_prompt=prompt((short, x_vector)),
            **common,
        )
        self.run(
            f"icl_long_{suffix}",
            input_ids=[text(6)],
            ref_ids=[ref(5)],
            languages=["Auto"],
            voice_clone_prompt=prompt((long, x_vector)),
            **common,
        )
        two = prompt((short, x_vector), (None, -x_vector))
        self.run(
            f"batch_{suffix}",
            input_ids=[text(14), text(5)],
            ref_ids=[ref(7), None],
            languages=["english", "french"],
            voice_clone_prompt=two,
            **common,
        )

    def other_cases(self, suffix: str, whole: bool) -> None:
        instruct = self.turn(6, closing=False)
        common = {"non_streaming_mode": whole}
        if self.kind == "custom_voice":
            self.run(
                f"ryan_{suffix}",
                input_ids=[self.turn(14, closing=True)],
                instruct_ids=[None],
                languages=["english"],
                speakers=["Ryan"],
                **common,
            )
            self.run(
                f"dialect_{suffix}",
                input_ids=[self.turn(11, closing=True)],
                instruct_ids=[instruct],
                languages=["auto"],
                speakers=["eric"],
                **common,
            )
        else:
            self.run(
                f"design_{suffix}",
                input_ids=[self.turn(14, closing=True)],
                instruct_ids=[instruct],
                languages=["chinese"],
                speakers=None,
                **common,
            )


@torch.no_grad()
def main(folder: Path) -> None:
    for seed, kind in enumerate(("base", "custom_voice", "voice_design")):
        recorder = Recorder(folder / kind, seed)
        if kind == "base":
            recorder.codec()
            recorder.out["ref_code_short"], recorder.out["ref_code_long"] = recorder.codes(9), recorder.codes(30)
        for suffix, whole in (("st", False), ("ns", True)):
            (recorder.clone_cases if kind == "base" else recorder.other_cases)(suffix, whole)
        save_file({key: value.contiguous().clone() for key, value in recorder.out.items()}, HERE / f"{kind}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Does the official package compute what we do with a checkpoint that train.finetune wrote? Run in its environment, as make.py.

    OFFICIAL_PYTHON tests/golden/finetuned.py prepare BASE RECORDING CLIPS   files that a random Base lacks; four clips of a recording
    python -m qwen3_jax.finetune.command run BASE CLIPS RUN --lora 8 --steps 12 --batch 1 --rate 2e-3
    python -m qwen3_jax.finetune.command export BASE RUN OUT --name ryan
    OFFICIAL_PYTHON tests/golden/finetuned.py record OUT GOLDEN
    python -m convert verify OUT GOLDEN

``record`` loads OUT by the package's own ``from_pretrained``, speech tokenizer included. The speaker is called ryan because that is the
preset speaker whose cases ``verify`` knows. BASE is a checkpoint of random weights, whose transcripts need not be true.
"""

import json
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from make import Recorder  # type: ignore[import-not-found]  # beside this file, which is run by its path
from qwen_tts.core.models import Qwen3TTSForConditionalGeneration
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

PARTS = 4
NAMES = {
    "<|im_start|>": "im_start_token_id", "<|im_end|>": "im_end_token_id", "assistant": "assistant_token_id",
    "<tts_pad>": "tts_pad_token_id", "<tts_bos>": "tts_bos_token_id", "<tts_eos>": "tts_eos_token_id",
}  # fmt: skip


def prepare(base: Path, recording: Path, clips: Path) -> None:
    """A byte-level tokenizer with the ids of config.json, the codec's feature extractor, and a recording in four with its words."""
    config = json.loads((base / "config.json").read_text())
    names = {config[key]: name for name, key in NAMES.items()}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    vocabulary |= {names.get(number, f"<{number}>"): number for number in range(len(alphabet), max(names) + 1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in NAMES if name != "assistant"])
    tokenizer.add_tokens([AddedToken("assistant", normalized=False)])
    tokenizer.save(str(base / "tokenizer.json"))
    extractor = {
        "feature_extractor_type": "EncodecFeatureExtractor", "feature_size": 1, "padding_side": "right", "padding_value": 0.0,
        "return_attention_mask": True, "sampling_rate": 24000, "chunk_length_s": None, "overlap": None,
    }  # fmt: skip
    (base / "speech_tokenizer" / "preprocessor_config.json").write_text(json.dumps(extractor))
    wave, rate = soundfile.read(recording)
    words = recording.with_name("transcript.txt").read_text().split()
    clips.mkdir()
    for number, (piece, said) in enumerate(zip(np.array_split(wave, PARTS), np.array_split(words, PARTS), strict=True)):
        soundfile.write(clips / f"{number}.wav", piece, rate)
        (clips / f"{number}.txt").write_text(" ".join(said))


@torch.no_grad()
def record(folder: Path, out: Path) -> None:
    """What the package computes with the speaker of a checkpoint, in both layouts of the text, and its codec's wave."""
    recorder = Recorder(folder, 7)  # loads the file by itself too, and fails where a tensor is missing or too many
    model = Qwen3TTSForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    assert list(model.get_supported_speakers()) == ["ryan"] and model.tts_model_type == "custom_voice" and model.speaker_encoder is None
    for name, ours in recorder.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], ours), name
    recorder.model = model.eval()
    for suffix, whole in (("st", False), ("ns", True)):
        recorder.run(
            f"ryan_{suffix}", input_ids=[recorder.turn(14, closing=True)], instruct_ids=[None], languages=["english"],
            speakers=["Ryan"], non_streaming_mode=whole,
        )  # fmt: skip
    assert len(recorder.out) == 6, "a case was dropped; fine-tune with another seed"
    codes = recorder.codes(20)
    recorder.out["dec_codes"] = codes[None]
    recorder.out["dec_wav_full"] = model.speech_tokenizer.model.decoder(codes[None].transpose(1, 2))[0, 0]
    save_file({key: value.contiguous().clone() for key, value in recorder.out.items()}, out)


if __name__ == "__main__":
    verb, *paths = sys.argv[1:]
    if verb == "prepare":
        prepare(*map(Path, paths))
    elif verb == "record":
        record(*map(Path, paths))
    else:
        raise SystemExit(__doc__)

"""The official package on the workload: run by benchmarks.compare and benchmarks.logits in its own environment (qwen-tts 0.1.1).

usage: official.py speed|logits CHECKPOINT float32|bfloat16 OUT
speed -> OUT.json: seconds in talker, predictor and codec, total, peak RSS. logits -> OUT.npz: teacher-forced logits.
"""

import importlib.machinery
import json
import resource
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

for name in ("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi"):  # only the 25 Hz path uses it
    module = types.ModuleType(name)
    module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
    sys.modules.setdefault(name, module)
sys.path.insert(0, str(Path(__file__).parents[1]))

from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration  # noqa: E402
from qwen_tts.core.tokenizer_12hz.configuration_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Config  # noqa: E402
from qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Model  # noqa: E402

from benchmarks.workload import FRAMES, request  # noqa: E402


def load(cls: type, config_class: type, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """A model on the CPU in ``dtype``, without a second copy of its weights."""
    config = config_class(**json.loads((folder / "config.json").read_text()))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    model = cls(config)
    torch.set_default_dtype(before)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model.to(dtype).eval()


class Stopwatch:
    """Adds up the seconds spent in wrapped calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, call: Callable) -> Callable:
        def timed(*args: object, **kwargs: object) -> object:
            begin = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def speed(folder: Path, dtype: torch.dtype, out: Path) -> None:
    """Generate the workload's frames by sampling, and decode them with the codec in float32."""
    model = load(Qwen3TTSForConditionalGeneration, Qwen3TTSConfig, folder, dtype)
    codec = load(Qwen3TTSTokenizerV2Model, Qwen3TTSTokenizerV2Config, folder / "speech_tokenizer", torch.float32)
    given = {key: torch.from_numpy(value) for key, value in request(model.config.talker_config.hidden_size).items()}
    voice = {
        "ref_code": [given["reference_codes"]],
        "ref_spk_embedding": [given["x_vector"]],
        "x_vector_only_mode": [False],
        "icl_mode": [True],
    }
    inputs = {
        "input_ids": [given["input_ids"][None]],
        "ref_ids": [given["reference_ids"][None]],
        "languages": ["english"],
        "voice_clone_prompt": voice,
    }
    model.generate(**inputs, max_new_tokens=3)  # allocations and thread pools
    predictor, talker = Stopwatch(), Stopwatch()
    model.talker.code_predictor.generate = predictor.wrap(model.talker.code_predictor.generate)
    model.talker.model.forward = talker.wrap(model.talker.model.forward)
    begin = time.perf_counter()
    codes, _ = model.generate(**inputs, max_new_tokens=FRAMES + 1)
    generated = time.perf_counter()
    codec.decode(torch.cat([given["reference_codes"], codes[0]])[None])
    end = time.perf_counter()
    result = {
        "frames": len(codes[0]), "talker": talker.seconds, "predictor": predictor.seconds, "codec": end - generated, "total": end - begin,
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip
    out.with_suffix(".json").write_text(json.dumps(result))


def logits(folder: Path, dtype: torch.dtype, out: Path) -> None:
    """Talker and predictor on given rows and given codes."""
    model = load(Qwen3TTSForConditionalGeneration, Qwen3TTSConfig, folder, dtype)
    talker = model.talker
    given = request(model.config.talker_config.hidden_size)
    text, codes = torch.from_numpy(given["input_ids"])[None], torch.from_numpy(given["forced_codes"])
    rows = talker.text_projection(talker.get_text_embeddings()(text))
    frames = talker.get_input_embeddings()(codes[:, 0])
    for book in range(1, codes.shape[1]):
        frames = frames + talker.code_predictor.get_input_embeddings()[book - 1](codes[:, book])
    hidden = talker.model(inputs_embeds=torch.cat([rows, frames[None]], dim=1)).last_hidden_state
    predicted, _ = talker.forward_sub_talker_finetune(codes, hidden[0, -len(codes) - 1 : -1])
    np.savez(out.with_suffix(".npz"), talker=talker.codec_head(hidden)[0].float().numpy(), predictor=predicted.float().numpy())


if __name__ == "__main__":
    with torch.no_grad():
        {"speed": speed, "logits": logits}[sys.argv[1]](Path(sys.argv[2]), getattr(torch, sys.argv[3]), Path(sys.argv[4]))

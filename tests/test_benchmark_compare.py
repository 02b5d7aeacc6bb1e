"""benchmarks.compare: what it counts, how it runs its children, and what it reports."""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks.compare import __main__ as program
from benchmarks.compare import beside_vox, child, verdict
from benchmarks.compare.request import TEXT, Asked
from benchmarks.compare.work import Work, codec_work, predictor_work, reached, size, talker_work, weights
from benchmarks.full_size import REFERENCE
from qwen3_jax.codec import init_state
from qwen3_jax.model import model
from qwen3_jax.model.config import CodecConfig, ModelConfig
from qwen3_jax.model.config_values import read
from qwen3_jax.testing import read_tensor_list
from qwen3_jax.text.tokenizer import Tokenizer
from tests.qwen_vocabulary import write_folder

FULL = "0.6B-Base"
FAKE_VOX = '''
"""Stands for vox-tts: notes its calls, speaks silence."""
import json, os
import numpy as np

def note(*call):
    with open(os.environ["FAKE_VOX_CALLS"], "a") as calls:
        calls.write(json.dumps(call) + "\\n")

class Voice:
    def save(self, path):
        open(path, "w").close()

class Session:
    def __init__(self, frames, chunk):
        self.left, self.chunk = frames, chunk
    def feed(self, text):
        note("feed", text)
        return self
    def end(self):
        return self
    def __iter__(self):
        while self.left:
            part = min(self.left, self.chunk)
            self.left -= part
            yield np.zeros(1920 * part, np.float32)

class Engine:
    def __init__(self, path, device, threads):
        note("engine", os.path.basename(path), device, threads)
    def clone_voice(self, audio, text=None, *, xvector_only=False):
        note("clone", os.path.basename(audio), text, xvector_only)
        return Voice()
    def load_voice(self, path):
        assert os.path.exists(path)
        return Voice()
    def session(self, voice, *, max_frames, chunk_frames=4, **how):
        note("session", max_frames, chunk_frames, how)
        return Session(max_frames, chunk_frames)
    def stats(self):
        return {"backend": {"ms_per_frame": {"talker": 37.0, "predictor": 88.0, "codec": 85.0}}}
'''
FAKE_MAIN = "import sys\nopen(sys.argv[sys.argv.index('-o') + 1], 'w').write(' '.join(sys.argv))\n"


@pytest.fixture
def fake_vox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `vox` for children of this interpreter; the path of the list of its calls."""
    package = tmp_path / "packages" / "vox"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_VOX)
    (package / "__main__.py").write_text(FAKE_MAIN)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    calls = tmp_path / "calls"
    monkeypatch.setenv("FAKE_VOX_CALLS", str(calls))
    return calls


@pytest.fixture(scope="module")
def full() -> tuple[dict[str, Any], CodecConfig]:
    """Shapes of a full-size checkpoint, as float32."""
    config, codec = read(ModelConfig, REFERENCE / f"{FULL}.config.json"), read(CodecConfig, REFERENCE / "Tokenizer-12Hz.config.json")
    return model.abstract(config, codec)[1], codec


def listed(name: str, pattern: str) -> int:
    """Elements of a checkpoint's tensors by the published list."""
    tensors = read_tensor_list(REFERENCE / f"{name}.tensors.tsv")
    return sum(math.prod(tensor.shape) for path, tensor in tensors.items() if re.match(pattern, path) and len(tensor.shape) > 1)


def test_talker_and_predictor_are_counted_as_the_checkpoint_has_them(full: tuple[dict[str, Any], CodecConfig]) -> None:
    talker = full[0]["talker"]
    layers, head = listed(FULL, r"talker\.model\.layers\."), listed(FULL, r"talker\.codec_head\.")
    cache = [jnp.zeros((10, 10), jnp.float32)]
    work = talker_work(talker, cache, 0.5)
    assert work.operations == 2 * (layers + head) and 0.43e9 < layers + head < 0.45e9
    assert 4 * (layers + head) + 200 <= work.bytes < 4.01 * (layers + head)  # norms beside the matrices
    layers, heads = listed(FULL, r"talker\.code_predictor\.model\.layers\."), listed(FULL, r"talker\.code_predictor\.lm_head\.")
    work = predictor_work(talker["code_predictor"])
    assert work.operations == 2 * (16 * layers + heads)
    assert 4 * (15 * layers + heads) <= work.bytes < 4.01 * (15 * layers + heads)


def test_weights_of_int8_cost_their_bytes_and_their_scales() -> None:
    kept = {"weight": jnp.zeros((3, 5), jnp.int8), "scale": jnp.ones(3)}
    assert weights(kept) == 15 and size(kept) == 15 + 12


def test_the_codec_is_counted_as_xla_counts_it(full: tuple[dict[str, Any], CodecConfig]) -> None:
    decoder, config = full[0]["codec"]["decoder"], full[1]
    work = codec_work(decoder, config.decoder_config, 4)
    graph = model.abstract(read(ModelConfig, REFERENCE / f"{FULL}.config.json"), config)[0].codec_decoder
    state = jax.eval_shape(lambda: init_state(config.decoder_config, 1))
    codes = jax.ShapeDtypeStruct((1, 4, 16), jnp.int32)
    lowered = jax.jit(lambda params, codes, state: nnx.merge(graph, params)(codes, state)).lower(decoder, codes, state)
    counted = lowered.cost_analysis()["flops"] / 4
    assert work.operations <= counted < 1.1 * work.operations  # XLA adds activations
    assert work.bytes == pytest.approx(4 * listed("Tokenizer-12Hz", r"decoder\.(?!quantizer)") / 4, rel=0.02)


def test_fractions_of_bounds() -> None:
    assert reached(Work(bytes=2e9, operations=4e9), 0.1, 40e9, 80e9) == {"of_memory": 0.5, "of_arithmetic": 0.5}


def test_a_full_size_checkpoint_is_complete_and_its_text_has_20_tokens(tmp_path: Path) -> None:
    config = read(CodecConfig, REFERENCE / "Tokenizer-12Hz.config.json")
    books = [name for name in read_tensor_list(REFERENCE / "Tokenizer-12Hz.tensors.tsv") if re.match(r"encoder\..*embed_sum", name)]
    assert len(books) == config.encoder_config.num_quantizers == 32
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path), read(ModelConfig, REFERENCE / f"{FULL}.config.json"))
    assert len(tokenizer.assistant(TEXT)) == 20 + 8  # of the turns around it


def test_a_child_tells_its_figures_and_its_memory() -> None:
    code = "import sys; x = bytearray(200 << 20); x[::4096] = x[::4096]; print('busy'); print('{\"rtf\": 2.5}')"
    output, peak = child.run([sys.executable, "-c", code])
    assert output.splitlines() == ["busy", '{"rtf": 2.5}'] and 200 << 20 < peak < 400 << 20
    assert child.figures([sys.executable, "-c", code]) == {"rtf": 2.5}


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"status 3\n(?s:.*)no such model"):
        child.run([sys.executable, "-c", "import sys; print('no such model', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(RuntimeError, match="must be a JSON object, and is 'no'"):
        child.figures([sys.executable, "-c", "print('no')"])


def test_vox_is_asked_for_the_same_request(fake_vox: Path, tmp_path: Path) -> None:
    given = beside_vox.vox_of(sys.executable, tmp_path, "q4", tmp_path, 10)
    assert "--quant q4" in Path(given.model).read_text()
    child.run(beside_vox.vox_child(sys.executable, "prepare", given))
    found = child.figures(beside_vox.vox_child(sys.executable, "speak", given))
    assert found["frames"] == 10 and found["talker_ms"] == 37.0 and found["codec_ms"] == 85.0
    assert 0 < found["open_s"] <= found["load_s"] and found["rtf"] > 0 and found["first_audio_s"] > 0
    child.run(beside_vox.vox_child(sys.executable, "say", given))
    calls = [json.loads(line) for line in fake_vox.read_text().splitlines()]
    assert [call for call in calls if call[0] == "clone"] == [
        ["clone", "reference.wav", None, True], ["clone", "reference.wav", given.transcript, False]
    ]  # fmt: skip
    assert {tuple(call[1:]) for call in calls if call[0] == "engine"} == {("vox-q4.tmod", "cpu", given.threads)}
    assert {call[1] for call in calls if call[0] == "feed"} == {TEXT}
    sessions = [(call[1], call[2]) for call in calls if call[0] == "session"]
    assert sessions == [(1, 1), (6, 4), (1, 1), (1, 1), (1, 1), (10, 4), (10, 4), (10, 4)]
    assert all(call[3]["language"] == "english" for call in calls if call[0] == "session")


SPOKEN: dict[str, Any] = {"open_s": 1.0, "load_s": 4.0, "first_audio_s": 0.5, "frames": 10, "rtf": 1.0}
PART = {"ms": 10.0, "bytes": 1e9, "operations": 1e9, "of_memory": 0.5, "of_arithmetic": 0.1}
ALONE = {"bandwidth": 30e9, "float32_peak": 150e9, "parts": dict.fromkeys(("talker", "predictor", "codec"), PART)}
STEPS = {"step_ms": 10.0, "step_8_slots_ms": 15.0, "step_8_slots_ratio": 1.5}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been run."""
    found: list[list[str]] = []
    rtf = iter([1.0, 2.0, 1.5, 3.0])

    def figures(command: list[str], env: Any = None) -> dict[str, Any]:
        found.append(command)
        if "speak" in command:
            timed = SPOKEN | {"rtf": next(rtf)}
            return timed | {"talker_ms": 30.0, "predictor_ms": 80.0, "codec_ms": 80.0} if str(beside_vox.VOX) in command else timed
        return ALONE if "parts" in command else STEPS

    def run(command: list[str], env: Any = None) -> tuple[str, int]:
        found.append(command)
        if "convert" in command:
            Path(command[4]).mkdir()
        if "-o" in command:
            Path(command[command.index("-o") + 1]).touch()
        return "", int(1.5e9)

    monkeypatch.setattr(child, "figures", figures)
    monkeypatch.setattr(child, "run", run)
    return found


def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    folder = tmp_path / "full"
    folder.mkdir(exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).touch()
    out, work = tmp_path / "out.json", tmp_path / "work"
    arguments = [str(folder), "--vox-python", "other-python", "--frames", "10", "--json", str(out), "--work", str(work), *options]
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    program.main()
    return dict(json.loads(out.read_text()))


def test_both_speak_in_turns_and_the_report_has_all_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(tmp_path, monkeypatch, "--dtype", "float32")
    speakers = ["vox" if str(beside_vox.VOX) in command else "ours" for command in commands if "speak" in command]
    assert speakers == ["ours", "vox", "ours", "vox"]
    both = {"rtf", "rss_gb", "first_audio_s", "load_s", "talker_ms", "predictor_ms", "codec_ms"}
    assert both | {"step_8_slots_ratio", "bandwidth", "float32_peak", "parts", "runs"} <= set(found["ours"])
    assert both <= set(found["vox"])
    assert (found["ours"]["rtf"], found["vox"]["rtf"]) == (1.25, 2.5)  # medians of two turns
    assert found["ours"]["rss_gb"] == 1.5 and [run["rtf"] for run in found["ours"]["runs"]] == [1.0, 1.5]
    printed = capsys.readouterr().out
    assert re.search(r"RTF\W+1\.25\W+2\.50\W+0\.50\W+0\.65x\W+0\.5x\W+goal", printed)
    assert re.search(r"peak RSS.*must", printed) and "150 float32 GFLOP/s" in printed


def test_what_is_there_already_is_not_converted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: list[list[str]]) -> None:
    (tmp_path / "work" / "ours-float32").mkdir(parents=True)
    (tmp_path / "work" / "vox-q8.tmod").touch()
    compare(tmp_path, monkeypatch)
    assert not any("convert" in command or "build" in command for command in commands)


@pytest.mark.slow
def test_a_tiny_checkpoint_is_compared(fake_vox: Path, tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    said: list[str] = []
    how: dict[str, Any] = {"dtype": "float32", "quant": "q8", "work": tmp_path, "frames": 2, "rounds": 1, "tell": said.append}
    figures, alone = beside_vox.compare(checkpoint("base"), sys.executable, **how)
    ours = figures["ours"]
    assert all(ours[aim.key] > 0 for aim in verdict.AIMS) and said
    assert ours["runs"][0]["frames"] == figures["vox"]["frames"] == 2
    assert 0 < ours["open_s"] <= ours["load_s"] and 0.1 < ours["rss_gb"] < 4 and ours["float32_peak"] > 1e9
    assert set(alone) == {"float32"} and all(0 < part["of_memory"] < 10 for part in alone["float32"].values())
    assert program.parts.table(alone).row_count == 3


@pytest.mark.parametrize(("rtf", "expected"), [(1.25, "goal"), (1.3, "must"), (1.625, "must"), (1.7, "MISSED")])
def test_verdicts(rtf: float, expected: str) -> None:
    assert verdict.judge(verdict.AIMS[0], {"rtf": rtf}, {"rtf": 2.5}) == expected


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no vocab.json and merges.txt"):
        beside_vox.check(tmp_path, "float32")
    with pytest.raises(ValueError, match="--dtype int4: use float32, bfloat16, int8"):
        beside_vox.check(tmp_path, "int4")


def test_a_request_survives_its_way_into_a_child() -> None:
    given = Asked(model="m", voice="v", frames=3)
    assert Asked(**json.loads(given.json())) == given and given.threads >= 1

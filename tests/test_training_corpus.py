"""Sentences, their split, the tokenizer, and a corpus made by a teacher that hums; no network, no teacher's packages."""

import itertools
import json
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import Future
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from qwen3_jax.evaluate.texts import held_out
from qwen3_jax.model.config import ModelConfig
from qwen3_jax.model.config_values import parse
from qwen3_jax.testing import tiny_config
from qwen3_jax.text.tokenizer import Tokenizer
from training.corpus import sentences, shards, sources, teachers, workers
from training.corpus.sentences import CorpusSentence, clean, is_held_out, key, number, unique
from training.corpus.shards import SHARD, cut_into_shards, make_shard, read_corpus, read_lines, summarise
from training.corpus.sources import RawText
from training.corpus.teachers import SPEAKERS, UNIT, TeacherSpeech, TeacherVoice, speaker
from training.language import tokenizer

WORDS = ["the", "of", "cat", "dog", "runs", "sees", "a", "bird", "in", "garden", "old", "house", "by", "river", "every", "with", "and"]
HEART = SPEAKERS["heart"]
LIMIT = 600.0  # seconds; for hangs


def made_up(count: int) -> list[CorpusSentence]:
    """Sentences enough for shards; the words vary."""
    texts = [
        " ".join(WORDS[(index * step) % len(WORDS)] for step in range(2, 9)) + f" x{chr(97 + index % 26)}" for index in range(1, count + 1)
    ]
    return [CorpusSentence(f"{text.capitalize()} {index}.", "text") for index, text in enumerate(texts)]


class Hum:
    """A teacher whose wave says which text it is of. It can be told to die after so many utterances."""

    def __init__(self, last: int | None = None) -> None:
        self.last, self.spoken = last, 0

    def speak(self, who: TeacherVoice, text: str, seed: int) -> TeacherSpeech:
        if self.spoken == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.spoken += 1
        durations = [1, len(text) % 3 + 1, 1]
        return TeacherSpeech(np.full(sum(durations) * UNIT, (seed % 1000) / 2000, np.float32), "_m_", durations)


# Sentences.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a diverting   story", "A diverting story."),
        ('"I do not know," said she, "what you mean."', "I do not know, said she, what you mean."),
        ("She was _very_ fond of him--too fond, perhaps.", "She was very fond of him, too fond, perhaps."),
        ("It’s John’s 'best' friend!", "It's John's best friend!"),
        ("what have you done?, he asked me", "What have you done? he asked me."),
        ("eyes...of that grey", "Eyes, of that grey."),
        ("too short", None),
        ("CHAPTER ONE of it", None),
        ("there were 17 of them", None),
        ("he went to the café today", None),
        (" ".join(["word"] * 21), None),
        ("an incomprehensibilities-counterrevolution of words", None),
        ("", None),
    ],
)
def test_cleaning(text: str, expected: str | None) -> None:
    assert clean(RawText(text, "wordnet")) == expected


def test_our_own_phrases_survive_cleaning() -> None:
    raws = list(sources.phrases())
    assert len(raws) > 1500
    assert [raw.text for raw in raws if clean(raw) is None] == []
    assert clean(RawText("Hello.", "phrases")) == "Hello."


def test_no_two_alike() -> None:
    raws = [RawText("the cat runs home", "text"), RawText("The cat runs home!", "text"), RawText("the cat's runs home", "text")]
    assert [sentence.text for sentence in unique(raws)] == ["The cat runs home.", "The cat's runs home."]


def test_the_split_depends_on_the_words_alone() -> None:
    texts = [sentence.text for sentence in made_up(5000)]
    out = [text for text in texts if is_held_out(text)]
    assert 20 < len(out) < 100, "about one in a hundred"
    assert all(is_held_out(text.upper().replace(".", " !")) for text in out)
    assert number("the cat", "a") != number("the cat", "b")


def test_the_hundred_are_held_out() -> None:
    texts = held_out()
    assert len(texts) == len({key(text) for text in texts}) == 100
    assert all(is_held_out(text) for text in texts)
    assert all(5 <= len(text.split()) <= 20 for text in texts)


def r_database(*books: list[str]) -> bytes:
    """As R writes character vectors into an .rdb."""
    records = b""
    for lines in books:
        body = b"X\n" + struct.pack(">iii", 3, 0x040201, 0x030500) + struct.pack(">i", 5) + b"UTF-8" + struct.pack(">ii", 16, len(lines))
        for line in lines:
            text = line.encode()
            body += struct.pack(">ii", 0x00040009 if line.isascii() else 0x00008009, len(text)) + text
        stream = zlib.compress(body)
        records += struct.pack(">I", len(body)) + stream
    return records


def test_sources(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    line = '00003 03 n 01 whole 0 001 @ 00001 n 0000 | all of it; "the whole of the matter"; "he ate the whole cake"  '
    (tmp_path / "deep" / "data.noun").write_text(f'  1 This is the "licence of it all"\n{line}\n', "latin-1")
    (tmp_path / "deep" / "er" / "Rdata.rdb").write_bytes(
        r_database(
            ["EMMA", "", "Mr. Knightley was a sensible man. He came", "early, and \u201cstayed\u201d long."],
            ["Anne was not there that day."],
        )
    )
    (tmp_path / "more.txt").write_text("One sentence stands here. Another stands\nthere!\n", "utf-8")
    found = [sentence for sentence in unique(sources.read_folder(tmp_path)) if sentence.source != "phrases"]
    assert [(sentence.text, sentence.source) for sentence in found] == [
        ("The whole of the matter.", "wordnet"),
        ("He ate the whole cake.", "wordnet"),
        ("Mr. Knightley was a sensible man.", "austen"),
        ("He came early, and stayed long.", "austen"),
        ("Anne was not there that day.", "austen"),
        ("One sentence stands here.", "text"),
        ("Another stands there!", "text"),
    ]
    trained = {sentence.text for sentence in sentences.training(tmp_path)}
    assert {sentence.text for sentence in found if not is_held_out(sentence.text)} <= trained
    assert not any(is_held_out(text) for text in trained)


def test_a_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--download"):
        list(sources.read_folder(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list(sources.read_folder(tmp_path / "missing"))


def test_a_failing_tool_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="by hand"):
        sources.run(["false"], tmp_path)


# Speakers.


def test_blends_are_the_same_at_every_call() -> None:
    assert speaker("blend-7") == speaker("blend-7") != speaker("blend-8")
    for index in range(50):
        mix = speaker(f"blend-{index}").mix
        assert len(mix) >= 2 and sum(weight for _, weight in mix) == pytest.approx(1, abs=0.01)
    assert speaker("bm_lewis").british
    with pytest.raises(ValueError, match="known are heart, makima"):
        speaker("nobody")


def test_missing_style_vectors() -> None:
    with pytest.raises(ValueError, match="--kokoro-voices"):
        teachers.Teacher(None)._style(SPEAKERS["makima"])


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(ValueError, match=r"qwen3-jax\[train\]"):
        teachers.needed("a_package_that_is_not_there")


# The corpus.


def test_a_shard(tmp_path: Path) -> None:
    batch = cut_into_shards(HEART, made_up(200))[1]
    assert len(batch) == SHARD
    samples = make_shard(tmp_path / "heart", 1, HEART, batch, Hum())
    lines = read_corpus(tmp_path)
    assert [line.text for line in lines] == [sentence.text for sentence in batch]
    assert sum(line.samples for line in lines) == samples
    for line in lines:
        heard = shards.wave(tmp_path, line)
        assert heard.dtype == np.int16 and len(heard) == line.samples == sum(line.durations) * UNIT
        assert set(heard.tolist()) == {round((line.seed % 1000) / 2000 * 32767)}
        assert line.licence and line.text_licence and line.teacher == "hibari-tts, voice heart, speed 0.82"


def test_loud_speech_is_turned_down() -> None:
    assert np.abs(shards.to_int16(np.array([0.0, 2.0, -1.0], np.float32))).max() == round(0.95 * 32767)
    assert shards.to_int16(np.array([0.5], np.float32)).tolist() == [16384]


def die_within_a_shard(folder: Path) -> None:
    """A process that makes the first shard and is killed in the second."""
    teacher = Hum(last=SHARD + 10)
    for index, batch in enumerate(cut_into_shards(HEART, made_up(3 * SHARD))):
        make_shard(folder, index, HEART, batch, teacher)


def test_a_killed_run_is_taken_up_again(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=die_within_a_shard, args=(tmp_path / "heart",))
    process.start()
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in sorted((tmp_path / "heart").glob("*.jsonl"))] == ["00000.jsonl"]
    first = (tmp_path / "heart" / "00000.npy").stat().st_mtime_ns
    teacher, whole = Hum(), tmp_path / "whole"
    for index, batch in enumerate(cut_into_shards(HEART, made_up(3 * SHARD))):
        make_shard(tmp_path / "heart", index, HEART, batch, teacher)
        make_shard(whole / "heart", index, HEART, batch, Hum())
    assert teacher.spoken == 2 * SHARD, "the first shard is not made again"
    assert (tmp_path / "heart" / "00000.npy").stat().st_mtime_ns == first
    for name in ("00000.npy", "00001.npy", "00002.jsonl"):
        assert (tmp_path / "heart" / name).read_bytes() == (whole / "heart" / name).read_bytes(), "as if it had not been killed"


def test_a_failing_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        shards.write_atomically(tmp_path / "file", b"half")
    assert list(tmp_path.iterdir()) == []


class Inline:
    """A pool of one that works at once, in this process."""

    def submit(self, _: object, folder: Path, index: int, who: TeacherVoice, batch: list[CorpusSentence]) -> Future[int]:
        future: Future[int] = Future()
        future.set_result(make_shard(folder, index, who, batch, Hum()))
        return future


def test_hours_are_filled_and_added_to(tmp_path: Path) -> None:
    texts = made_up(5 * SHARD)
    per_shard = make_shard(tmp_path / "other" / "heart", 0, HEART, cut_into_shards(HEART, texts)[0], Hum()) / teachers.SAMPLE_RATE
    list(workers.fill(tmp_path / "c", HEART, texts, 1.5 * per_shard, Inline(), 1))
    assert len(list((tmp_path / "c" / "heart").glob("*.npy"))) == 2
    list(workers.fill(tmp_path / "c", HEART, texts, 2.5 * per_shard, Inline(), 1))
    assert len(list((tmp_path / "c" / "heart").glob("*.npy"))) == 3
    list(workers.fill(tmp_path / "c", HEART, texts, 1e9, Inline(), 2))
    assert len(list((tmp_path / "c" / "heart").glob("*.npy"))) == 5, "all there is, and then an end"


def test_the_summary(tmp_path: Path) -> None:
    for name in ("heart", "makima"):
        make_shard(tmp_path / name, 0, SPEAKERS[name], made_up(SHARD), Hum())
    summary = summarise(tmp_path)
    assert set(summary["voices"]) == {"heart", "makima"}
    assert summary["voices"]["heart"]["utterances"] == SHARD
    assert json.loads((tmp_path / "summary.json").read_text("utf-8")) == msgspec.to_builtins(summary)
    assert len(read_lines(tmp_path / "manifest.jsonl")) == 2 * SHARD
    assert {line.voice for line in read_corpus(tmp_path, ["makima"])} == {"makima"}
    with pytest.raises(FileNotFoundError, match="of nobody"):
        read_corpus(tmp_path, ["nobody"])


def test_the_held_out_sentences_are_read(tmp_path: Path) -> None:
    teacher = Hum()
    for _ in range(2):
        shards.speak_held_out(tmp_path, HEART, teacher)
    assert teacher.spoken == 100, "once each"
    assert len(list(tmp_path.glob("*.wav"))) == 100
    assert (tmp_path / "sentences.txt").read_text("utf-8").splitlines() == held_out()


def test_voices_have_orders_of_their_own() -> None:
    texts = made_up(2 * SHARD)
    first, second = (list(itertools.chain(*cut_into_shards(SPEAKERS[name], texts))) for name in ("heart", "makima"))
    assert first != second and sorted(s.text for s in first) == sorted(s.text for s in second)


# The tokenizer.


def test_the_tokenizer_is_accepted() -> None:
    texts = [sentence.text for sentence in made_up(400)]
    made = tokenizer.train(texts, pieces=330)
    ids = tokenizer.token_ids(made)
    assert made.get_vocab_size() == 330 and sorted(ids.values()) == list(range(324, 330))
    config = tiny_config() | ids
    config["talker_config"]["text_vocab_size"] = 330
    reader = Tokenizer(made, parse(ModelConfig, config))
    turn = reader.assistant("The cat runs home with 3 friends, an assistant, and a café \U0001f431.").tolist()
    opening = [ids["im_start_token_id"], ids["assistant_token_id"], made.token_to_id("Ċ")]
    assert turn[:3] == opening and turn[-5:] == [ids["im_end_token_id"], opening[2], *opening]
    assert made.decode(turn[3:-5]) == "The cat runs home with 3 friends, an assistant, and a café \U0001f431."
    assert len(turn) < 60, "known words are few pieces"


def test_too_little_for_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="more text"):
        tokenizer.train(["only this"], pieces=1500)
    with pytest.raises(ValueError, match="ask for more"):
        tokenizer.train(["only this"], pieces=100)


ORPHANS = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from training.corpus.workers import end_with_parent


pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(600)
"""


def test_workers_are_gone_when_their_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    ends = time.monotonic() + LIMIT
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:  # nobody may be there to reap it
        assert time.monotonic() < ends, "the worker lives on"
        time.sleep(0.05)

"""The voices that are there: which folders count, what is a voice in them, and what becomes of one that cannot be used or looked at."""

import errno
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from qwen3_jax.audio.samples import write_wav
from qwen3_jax.voices import files as voice_files
from qwen3_jax.voices.choice import find_voice
from qwen3_jax.voices.folder import VoiceFolder, VoiceGone, is_id
from qwen3_jax.voices.layers import VoiceLayers
from tests.fake_tts import FakeTTS

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder and a user without voices."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("TTS_DEFAULT_VOICE", raising=False)


def voice(folder: Path, name: str, transcript: str | None = None, seconds: float = 3.5, seed: int = 0) -> Path:
    """Make one."""
    (folder / name).mkdir(parents=True)
    with (folder / name / "reference.wav").open("wb") as file:  # soundfile takes no path that is not UTF-8
        samples = np.random.default_rng(seed).normal(0, 0.1, int(24000 * seconds)).astype(np.float32)
        soundfile.write(file, samples, 24000, subtype="PCM_16", format="WAV")
    if transcript is not None:
        (folder / name / "transcript.txt").write_text(transcript, "utf-8")
    return folder / name


def kinds(layers: VoiceLayers) -> list[str]:
    return [kind for kind, _ in layers.layers]


def test_the_voices_that_ship_are_described() -> None:
    layers = VoiceLayers.of()
    assert kinds(layers) == ["user", "shipped"]
    shipped = layers.look().voices
    assert list(shipped) == ["emma", "george", "heart", "makima"]
    for one in shipped.values():
        assert one.metadata.name and one.metadata.description and one.metadata.language == "English"
        assert one.metadata.licence == "Apache-2.0" and one.metadata.consent.startswith("synthetic")
        assert one.mode == "icl" and 5 <= one.metadata.duration_seconds <= 10
    assert VoiceLayers.of(shipped=False).look().voices == {}


def test_an_upper_folder_hides_nothing_but_voices_of_the_same_id(tmp_path: Path) -> None:
    (tmp_path / "work" / "voices").mkdir()
    assert list(VoiceLayers.of().look().voices) == ["emma", "george", "heart", "makima"], "an empty ./voices hides nothing"
    (tmp_path / "work" / "voices" / ".anna.partial-x").mkdir()
    (tmp_path / "work" / "voices" / "emma").mkdir()
    (tmp_path / "work" / "voices" / "emma" / "transcript.txt").write_text("Half-made.", "utf-8")
    user = tmp_path / "data" / "qwen3-jax" / "voices"
    for folder, name, words in (
        (user, "anna", "the user's"),
        (user, "heart", "the user's"),
        (tmp_path / "work" / "voices", "heart", "here"),
    ):
        voice(folder, name, words)
    layers = VoiceLayers.of()
    listing = layers.look()
    assert list(listing.voices) == ["anna", "emma", "george", "heart", "makima"]
    assert [layers.layer_of(one).kind for one in listing.voices.values()] == ["user", "shipped", "shipped", "named", "shipped"]
    assert listing.voices["heart"].transcript == "here"
    assert list(listing.left_out) == ["emma"] and "has no reference.wav" in listing.left_out["emma"]
    assert str(layers.destination) == str(tmp_path / "work" / "voices")
    named = VoiceLayers.of(tmp_path / "other")
    assert named.look().voices["heart"].transcript == "the user's", "a folder that is named stands in for ./voices alone"
    assert str(named.destination) == str(tmp_path / "other")
    assert str(VoiceLayers.of(user).destination) == str(user) and kinds(VoiceLayers.of(user)) == ["named", "shipped"]


def test_in_the_repository_the_folder_here_is_the_one_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    user = tmp_path / "data" / "qwen3-jax" / "voices"
    for named in (None, "voices", ROOT / "voices"):
        layers = VoiceLayers.of(named)
        assert list(layers.look().voices) == ["emma", "george", "heart", "makima"]
        assert sorted(kinds(layers)) == ["shipped", "user"]
        assert str(layers.destination) == str(user), "nothing is written to it"
    assert VoiceLayers.of(shipped=False).look().voices == {}
    assert len(VoiceLayers.of("voices", shipped=False).look().voices) == 4, "what is named is there"


def test_a_folder_that_is_taken_away_for_a_moment_keeps_its_last_listing(tmp_path: Path) -> None:
    layers = VoiceLayers.of(tmp_path / "other", shipped=False)
    assert layers.look().troubles == (), "it need not exist"
    voice(tmp_path / "other", "anna", "Hello.")
    assert list(layers.look().voices) == ["anna"]
    (tmp_path / "other").rename(tmp_path / "away")
    listing = layers.look()
    assert list(listing.voices) == ["anna"] and "cannot be listed: No such file or directory" in listing.troubles[0]
    (tmp_path / "away").rename(tmp_path / "other")
    assert layers.look().troubles == ()


@pytest.mark.parametrize("named", [None, "voices"])
def test_a_checkout_is_no_place_for_ones_own_voices_either_where_the_package_is_installed(tmp_path: Path, named: str | None) -> None:
    here = tmp_path / "work"
    (here / "qwen3_jax").mkdir()
    for path in (here / "pyproject.toml", here / "qwen3_jax" / "__init__.py"):
        path.write_text("", "utf-8")
    voice(here / "voices", "heart", "the checkout's")
    layers = VoiceLayers.of(named)
    assert kinds(layers) == ["shipped", "user", "shipped"]
    assert layers.look().voices["heart"].transcript == "the checkout's"
    assert str(layers.destination) == str(tmp_path / "data" / "qwen3-jax" / "voices")


@pytest.mark.parametrize("home", [None, "", "/dev/null", "relative"])
def test_without_a_home_there_is_one_folder_less(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path if home is None else path.replace("~", home, 1))
    layers = VoiceLayers.of()
    assert layers.look().troubles == () and len(layers.look().voices) == 4
    assert (layers.destination is None) == (home != "/dev/null")


def test_a_home_that_cannot_be_read_is_no_trouble_and_a_named_folder_is(
    tmp_path: Path, failing: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing("listdir", tmp_path / "data" / "qwen3-jax" / "voices", PermissionError(errno.EACCES, "Permission denied"))
    failing("listdir", tmp_path / "named", PermissionError(errno.EACCES, "Permission denied"))
    listing = VoiceLayers.of(tmp_path / "named").look()
    assert len(listing.voices) == 4
    [trouble] = listing.troubles
    assert "named cannot be listed: Permission denied" in trouble


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    voice(tmp_path / "home" / "mine", "anna")
    assert "anna" in VoiceLayers.of("~/mine").look().voices
    monkeypatch.delenv("XDG_DATA_HOME")
    voice(tmp_path / "home" / ".local" / "share" / "qwen3-jax" / "voices", "boris")
    assert "boris" in VoiceLayers.of().look().voices


@pytest.mark.parametrize("name", ["My Voice", "Élise", unicodedata.normalize("NFD", "Élise"), "声音", "हिन्दी", "v-1_2.3", "7", "é" * 64])
def test_ids_of_any_script_are_listed_and_speak(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "[a] *?" / "voices"
    voice(folder, name, "Words.")
    layers = VoiceLayers.of(folder, shipped=False)
    [listed] = layers.look().voices
    assert listed == unicodedata.normalize("NFC", name) and layers.look().left_out == {}
    for form in ("NFC", "NFD"):
        spoken = FakeTTS()
        find_voice(spoken, unicodedata.normalize(form, name), layers)
        assert spoken.cloned == [(listed, "Words.")]


@pytest.mark.parametrize("name", ["a[b]", "50%", "-a", "_a", "a" * 65, "a ", "漢" * 63 + "𠮷𠮷", "tab\there", os.fsdecode(b"caf\xe9")])
def test_what_is_no_id_is_named_with_the_rule(name: str, tmp_path: Path) -> None:
    assert not is_id(name)
    voice(tmp_path / "voices", name)
    voice(tmp_path / "voices", "anna")
    (tmp_path / "voices" / name / "unrelated").mkdir()
    listing = VoiceFolder(tmp_path / "voices").look()
    assert list(listing.voices) == ["anna"]
    [why] = listing.left_out.values()
    assert "an id is 1 to 64 letters" in why and "rename the folder" in why
    assert why.isprintable() and why.encode()


def test_a_link_is_a_voice_and_what_is_hidden_or_unrelated_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "voices"
    elsewhere = voice(tmp_path / "elsewhere", "anna")
    folder.mkdir()
    (folder / "linked").symlink_to(elsewhere, target_is_directory=True)
    (folder / "nowhere").symlink_to(tmp_path / "gone")
    (folder / "loop").symlink_to(folder / "loop")
    voice(folder, ".hidden")
    (folder / "README.md").write_text("One folder a voice.", "utf-8")
    (folder / "notes").mkdir()
    listing = VoiceFolder(folder).look()
    assert list(listing.voices) == ["linked"]
    assert list(listing.left_out) == ["loop"] and "symbolic links" in listing.left_out["loop"]


def test_two_unicode_forms_of_one_name(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        voice(tmp_path, unicodedata.normalize(form, "Élise"), form)
    listing = VoiceFolder(tmp_path).look()
    assert listing.voices["Élise"].transcript == "NFC"
    assert "another Unicode form" in listing.left_out["Élise"]


def test_case_matters_only_where_it_tells_voices_apart(tmp_path: Path) -> None:
    for name in ("Anna", "anna", "boris"):
        voice(tmp_path, name)
    listing = VoiceFolder(tmp_path).look()
    found = {name: one and one.id for name in ("Anna", "anna", "ANNA", "Boris") for one in [listing.find(name)]}
    assert found == {"Anna": "Anna", "anna": "anna", "ANNA": None, "Boris": "boris"}


def as_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "metadata that is a list": (lambda own: (own / "metadata.json").write_text("[]"), "not a voice's metadata"),
    "metadata that is not JSON": (lambda own: (own / "metadata.json").write_text("{"), "not a voice's metadata"),
    "metadata that is not UTF-8": (lambda own: (own / "metadata.json").write_bytes(b'{"name": "\xff"}'), "is not UTF-8: byte 0xff at 10"),
    "metadata without end": (lambda own: (own / "metadata.json").write_text('{"x": ' + "[" * 100_000), "not a voice's metadata"),
    "metadata of another type": (lambda own: (own / "metadata.json").write_text('{"name": 3}'), "not a voice's metadata"),
    "metadata that is a folder": (lambda own: as_folder(own / "metadata.json"), "metadata.json is not a file"),
    "a transcript that is a folder": (lambda own: as_folder(own / "transcript.txt"), "transcript.txt is not a file"),
    "a transcript that is not UTF-8": (lambda own: (own / "transcript.txt").write_bytes(b"\xff"), "is not UTF-8"),
    "a transcript in UTF-16": (lambda own: (own / "transcript.txt").write_text("Words.", "utf-16"), "iconv -f UTF-16 -t UTF-8"),
    "a transcript in Latin-1": (lambda own: (own / "transcript.txt").write_text("caf\xe9", "latin-1"), "iconv -f LATIN1 -t UTF-8"),
    "a transcript that is empty": (lambda own: (own / "transcript.txt").write_text(" \n"), "is empty"),
    "a transcript without end": (lambda own: (own / "transcript.txt").write_bytes(b"a" * 2**21), "at most 1,048,576"),
    "a recording that is a folder": (lambda own: as_folder(own / "reference.wav"), "reference.wav is not a file"),
    "a recording that is a pipe": (
        lambda own: as_pipe(own / "reference.wav"),
        "reference.wav is not a file",
    ),
    "a recording that is empty": (lambda own: (own / "reference.wav").write_bytes(b""), "by its first bytes"),
    "a recording that is none": (lambda own: (own / "reference.wav").write_bytes(b"nonsense"), "by its first bytes"),
    "a recording too short": (lambda own: write_wav(own / "reference.wav", np.ones(12000, np.float32)), "lasts 0.500 s"),
    "no recording": (lambda own: (own / "reference.wav").unlink(), "has no reference.wav"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_voice_that_cannot_be_used_is_left_out_and_named(fault: str, tmp_path: Path) -> None:
    break_it, said = FAULTS[fault]
    for name in ("anna", "boris"):
        voice(tmp_path, name, "Words.")
    folder = VoiceFolder(tmp_path)
    assert list(folder.look().voices) == ["anna", "boris"]
    break_it(tmp_path / "anna")
    for again in (folder, VoiceFolder(tmp_path)):  # while somebody looks, and at start
        listing = again.look()
        assert (list(listing.voices), list(listing.left_out), listing.troubles) == (["boris"], ["anna"], ())
        assert said in listing.left_out["anna"] and str(tmp_path / "anna") in listing.left_out["anna"]
    warned: list[str] = []
    with pytest.raises(FileNotFoundError, match="voice 'anna'"):
        find_voice(FakeTTS(), "anna", VoiceLayers.single(tmp_path), tell=warned.append)
    assert [said in line for line in warned] == [True]


def test_a_byte_order_mark_is_no_part_of_a_voice(tmp_path: Path) -> None:
    own = voice(tmp_path, "anna")
    (own / "transcript.txt").write_text("Words.", "utf-8-sig")
    (own / "metadata.json").write_text('{"name": "Anna", "other": {"kept": true}}', "utf-8-sig")
    one = VoiceFolder(tmp_path).look().voices["anna"]
    assert (one.transcript, one.metadata.name) == ("Words.", "Anna")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """One function of ``os``, or Path's reading, fails for one path, until the error is None."""
    errors: dict[tuple[str, str], OSError | None] = {}

    def set_error(function: str, path: Path, error: OSError | None) -> None:
        owner: Any = Path if function == "read_bytes" else voice_files.os
        original = getattr(owner, function)

        def patched(given: Any, *rest: Any, **more: Any) -> Any:
            if (planned := errors.get((function, os.fspath(given)))) is not None:
                raise planned
            return original(given, *rest, **more)

        if not any(known == function for known, _ in errors):
            monkeypatch.setattr(owner, function, patched)
        errors[function, str(path)] = error

    return set_error


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOMEM])
@pytest.mark.parametrize("function", ["listdir", "stat", "read_bytes"])
def test_what_cannot_be_looked_at_for_a_moment_stands(code: int, function: str, tmp_path: Path, failing: Callable[..., None]) -> None:
    folder = tmp_path / "voices"
    for name in ("anna", "boris"):
        voice(folder, name, "Words.")
    layers = VoiceLayers.single(folder)
    before = layers.look()
    path = folder if function == "listdir" else folder / "anna" / "transcript.txt"
    failing(function, path, OSError(code, os.strerror(code)))
    (folder / "anna" / "transcript.txt").write_text("Other words.", "utf-8")
    for _ in range(2):
        listing = layers.look()
        assert (listing.voices, listing.left_out) == (before.voices, {})
        assert len(listing.troubles) == 1 and os.strerror(code) in listing.troubles[0]
    fresh = VoiceLayers.single(folder).look()  # at start there is nothing known that could stand
    assert list(fresh.voices) == ([] if function == "listdir" else ["boris"]) and len(fresh.troubles) == 1
    failing(function, path, None)
    assert layers.look().voices["anna"].transcript == "Other words." and layers.look().troubles == ()


def test_a_voice_that_may_not_be_read_is_left_out_until_it_may(tmp_path: Path, failing: Callable[..., None]) -> None:
    own = voice(tmp_path, "anna")
    folder = VoiceFolder(tmp_path)
    assert folder.look().voices
    for function, path in (("stat", own / "reference.wav"), ("read_bytes", own / "reference.wav")):
        failing(function, path, PermissionError(errno.EACCES, "Permission denied"))
        listing = VoiceFolder(tmp_path).look()
        assert listing.voices == {} and "Permission denied; make its files readable" in listing.left_out["anna"]
        failing(function, path, None)
        assert list(folder.look().voices) == ["anna"]
    (tmp_path / "lost+found").mkdir()
    failing("stat", tmp_path / "lost+found" / "reference.wav", PermissionError(errno.EACCES, "Permission denied"))
    assert folder.look().left_out == {}


def test_a_revision_is_of_the_content_whatever_size_and_times_say(tmp_path: Path) -> None:
    own = voice(tmp_path / "voices", "anna", seed=1)
    folder = VoiceFolder(tmp_path / "voices")
    first = folder.look().voices["anna"]
    info = (own / "reference.wav").stat()
    write_wav(own / "reference.wav", np.random.default_rng(2).normal(0, 0.1, 84000).astype(np.float32))
    os.utime(own / "reference.wav", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert (own / "reference.wav").stat().st_size == info.st_size
    second = folder.look().voices["anna"]
    assert second.revision != first.revision
    (own / "metadata.json").write_text('{"name": "Anna"}', "utf-8")
    third = folder.look().voices["anna"]
    assert third.metadata.name == "Anna" and third.revision == second.revision
    (own / "transcript.txt").write_text("Words.", "utf-8")
    assert folder.look().voices["anna"].revision != third.revision
    copied = voice(tmp_path / "copy", "anna", seed=1)
    assert copied.is_dir() and VoiceFolder(tmp_path / "copy").look().voices["anna"].revision == first.revision


def test_two_writes_within_one_tick_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = voice(tmp_path, "anna", "Word a.")
    original, clock = os.stat, [1000.0]

    def coarse(path: Any, **more: Any) -> Any:
        info = original(path, **more)
        return SimpleNamespace(st_mode=info.st_mode, st_size=info.st_size, st_mtime_ns=10**12, st_ctime_ns=10**12, st_ctime=1000.0)

    monkeypatch.setattr(voice_files, "os", SimpleNamespace(**vars(os) | {"stat": coarse}))
    monkeypatch.setattr(voice_files, "time", SimpleNamespace(time=lambda: clock[0]))
    folder = VoiceFolder(tmp_path)
    assert folder.look().voices["anna"].transcript == "Word a."
    (own / "transcript.txt").write_text("Word b.", "utf-8")
    assert folder.look().voices["anna"].transcript == "Word b."


def test_only_what_has_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("anna", "boris"):
        own = voice(tmp_path, name)
    old = os.stat(own / "reference.wav").st_mtime - 10
    monkeypatch.setattr(voice_files, "SETTLED_SECONDS", -1.0)  # as if they had lain there for a while
    folder = VoiceFolder(tmp_path)
    folder.look()
    reads: list[Path] = []
    original = Path.read_bytes

    def read(path: Path) -> bytes:
        reads.append(path)
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert len(folder.look().voices) == 2 and reads == []
    os.utime(own / "reference.wav", (old, old))
    folder.look()
    assert reads == [own / "reference.wav"]


def test_a_voice_that_is_gone_is_told_without_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "voices"
    own = voice(folder, "anna")
    layers = VoiceLayers.single(folder)
    one = layers.look().voices["anna"]
    assert soundfile.info(own / "reference.wav").duration == 3.5 and layers.reference(one) == (own / "reference.wav").read_bytes()
    layers.folder_of(one).files.remove("anna")
    assert os.listdir(folder) == []
    with pytest.raises(VoiceGone) as gone:
        layers.reference(one)
    assert str(tmp_path) not in str(gone.value)
    with pytest.raises(FileNotFoundError):
        layers.folder_of(one).files.remove("anna")


def test_removing_a_link_leaves_what_it_points_at(tmp_path: Path) -> None:
    own = voice(tmp_path / "elsewhere", "anna")
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices" / "anna").symlink_to(own, target_is_directory=True)
    VoiceFolder(tmp_path / "voices").files.remove("anna")
    assert os.listdir(tmp_path / "voices") == [] and (own / "reference.wav").is_file()


def test_the_default_is_the_one_that_is_named_or_makima_or_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("anna", "boris"):
        voice(tmp_path, name)
    for wanted, spoken in ((None, "anna"), ("Boris", "boris"), ("gone", "anna")):
        if wanted is not None:
            monkeypatch.setenv("TTS_DEFAULT_VOICE", wanted)
        tts, said = FakeTTS(), list[str]()
        find_voice(tts, None, VoiceLayers.single(tmp_path), tell=said.append)
        assert tts.cloned == [(spoken, None)] and said == [f"voice: {spoken}"]
    monkeypatch.delenv("TTS_DEFAULT_VOICE")
    voice(tmp_path, "makima")
    find_voice(tts := FakeTTS(), None, VoiceLayers.single(tmp_path), tell=said.append)
    assert tts.cloned == [("makima", None)]

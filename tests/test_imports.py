"""Data flows one way: each module imports only modules of lower rows of the table; a module that is not in the table fails."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Lowest first. Modules of one row do not import each other.
LAYERS = [
    {
        f"qwen3_jax.{room}" for room in ("text", "audio", "checkpoint", "kernels", "model", "runtime", "speech", "voices")
    },  # only what the rooms are for
    {
        "qwen3_jax.kernels.build",
        "qwen3_jax.runtime.allocation",
        "qwen3_jax.runtime.extras",
        "qwen3_jax.checkpoint.folders",
        "qwen3_jax.text.languages",
        "qwen3_jax.messages",
        "qwen3_jax.text.tokenizer_files",
    },
    {
        "qwen3_jax.text.nfc",
        "qwen3_jax.text.files",
        "qwen3_jax.text.scripts",
        "qwen3_jax.text.written_words",
        "qwen3_jax.speech.word_sounds",
    },
    {
        "qwen3_jax.terminal",
        "qwen3_jax.shapes",
        "qwen3_jax.model.config_values",
        "qwen3_jax.checkpoint.mapping",
        "qwen3_jax.checkpoint.atomic",
        "qwen3_jax.runtime.compiled_entries",
        "qwen3_jax.runtime.devices",
        "qwen3_jax.audio.headers",
        "qwen3_jax.checkpoint.hub",
    },
    {"qwen3_jax.checkpoint.int8", "qwen3_jax.checkpoint.table"},
    {
        "qwen3_jax.runtime.compilation",
        "qwen3_jax.kernels.library",
        "qwen3_jax.model.config",
        "qwen3_jax.audio.recording",
        "qwen3_jax.speech.word_features",
        "qwen3_jax.speech.word_trellis",
    },
    {f"qwen3_jax.text.spoken.{name}" for name in ("characters", "numbers", "letters", "pause", "units")},
    {f"qwen3_jax.text.spoken.{name}" for name in ("addresses", "dates", "markup")},
    {f"qwen3_jax.text.spoken.{name}" for name in ("abbreviations", "codes", "quantities")},
    {"qwen3_jax.text.spoken.sentence"},
    {"qwen3_jax.text.spoken.words"},
    {"qwen3_jax.text.spoken"},
    {
        "qwen3_jax.audio.samples",
        "qwen3_jax.text.tokenizer",
        "qwen3_jax.voices.voice",
        "qwen3_jax.voices.files",
        "qwen3_jax.model.sampling",
        "qwen3_jax.checkpoint.published",
        "qwen3_jax.checkpoint.sharding",
    },
    {"qwen3_jax.speech.word_times"},
    {
        "qwen3_jax.kernels.int8_matmul",
        "qwen3_jax.kernels.attention",
        "qwen3_jax.model.cache",
        "qwen3_jax.voices.folder",
        "qwen3_jax.checkpoint.converted",
        "qwen3_jax.model.checks",
        "qwen3_jax.codec.snake",
        "qwen3_jax.model.products",
        "qwen3_jax.codec.toom_cook",
    },
    {"qwen3_jax.model.int8"},
    {"qwen3_jax.model.layers", "qwen3_jax.audio.files", "qwen3_jax.voices.layers"},
    {"qwen3_jax.speech.arguments", "qwen3_jax.codec.conv", "qwen3_jax.model.predictor", "qwen3_jax.voices.choice"},
    {"qwen3_jax.codec.rvq", "qwen3_jax.codec.transformer", "qwen3_jax.codec.blocks", "qwen3_jax.model.x_vector", "qwen3_jax.model.talker"},
    {"qwen3_jax.codec.upsampler", "qwen3_jax.codec.encoder"},
    {"qwen3_jax.codec.decoder"},
    {"qwen3_jax.codec"},
    {"qwen3_jax.model.model", "qwen3_jax.text.prompt"},
    {"qwen3_jax.model.frame", "qwen3_jax.speech.prepared", "qwen3_jax.testing"},
    {"qwen3_jax.text.split"},
    {"qwen3_jax.text.parts"},
    {"qwen3_jax.model.encode", "qwen3_jax.model.decode", "qwen3_jax.engine.errors", "qwen3_jax.engine.options"},
    {"qwen3_jax.engine.segment"},
    {"qwen3_jax.engine.requests"},
    {
        "qwen3_jax.speech.part",
        "qwen3_jax.engine.line",
        "qwen3_jax.engine.slots",
        "qwen3_jax.engine.loop",
        "qwen3_jax.engine.news",
        "qwen3_jax.engine.reserve",
    },
    {"qwen3_jax.engine.programs", "qwen3_jax.engine.pace", "qwen3_jax.engine.patience", "qwen3_jax.engine.lending"},
    {"qwen3_jax.engine.batch", "qwen3_jax.engine.pieces", "qwen3_jax.engine.plan", "qwen3_jax.engine.scheduler"},
    {"qwen3_jax.engine.engine"},
    {"qwen3_jax.engine.device", "qwen3_jax.engine.pool"},
    {"qwen3_jax.engine.inline"},
    {"qwen3_jax.engine"},
    {"qwen3_jax.speech.prompts", "qwen3_jax.speech.utterance"},
    {"qwen3_jax.tts"},
    {"qwen3_jax.service"},
    {"qwen3_jax"},  # the public API
    {
        "qwen3_jax.evaluate",
        "qwen3_jax.evaluate.texts",
        "qwen3_jax.evaluate.judges",
        "qwen3_jax.finetune",
        "qwen3_jax.finetune.clips",
        "qwen3_jax.finetune.loop",
        "qwen3_jax.finetune.lora",
        "qwen3_jax.finetune.teacher_forcing",
    },
    {"qwen3_jax.evaluate.report", "qwen3_jax.evaluate.speak"},
    {"qwen3_jax.evaluate.command", "qwen3_jax.finetune.command"},
    {
        "server.admission",
        "server.contracts",
        "server.http",
        "server.listen",
        "server.ops",
        "server.respond",
        "server.ws",
        "server.voices",
    },  # only what the rooms are for
    {"server.admission.allowed"},
    {
        "convert",
        "convert.golden",
        "server",
        "server.ops.address",
        "server.admission.text",
        "server.contracts.contract",
        "server.listen",
        "server.listen.base",
        "server.listen.echo_level",
        "server.ops.upstream",
        "server.ops.signals",
        "server.ops.logs",
        "server.ops.metrics",
        "server.ops.shared_limits",
        "server.ws.audio_out",
        "server.ws.heard",
        "server.ws.loudness",
        "server.ops.jwks",
        "server.ops.keys",
        "server.admission.reading",
        "server.voices.names",
        "server.respond.base",
    },
    {
        "server.health",
        "server.ws.protocol",
        "server.http.encode",
        "server.respond.conversation",
        "server.respond.echo",
        "server.respond.openai",
        "server.contracts.bus",
        *(f"server.listen.{name}" for name in ("silero", "smart_turn", "audio_in", "echo", "messages")),
    },
    {"server.listen.turns", "server.listen.process"},
    {"server.listen.heard_turn", "server.ws.listen_protocol"},
    {"convert.verify", "server.ops.crowd", "server.ops.access", "server.ws.machine", "server.settings", "server.engines"},
    {"server.contracts.redis_bus", "server.contracts.registry"},
    {
        "server.ops.auth",
        "server.environment",
        "server.respond.factory",
        "server.languages",
        "server.reference",
        "server.ops.connections",
        "server.http.origins",
    },
    {"convert.__main__", "server.ops.limits", "server.http.http1", "server.ws.frames", "server.voices.cache", "server.voices.checks"},
    {"server.voices.store", "server.listen.whisper"},
    {"server.listen.ears", "server.listen.worker"},
    {"server.engines.base", "server.engines.kept", "server.voices.command"},
    {
        "server.engines.handle",
        "server.engines.qwen3_utterance",
        "server.engines.prompts",
        "server.engines.qwen3_cloner",
        "server.engines.slots",
    },
    {"server.engines.thread", "server.engines.qwen3"},
    {"server.engines.chatterbox"},
    {"server.engines.factory"},
    {"server.context"},
    {"server.ws.client", "server.admission.loading", "server.ws.outgoing", "server.voices.watch"},
    {"server.admission.speech", "server.ws.connected", "server.ws.floor"},
    {"server.ws.finals", "server.ws.turn", "server.http.web"},
    {"server.ws.release", "server.http.sample", "server.http.playback"},
    {"server.ws.playback"},
    {"server.ws.mouth", "server.ws.speaking"},
    {
        "server.ws.session",
        "server.ws.listen",
        "server.http.voices",
        "server.http.openai",
        "server.http.bodies",
        "server.http.page",
        "server.http.contracts",
    },
    {"server.ws.sockets"},
    {"server.drain", "server.http.schema"},
    {"server.transport"},
    {"server.app", "server.asgi"},
    {"server.run"},
    {"server.demo", "server.warm"},
    {"server.__main__"},
    # The program: it starts everything, convert and serve included (imported inside their commands), and nothing imports it.
    {"qwen3_jax.cli"},
    {"qwen3_jax.__main__"},
    # How the voice that ships is trained: run from a checkout, in no wheel, imported by nothing of the product.
    {"training", *(f"training.{room}" for room in ("corpus", "latents", "codec", "language"))},
    {"training.initialisation", "training.mixed_precision", "training.optimiser"},
    {"training.corpus.sources", "training.corpus.teachers", "training.corpus.pitch"},
    {"training.corpus.sentences", "training.corpus.voices", "training.latents.pitch_synchronous"},
    {"training.latents.levels", "training.latents.phonemes"},
    {"training.corpus.shards", "training.latents.quantiser"},
    {"training.corpus.workers"},
    {"training.corpus.__main__", "training.latents.voice_streams"},
    {"training.codec.config", "training.codec.export", "training.codec.losses"},
    {"training.codec.discriminators"},
    {"training.codec.decoder_training", "training.codec.encoder_training"},
    {"training.codec.vocoder_initialisation", "training.codec.phoneme_recogniser"},
    {"training.codec.chunked", "training.codec.decoder_levels"},
    {"training.codec.checkpoints", "training.codec.evaluation", "training.codec.straight_through"},
    {"training.codec.__main__"},
    {"training.language.auxiliary", "training.language.config", "training.language.corruption", "training.language.tokenizer"},
    {"training.language.objective", "training.language.samples"},
    {"training.language.utterances"},
    {"training.language.__main__"},
    {"training.__main__"},
]
RANK = {module: rank for rank, row in enumerate(LAYERS) for module in row}
# (importer, imported): why it may go up all the same
EXCEPTIONS = {
    ("qwen3_jax.checkpoint.converted", "qwen3_jax"): "only __version__, inside the function that writes it into a checkpoint",
    **{("server", f"server.{name}"): "when hypercorn's command line calls it" for name in ("app", "run", "transport")},
}
# Rooms of the server, lowest first; what all of them share (settings, languages, context) and what puts them together lies above the rooms.
ROOMS = ("ops", "voices", "engines", "admission", "contracts", "listen", "respond", "ws", "http")
PRODUCT = ("qwen3_jax", "server", "convert")
PACKAGES = (*PRODUCT, "training")
LONGEST = 400  # lines of a file
WITH_CLASSES = (*PACKAGES, "benchmarks")


def modules() -> dict[str, Path]:
    """Every module of the product and of its training."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, known: set[str]) -> set[str]:
    """Modules of ours that a source imports; ``from a import b`` is ``a.b`` where that is a module, else ``a``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in known else str(node.module) for alias in node.names}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def test_every_module_has_its_place() -> None:
    assert set(modules()) == set(RANK)


def test_imports_go_down() -> None:
    found = modules()
    wrong = [
        f"{module} imports {name}"
        for module, path in sorted(found.items())
        for name in sorted(imported(path.read_text("utf-8"), set(found)))
        if (name not in RANK or RANK[name] >= RANK.get(module, -1)) and (module, name) not in EXCEPTIONS
    ]
    assert not wrong


def test_rooms_of_the_server_import_lower_rooms_only() -> None:
    found = modules()
    assert set(ROOMS) == {module.split(".")[1] for module in found if module.startswith("server.") and module.count(".") > 1}
    rank = {f"server.{room}": number for number, room in enumerate(ROOMS)}
    wrong = [
        f"{module} imports {name}"
        for module, path in sorted(found.items())
        for name in sorted(imported(path.read_text("utf-8"), set(found)))
        if rank.get(room_of(module), len(ROOMS)) < rank.get(room_of(name), 0)
    ]
    assert not wrong


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_the_product_imports_nothing_of_the_training() -> None:
    found = modules()
    wrong = {
        f"{module} imports {name}"
        for module, path in found.items()
        for name in imported(path.read_text("utf-8"), set(found))
        if module.startswith(PRODUCT) and name.startswith("training")
    }
    assert not wrong


def test_no_two_classes_have_one_name() -> None:
    """A word means one thing, see docs/glossary.md."""
    assert not {name: places for name, places in classes(WITH_CLASSES).items() if len(places) > 1}


def classes(packages: tuple[str, ...]) -> dict[str, list[str]]:
    """Name of each class, inner ones included -> the files that define one of that name."""
    found: dict[str, list[str]] = {}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    return found


def test_no_file_is_longer_than_one_idea_takes() -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for package in WITH_CLASSES for path in (ROOT / package).rglob("*.py")}
    assert not {str(path): lines for path, lines in lengths.items() if lines > LONGEST}


def test_only_checkpoint_imports_orbax() -> None:
    assert [module for module, path in modules().items() if "orbax" in path.read_text("utf-8")] == ["qwen3_jax.checkpoint.converted"]


def test_the_rule_can_fail() -> None:
    known = {"qwen3_jax", "qwen3_jax.tts"}
    assert imported("from qwen3_jax import tts\nimport numpy", known) == {"qwen3_jax.tts"}
    assert imported("def f():\n from qwen3_jax import Voice", known) == {"qwen3_jax"}

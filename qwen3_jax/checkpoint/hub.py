"""A path or a hub id such as ``Qwen/Qwen3-TTS-12Hz-0.6B-Base`` -> a local folder, downloaded once (resumable) if need be."""

import re
from pathlib import Path

from qwen3_jax.checkpoint.folders import expand
from qwen3_jax.text.tokenizer_files import TOKENIZER_FILES

# Every file that is read, and nothing else of a repository.
FILES = (
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors",
    *TOKENIZER_FILES,
    "speech_tokenizer/config.json", "speech_tokenizer/model.safetensors",
    "speech_tokenizer/model.safetensors.index.json", "speech_tokenizer/model-*.safetensors",
)  # fmt: skip
EMBEDDED = "embedded"  # the small voice that comes with the package
EMBEDDED_FOLDER = Path(__file__).parents[1] / EMBEDDED
PUBLISHED = "Qwen/Qwen3-TTS-12Hz-0.6B-Base"
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def local_folder(path: str | Path, revision: str | None = None, files: tuple[str, ...] = FILES) -> Path:
    """The folder itself if it exists, else a download of the hub repository of that name into the hub's own cache.

    Args:
        path: a folder, whose ``~`` is expanded, ``org/name``, or ``embedded``.
        revision: branch, tag or commit of the repository.
        files: patterns of what is downloaded.

    Raises:
        FileNotFoundError: neither a folder nor a repository that can be reached; says how to place the files by hand.
    """
    if (folder := folder_here(path)) is not None:
        return folder
    name = expand(path)
    if name == EMBEDDED:
        raise FileNotFoundError(f"there is no embedded voice in {EMBEDDED_FOLDER}: install the package anew, or give {PUBLISHED}")
    if not _ID.fullmatch(name):
        raise FileNotFoundError(f"{name} is not a folder, and not a hub id (org/name) either; give the folder of a checkpoint")
    return _download(name, revision, files)


def folder_here(path: str | Path) -> Path | None:
    """The folder if it exists, or the embedded voice's; None: it would have to be downloaded, or is nowhere."""
    folder = Path(expand(path))
    if not folder.is_dir() and str(folder) == EMBEDDED:
        folder = EMBEDDED_FOLDER if (EMBEDDED_FOLDER / "config.json").is_file() else folder
    return folder if folder.is_dir() else None


def _download(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """Errors as in ``local_folder``."""
    from huggingface_hub import snapshot_download  # a third of a second, which a folder does not need
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    network: tuple[type[Exception], ...] = (
        OSError,
        *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)),
    )  # the bases: the error class of whichever HTTP client the hub library uses
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = "" if revision is None else f" at revision {revision}"
        raise FileNotFoundError(
            f"{name}{at} is neither a folder here nor a repository on the hub that can be read; "
            "check the spelling (and, if it is private, log in)"
        ) from error
    except network as error:
        why = f"{name} is not a folder here, and the hub cannot be reached ({type(error).__name__})"
        raise FileNotFoundError(f"{why}. {by_hand(name)}") from error


def described(name: str) -> str:
    """Which model is in use, in one line, and how to get the real one."""
    if name == EMBEDDED:
        return f"{EMBEDDED}, the small English voice that ships, still in training; else: --model {PUBLISHED} (or TTS_MODEL_ID)"
    return name


def by_hand(name: str) -> str:
    """How to do without the hub, in one line."""
    folder = name.rsplit("/", 1)[-1]
    return (
        f"Fetch its files elsewhere, place them in a folder, say ./{folder}/ (config.json, generation_config.json, model.safetensors, "
        f"vocab.json, merges.txt, tokenizer_config.json) with ./{folder}/speech_tokenizer/ inside (config.json, model.safetensors), "
        "and give that folder"
    )

"""A converted checkpoint: parameter tree <-> a folder with Orbax weights, the configs, the tokenizer and a fingerprint.

    folder/ weights/                     Orbax, flat: one array per dotted path, but for the text embedding
            text_embedding.safetensors   which is read by rows (table.py); in format 1 it is among the weights
            config.json generation_config.json speech_tokenizer/config.json
            vocab.json merges.txt ...    whichever tokenizer files the source has
            fingerprint.json             written last: without it the folder does not load

The folder appears in one rename when all of it is on the disk (atomic.py), so an interrupted conversion leaves nothing
that loads. Orbax writes the weights; they are read, a few at a time, by tensorstore, which Orbax itself reads with: so nothing is copied
twice, and starting needs no import of Orbax (0.5 s and 100 MB).
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import msgspec
import numpy as np

from qwen3_jax.checkpoint import published, table
from qwen3_jax.checkpoint.atomic import new_folder
from qwen3_jax.checkpoint.int8 import quantise, scale_of
from qwen3_jax.checkpoint.mapping import ConversionError, MisshapedTensor, UnfilledTensor, UnmatchedTensor, flatten, unflatten
from qwen3_jax.checkpoint.published import FILE, INDEX, Parts, Progress, aligned_empty, everything
from qwen3_jax.checkpoint.table import TABLE
from qwen3_jax.messages import shorten
from qwen3_jax.text.tokenizer_files import TOKENIZER_FILES

FORMAT = 2
READS = (1, 2)
FINGERPRINT = "fingerprint.json"
WEIGHTS = "weights"
TABLE_FILE = "text_embedding.safetensors"
GENERATION_CONFIG = "generation_config.json"  # says how to draw, if nobody says otherwise: may be edited
CONFIG_FILES = ("config.json", GENERATION_CONFIG, "speech_tokenizer/config.json")
_STORED_CHUNK = 32 << 20  # bytes; the unit in which weights are written and read
_GROUP = 64 << 20  # bytes read at once: bounds the copies in flight
_NODES = 16 << 20  # bytes of the index of arrays that are kept while reading


class _Description(msgspec.Struct):
    """What ``fingerprint.json`` must have; for checking only."""

    format: int
    sha256: str
    arrays: dict[str, tuple[Literal["float16", "bfloat16", "float32", "int8"], list[int]]]
    files: dict[str, int] = {}  # msgspec copies it
    configs: dict[str, str] = {}


class NotConverted(ConversionError):
    """A folder that is not a complete converted checkpoint of a format this version reads."""


def is_converted(folder: str | Path) -> bool:
    """Whether ``folder`` holds Orbax weights rather than the published safetensors; it may still be damaged."""
    published = any((Path(folder) / name).is_file() for name in (FILE, INDEX))
    return (Path(folder) / FINGERPRINT).is_file() or ((Path(folder) / WEIGHTS).is_dir() and not published)


def save(folder: str | Path, params: Mapping[str, Any], source: str | Path) -> str:
    """Write a converted checkpoint, atomically.

    Args:
        folder: to be made; must not exist (or be empty).
        params: the tree, in the dtypes to keep.
        source: the folder whose configs and tokenizer files are copied.

    Returns:
        The fingerprint.

    Raises:
        ValueError: ``folder`` exists and is not empty, or the disk has no room for it.
    """
    import orbax.checkpoint as ocp  # half a second and 100 MB that reading the published layout does not need

    flat = flatten(params)
    with new_folder(Path(folder)) as temporary:
        _check_room(temporary, sum(array.nbytes for array in flat.values()))
        for name in CONFIG_FILES + TOKENIZER_FILES:
            if (Path(source) / name).is_file():
                (temporary / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(Path(source) / name, temporary / name)
        # no compression: it saves a fifth and costs more than the disk does; the device-host limit bounds the copies made
        handler = ocp.PyTreeCheckpointHandler(use_compression=False, save_device_host_concurrent_gb=1)
        if TABLE in flat:
            table.write(temporary / TABLE_FILE, np.asarray(flat[TABLE]))
        others = {path: array for path, array in flat.items() if path != TABLE}
        with ocp.Checkpointer(handler) as writer:
            arguments = {path: ocp.SaveArgs(chunk_byte_size=_STORED_CHUNK) for path in others}
            writer.save(temporary / WEIGHTS, args=ocp.args.PyTreeSave(others, save_args=arguments))
        digest = fingerprint(params, temporary)
        written = {"files": _sizes(temporary), "configs": _digests(temporary)}
        (temporary / FINGERPRINT).write_text(json.dumps(_description(flat, digest) | written, indent=1), "utf-8")
    return digest


def _check_room(folder: Path, size: int) -> None:
    """Refuse to begin what the disk cannot hold: Orbax would tell it in a traceback, after most of the work."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ValueError(
            f"{folder.parent} has {free / 1e6:,.0f} MB free, and the weights take {size / 1e6:,.0f} MB: make room, or choose another disk"
        )


def _description(flat: Mapping[str, Any], digest: str) -> dict[str, Any]:
    from qwen3_jax import __version__  # the package imports this module

    arrays = {path: [str(array.dtype), list(array.shape)] for path, array in sorted(flat.items())}
    return {"format": FORMAT, "qwen3_jax": __version__, "sha256": digest, "arrays": arrays}


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file of weights."""
    files = (path for path in (folder / TABLE_FILE, *sorted((folder / WEIGHTS).rglob("*"))) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _check_files(folder: Path, written: Mapping[str, int]) -> None:
    """Refuse files of weights that are not whole. A file that is cut short while it is in use ends the process all the same."""
    there = _sizes(folder)
    for name, size in written.items():
        if there.get(name) != size:
            how = f"has {there[name]} bytes" if name in there else "is missing"
            raise NotConverted(
                f"{folder / name} {how}, and was written with {size}: the copy is incomplete; copy the folder or convert again"
            )


def _digests(folder: Path) -> dict[str, str]:
    """sha256 (hex) of each config."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in CONFIG_FILES if (folder / name).is_file()}


def _check_configs(folder: Path, written: Mapping[str, str]) -> None:
    """Refuse configs that are not those of the conversion: the weights would compute something else, under the same fingerprint."""
    there = _digests(folder)
    for name, digest in written.items():
        if name not in there or (there[name] != digest and name != GENERATION_CONFIG):
            how = "was changed after the conversion" if name in there else "is missing"
            raise NotConverted(f"{folder / name} {how}: copy the folder again, or change the published checkpoint and convert it again")


def fingerprint(params: Mapping[str, Any], folder: str | Path) -> str:
    """sha256 (hex) over the configs in ``folder`` and every array's path, dtype, shape and bytes, in sorted order."""
    digest = hashlib.sha256(b"qwen3-jax 1\n")  # whatever the format: it is of the contents
    for name in CONFIG_FILES:
        if (Path(folder) / name).is_file():
            digest.update(f"{name}\n".encode() + (Path(folder) / name).read_bytes())
    for path, array in sorted(flatten(params).items()):
        digest.update(f"{path} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def identity(folder: str | Path) -> str:
    """What tells one checkpoint from another: a converted one's fingerprint, else sha256 over configs, names, sizes and times."""
    if is_converted(Path(folder)):
        sha256: str = describe(folder)["sha256"]
        return sha256
    return digest_files(folder)


def digest_files(folder: str | Path) -> str:
    """sha256 (hex) over a folder's JSON files, and names, sizes and times of its large ones (safetensors, onnx)."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix == ".json":
            digest.update(path.read_bytes())
        elif path.suffix in (".safetensors", ".onnx", ".onnx_data"):
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def describe(folder: str | Path) -> dict[str, Any]:
    """``fingerprint.json``: format, qwen3_jax (version that wrote it), sha256, arrays {path: [dtype, shape]}, files {name: bytes},
    configs {name: sha256}.

    Raises:
        NotConverted: the file is missing or cannot be read, or the format is another.
    """
    file = Path(folder) / FINGERPRINT
    if not file.is_file():
        raise NotConverted(f"{folder} is not a complete converted checkpoint: it has no {FINGERPRINT}; remove it and convert again")
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        version = found["format"]
        if version in READS:
            msgspec.convert(found, _Description)
    except (ValueError, KeyError, TypeError) as error:  # msgspec's error of what does not fit is a ValueError
        raise NotConverted(f"{file} cannot be read ({_line(error)}); remove the folder and convert again") from error
    if version not in READS:
        formats = " and ".join(map(str, READS))
        raise NotConverted(f"{folder} has format {version!r}, this version reads {formats}; convert the published checkpoint again")
    return found


def talker_dtype(folder: str | Path) -> np.dtype[Any]:
    """The dtype in which a converted folder keeps the talker's matrices."""
    return _dtype(folder, lambda path: path.startswith("talker.") and path.endswith("_proj.weight"))


def table_dtype(folder: str | Path) -> np.dtype[Any]:
    """The dtype in which a converted folder keeps its text embedding."""
    return _dtype(folder, lambda path: path == TABLE)


def _dtype(folder: str | Path, wanted: Parts) -> np.dtype[Any]:
    found = (dtype for path, (dtype, _) in describe(folder)["arrays"].items() if wanted(path))
    return np.dtype(next(found, "float32"))  # that it is missing is told when it is read


def load(
    folder: str | Path, abstract: Mapping[str, Any], *, device: Any = None, progress: Progress | None = None, parts: Parts = everything,
    map_table: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Restore a converted checkpoint.

    Args:
        folder: made by ``save``.
        abstract: nested dict whose leaves have ``shape`` and ``dtype``; arrays are cast to that dtype, and rounded to int8 with
            scales beside them (int8.py).
        device: a jax device or sharding; None is jax's default device.
        progress: called with (path, bytes) after each parameter.
        parts: which paths are read; all are checked. The others are not in the tree.
        map_table: leave the text embedding in its file, where that has the dtype asked for (table.py).

    Raises:
        ConversionError: the folder is incomplete, of another format, holds other arrays than ``abstract`` wants, or one that has no int8;
            a file of weights is cut short or damaged, or a config was changed.
    """
    folder = Path(folder).absolute()
    wanted, about = flatten(abstract), describe(folder)
    stored = about["arrays"]
    rounded = {path for path, leaf in wanted.items() if leaf.dtype == np.int8 and path in stored and stored[path][0] != "int8"}
    scales = {scale_of(path) for path in rounded}
    wanted = {path: leaf for path, leaf in wanted.items() if path not in scales}
    _compare(folder, stored, wanted)
    _check_files(folder, about.get("files", {}))  # earlier versions named neither
    _check_configs(folder, about.get("configs", {}))
    device = jax.devices()[0] if device is None else device
    sharding = jax.sharding.SingleDeviceSharding(device) if isinstance(device, jax.Device) else device
    flat: dict[str, jax.Array] = {}

    def put(path: str, array: Any) -> None:
        flat[path] = jax.device_put(array, sharding).block_until_ready()  # blocking bounds what waits for an accelerator
        if progress is not None:
            progress(path, array.nbytes)

    if TABLE in wanted and parts(TABLE) and (folder / TABLE_FILE).is_file():
        put(TABLE, _table(folder / TABLE_FILE, wanted.pop(TABLE), map_table))
    wanted = {path: leaf for path, leaf in wanted.items() if parts(path) and path not in flat}
    for path, array in _arrays(folder / WEIGHTS, wanted):
        leaf = wanted[path]
        if path in rounded:
            weight, scale = aligned_empty(array.shape, np.dtype(np.int8)), aligned_empty(array.shape[:1], np.dtype(np.float32))
            quantise(array, weight, scale, path)
            put(scale_of(path), scale)
            put(path, weight)
        elif array.dtype == leaf.dtype:
            put(path, array)
        else:
            cast = aligned_empty(array.shape, np.dtype(leaf.dtype))
            cast[...] = array
            put(path, cast)
    return unflatten(flat, abstract)


def _arrays(weights: Path, wanted: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of these paths as they are stored, in memory that the CPU backend takes over. Raises NotConverted."""
    import tensorstore as ts

    context = ts.Context({"cache_pool": {"total_bytes_limit": _NODES}})

    def opened(path: str) -> Any:
        store = {"driver": "ocdbt", "base": weights.as_uri(), "path": f"{path}/"}
        return ts.open({"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False}, context=context, open=True, read=True)

    def reading(store: Any) -> tuple[np.ndarray, Any]:
        array = aligned_empty(tuple(store.shape), store.dtype.numpy_dtype)
        return array, ts.array(array).write(store)

    try:
        for group in _groups(wanted):
            opening = {path: opened(path) for path in group}
            arrays = {path: reading(store.result()) for path, store in opening.items()}
            for path, (array, done) in arrays.items():
                done.result()
                yield path, array
    except ValueError as error:  # what tensorstore raises for files that are missing, cut short or scrambled, too
        raise NotConverted(f"{weights} cannot be read ({_line(error)}); copy the folder or convert again") from error


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return shorten((str(error) or repr(error)).partition("\n")[0], 200)


def _table(file: Path, wanted: Any, map_table: bool) -> np.ndarray:
    """The text embedding: in its file, or read."""
    header = published.header(file, (TABLE,))
    if TABLE not in header or header[TABLE].shape != tuple(wanted.shape):
        raise MisshapedTensor(f"{file} does not hold {TABLE!r} {list(wanted.shape)}: convert again")
    source = header[TABLE]
    found = table.mapped(file, source.start, source.size, source.dtype)
    assert found is not None, "`table.write` aligns it"
    if map_table and source.dtype == wanted.dtype:
        return found
    array = aligned_empty(source.shape, np.dtype(wanted.dtype))
    array[...] = found[-source.size :].reshape(source.shape)
    return array


def _compare(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    fix = "config.json was changed after the conversion, or another version wrote the folder: convert again"
    for path, leaf in wanted.items():
        if path not in stored:
            raise UnfilledTensor(f"unfilled parameter {path!r} {list(leaf.shape)}: {folder} has no such array; {fix}")
        if list(leaf.shape) != stored[path][1]:
            raise MisshapedTensor(f"misshaped array {path!r}: expected {list(leaf.shape)}, found {stored[path][1]} in {folder}; {fix}")
    for path in stored:
        if path not in wanted:
            raise UnmatchedTensor(f"unmatched array {path!r} in {folder}: the model of its config.json has no such parameter; {fix}")


def _groups(wanted: Mapping[str, Any]) -> Iterator[list[str]]:
    """Paths in groups of at most _GROUP bytes, the largest first: the copies in flight then meet the fewest finished arrays."""
    group: list[str] = []
    total = 0
    for path in sorted(wanted, key=lambda path: -_bytes(wanted[path])):
        if group and total + _bytes(wanted[path]) > _GROUP:
            yield group
            group, total = [], 0
        group.append(path)
        total += _bytes(wanted[path])
    if group:
        yield group


def _bytes(leaf: Any) -> int:
    return int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize


def write_arrays(folder: str | Path, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write any arrays by name, atomically, with a few facts in JSON: the state of a training run.

    Raises:
        ValueError: ``folder`` exists and is not empty.
    """
    import orbax.checkpoint as ocp  # see save

    with new_folder(Path(folder)) as temporary:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as writer:
            writer.save(temporary / WEIGHTS, args=ocp.args.PyTreeSave(dict(arrays)))
        (temporary / "about.json").write_text(json.dumps(about, indent=1), "utf-8")


def read_arrays(folder: str | Path, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """What ``write_arrays`` wrote, on jax's default device.

    Args:
        folder: of ``write_arrays``.
        shapes: name -> anything with the ``shape`` and ``dtype`` that is expected.

    Raises:
        ConversionError: the folder holds other arrays, or shapes.
    """
    import orbax.checkpoint as ocp  # see save

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        stored = reader.metadata(Path(folder).absolute() / WEIGHTS).item_metadata.tree
        for name in sorted(set(stored) ^ set(shapes)):
            raise UnmatchedTensor(f"array {name!r} is in only one of {folder} and the state that is expected: another version wrote it")
        for name, leaf in shapes.items():
            if tuple(stored[name].shape) != tuple(leaf.shape):
                raise MisshapedTensor(f"array {name!r} in {folder}: expected {list(leaf.shape)}, found {list(stored[name].shape)}")
        item = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) for name, leaf in shapes.items()}
        arguments = {name: ocp.ArrayRestoreArgs(sharding=sharding, dtype=leaf.dtype) for name, leaf in shapes.items()}
        restored: dict[str, Any] = reader.restore(
            Path(folder).absolute() / WEIGHTS, args=ocp.args.PyTreeRestore(item, restore_args=arguments)
        )
    return restored

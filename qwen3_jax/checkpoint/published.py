"""A folder in the published layout (safetensors) -> the parameter tree on a device, tensor by tensor; and back.

    folder/ model.safetensors                        or model.safetensors.index.json + its shards (bf16 or f32)
            speech_tokenizer/ model.safetensors      or the same, sharded (f32)

Each target is allocated once, at its final dtype; its bytes are read straight into it (through a 16 MiB buffer when the
dtype changes). On the CPU backend jax takes such an aligned buffer over without a copy, so the peak is the weights
themselves plus that buffer; on an accelerator it is one tensor on the host. Format: github.com/huggingface/safetensors.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from qwen3_jax.checkpoint import table
from qwen3_jax.checkpoint.atomic import new_folder
from qwen3_jax.checkpoint.int8 import quantise, scale_of, without_scales
from qwen3_jax.checkpoint.mapping import (
    ConversionError,
    DuplicateTensor,
    Ignored,
    Shape,
    TensorPlan,
    flatten,
    make_plan,
    target_of,
    unflatten,
)
from qwen3_jax.checkpoint.table import ALIGNMENT, TABLE

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CODEC_FOLDER = "speech_tokenizer"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
_OTHERS = {
    name: np.dtype(kind) for name, kind in {"I8": "i1", "F64": "f8", "I64": "i8", "I32": "i4", "U8": "u1", "BOOL": "?"}.items()
}  # of no parameter
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_CHUNK = 16 << 20  # bytes read at a time when the dtype changes
_DISAGREE = "index and shards are of different downloads, fetch both"

Progress = Callable[[str, int], None]  # target path, bytes placed
Parts = Callable[[str], bool]  # whether a path is read


def everything(path: str) -> bool:
    """Every path is read."""
    return True


class DamagedFile(ConversionError):
    """A safetensors or index file that is missing, cut short or inconsistent."""


@dataclass(frozen=True)
class Source:
    """One tensor in a file."""

    file: Path
    dtype: np.dtype[Any]
    shape: Shape
    start: int  # of its bytes in the file

    @property
    def size(self) -> int:
        """Elements."""
        return int(np.prod(self.shape, dtype=np.int64))


def scan(folder: Path) -> dict[str, Source]:
    """Every tensor of a published folder, the speech tokenizer's included, by name. Reads headers only.

    Raises:
        DamagedFile: a file is missing, cut short or not safetensors, or the index and the shards disagree.
        DuplicateTensor: a name occurs in two files.
    """
    found: dict[str, Source] = {}
    for part in (folder, folder / CODEC_FOLDER):
        _merge(found, _scan_part(part))
    return found


def _merge(found: dict[str, Source], more: Mapping[str, Source]) -> None:
    for name, source in more.items():
        if name in found:
            raise DuplicateTensor(f"duplicate tensor {name!r}: it is in {found[name].file} and in {source.file}; remove one of the two")
        found[name] = source


def _scan_part(folder: Path) -> dict[str, Source]:
    if (folder / FILE).is_file():  # as transformers does: a whole file goes before an index
        return header(folder / FILE)
    if not (folder / INDEX).is_file():
        raise DamagedFile(f"{folder} has neither {FILE} nor {INDEX}; give a folder in the published layout, with {CODEC_FOLDER}/ inside")
    try:
        index: dict[str, str] = json.loads((folder / INDEX).read_text("utf-8-sig"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{folder / INDEX} is not an index (JSON with a weight_map): {error!r}; fetch it again") from error
    found: dict[str, Source] = {}
    for shard in dict.fromkeys(index.values()):
        if not (folder / shard).is_file():
            first = next(name for name in index if index[name] == shard)
            raise DamagedFile(f"{folder / INDEX} names the shard {shard!r} (for {first!r} and others), which is not there; fetch that file")
        _merge(found, header(folder / shard))
    for name, shard in index.items():
        if name not in found or found[name].file.name != shard:
            where = f"it is in {found[name].file.name!r}" if name in found else "found in no shard"
            raise DamagedFile(f"{folder / INDEX} expects tensor {name!r} in {shard!r}, {where}; {_DISAGREE}")
    for name, source in found.items():
        if name not in index and not isinstance(target_of(name), Ignored):
            raise DamagedFile(f"{source.file} holds tensor {name!r}, which {INDEX} does not list; {_DISAGREE}")
    return found


def header(file: Path, others: Collection[str] = ()) -> dict[str, Source]:
    """Every tensor of a safetensors file, by name. ``others``: names whose dtype may be any. Raises DamagedFile."""
    try:
        with safe_open(file, framework="numpy"):  # checks the header: offsets without gaps, and as many bytes as it says
            pass
    except SafetensorError as error:
        raise DamagedFile(f"{file} is not a whole safetensors file ({error}); the download is incomplete, fetch it again") from error
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entries = json.loads(stream.read(length))
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        any_dtype = name in others or (entry["dtype"] in _OTHERS and isinstance(target_of(name), Ignored))
        if entry["dtype"] not in (DTYPES | _OTHERS if any_dtype else DTYPES):
            raise DamagedFile(
                f"{file}: tensor {name!r} has dtype {entry['dtype']}, expected one of {', '.join(DTYPES)}; use the unquantized checkpoint"
            )
    return {
        name: Source(file, (DTYPES | _OTHERS)[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in entries.items()
    }


def talker_dtype(folder: str | Path) -> np.dtype[Any]:
    """The dtype in which a published folder keeps its talker."""
    return next(source.dtype for name, source in scan(Path(folder)).items() if name.startswith("talker."))


def table_dtype(folder: str | Path) -> np.dtype[Any]:
    """The dtype in which a published folder keeps its text embedding."""
    sources = scan(Path(folder))
    return sources[TABLE].dtype if TABLE in sources else np.dtype(np.float32)  # that it is missing is told when it is read


def load_published(
    folder: str | Path, abstract: Mapping[str, Any], *, device: Any = None, progress: Progress | None = None, parts: Parts = everything,
    map_table: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Read a published folder into the tree ``abstract``, one tensor after the other.

    Args:
        folder: with model.safetensors (or index and shards) and speech_tokenizer/.
        abstract: nested dict whose leaves have ``shape`` and ``dtype``; tensors are cast to that dtype, and rounded to int8 with
            scales beside them (int8.py).
        device: a jax device or sharding; None is jax's default device.
        progress: called with (path, bytes) after each parameter.
        parts: which paths are read; all are checked. The others are not in the tree.
        map_table: leave the text embedding in its file, where that has the dtype asked for (table.py).

    Returns:
        The tree with arrays in place of the leaves.

    Raises:
        ConversionError: a file is damaged, a tensor is unmatched, duplicate, unfilled or misshaped, or has no int8; it says which.
    """
    sources = scan(Path(folder))
    wanted = without_scales(flatten(abstract))
    plan = make_plan({name: source.shape for name, source in sources.items()}, wanted)
    device = jax.devices()[0] if device is None else device
    flat: dict[str, jax.Array] = {}

    def put(path: str, array: np.ndarray) -> None:
        flat[path] = jax.device_put(array, device).block_until_ready()  # blocking bounds what waits for an accelerator
        if progress is not None:
            progress(path, array.nbytes)

    with _Reader() as reader:
        for path, leaf in wanted.items():
            if not parts(path):
                continue
            source = sources[plan.sources[path][0]]
            if map_table and path == TABLE and source.dtype == leaf.dtype:
                flat_table = table.mapped(source.file, source.start, source.size, source.dtype)
                if flat_table is not None:
                    put(path, flat_table)
                    continue
            array = aligned_empty(tuple(leaf.shape), np.dtype(leaf.dtype))
            if array.dtype == np.int8:
                [name] = plan.sources[path]
                scale = aligned_empty(array.shape[:1], np.dtype(np.float32))
                for part, weight in reader.rows(name, sources[name]):
                    quantise(weight, array[part], scale[part], name)
                put(scale_of(path), scale)
            else:
                rows = array if path in plan.stacked else array[None]
                for row, name in zip(rows, plan.sources[path], strict=True):
                    reader.fill(row, name, sources[name])
            put(path, array)
    return unflatten(flat, abstract)


def aligned_empty(shape: Shape, dtype: np.dtype[Any]) -> np.ndarray:
    """An uninitialised array whose first byte is aligned so that the CPU backend need not copy it."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + size].view(dtype).reshape(shape)


class _Reader:
    """Keeps the files open between tensors."""

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}
        self._buffer = np.empty(_CHUNK, np.uint8)

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._open.values():
            stream.close()

    def fill(self, row: np.ndarray, name: str, source: Source) -> None:
        """Read one tensor into ``row`` (contiguous, same shape), cast to its dtype."""
        stream = self._at(source)
        flat = row.reshape(-1)
        if flat.dtype == source.dtype:
            _read_exactly(stream, flat.view(np.uint8), name, source)
            return
        step = _CHUNK // source.dtype.itemsize
        for begin in range(0, flat.size, step):
            part = flat[begin : begin + step]
            raw = self._buffer[: part.size * source.dtype.itemsize]
            _read_exactly(stream, raw, name, source)
            part[...] = raw.view(source.dtype)

    def rows(self, name: str, source: Source) -> Iterator[tuple[slice, np.ndarray]]:
        """The rows of one matrix in its file's dtype, as many at a time as the buffer holds; each until the next."""
        stream, (height, width) = self._at(source), source.shape
        step = max(1, _CHUNK // (width * source.dtype.itemsize))
        for begin in range(0, height, step):
            part = slice(begin, min(begin + step, height))
            raw = self._buffer[: (part.stop - begin) * width * source.dtype.itemsize]
            _read_exactly(stream, raw, name, source)
            yield part, raw.view(source.dtype).reshape(-1, width)

    def _at(self, source: Source) -> BinaryIO:
        if source.file not in self._open:
            self._open[source.file] = source.file.open("rb", buffering=0)
        stream = self._open[source.file]
        stream.seek(source.start)
        return stream


def _read_exactly(stream: BinaryIO, into: np.ndarray, name: str, source: Source) -> None:
    view = into.data
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]  # typeshed's BinaryIO lacks it, files have it
        if not count:
            raise DamagedFile(f"{source.file} ended inside tensor {name!r}: it was changed while being read; fetch it again")
        view = view[count:]


def write_published(
    folder: str | Path, params: Mapping[str, Any], source: str | Path, *, config: Mapping[str, Any] | None = None, dtype: Any = None
) -> None:
    """Write ``params`` in the published layout: the names, ignored tensors and other files are those of the folder ``source``.

    Args:
        folder: to be made, atomically; must not exist.
        params: the tree; without ``speaker_encoder`` (a fine-tuned custom voice), that part is left out.
        source: the published folder that ``params`` came from.
        config: new content of config.json, where it changes.
        dtype: of model.safetensors; None is that of the talker in ``params``. The codec is written in float32.

    Raises:
        ConversionError: ``params`` do not fit the names and shapes in ``source``.
    """
    source = Path(source)
    sources = scan(source)
    if "speaker_encoder" not in params:
        sources = {name: tensor for name, tensor in sources.items() if not name.startswith("speaker_encoder.")}
    plan = make_plan({name: tensor.shape for name, tensor in sources.items()}, params)
    flat = flatten(params)
    main = np.dtype(flat["talker.codec_head.weight"].dtype if dtype is None else dtype)
    with new_folder(Path(folder)) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", INDEX, "golden*"))
        if config is not None:
            (temporary / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
        for part, names in _by_part(sources, source).items():
            kind = np.dtype(np.float32) if part == CODEC_FOLDER else main
            with (temporary / part / FILE).open("wb") as stream:
                _write_file(stream, {name: sources[name] for name in names}, kind, _values(plan, flat, sources))


def _by_part(sources: Mapping[str, Source], folder: Path) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {"": [], CODEC_FOLDER: []}
    for name, source in sources.items():
        parts["" if source.file.parent == folder else CODEC_FOLDER].append(name)
    return parts


def _values(plan: TensorPlan, flat: Mapping[str, Any], sources: Mapping[str, Source]) -> Callable[[str], np.ndarray]:
    places = {name: (path, index) for path, names in plan.sources.items() for index, name in enumerate(names)}

    def value(name: str) -> np.ndarray:
        if name in plan.ignored:  # passed through
            with _Reader() as reader:
                array = aligned_empty(sources[name].shape, sources[name].dtype)
                reader.fill(array, name, sources[name])
                return array
        path, index = places[name]
        return np.asarray(flat[path][index] if path in plan.stacked else flat[path])

    return value


def _write_file(stream: BinaryIO, sources: Mapping[str, Source], dtype: np.dtype[Any], value: Callable[[str], np.ndarray]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, source in sources.items():
        begin, end = end, end + source.size * dtype.itemsize
        entries[name] = {"dtype": _CODES[dtype], "shape": list(source.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in sources:
        stream.write(np.ascontiguousarray(value(name), dtype=dtype).reshape(-1).view(np.uint8).data)

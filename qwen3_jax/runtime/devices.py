"""JAX's devices, by name; what cannot be had is told in one line that says what is there.

JAX starts its platforms at the first look. ``JAX_PLATFORMS`` that names one that is not there ends that look in a RuntimeError, or
(``cuda`` without a GPU) in an AssertionError.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import jax
import numpy as np
from jax.extend.backend import clear_backends
from jax.sharding import AxisType, Mesh

from qwen3_jax.messages import shorten
from qwen3_jax.runtime.extras import how_to_install

ALL = "all"
AXIS = "tensor"  # of a mesh that one set of weights is split over


def all_devices() -> list[jax.Device]:
    """What JAX computes on, its own choice first. Raises ValueError where it finds nothing."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        chosen = jax.config.jax_platforms
        if not chosen:
            raise ValueError(f"JAX cannot start a device: {_one_line(error)}") from error
        why = f" ({_one_line(error)})" if isinstance(error, RuntimeError) else ""
        raise ValueError(
            f"JAX_PLATFORMS = {chosen!r} is not to be had{why}: this machine has {_there(chosen)}; name a platform of those, or unset it"
        ) from error


def device_of(name: str | None) -> jax.Device:
    """A device.

    Args:
        name: ``cpu``, ``gpu``, ``tpu``, or one of several: ``cuda:1``. None: JAX's choice.

    Raises:
        ValueError: there is none of that name, or none at all.
    """
    devices = all_devices()
    if name is None:
        return devices[0]
    platform, colon, index = name.partition(":")
    try:
        if not platform or (colon and not index.isdecimal()):
            raise ValueError(f"{name!r} is no name")
        return jax.local_devices(backend=platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        there = _names([*devices, *_host()])
        raise ValueError(f"device {name!r} is not to be had: this machine has {there}{_for_nvidia(platform)}") from error


def devices_of(names: str | Sequence[str]) -> list[jax.Device]:
    """Several devices of one kind.

    Args:
        names: ``all``, every device of JAX's choice in this process; or names as of `device_of`, in a list or separated by commas.

    Raises:
        ValueError: no name; there is none of a name; one is named twice; or they are of several kinds, which would not say the same.
    """
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    if not names:
        raise ValueError(f"devices = []: name at least one of {_names([*all_devices(), *_host()])}, or say all")
    if [*names] == [ALL]:
        first = all_devices()[0]
        return [device for device in jax.local_devices() if device.platform == first.platform]
    devices = [device_of(name) for name in names]
    if len(set(devices)) < len(devices):
        raise ValueError(f"devices {', '.join(names)}: one of them is named twice; name each once")
    if len(kinds := {device.device_kind for device in devices}) > 1:
        raise ValueError(f"devices {', '.join(names)} are of several kinds ({', '.join(sorted(kinds))}): name devices of one kind")
    return devices


def places_of(device: str | None, devices: str | Sequence[str] | None, tensor_parallel: int) -> list[jax.Device | Mesh]:
    """Where sets of weights go: a device each, or a mesh of ``tensor_parallel`` devices each.

    Args:
        device: as of `device_of`; with ``tensor_parallel``, the kind: its first devices are taken.
        devices: as of `devices_of`, instead.
        tensor_parallel: devices that one set is split over.

    Raises:
        ValueError: as `device_of` and `devices_of`; both were given; or so many devices cannot be put together in groups of that size.
    """
    if device is not None and devices is not None:
        raise ValueError(f"device = {device!r} and devices = {devices!r}: give only one of them")
    if tensor_parallel < 1:
        raise ValueError(f"tensor_parallel = {tensor_parallel}: must be at least 1")
    if devices is not None:
        chosen = devices_of(devices)
    elif tensor_parallel == 1:
        chosen = [device_of(device)]
    else:
        if device is not None and ":" in device:
            raise ValueError(f"tensor_parallel = {tensor_parallel} on device {device!r}: name all of the devices in devices")
        chosen = jax.local_devices(backend=device_of(device).platform)[:tensor_parallel]
    if len(chosen) % tensor_parallel:
        there = ", ".join(map(name_of, chosen))
        raise ValueError(f"tensor_parallel = {tensor_parallel}: {len(chosen)} devices ({there}) are no groups of {tensor_parallel}")
    if tensor_parallel == 1:
        return [*chosen]
    groups = [chosen[at : at + tensor_parallel] for at in range(0, len(chosen), tensor_parallel)]
    return [Mesh(np.array(group), (AXIS,), axis_types=(AxisType.Auto,)) for group in groups]


def several(names: str | None) -> bool:
    """Whether a setting names more than one device, or may."""
    return names is not None and ("," in names or names.strip() == ALL)


def one_of(names: str | None) -> str | None:
    """The first device of a setting that may name several; None: JAX's choice."""
    first = None if names is None else names.partition(",")[0].strip()
    return None if first == ALL else first


def name_of(device: jax.Device) -> str:
    """As `device_of` takes it."""
    return f"{device.platform}:{device.id}"


def name_of_place(array: jax.Array) -> str:
    """The device that holds an array; of several, all of them."""
    return "+".join(name_of(device) for device in sorted(array.sharding.device_set, key=lambda device: device.id))


def _for_nvidia(platforms: str) -> str:
    """What to do where a GPU was asked for by one of the names and JAX has none, after a semicolon; nothing otherwise."""
    if not {"cuda", "gpu"} & set(platforms.lower().split(",")) or "gpu" in {device.platform for device in jax.devices()}:
        return ""
    if any(find_spec(plugin) for plugin in ("jax_cuda12_plugin", "jax_cuda13_plugin")):
        return "; JAX's CUDA plugin is installed and finds no GPU: see what nvidia-smi says"
    return f"; for an NVIDIA GPU: {how_to_install('cuda12')}"


def _host() -> list[jax.Device]:
    """The CPU, unless JAX_PLATFORMS leaves it out."""
    try:
        return jax.devices("cpu")
    except RuntimeError:
        return []


def _there(platforms: str) -> str:
    """What JAX finds when it may choose, and what `_for_nvidia` says. JAX begins anew afterwards: the wrong choice stays an error."""
    chosen = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    try:
        return _names([*jax.devices(), *_host()]) + _for_nvidia(platforms)
    except (RuntimeError, AssertionError):
        return "no device that JAX can start"
    finally:
        jax.config.update("jax_platforms", chosen)
        clear_backends()


def _names(devices: list[jax.Device]) -> str:
    return ", ".join(sorted({name_of(device) for device in devices}))


def _one_line(error: BaseException) -> str:
    said = " ".join(str(error).partition("(set JAX_PLATFORMS")[0].split())
    return shorten(said.rstrip("."), 200)

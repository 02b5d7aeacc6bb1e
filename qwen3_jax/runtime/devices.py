"""JAX's devices, by name; what cannot be had is told in one line that says what is there.

JAX starts its platforms at the first look. ``JAX_PLATFORMS`` that names one that is not there ends that look in a RuntimeError, or
(``cuda`` without a GPU) in an AssertionError.
"""

from importlib.util import find_spec

import jax
from jax.extend.backend import clear_backends

from qwen3_jax.messages import shorten
from qwen3_jax.runtime.extras import how_to_install


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
    platform, _, index = name.partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        there = _names([*devices, *_host()])
        raise ValueError(f"device {name!r} is not to be had: this machine has {there}{_for_nvidia(platform)}") from error


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
    return ", ".join(sorted({f"{device.platform}:{device.id}" for device in devices}))


def _one_line(error: BaseException) -> str:
    said = " ".join(str(error).partition("(set JAX_PLATFORMS")[0].split())
    return shorten(said.rstrip("."), 200)

"""The wheel's build hook: compiles the kernels where there is a C++ compiler, and leaves them out, with one line, where there is none."""

import importlib.util
import re
import shutil
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("qwen3_jax", "kernels")


class Kernels(BuildHookInterface[Any]):
    """An editable install gets its library in the checkout, any other wheel inside the wheel."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """XLA's headers, if there is anything to compile them with."""
        build = self._build()
        try:
            build.find_compiler()
        except build.CannotBuild:
            return []
        return ["jaxlib>=0.10.2"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build = self._build()
        source = Path(self.root, KERNELS)
        self._made = Path(tempfile.mkdtemp())
        folder = source if version == "editable" else self._made
        try:
            build.build(source, folder)
        except build.CannotBuild as why:
            self.app.display_warning(f"qwen3-jax is built without its compiled kernels, so speaking on a CPU is slower: {why}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{re.sub('[-.]', '_', sysconfig.get_platform())}"  # no interpreter's ABI
        if version != "editable":
            build_data["force_include"] |= {str(folder / name): str(KERNELS / name) for name in (build.LIBRARY, build.RECORD)}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self._made, ignore_errors=True)

    def _build(self) -> ModuleType:
        """qwen3_jax/kernels/build.py, without the package around it."""
        spec = importlib.util.spec_from_file_location("kernels_build", Path(self.root, KERNELS, "build.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

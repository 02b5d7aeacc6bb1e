"""deploy/Dockerfile -> the same image without Docker: its steps, read from the file, in a bare Debian root; then a container's life there.

    python -m benchmarks.image /var/tmp/image
    python -m benchmarks.image /var/tmp/image --build-arg MODEL=embedded --keep

Needs root, mmdebstrap, util-linux, iproute2 and the package index. FROM is stood in for by Debian 13 with its own Python 3.13, which
python:3.13-slim has as well, built from source; each stage has a root of its own. The server then runs as the image's user with no
capabilities, on a root that can only be read, in a network of its own, on another port than 8000: `warm` (the init container), the command,
its health check, `/readyz`, a sentence, an upload, SIGTERM. Prints what it found; the status is 1 if something did not hold.
"""

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
STANDS_FOR = {  # FROM -> Debian's suite and packages
    "python:3.13": ("trixie", ("python3", "python3-venv", "g++")),
    "python:3.13-slim": ("trixie", ("python3", "python3-venv")),
}
INDEX = ("PIP_INDEX_URL", "PIP_CERT", "PIP_DEFAULT_TIMEOUT", "http_proxy", "https_proxy", "no_proxy")  # how this machine reaches the index
BOUNDS = {"EXTRAS=server,redis": 1_500_000_000}  # bytes of the whole image
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LIMIT = 900.0  # seconds; for hangs


@dataclass
class Steps:
    """A stage of a Dockerfile: what is done to the root, in order, and how a container of it is started."""

    base: str = ""
    stages: dict[str, "Steps"] = field(default_factory=dict)  # those before it, by name
    arguments: dict[str, str] = field(default_factory=dict)
    done: list[tuple[str, str]] = field(default_factory=list)  # (COPY, ENV, RUN or WORKDIR; the rest of the line)
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    volumes: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def read(text: str, build: dict[str, str] | None = None) -> Steps:
    """The steps of a Dockerfile with these build arguments.

    Raises:
        ValueError: an instruction, or a form of one, that is not known here, or an argument that the file does not have.
    """
    given, names, steps = build or {}, list[str](), Steps()
    left = set(given)
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    for line in filter(str.strip, lines.splitlines()):
        name, _, rest = line.partition(" ")
        rest = " ".join(rest.split())
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            before = steps.stages | ({names[-1]: steps} if names else {})
            steps = Steps(base, before)
            names.append(stage)
        elif name == "ARG":
            key, _, value = rest.partition("=")
            steps.arguments[key] = given.get(key, value)
            left.discard(key)
        elif name in ("COPY", "RUN", "WORKDIR"):
            option = rest.split()[0] if rest.startswith("--") else ""
            if option and (name, option.partition("=")[2]) not in {("COPY", stage) for stage in steps.stages}:
                raise ValueError(f"{line}: this option of {name} is not known here")
            steps.folder = rest if name == "WORKDIR" else steps.folder
            steps.done.append((name, rest))
        elif name == "ENV":
            pairs = (part.split("=", 1) for part in shlex.split(rest))
            steps.environment |= {key: substituted(value, steps.arguments) for key, value in pairs}
            steps.done.append((name, json.dumps(steps.environment)))
        elif name == "USER":
            steps.user = rest
        elif name == "VOLUME":
            steps.volumes += json.loads(rest)
        elif name == "HEALTHCHECK":
            steps.health = json.loads(rest.partition("CMD ")[2])
        elif name == "CMD":
            steps.command = json.loads(rest)
        elif name != "EXPOSE":
            raise ValueError(f"{line}: {name} is not known here")
    if left:
        raise ValueError(f"{', '.join(sorted(left))}: the Dockerfile has no such ARG")
    return steps


def substituted(value: str, arguments: dict[str, str]) -> str:
    """``${NAME}`` and ``${NAME:+word}``, as a Dockerfile has them."""
    return re.sub(
        r"\$\{(\w+)(?::\+([^}]*))?\}",
        lambda found: arguments[found[1]] if found[2] is None else (found[2] if arguments[found[1]] else ""),
        value,
    )


def context(ignore: str, root: Path = ROOT) -> set[str]:
    """Files of the build's context, relative to its root; ``ignore`` is .dockerignore: later lines count, ``!`` takes back."""
    rules = [line.strip() for line in ignore.splitlines() if line.strip() and not line.startswith("#")]
    files = set()
    for path in root.rglob("*"):
        place, out = path.relative_to(root), False
        for rule in rules:
            pattern = rule.removeprefix("!").replace("**/", "*")
            if any(fnmatch.fnmatch(str(one), pattern) for one in (place, *place.parents[:-1])):
                out = not rule.startswith("!")
        if not out and path.is_file():
            files.add(str(place))
    return files


class Image:
    """A root on this machine's disk."""

    def __init__(self, root: Path, steps: Steps) -> None:
        self.root, self.steps = root, steps

    def base(self) -> None:
        """What stands for FROM."""
        suite, packages = STANDS_FOR[self.steps.base]
        bare = ("mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}", '--aptopt=APT::Install-Recommends "false"')
        run([*bare, suite, str(self.root)])
        self.inside(["python3", "-m", "venv", "/usr/local"], {})  # python and pip in /usr/local/bin, as the official image has them

    def build(self) -> None:
        """COPY, ENV, RUN and WORKDIR, one after the other; before them the stages from which it copies."""
        allowed, folder, environment = context((ROOT / ".dockerignore").read_text("utf-8")), "/", {}
        index = {name: os.environ[name] for name in INDEX if name in os.environ}
        for name, rest in self.steps.done:
            print(f"+ {name} {rest}", flush=True)
            if name == "ENV":
                environment = json.loads(rest)
            elif name == "COPY" and rest.startswith("--from="):
                option, source, target = rest.split()
                self.copy_from(option.partition("=")[2], source, os.path.join(folder, target))
            elif name == "WORKDIR":
                folder = rest
                self.path(rest).mkdir(parents=True, exist_ok=True)
            elif name == "COPY":
                *sources, target = rest.split()
                for file in allowed:
                    for source in sources:
                        if file == source or file.startswith(f"{source}/"):
                            inner = file[len(source) + 1 :] if file != source else (Path(source).name if target.endswith("/") else "")
                            place = self.path(os.path.normpath(os.path.join(folder, target, inner)))
                            place.parent.mkdir(parents=True, exist_ok=True)
                            shutil.copy(ROOT / file, place)
            else:
                self.inside(["sh", "-c", f"cd {folder} && {rest}"], environment | self.steps.arguments | index)

    def copy_from(self, name: str, source: str, target: str) -> None:
        """A folder of another stage, which is built for it and then removed."""
        stage = Image(self.root.with_name(f"{self.root.name}.{name}"), self.steps.stages[name])
        try:
            stage.base()
            stage.build()
            shutil.copytree(stage.path(source), self.path(target), symlinks=True, dirs_exist_ok=True)
        finally:
            shutil.rmtree(stage.root, ignore_errors=True)

    def inside(self, command: list[str], environment: dict[str, str]) -> None:
        """As root in the root, with this machine's names and certificates for the index."""
        mounts = [f"mount -t proc proc {self.root}/proc", f"mount --rbind /dev {self.root}/dev"]
        for place in ("/etc/resolv.conf", "/etc/hosts", *filter(None, (os.environ.get("PIP_CERT"),))):
            if Path(place).exists():
                self.path(place).parent.mkdir(parents=True, exist_ok=True)
                self.path(place).touch()
                mounts.append(f"mount --bind {place} {self.root}{place}")
        given = [f"{name}={value}" for name, value in {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **environment}.items()]
        step = shlex.join(["env", "-i", *given, "chroot", str(self.root), *command])
        run(["unshare", "--mount", "sh", "-euc", "\n".join([*mounts, step])])

    def path(self, place: str) -> Path:
        return self.root / place.lstrip("/")

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.lstat().st_size for path in self.root.rglob("*") if not path.is_symlink() and path.is_file())


def run(command: list[str]) -> None:
    """Raises CalledProcessError."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


LIFE = """
mount --make-rprivate /
mount --bind {root} {root}
mount -o remount,ro,bind {root}
mount -t proc proc /proc
mount -t proc proc {root}/proc
mount --rbind /dev {root}/dev
for folder in {volumes}; do mount -t tmpfs -o uid={uid},gid={gid},mode=755 tmpfs {root}$folder; done
mount -t tmpfs -o mode=1777 tmpfs {root}/tmp
ip link set lo up
exec {again} --live {root}
"""
SPEAK = """
import json, sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:8123/v1/audio/speech", method="POST",
    data=json.dumps({"input": "Good evening, and welcome to the harbour.", "voice": "makima", "response_format": "wav"}).encode(),
    headers={"Authorization": f"Bearer {sys.argv[1]}", "Content-Type": "application/json"})
sound = urllib.request.urlopen(request, timeout=600).read()
print(f"{(len(sound) - 44) / 48000:.1f}")
"""
UPLOAD = """
import json, pathlib, qwen3_jax, sys, urllib.request
sound = pathlib.Path(qwen3_jax.__file__).with_name("embedded").joinpath("voices", "emma", "reference.wav").read_bytes()
line = b"--x\\r\\nContent-Disposition: form-data; name="
body = line + b'"audio"; filename="a.wav"\\r\\n\\r\\n' + sound + b"\\r\\n"
for name, value in (("name", "Ann"), ("consent", "The speaker agrees.")):
    body += line + f'"{name}"\\r\\n\\r\\n{value}\\r\\n'.encode()
request = urllib.request.Request("http://127.0.0.1:8123/api/v1/voices", method="POST", data=body + b"--x--\\r\\n",
    headers={"Authorization": f"Bearer {sys.argv[1]}", "Content-Type": "multipart/form-data; boundary=x"})
print(json.load(urllib.request.urlopen(request, timeout=600))["id"])
"""
READY = 'import urllib.request; urllib.request.urlopen("http://127.0.0.1:8123/readyz", timeout=5)'
KERNEL = "from qwen3_jax.kernels.library import in_use; print(in_use().instructions or in_use().why_not)"
WRITE = 'import sys; open(f"{sys.argv[1]}/written", "w")'


class Container:
    """Inside the namespaces: the image's user, its environment and its command."""

    def __init__(self, root: Path, steps: Steps) -> None:
        uid, gid = steps.user.split(":")
        given = {"PATH": PATH, "LANG": "C.UTF-8", "TTS_API_KEYS": "/tmp/keys", "TTS_PORT": "8123", **steps.environment}
        self.folder, self.environment, self.steps = steps.folder, [f"{name}={value}" for name, value in given.items()], steps
        confined = ["setpriv", "--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        self._before = ["chroot", str(root), "env", "-i", *self.environment, *confined, f"--reuid={uid}", f"--regid={gid}"]

    def command(self, *command: str) -> list[str]:
        return [*self._before, "sh", "-c", f"cd {self.folder} && exec {shlex.join(command)}"]

    def ask(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(self.command(*command), capture_output=True, text=True, timeout=LIMIT)


def live(root: Path, steps: Steps) -> None:
    """A container's life. Raises RuntimeError: something did not hold."""
    container = Container(root, steps)
    for folder, allowed in ((steps.folder, False), ("/usr/local", False), ("/tmp", True), *((one, True) for one in steps.volumes)):
        check((container.ask("python", "-c", WRITE, folder).returncode == 0) == allowed, f"{folder}: writing is allowed: {not allowed}")
    kernel = container.ask("python", "-c", KERNEL)
    check(kernel.returncode == 0 and kernel.stdout.startswith("AVX"), f"the compiled kernels are not used: {kernel.stdout}{kernel.stderr}")
    tell("instructions of the compiled kernels", kernel.stdout.strip())
    made = container.ask("python", "-m", "server", "key", "a")
    (root / "tmp" / "keys").write_text(made.stdout)
    key = made.stderr.split()[-1]
    began = time.monotonic()
    warm = container.ask("python", "-m", "server", "warm")
    check(warm.returncode == 0, f"warm: {warm.returncode}: {warm.stderr}")
    tell("seconds of warm, with an empty cache", f"{time.monotonic() - began:.0f}")
    began, said = time.monotonic(), root / "tmp" / "log"
    with said.open("wb") as log, subprocess.Popen(container.command(*steps.command), stderr=log) as server:
        try:
            check(container.ask(*steps.health).returncode != 0, "the health check fails before the server listens")
            while container.ask(*steps.health).returncode != 0 or container.ask("python", "-c", READY).returncode != 0:
                check(server.poll() is None and time.monotonic() - began < LIMIT, said.read_text())
            tell("seconds to ready, after warm", f"{time.monotonic() - began:.0f}")
            status = Path(f"/proc/{server.pid}/status").read_text()
            owners, capabilities = re.findall(r"^(?:Uid|Gid):\s+(\d+)", status, re.M), re.findall(r"^CapEff:\s+(\w+)", status, re.M)
            check(owners == steps.user.split(":") and int(capabilities[0], 16) == 0, f"user {owners}, capabilities {capabilities}")
            spoken = container.ask("python", "-c", SPEAK, key)
            check(spoken.returncode == 0 and float(spoken.stdout) > 0.5, spoken.stderr + said.read_text())
            tell("seconds of speech", spoken.stdout.strip())
            uploaded = container.ask("python", "-c", UPLOAD, key)
            check(uploaded.returncode == 0, uploaded.stderr + said.read_text())
            kept = root / steps.environment["TTS_VOICES_DIR"].lstrip("/") / uploaded.stdout.strip()
            check((kept / "reference.wav").is_file(), f"{kept}: the upload is not there")
            tell("uploaded voice", uploaded.stdout.strip())
        finally:
            server.terminate()
        check(server.wait(LIMIT) == 0, f"status {server.returncode} after SIGTERM")
    bad = [line for line in said.read_text().splitlines() if '"WARNING"' in line or '"ERROR"' in line or "Traceback" in line]
    check(not bad, "\n".join(bad))


def tell(name: str, value: str) -> None:
    """One line of the report."""
    print(f"{name}: {value}", flush=True)


def check(right: bool, otherwise: str) -> None:
    """Raises RuntimeError unless it is right."""
    if not right:
        raise RuntimeError(otherwise)


def main() -> None:
    """Build, measure, live."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="a new folder")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--keep", action="store_true", help="the root stays")
    parser.add_argument("--live", action="store_true", help=argparse.SUPPRESS)  # this program, inside the namespaces
    given = parser.parse_args()
    root, build = given.root.absolute(), dict(one.split("=", 1) for one in given.build_arg)
    saved = root.with_name(root.name + ".args")
    if given.live:
        live(root, read((ROOT / "deploy" / "Dockerfile").read_text("utf-8"), json.loads(saved.read_text())))
        return
    if root.exists():
        parser.error(f"{root} is there already: name a new folder")
    steps = read((ROOT / "deploy" / "Dockerfile").read_text("utf-8"), build)
    saved.write_text(json.dumps(build))
    image = Image(root, steps)
    try:
        image.base()
        before = image.size()
        image.build()
        extras = next(one.arguments["EXTRAS"] for one in (steps, *steps.stages.values()) if "EXTRAS" in one.arguments)
        after, bound = image.size(), BOUNDS.get(f"EXTRAS={extras}")
        tell("MB of what stands for FROM, of all", f"{before / 1e6:.0f}, {after / 1e6:.0f}")
        check(bound is None or after < bound, f"{after} bytes: at most {bound}")
        uid, gid = steps.user.split(":")
        again = f"{sys.executable} {Path(__file__).absolute()}"
        script = LIFE.format(root=root, volumes=" ".join(steps.volumes), uid=uid, gid=gid, again=again)
        run(["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-euc", script])
    finally:
        saved.unlink()
        if not given.keep:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"FAILED: {error}")

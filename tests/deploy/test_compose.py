"""The compose files, as Compose itself understands them; it needs no engine for that."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from recollect_server.domain.credentials import parse_key
from recollect_server.settings import Settings
from tests.deploy.compose import (
    FILES,
    Service,
    compose,
    copy_of_project,
    env_file,
    make_env,
    services,
    words_of,
)
from tests.deploy.dockerfile import ROOT

SECRETS = (
    "RECOLLECT_ADMIN__OPERATOR_KEY",
    "RECOLLECT_ADMIN__METRICS_KEY",
    "REDIS_PASSWORD",
    "GRAFANA_ADMIN_PASSWORD",
)
EXAMPLE = env_file(ROOT / ".env.example")
NAMES = ("server", "redis", "prometheus", "grafana")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with an .env of its own."""
    folder = copy_of_project(tmp_path_factory.mktemp("project"))
    assert make_env(folder).returncode == 0
    return folder


@pytest.fixture(scope="module", params=[FILES[:1], FILES], ids=["cpu", "gpu"])
def rendered(project: Path, request: pytest.FixtureRequest) -> Mapping[str, Service]:
    """The services of the one file, and of both together."""
    return services(project, files=request.param)


def test_a_mistake_in_a_compose_file_is_found(project: Path) -> None:
    """The check of the files checks nothing, so that a misspelt key goes unnoticed."""
    text = (project / FILES[0]).read_text()
    for right, wrong in (
        ("read_only: true", "readonly: true"),
        ("condition: service_healthy", "condition: well"),
    ):
        assert right in text
        (project / "wrong.yml").write_text(text.replace(right, wrong, 1))
        assert compose(project, "config", "--quiet", files=["wrong.yml"]).returncode != 0


def test_compose_takes_the_files_without_a_word(project: Path) -> None:
    """Compose refuses a file, or warns of something in it."""
    for files in (FILES[:1], FILES):
        checked = compose(project, "config", "--quiet", files=files)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_there_are_the_services_that_the_docs_speak_of(rendered: Mapping[str, Service]) -> None:
    """A service is gone, or a new one is not looked at by these tests."""
    assert set(rendered) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_service_has_no_more_than_it_needs(rendered: Mapping[str, Service], name: str) -> None:
    """Who breaks into a container finds capabilities, a place to write, or all of the machine's memory."""
    service = rendered[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert not service.get("cap_add")
    assert not service.get("privileged")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(str(service["mem_limit"])) > 0
    assert int(str(service["pids_limit"])) > 0
    if "user" in service:  # the server's image says it itself
        assert re.fullmatch(r"[1-9]\d*:\d+", str(service["user"]))


@pytest.mark.parametrize("name", NAMES)
def test_each_service_is_watched_and_pinned(rendered: Mapping[str, Service], name: str) -> None:
    """Nobody sees that a service is ill, its log fills the disk, or another version of it comes by itself."""
    service = rendered[name]
    check = cast("Service", service["healthcheck"])
    assert {"test", "interval", "timeout", "retries", "start_period"} <= check.keys()
    assert cast("Service", service["logging"])["options"] == {"max-size": "10m", "max-file": "5"}
    image = str(service["image"])
    assert image in {"recollect:cpu", "recollect:gpu"} or re.fullmatch(
        r"[a-z/]+:v?\d+\.\d+\.\d+(-[a-z]+)?", image
    )


def test_ports_are_this_machines_alone(rendered: Mapping[str, Service]) -> None:
    """Keys cross a network in the clear, since a port is published beyond loopback, or Redis has one."""
    published = {
        name: [(port["host_ip"], port["target"]) for port in cast("list[Service]", service.get("ports", []))]
        for name, service in rendered.items()
    }
    assert published == {
        "server": [("127.0.0.1", 50051), ("127.0.0.1", 8080)],
        "redis": [],
        "prometheus": [("127.0.0.1", 9090)],
        "grafana": [("127.0.0.1", 3000)],
    }


def test_only_those_who_need_redis_reach_it(project: Path, rendered: Mapping[str, Service]) -> None:
    """Grafana, which speaks to browsers, can reach the registry, or the registry can reach the internet."""
    joined = {name: set(cast("Service", service["networks"])) for name, service in rendered.items()}
    assert joined["redis"] == {"backend"}
    assert "backend" not in joined["grafana"]
    assert "internal: true" in compose(project, "config").stdout.partition("\nnetworks:")[2]


def test_nobody_has_a_secret_of_others(project: Path, rendered: Mapping[str, Service]) -> None:
    """A container holds a key that it has no use for, or one stands among the arguments of a process."""
    made = env_file(project / ".env")
    holders = {
        secret: {name for name, service in rendered.items() if made[secret] in str(service["environment"])}
        for secret in SECRETS
    }
    assert holders == {
        "RECOLLECT_ADMIN__OPERATOR_KEY": {"server"},
        "RECOLLECT_ADMIN__METRICS_KEY": {"server", "prometheus"},
        "REDIS_PASSWORD": {"server", "redis"},
        "GRAFANA_ADMIN_PASSWORD": {"grafana"},
    }
    for service in rendered.values():
        arguments = str([words_of(service, "command"), service["healthcheck"], service.get("labels")])
        assert not [secret for secret in SECRETS if made[secret] in arguments]


def test_the_gpu_override_changes_the_server_alone(project: Path) -> None:
    """The GPU file loses a protection of the first one, or does not ask for a GPU."""
    plain, gpu = services(project), services(project, files=FILES)
    changed = {key for key in gpu["server"] if gpu["server"][key] != plain["server"].get(key)}
    assert changed == {"image", "build", "environment", "deploy"}
    assert {name: gpu[name] for name in NAMES[1:]} == {name: plain[name] for name in NAMES[1:]}
    assert "nvidia" in str(gpu["server"]["deploy"])


def test_each_file_that_is_mounted_is_there(rendered: Mapping[str, Service]) -> None:
    """An engine makes an empty folder where a file has moved, and the service goes without."""
    mounts = [each for service in rendered.values() for each in cast("list[Service]", service["volumes"])]
    bound = [each for each in mounts if each["type"] == "bind"]
    assert bound
    assert all(Path(str(each["source"])).exists() and each["read_only"] for each in bound)


def test_the_example_names_all_variables_and_no_secret(project: Path) -> None:
    """An operator is not told of a variable, or secrets that everybody knows are in use somewhere."""
    listed = compose(project, "config", "--variables").stdout.splitlines()[1:]
    assert {line.split()[0] for line in listed} == EXAMPLE.keys()
    assert {name for name, value in EXAMPLE.items() if not value} == set(SECRETS)
    defaults = {line.split()[0]: line.split()[2] for line in listed if len(line.split()) > 2}
    assert defaults == {name: value for name, value in EXAMPLE.items() if value}


def test_nothing_starts_without_secrets(tmp_path: Path) -> None:
    """Who forgets deploy/make-env gets a Redis without a password, and no word about it."""
    folder = copy_of_project(tmp_path)
    refused = compose(folder, "config", "--quiet")
    assert refused.returncode != 0
    assert "run deploy/make-env first" in refused.stderr
    (folder / ".env").write_text((folder / ".env.example").read_text())
    assert compose(folder, "config", "--quiet").returncode != 0


def test_make_env_makes_secrets_that_are_taken(project: Path, tmp_path: Path) -> None:
    """deploy/make-env writes keys that the server refuses, the same ones twice, or for all to read."""
    made, other = env_file(project / ".env"), copy_of_project(tmp_path)
    assert stat.S_IMODE((project / ".env").stat().st_mode) == 0o600
    assert parse_key(made["RECOLLECT_ADMIN__OPERATOR_KEY"]) is not None
    assert all(re.fullmatch(r"[0-9a-z_]{24,}", made[secret]) for secret in SECRETS)
    assert make_env(other).returncode == 0
    again = env_file(other / ".env")
    assert not [secret for secret in SECRETS if made[secret] == again[secret]]
    assert {name: made[name] for name in made if name not in SECRETS} == {
        name: value for name, value in EXAMPLE.items() if value
    }


def test_make_env_leaves_an_env_that_exists_alone(project: Path) -> None:
    """A second deploy/make-env replaces the password of a Redis that has data."""
    before = (project / ".env").read_bytes()
    refused = make_env(project)
    assert refused.returncode == 1
    assert "Nothing was changed" in refused.stderr
    assert (project / ".env").read_bytes() == before
    assert not list(project.glob(".env.new*"))


def test_git_takes_no_notice_of_an_env() -> None:
    """`git add .` adds secrets."""
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_servers_variables_are_settings(rendered: Mapping[str, Service]) -> None:
    """Compose sets a variable that the server passes over, as one that was renamed."""
    known = _variables_of_settings()
    given = cast("Mapping[str, str]", rendered["server"]["environment"])
    assert given.keys() <= known


def _variables_of_settings() -> set[str]:
    known: set[str] = set()
    for name, field in Settings.model_fields.items():
        section = getattr(field.annotation, "model_fields", None) or getattr(
            field.annotation, "__dataclass_fields__", None
        )
        known |= (
            {f"RECOLLECT_{name}__{inner}".upper() for inner in section}
            if section
            else {f"RECOLLECT_{name}".upper()}
        )
    return known

"""The services of docker-compose.yml run together as it says, each in a sandbox in place of a container.

The server is the image of the Dockerfile; Redis and Prometheus are this machine's programs in place of their
images, so their versions and entrypoints are not those of the file. Grafana is not run: no package has it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.deploy.compose import (
    applied,
    command_of,
    copy_of_project,
    env_file,
    health_of,
    make_env,
    services,
)
from tests.deploy.container import Container
from tests.deploy.image import Image
from tests.deploy.prometheus_server import require_prometheus
from tests.deploy.sandbox import Network, Setup
from tests.redis_server import require_redis

pytestmark = pytest.mark.e2e

CALLER = (Path(__file__).parent / "caller.py").read_text()
PATH = "/usr/local/bin:/usr/bin:/bin"
TARGETS_URL = "http://127.0.0.1:9090/api/v1/targets?state=active"
UNTIL_SCRAPED = f"""
import json, time, urllib.request
for _ in range(600):
    with urllib.request.urlopen({TARGETS_URL!r}) as answer:
        found = json.load(answer)["data"]["activeTargets"]
    health = {{target["labels"]["job"]: target["health"] for target in found}}
    if len(health) == 2 and set(health.values()) == {{"up"}}:
        break
    time.sleep(0.1)
print(json.dumps(health))
"""


class Stack(NamedTuple):
    """What runs.

    Attributes:
        env: Of the .env file.
        server: Container.
        redis: Container.
        prometheus: Container.
    """

    env: Mapping[str, str]
    server: Container
    redis: Container
    prometheus: Container


@pytest.fixture(scope="module")
def stack(image: Image, bare_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything but Grafana, started in the order of depends_on."""
    require_redis()
    require_prometheus()
    if shutil.which("wget") is None:
        pytest.skip("no wget: install it (Debian's package is wget)")
    folder = tmp_path_factory.mktemp("stack")
    project = copy_of_project(folder / "project")
    configuration = project / "deploy/prometheus/prometheus.yml"
    often = re.sub(r"(scrape_\w+): \d+s", r"\1: 1s", configuration.read_text())
    configuration.write_text(often)  # only to wait less
    assert make_env(project).returncode == 0
    rendered = services(project)
    bases = {
        "redis": Setup(bare_root, image.python, {"PATH": PATH}, workdir="/"),
        "server": Setup(image.root, image.python, image.env, user=image.user, workdir=image.workdir),
        "prometheus": Setup(bare_root, image.python, {"PATH": PATH}, workdir="/"),
    }
    running: dict[str, Container] = {}
    with ExitStack() as exits:
        network = exits.enter_context(Network())
        for name, base in bases.items():
            service = rendered[name]
            setup = applied(service, base, folder)
            container = Container(setup, command_of(service) or image.command, network=network)
            running[name] = exits.enter_context(container)
            container.wait_healthy(health_of(service))
        yield Stack(env_file(project / ".env"), **running)


def test_a_tenant_can_be_made_and_served(stack: Stack) -> None:
    """The stack as a whole does not work: the server has no registry, or its operator's key is not taken."""
    token = stack.env["RECOLLECT_ADMIN__OPERATOR_KEY"]
    called = stack.server.execute(["python", "-", token], stdin=CALLER)
    assert called.returncode == 0, called.stderr
    assert json.loads(called.stdout) == {"statuses": [200, 200, 201, 201], "output": [0.25, 0.5]}


def test_redis_wants_its_password(stack: Stack) -> None:
    """Who reaches the registry can make itself an operator."""
    client = ["redis-cli", "--no-auth-warning"]
    assert "NOAUTH" in stack.redis.execute([*client, "ping"]).stdout
    assert "WRONGPASS" in stack.redis.execute([*client, "-a", "wrong", "ping"]).stderr
    assert stack.redis.execute([*client, "-a", stack.env["REDIS_PASSWORD"], "ping"]).stdout == "PONG\n"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("appendonly", "yes"), ("appendfsync", "always"), ("maxmemory-policy", "noeviction")],
)
def test_redis_forgets_nothing(stack: Stack, setting: str, value: str) -> None:
    """A change that was acknowledged is lost with a crash, or a tenant is dropped to make room."""
    client = ["redis-cli", "--no-auth-warning", "-a", stack.env["REDIS_PASSWORD"]]
    assert stack.redis.execute([*client, "config", "get", setting]).stdout.split() == [setting, value]
    # The server asks Redis for these, and more, when it starts.
    assert '"warning"' not in stack.server.output


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB", "DEBUG"])
def test_redis_has_no_command_that_ends_it_all(stack: Stack, command: str) -> None:
    """One call of a command that nobody needs empties the registry."""
    client = ["redis-cli", "--no-auth-warning", "-a", stack.env["REDIS_PASSWORD"]]
    assert "unknown command" in stack.redis.execute([*client, command]).stdout


def test_prometheus_gets_the_metrics_with_a_key_for_them_alone(stack: Stack) -> None:
    """Nothing is watched, or who breaks into Prometheus is an operator."""
    scraped = stack.server.execute(["python", "-c", UNTIL_SCRAPED])
    assert json.loads(scraped.stdout) == {"recollect": "up", "prometheus": "up"}, scraped.stderr
    key_file = "/run/recollect/metrics_key"
    assert stack.prometheus.execute(["cat", key_file]).stdout == stack.env["RECOLLECT_ADMIN__METRICS_KEY"]
    mode = stack.prometheus.execute(["stat", "-c", "%a", key_file]).stdout
    assert mode == "600\n"
    for name in ("OPERATOR_KEY", "METRICS_KEY"):
        ask = f"tr '\\0' '\\n' </proc/1/environ | grep -c {name}"
        assert stack.prometheus.execute(["sh", "-c", ask]).stdout == "0\n"


@pytest.mark.parametrize("name", ["server", "redis", "prometheus"])
def test_services_live_without_root_capabilities_or_a_place_to_write(stack: Stack, name: str) -> None:
    """A service works only with more than docker-compose.yml gives it, or has more."""
    container: Container = getattr(stack, name)
    status = container.execute(["grep", "-E", "^(Uid|CapEff|NoNewPrivs)", "/proc/1/status"]).stdout.split()
    uid = container.setup.user.partition(":")[0]
    assert status == ["Uid:", uid, uid, uid, uid, "CapEff:", "0" * 16, "NoNewPrivs:", "1"]
    assert uid != "0"
    assert "Read-only file system" in container.execute(["touch", "/usr/x", "/x"]).stderr

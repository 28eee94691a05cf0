"""The only place that wires: which device, which registry, which authenticator."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from recollect_server.admin.app import ROUTES, create_app
from recollect_server.admin.configuration import hidden
from recollect_server.admin.http import HttpServer
from recollect_server.admin.services import AdminServices
from recollect_server.application.admission import Admission
from recollect_server.application.audit import AuditLog
from recollect_server.application.authentication import KeyAuthenticator
from recollect_server.application.catalog import Catalog
from recollect_server.application.changes import Changes
from recollect_server.application.directory import Directory
from recollect_server.application.dispatch import Dispatcher
from recollect_server.application.keys import Keys
from recollect_server.application.memories import Memories
from recollect_server.application.memory import Memory
from recollect_server.application.namespaces import Namespaces
from recollect_server.application.tenants import Tenants
from recollect_server.application.turns import Turns
from recollect_server.application.upkeep import Upkeep
from recollect_server.domain.ports import Authenticator, Device
from recollect_server.domain.registry import Registry
from recollect_server.domain.telemetry import NoTelemetry, Telemetry
from recollect_server.engine.cpu import CpuDevice
from recollect_server.exposure import (
    RefusedToStartError,
    checked,
    operator_token,
    prepared_data_dir,
)
from recollect_server.lifecycle import Core, FirstKeys
from recollect_server.observability.access_log import LoggingTelemetry
from recollect_server.observability.fan_out import Telemetries
from recollect_server.observability.line_limit import LineLimit
from recollect_server.observability.metrics import PrometheusTelemetry
from recollect_server.observability.traces import TracingTelemetry
from recollect_server.registry.authenticators import DEV_TENANT, SingleTenant
from recollect_server.registry.redis import RedisRegistry
from recollect_server.registry.sqlite import SqliteRegistry
from recollect_server.rpc.calls import MemoryCalls, NamespaceCalls
from recollect_server.rpc.endpoint import METHODS, Endpoint
from recollect_server.rpc.namespaces import ServerFacts
from recollect_server.rpc.regions import Regions
from recollect_server.rpc.server import RpcServer
from recollect_server.server import Server, State, drain_by
from recollect_server.settings import Settings
from recollect_server.tls import certificates_of, grpc_server_credentials, uvicorn_ssl_context

EMBEDDED_TENANT = "embedded"
REGISTRY_FILE, OPERATOR_KEY_FILE = "registry.sqlite", "operator.key"


class Parts(NamedTuple):
    """What is wired to more than one other thing."""

    core: Core
    memories: Memories
    device: Device
    keys: KeyAuthenticator
    namespaces: Namespaces
    changes: Changes
    regions: Regions


def build_embedded_core(settings: Settings) -> Core:
    """A memory for the process itself: one tenant, no keys, nothing kept."""
    return _parts(settings, _kept_nowhere(), EMBEDDED_TENANT, telemetry=NoTelemetry()).core


def build_server(
    settings: Settings, *, on_drain: Callable[[], None], limit: LineLimit | None = None
) -> Server:
    """A server on the settings' addresses.

    Args:
        settings: Of the process.
        on_drain: Called when an operator has the server end.
        limit: For lines about calls, if others of the process count with it.

    Raises:
        RefusedToStartError: It would be open to whoever reaches it, or the settings cannot be met.
        ValueError: A certificate is of no use.
    """
    exposure = checked(settings)
    certificates = None if settings.dev else certificates_of(settings.tls)
    metrics = PrometheusTelemetry(
        [*METHODS, *ROUTES], version=server_version(), tenant_labels_max=settings.telemetry.tenant_labels_max
    )
    lines = LoggingTelemetry(limit)
    endpoint = settings.telemetry.traces_endpoint
    traces = TracingTelemetry(endpoint=endpoint, version=server_version()) if endpoint else None
    told: list[Telemetry] = [metrics, lines] if traces is None else [metrics, lines, traces]
    telemetry = Telemetries(told)

    registry, only = (_kept_nowhere(), DEV_TENANT) if settings.dev else (_registry(settings), "")
    parts = _parts(settings, registry, only, telemetry=telemetry)
    state = State(parts.core, parts.memories, device_name=parts.device.name, limits=settings.limits)
    metrics.watch(state)
    http = None
    if exposure.admin:
        app = create_app(_services(settings, parts, state, metrics, telemetry=telemetry, on_drain=on_drain))
        context = None if certificates is None else uvicorn_ssl_context(certificates)
        http = HttpServer(app, exposure.admin, ssl_context=context)
    rpc = RpcServer(
        parts.core.endpoint,
        exposure.rpc,
        limits=settings.limits,
        regions=parts.regions,
        credentials=None if certificates is None else grpc_server_credentials(certificates),
        is_dev=settings.dev,
    )

    def flush() -> None:
        lines.flush()
        if traces is not None:
            traces.shutdown()

    return Server(parts.core, rpc, http=http, on_stop=flush, grace_s=settings.drain_grace_s)


def _services(
    settings: Settings,
    parts: Parts,
    state: State,
    metrics: PrometheusTelemetry,
    *,
    telemetry: Telemetry,
    on_drain: Callable[[], None],
) -> AdminServices:
    directory = parts.core.directory
    metrics_key = settings.admin.metrics_key
    return AdminServices(
        # Also with --dev: the admin API is for browsers too, and a page from elsewhere could call it there.
        authenticator=parts.keys,
        registry=directory.registry,
        tenants=Tenants(directory, clock=time.time),
        keys=Keys(directory, changes=parts.changes, clock=time.time),
        audit=AuditLog(directory),
        namespaces=parts.namespaces,
        readiness=state.checks,
        metrics=metrics.exposition,
        drain=drain_by(parts.core, on_drain, clock=time.time),
        settings_view=partial(hidden, settings),
        clock=time.time,
        limits=settings.limits,
        telemetry=telemetry,
        version=server_version(),
        metrics_key=None if metrics_key is None else metrics_key.get_secret_value(),
    )


def _parts(settings: Settings, registry: Registry, only_tenant: str, *, telemetry: Telemetry) -> Parts:
    device, limits = choose_device(settings), settings.limits
    if settings.device == "auto" and isinstance(device, CpuDevice):
        telemetry.fell_back("device-cpu")
    directory = Directory(
        registry,
        clock=time.time,
        monotonic=time.monotonic,
        poll_s=settings.registry.poll_s,
        stale_max_s=settings.registry.stale_max_s,
        cached_max=settings.registry.cached_max,
        telemetry=telemetry,
    )
    keys = KeyAuthenticator(directory, time.time)
    authenticator: Authenticator = SingleTenant(only_tenant) if only_tenant else keys
    changes = Changes(monotonic=time.monotonic)
    catalog = Catalog(directory, changes=changes, limits=limits, clock=time.time)
    # A card's streams and buffers belong to the thread that made them.
    any_thread = isinstance(device, CpuDevice)
    dispatcher = Dispatcher(limits, fair=settings.fair, any_thread=any_thread)
    memories = Memories(device, limits=limits, clock=time.time)
    memory = Memory(memories, limits=limits, clock=time.time)
    upkeep = Upkeep(memories, dispatcher, telemetry=telemetry)
    turns = Turns(catalog, memory, dispatcher=dispatcher, upkeep=upkeep)
    namespaces = Namespaces(
        catalog,
        memories,
        memory=memory,
        turns=turns,
        dispatcher=dispatcher,
        directory=directory,
        changes=changes,
        limits=limits,
        clock=time.time,
        telemetry=telemetry,
    )
    regions = Regions(limits)
    facts = ServerFacts(version=server_version(), device=device.name, limits=limits)
    endpoint = Endpoint(
        authenticator,
        Admission(limits, monotonic=time.monotonic),
        catalog=catalog,
        memory=MemoryCalls(memory, turns, regions=regions, limits=limits),
        namespaces=NamespaceCalls(catalog, namespaces, facts),
        telemetry=telemetry,
    )
    data_dir = prepared_data_dir(settings)
    first = FirstKeys(
        tenant=only_tenant,
        operator_token=operator_token(settings),
        operator_file=None if data_dir is None else data_dir / OPERATOR_KEY_FILE,
    )
    core = Core(endpoint, directory, dispatcher=dispatcher, namespaces=namespaces, first=first)
    return Parts(core, memories, device, keys, namespaces, changes, regions)


def _kept_nowhere() -> Registry:
    return SqliteRegistry(None, clock=time.time)


def _registry(settings: Settings) -> Registry:
    if settings.registry.url is not None:
        return RedisRegistry(
            settings.registry.url.get_secret_value(),
            ca_file=settings.registry.ca_file,
            timeout_s=settings.registry.timeout_s,
        )
    data_dir = prepared_data_dir(settings)
    if data_dir is None:
        raise RefusedToStartError("there is neither a data directory nor a registry to keep keys in")
    return SqliteRegistry(data_dir / REGISTRY_FILE, clock=time.time)


def choose_device(settings: Settings) -> Device:
    """A GPU where one answers and FAISS can use it, or what the settings name.

    Raises:
        RefusedToStartError: The settings name a GPU and there is none.
    """
    if settings.device == "cpu":
        return CpuDevice(threads=settings.threads)
    # Without PyTorch there is no GPU device, and importing it would cost a CPU server a second.
    if importlib.util.find_spec("torch") is not None and _faiss_has_gpu():
        import torch

        from recollect_server.engine.torch_device import TorchDevice

        if torch.cuda.is_available():
            return TorchDevice("cuda")
    if settings.device == "cuda":
        raise RefusedToStartError(
            "device is cuda, but PyTorch or FAISS finds no GPU; install recollect[torch,gpu] or choose "
            "--device cpu"
        )
    return CpuDevice(threads=settings.threads)


def _faiss_has_gpu() -> bool:
    from recollect_server.engine.torch_search import faiss_has_gpu

    return faiss_has_gpu()


def server_version() -> str:
    """Of the distribution."""
    try:
        return version("recollect")
    except PackageNotFoundError:
        return "unknown"

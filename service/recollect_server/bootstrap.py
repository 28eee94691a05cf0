"""The only place that wires: which device, which registry, which authenticator."""

from __future__ import annotations

import importlib.util
import time
from importlib.metadata import PackageNotFoundError, version

from recollect_server.application.catalog import Catalog
from recollect_server.application.dispatch import Dispatcher
from recollect_server.application.memory import Memory
from recollect_server.domain.ports import Authenticator, Device
from recollect_server.engine.cpu import CpuDevice
from recollect_server.registry.authenticators import SingleTenant
from recollect_server.registry.in_memory import InMemoryNamespaces
from recollect_server.rpc.calls import MemoryCalls, NamespaceCalls
from recollect_server.rpc.endpoint import Endpoint
from recollect_server.rpc.listen import ListenAddress, parse_listen
from recollect_server.rpc.namespaces import ServerFacts
from recollect_server.rpc.server import RpcServer
from recollect_server.settings import Settings


class RefusedToStartError(Exception):
    """The settings would make a server that must not run."""


def build_endpoint(settings: Settings, authenticator: Authenticator) -> Endpoint:
    """The core behind its one door; the same for sockets and for embedded use."""
    device = choose_device(settings)
    limits = settings.limits
    catalog = Catalog(InMemoryNamespaces(), device, limits=limits, clock=time.time)
    facts = ServerFacts(version=_version(), device=device.name, limits=limits)
    return Endpoint(
        authenticator,
        Dispatcher(limits),
        memory=MemoryCalls(Memory(catalog, limits=limits, clock=time.time)),
        namespaces=NamespaceCalls(catalog, facts),
    )


def build_server(settings: Settings) -> RpcServer:
    """A server on the settings' addresses.

    Raises:
        RefusedToStartError: It would be open to whoever reaches it, or an address is malformed.
    """
    listen = _listen(settings)
    if not settings.dev:
        raise RefusedToStartError(
            "no credentials exist, and a server without them would be open to all. API keys are not built "
            "yet; for one user on this machine start it with --dev"
        )
    reachable = [str(address) for address in listen if not address.is_local]
    if reachable:
        raise RefusedToStartError(
            f"--dev takes calls without a token, so it listens on loopback and unix sockets only, "
            f"not on {reachable}"
        )
    return RpcServer(build_endpoint(settings, SingleTenant()), listen, limits=settings.limits)


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


def _listen(settings: Settings) -> list[ListenAddress]:
    if not settings.listen:
        raise RefusedToStartError("there is no address to listen on; give --listen")
    try:
        return [parse_listen(text) for text in settings.listen]
    except ValueError as malformed:
        raise RefusedToStartError(str(malformed)) from None


def _version() -> str:
    try:
        return version("recollect")
    except PackageNotFoundError:
        return "unknown"

"""Which scope each call of the wire needs. A server with a call that has no row here does not start."""

from __future__ import annotations

from recollect_server.domain.errors import PermissionDeniedError
from recollect_server.domain.identity import Caller, Scope

ACCESS: dict[str, Scope | None] = {
    "/recollect.v1.MemoryService/Add": Scope.WRITE,
    "/recollect.v1.MemoryService/Search": Scope.READ,
    "/recollect.v1.MemoryService/SearchStream": Scope.READ,
    "/recollect.v1.MemoryService/Attend": Scope.READ,
    "/recollect.v1.MemoryService/AttendBackward": Scope.READ,
    "/recollect.v1.MemoryService/Evict": Scope.WRITE,
    "/recollect.v1.MemoryService/OpenRegion": None,
    "/recollect.v1.NamespaceService/CreateNamespace": Scope.WRITE,
    "/recollect.v1.NamespaceService/GetNamespace": Scope.READ,
    "/recollect.v1.NamespaceService/ListNamespaces": Scope.READ,
    "/recollect.v1.NamespaceService/DeleteNamespace": Scope.WRITE,
    "/recollect.v1.NamespaceService/GetStats": Scope.READ,
    "/recollect.v1.NamespaceService/GetServerInfo": None,
}
"""None: any key of a tenant."""


def require_scope(caller: Caller, path: str) -> None:
    """Refuses a caller whose key does not allow the call.

    Raises:
        PermissionDeniedError: The scope is missing.
    """
    scope = ACCESS[path]
    if scope is not None and scope not in caller.scopes:
        raise PermissionDeniedError(f"the key does not allow this: it lacks the scope {scope.value!r}")

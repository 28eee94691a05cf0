"""The OpenAPI document: what FastAPI derives, with problems and credentials as they really are."""

from __future__ import annotations

from typing import cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from recollect_server.admin.problems import PROBLEM_TYPE
from recollect_server.admin.repeats import HEADER
from recollect_server.admin.route import ACCESS_MEMBER
from recollect_server.admin.schemas import Body
from recollect_server.domain.registry import ANSWERS_MAX

Json = dict[str, object]

DESCRIPTION = """
Administration of a Recollect server: tenants, keys, quotas, namespaces, the audit log.

Send an API key as `Authorization: Bearer rk_...`. Operators may do everything here; a tenant's key with the
scope `admin` may manage that tenant's keys and namespaces, and for any other tenant gets the answer that a
tenant which does not exist would get. Every error is a problem (RFC 9457) with a machine-readable `reason`.
"""

_TEXT: Json = {"type": "string"}
PROBLEM: Json = {
    "type": "object",
    "title": "Problem",
    "description": "What went wrong (RFC 9457).",
    "required": ["type", "title", "status", "detail", "instance", "reason", "argument", "error_id"],
    "properties": {
        "type": {**_TEXT, "description": "urn:recollect:problem: and the reason"},
        "title": {**_TEXT, "description": "the status in words"},
        "status": {"type": "integer"},
        "detail": {**_TEXT, "description": "what is wrong, and what to do; for people"},
        "instance": {**_TEXT, "description": "path of the request"},
        "reason": {**_TEXT, "description": "machine-readable and stable"},
        "argument": {**_TEXT, "description": 'the one to blame, or ""'},
        "error_id": {**_TEXT, "description": 'to be quoted to whoever runs the server, or ""'},
        "errors": {
            "type": "array",
            "description": "all arguments that are wrong, with status 422",
            "items": {"type": "object", "properties": {"argument": _TEXT, "message": _TEXT}},
        },
        "checks": {
            "type": "array",
            "description": "what the server needs, from /readyz",
            "items": {
                "type": "object",
                "properties": {"name": _TEXT, "ready": {"type": "boolean"}, "reason": _TEXT},
            },
        },
    },
    "examples": [
        {
            "type": "urn:recollect:problem:tenant-not-found",
            "title": "Not Found",
            "status": 404,
            "detail": "there is no tenant 'acme'",
            "instance": "/api/v1/tenants/acme",
            "reason": "TENANT_NOT_FOUND",
            "argument": "tenant",
            "error_id": "",
        }
    ],
}

_IDEMPOTENCY_KEY: Json = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "a repeat with the same key gets the first answer, for a day or until the tenant, or the "
    f"operators, had {ANSWERS_MAX:,} newer ones",
    "schema": {"type": "string", "pattern": r"^[\x21-\x7e]{1,255}$"},
}

ALWAYS = {"default": "Any other error"}
WITH_KEY = {
    "401": "No valid key",
    "403": "The key does not allow this",
    "503": "Not now; `Retry-After` says when",
}
WITH_PATH = {"404": "Not there, or not the caller's"}
WITH_INPUT = {"400": "An argument is wrong", "422": "The request does not fit this document"}
WITH_BODY = {"413": "The body is too large"}
# An empty requirement: no key, which is enough on the server's own machine.
SECURITY: dict[str, list[dict[str, list[str]]]] = {"open": [], "metrics": [{"apiKey": []}, {}]}

BY_OPERATION = {
    "createTenant": {"409": "It exists"},
    "changeTenant": {"412": "It has another revision"},
    "setQuotas": {"412": "It has another revision"},
    "isReady": {"503": "Not ready; `checks` says why"},
}
"""Problems of single operations, beside those that follow from what they take."""


def document(app: FastAPI) -> Json:
    """The OpenAPI document of the admin API."""
    made = cast(
        "Json",
        get_openapi(title=app.title, version=app.version, description=DESCRIPTION.strip(), routes=app.routes),
    )
    components = cast("dict[str, Json]", made.setdefault("components", {}))
    schemas = cast("dict[str, Json]", components.setdefault("schemas", {}))
    for framework_error in ("HTTPValidationError", "ValidationError"):
        schemas.pop(framework_error, None)
    schemas["Problem"] = PROBLEM
    for model in Body.__subclasses__():
        if model.__name__ in schemas and isinstance(
            extra := model.model_config.get("json_schema_extra"), dict
        ):
            schemas[model.__name__] |= extra  # once more: FastAPI drops what is null in an example
    components["securitySchemes"] = {
        "apiKey": {"type": "http", "scheme": "bearer", "bearerFormat": "rk_<key id>_<secret>"}
    }
    for path in cast("dict[str, dict[str, Json]]", made["paths"]).values():
        for method, operation in path.items():
            _complete(operation, method)
    return made


def _complete(operation: Json, method: str) -> None:
    is_open = operation[ACCESS_MEMBER] == "open"
    operation["security"] = SECURITY.get(str(operation[ACCESS_MEMBER]), [{"apiKey": []}])
    parameters = cast("list[Json]", operation.setdefault("parameters", []))
    problems = dict(ALWAYS)
    if not is_open:
        problems |= WITH_KEY
    if any(parameter["in"] == "path" for parameter in parameters):
        problems |= WITH_PATH
    if parameters or "requestBody" in operation:
        problems |= WITH_INPUT
    if "requestBody" in operation:
        problems |= WITH_BODY
    if method == "post":
        parameters.append(_IDEMPOTENCY_KEY)
        problems |= {"409": "The answer to the first request of this idempotency key is lost", **WITH_INPUT}
    problems |= BY_OPERATION.get(str(operation["operationId"]), {})
    responses = cast("Json", operation["responses"])
    responses.pop("422", None)
    for status, description in sorted(problems.items()):
        responses[status] = {
            "description": description,
            "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }

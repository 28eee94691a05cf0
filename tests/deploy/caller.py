"""Run inside a container, by its Python: what an operator and a tenant do first. Prints what came out.

Argument: the operator's key. The server's own installation has all that is needed.
"""

from __future__ import annotations

import json
import sys

import httpx
import numpy as np

import recollect

ADMIN, RPC = "http://127.0.0.1:8080", "grpc://127.0.0.1:50051"


def main(operator_key: str) -> None:
    """Makes a tenant and a key, stores one entry, and attends to it."""
    with httpx.Client(base_url=ADMIN, headers={"authorization": f"Bearer {operator_key}"}) as http:
        statuses = [http.get(path).status_code for path in ("/livez", "/readyz")]
        made = http.post("/api/v1/tenants", json={"name": "acme"})
        key = http.post("/api/v1/tenants/acme/keys", json={"scopes": ["read", "write"]})
    with recollect.connect(RPC, token=str(key.json()["token"])) as client:
        namespace = client.create_namespace("first", layers=[0], heads=1, key_dim=2, value_dim=2, capacity=4)
        stored = np.array([[[[0.25, 0.5]]]], dtype=np.float32)
        namespace.add(0, stored, stored, streams=["doc"])
        found = namespace.attend(0, stored, top_k=1, streams=["doc"], scale=1.0)
        output = np.asarray(found.output).ravel().tolist()
    report = {"statuses": [*statuses, made.status_code, key.status_code], "output": output}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])

"""The admin API from the shell's side."""

from __future__ import annotations

import ipaddress
import json
import ssl
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self, cast

import httpx
import typer

Json = dict[str, object]

PAGE_SIZE = 1000
TIMEOUT_S = 60.0
EXIT_FAILED, EXIT_USAGE = 1, 2


def fail(message: str, *, status: int = EXIT_FAILED) -> NoReturn:
    """Says what is wrong in one line, and ends the command."""
    typer.echo(f"recollect: {' '.join(message.split())}", err=True)
    raise typer.Exit(status)


class Api:
    """One server's admin API, with one key.

    Args:
        url: Base, as http://127.0.0.1:8080.
        key: To show; "": none.
        ca_file: PEM of who signed the server's certificate; None: who this machine trusts.
        cert_file: PEM of a certificate to show, with its key, for mutual TLS; None: none.
        as_json: Whether people or programs read what is printed.
        allow_plaintext: Whether the key may cross the network without TLS.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        as_json: bool = False,
        allow_plaintext: bool = False,
    ) -> None:
        self.as_json = as_json
        self._url = _checked_url(url, may_be_plain=allow_plaintext or not key)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            context = ssl.create_default_context(cafile=ca_file)
            if cert_file is not None:
                context.load_cert_chain(cert_file)
        except OSError as unusable:  # SSLError is one too
            fail(f"--ca-file or --cert-file is of no use: {unusable}", status=EXIT_USAGE)
        # trust_env=False: no proxy and no .netrc comes between the key and the server.
        self._http = httpx.Client(
            base_url=self._url, headers=headers, verify=context, timeout=TIMEOUT_S, trust_env=False
        )

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        params: Mapping[str, str | int] | None = None,
        if_match: str = "",
    ) -> Json:
        """One request; the answer, or an end with its problem in one line.

        Args:
            method: As "POST", which has an idempotency key, so that it is sent once more if no answer came.
            path: Below the base URL, encoded.
            body: As JSON.
            params: Of the query.
            if_match: ETag that the tenant must have; "": any.
        """
        return cast("Json", self._send(method, path, body, dict(params or {}), if_match)[0])

    def call_with_etag(self, path: str) -> tuple[Json, str]:
        """A GET; the answer and its ETag."""
        answer, headers = self._send("GET", path, None, {}, "")
        return cast("Json", answer), headers.get("ETag", "")

    def is_denied(self, path: str) -> bool:
        """Whether a GET of this is not for the holder of the key."""
        request = self._http.build_request("GET", path, params={"page_size": 1})
        return self._answered(request, attempts=2).status_code == HTTPStatus.FORBIDDEN

    def items(
        self, path: str, *, at_most: int | None = None, params: Mapping[str, str | int] | None = None
    ) -> list[Json]:
        """A list, all of its pages, or its first items."""
        found: list[Json] = []
        token = ""
        while at_most is None or len(found) < at_most:
            size = PAGE_SIZE if at_most is None else min(PAGE_SIZE, at_most - len(found))
            paging: dict[str, str | int] = {"page_size": size, "page_token": token}
            page = self.call("GET", path, params={**(params or {}), **paging})
            found += cast("list[Json]", page["items"])
            token = str(page["next_page_token"])
            if not token:
                break
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes connections."""
        self._http.close()

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
        params: Mapping[str, str | int],
        if_match: str,
    ) -> tuple[object, httpx.Headers]:
        headers = {"If-Match": if_match} if if_match else {}
        if method == "POST":
            headers["Idempotency-Key"] = uuid.uuid4().hex
        request = self._http.build_request(method, path, json=body, params=params, headers=headers)
        response = self._answered(request, attempts=2 if method in ("GET", "POST") else 1)
        if response.is_success:
            try:
                return (response.json() if response.content else {}), response.headers
            except json.JSONDecodeError:
                fail(f"{self._url} answered with something that is not JSON; is it the admin API?")
        fail(_problem(response))

    def _answered(self, request: httpx.Request, *, attempts: int) -> httpx.Response:
        while True:
            attempts -= 1
            try:
                return self._http.send(request)
            except httpx.TransportError as lost:
                if not attempts or isinstance(lost, httpx.ConnectError):
                    fail(f"{self._url} does not answer: {str(lost) or type(lost).__name__}")


def _problem(response: httpx.Response) -> str:
    try:
        problem: Json = response.json()
        error_id = f", error id {problem['error_id']}" if problem["error_id"] else ""
        return f"{problem['detail']} ({problem['reason']}{error_id})"
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"{response.request.url} answered {response.status_code} {response.reason_phrase}"


def _checked_url(text: str, *, may_be_plain: bool) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as invalid:
        fail(f"--url {text!r} is not a URL: {invalid}", status=EXIT_USAGE)
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        fail("--url is to be http://host:port or https://host:port, without a user", status=EXIT_USAGE)
    if url.scheme == "http" and not may_be_plain and not _is_loopback(url.host):
        fail(
            f"the key would cross the network to {url.host} readable; use https://, or say --allow-plaintext",
            status=EXIT_USAGE,
        )
    return text.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

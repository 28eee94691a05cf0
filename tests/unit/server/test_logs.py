"""Logs: their shape, that nothing secret is in them, and that a flood of refusals cannot fill a disk."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recollect.v1 import memory_pb2 as pb
from recollect_server.domain.credentials import new_token
from recollect_server.domain.telemetry import CallRecord, Telemetry
from recollect_server.observability.access_log import LoggingTelemetry
from recollect_server.observability.fan_out import Telemetries
from recollect_server.observability.line_limit import LineLimit
from recollect_server.observability.logs import JsonLines, Text, configure_logging
from recollect_server.observability.redaction import TEXT_LENGTH_MAX, redacted
from tests.call_records import CALL as ANSWERED

CALL = dataclasses.replace(
    ANSWERED, status="NOT_FOUND", reason="NAMESPACE_NOT_FOUND", total_s=0.0041234, worked_s=None
)
FAILED = dataclasses.replace(CALL, status="INTERNAL", reason="INTERNAL", error_id="e-9")

KEY_ID, SECRET = "0123456789abcdef", "5e" * 32
TOKEN = f"rk_{KEY_ID}_{SECRET}"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Logging belongs to the process: pytest's handlers come back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    disabled = logging.getLogger("uvicorn.access").disabled
    yield
    logging.captureWarnings(False)
    logging.getLogger("uvicorn.access").disabled = disabled
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def lines() -> io.StringIO:
    """Where JSON lines go, of every level."""
    stream = io.StringIO()
    configure_logging("debug", "json", stream=stream)
    return stream


def parsed(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_line_is_one_object_with_the_fields_of_the_call(lines: io.StringIO) -> None:
    """Whoever collects the logs could not find a call by its request id, tenant or error id."""
    LoggingTelemetry().call_ended(CALL)
    (line,) = parsed(lines)
    assert str(line["ts"]).endswith("Z")
    assert datetime.fromisoformat(str(line["ts"])).utcoffset() is not None
    del line["ts"]
    assert line == {
        "level": "info",
        "logger": "recollect.calls",
        "message": "call refused",
        "request_id": "r-1",
        "source": "127.0.0.1",
        "tenant": "acme",
        "key_id": KEY_ID,
        "method": "Attend",
        "transport": "grpc",
        "status": "NOT_FOUND",
        "reason": "NAMESPACE_NOT_FOUND",
        "total_ms": 4.123,
        "wait_ms": 1.0,
    }


def test_defects_are_errors_and_successes_are_quiet(lines: io.StringIO) -> None:
    """A defect would hide among refusals, or each of a million good calls would write a line."""
    telemetry = LoggingTelemetry()
    telemetry.call_ended(FAILED)
    telemetry.call_ended(dataclasses.replace(CALL, status="OK", reason=""))
    telemetry.call_ended(dataclasses.replace(CALL, transport="http", status="204", reason=""))
    telemetry.call_ended(dataclasses.replace(CALL, transport="http", status="401", reason="UNAUTHENTICATED"))
    assert [(line["level"], line["status"]) for line in parsed(lines)] == [
        ("error", "INTERNAL"),
        ("debug", "OK"),
        ("debug", "204"),
        ("info", "401"),
    ]
    assert parsed(lines)[0]["error_id"] == "e-9"


def test_exceptions_are_a_field(lines: io.StringIO) -> None:
    """A traceback would be twenty lines that no collector can put together."""
    try:
        raise ValueError(f"cannot reach redis://:hunter2@redis:6379 with {TOKEN}")
    except ValueError:
        logging.getLogger("recollect_server.x").exception("failed")
    (line,) = parsed(lines)
    assert "Traceback" in str(line["exception"])
    assert f"redis://:***@redis:6379 with rk_{KEY_ID}_***" in str(line["exception"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"key {TOKEN}.", f"key rk_{KEY_ID}_***"),
        (f"'{TOKEN}'", f"'rk_{KEY_ID}_***'"),
        ("rk_short_but-secret,", "rk_short_***,"),
        ("redis://user:p@ss/word@host:1/0", "redis://user:***@host:1/0"),
        ("rediss://:pw@h and http://a:b@c", "rediss://:***@h and http://a:***@c"),
        ("http://127.0.0.1:8080/readyz", "http://127.0.0.1:8080/readyz"),
        (
            "failed to export traces to usr:hunter2@127.0.0.1:4, at",
            "failed to export traces to usr:***@127.0.0.1:4, at",
        ),
        ("['u:p@ss/w@[::1]:4', ':pw@h']", "['u:***@[::1]:4', ':***@h']"),
        ("at 12:30 a@b.c: wrote 3:4 @ 5", "at 12:30 a@b.c: wrote 3:4 @ 5"),
        (f"secret {SECRET}", "secret ***"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        (f"authorization: bearer {TOKEN}", f"authorization: bearer rk_{KEY_ID}_***"),
        ("bad: [[0.25 -1.5], [3. 1e-3 0.5e2 nan inf]]", "bad: [[<numbers>]]"),
        ("took 0.25 s of 1.5 s", "took 0.25 s of 1.5 s"),
    ],
)
def test_what_looks_secret_is_replaced(text: str, expected: str) -> None:
    """A key or password would stand in a log, where many more people read than may use it."""
    assert redacted(text) == expected


def test_arrays_and_messages_are_named_not_shown(lines: io.StringIO) -> None:
    """Keys and values of a tenant's memory would stand in a log."""
    array = np.full((2, 3), 0.123456, np.float32)
    message = pb.AddRequest(namespace="private-name")
    log = logging.getLogger("recollect_server.x")
    log.info("got %s", array)
    log.info("got %s", {"rows": [array.tobytes(), array.tolist()], "all": list(range(100))})
    log.info("got %s", message)
    log.info("got %(message)s", {"message": message})
    log.info(array)
    text = lines.getvalue()
    assert "0.123" not in text
    assert "private-name" not in text
    assert "<ndarray float32 (2, 3)>" in text
    assert "<24 bytes>" in text
    assert "<list of 100>" in text
    assert text.count("<AddRequest>") == 2


@given(
    before=st.text(max_size=40),
    after=st.text(alphabet=st.characters(exclude_categories=("L", "N")), max_size=40),
    length=st.integers(4, 300),
    log_format=st.sampled_from(["json", "text"]),
    place=st.integers(0, 6),
)
def test_no_record_shows_a_key_a_password_or_a_vector(
    before: str, after: str, length: int, log_format: str, place: int
) -> None:
    """Somewhere in a record - message, argument, exception, field - a secret gets through."""
    presented, token = new_token()
    array, vector = np.full(length, 0.7654321, np.float32), [0.7654321] * length
    around = f"{before} {token}{after} redis://u:{presented.secret}@h {array}"
    record = logging.LogRecord("x", logging.INFO, "f", 1, "m", (), None)
    match place:
        case 0:
            record.msg = around.replace("%", "")
        case 1:
            record.msg, record.args = "%s", (around,)
        case 2:
            record.msg, record.args = "%r", ([around, array, array.tobytes(), vector],)
        case 3:
            record.msg, record.args = "%(a)s", ({"a": around, "b": vector},)
        case 4:
            error = ValueError(around, array)
            record.exc_info = (ValueError, error, None)
        case 5:
            record.request_id = around
        case _:
            record.msg, record.args = "does not fit %d", (around,)
    shown = (JsonLines() if log_format == "json" else Text()).format(record)
    assert presented.secret not in shown
    assert "0.7654" not in shown
    assert "\n" not in shown or log_format == "text"


def test_a_long_message_loses_its_middle() -> None:
    """One log line could be as long as a caller's message."""
    shown = redacted("a" + " b" * TEXT_LENGTH_MAX + "c")
    assert len(shown) < TEXT_LENGTH_MAX + 100
    assert shown.startswith("a b")
    assert shown.endswith(" bc")


@pytest.mark.parametrize("before", range(2 * TEXT_LENGTH_MAX - 90, 2 * TEXT_LENGTH_MAX, 7))
def test_no_half_of_a_secret_is_left_where_a_text_is_cut(before: int) -> None:
    """The part of a key before the cut would no longer look like one, and be shown."""
    shown = redacted("1.5 " * (before // 4) + f"redis://u:{TOKEN}@h " + "1.5 " * 10 * TEXT_LENGTH_MAX)
    assert "5e5e" not in shown


@pytest.mark.parametrize(
    "name", ["uvicorn", "uvicorn.error", "grpc", "grpc._cython.cygrpc", "redis", "py.warnings"]
)
def test_libraries_log_the_same_way(name: str) -> None:
    """A library's line would not be JSON, and would show a password that ours would not."""
    logger = logging.getLogger(name)
    stray = io.StringIO()
    logger.addHandler(logging.StreamHandler(stray))
    try:
        stream = io.StringIO()
        configure_logging("info", "json", stream=stream)
        if name == "py.warnings":
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                logging.captureWarnings(True)
                warnings.warn(f"odd {TOKEN}", stacklevel=1)
        else:
            logger.warning("odd %s", TOKEN)
    finally:
        logger.handlers.clear()
    assert any(f"rk_{KEY_ID}_***" in str(line["message"]) for line in parsed(stream))
    assert name == "py.warnings" or SECRET not in stray.getvalue()


def test_text_is_for_people_and_a_caller_cannot_add_lines() -> None:
    """A request id with a line feed would forge a line of the log."""
    stream = io.StringIO()
    configure_logging("info", "text", stream=stream)
    LoggingTelemetry().call_ended(
        dataclasses.replace(CALL, request_id="r\n2026 ERROR forged", method="\x1b[2J" * 1000)
    )
    (line,) = stream.getvalue().splitlines()
    assert "call refused request_id=r\\n2026 ERROR forged source=127.0.0.1 tenant=acme" in line
    assert "\x1b" not in line
    assert len(line) < 2000


def test_a_flood_of_refusals_is_bounded_and_counted(lines: io.StringIO) -> None:
    """An attacker with a loop and a bad key would fill the disk; a quiet defect would drown in it."""
    clock = Clock()
    telemetry = LoggingTelemetry(LineLimit(lines_per_second=3, monotonic=clock))
    for _ in range(1000):
        telemetry.call_ended(CALL)
    telemetry.call_ended(FAILED)
    assert [line["reason"] for line in parsed(lines)] == ["NAMESPACE_NOT_FOUND"] * 3 + ["INTERNAL"]
    clock.now_s += 1.5
    telemetry.call_ended(CALL)
    *_, summary, again = parsed(lines)
    assert (summary["reason"], summary["calls"]) == ("NAMESPACE_NOT_FOUND", 997)
    assert again["message"] == "call refused"
    for _ in range(10):
        telemetry.call_ended(CALL)
    telemetry.flush()
    assert parsed(lines)[-1]["calls"] == 8


@pytest.mark.parametrize("name", ["uvicorn.error", "asyncio"])
def test_strangers_lines_of_libraries_are_bounded_and_counted(name: str) -> None:
    """Whoever can connect fills the disk without a key, by requests that are none."""
    stream, clock = io.StringIO(), Clock()
    limit = LineLimit(lines_per_second=3, monotonic=clock)
    configure_logging("info", "json", stream=stream, limit=limit)
    library = logging.getLogger(name)
    for number in range(1000):
        library.warning("Invalid HTTP request received." if number % 2 else "Exceeded concurrency limit.")
    library.error("Exception in ASGI application")
    assert [line["level"] for line in parsed(stream)] == ["warning"] * 3 + ["error"]
    logging.getLogger("recollect_server.x").warning("of the server itself")
    clock.now_s += 1.5
    LoggingTelemetry(limit).call_ended(CALL)
    *_, own, summary, refused = parsed(stream)
    assert own["message"] == "of the server itself"
    assert (summary["level"], summary["reason"], summary["calls"]) == ("warning", f"{name} warning", 997)
    assert refused["message"] == "call refused"


def test_reasons_of_all_kinds_are_bounded_too(lines: io.StringIO) -> None:
    """The bound by reason would be none if reasons were without number."""
    telemetry = LoggingTelemetry(LineLimit(monotonic=Clock()))
    for number in range(1000):
        telemetry.call_ended(dataclasses.replace(CALL, reason=f"R{number}"))
    assert len(parsed(lines)) < 100


def test_evictions_and_fallbacks_have_lines(lines: io.StringIO) -> None:
    """A server that lives on its cache would not say so in its log."""
    telemetry = LoggingTelemetry()
    telemetry.evicted("acme", 3, cause="capacity")
    telemetry.fell_back("registry-cache")
    evicted, fell_back = parsed(lines)
    assert (evicted["level"], evicted["tenant"]) == ("debug", "acme")
    assert (fell_back["level"], fell_back["message"]) == ("warning", "fell back: registry-cache")


def test_what_one_telemetry_raises_reaches_nobody(lines: io.StringIO) -> None:
    """A defect in metrics would fail calls that had succeeded, and silence the log."""

    class Broken:
        """Raises whatever it is told."""

        def call_ended(self, call: CallRecord) -> None:
            raise RuntimeError("a defect")

        def evicted(self, tenant: str, entries: int, *, cause: str) -> None:
            raise RuntimeError("a defect")

        def fell_back(self, kind: str) -> None:
            raise RuntimeError("a defect")

        def recall_sampled(self, tenant: str, recall: float, *, queries: int) -> None:
            raise RuntimeError("a defect")

    telemetries: Telemetry = Telemetries([Broken(), LoggingTelemetry()])
    for _ in range(5):
        telemetries.call_ended(CALL)
    telemetries.evicted("acme", 1, cause="request")
    telemetries.recall_sampled("acme", 0.9, queries=1)
    telemetries.fell_back("device-cpu")
    messages = [str(line["message"]) for line in parsed(lines)]
    assert sum(message.startswith("Broken failed") for message in messages) == 1
    assert messages.count("call refused") == 5
    assert "fell back: device-cpu" in messages

"""Totals that are kept instead of added up."""

from __future__ import annotations

from recollect_server.domain.usage import Usage


def test_changes_reach_all_above_and_none_beside() -> None:
    """A tenant is charged for another's entries, or the server's total misses some."""
    server = Usage()
    one, other = Usage(server), Usage(server)
    namespace = Usage(one)
    namespace.change(allocated_bytes=100, entries=3, streams=1)
    other.change(allocated_bytes=7)
    namespace.change(allocated_bytes=-40, entries=-1)
    assert [(u.bytes, u.entries, u.streams) for u in (namespace, one, other, server)] == [
        (60, 2, 1),
        (60, 2, 1),
        (7, 0, 0),
        (67, 2, 1),
    ]

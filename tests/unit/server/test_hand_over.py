"""The socket for regions shares its folder with others' files, and its path with servers before and after."""

from __future__ import annotations

import asyncio
from pathlib import Path

from recollect_server.domain.limits import Limits
from recollect_server.rpc.hand_over import SUFFIX, HandOver
from recollect_server.rpc.regions import Regions


def hand_over_at(path: Path) -> HandOver:
    """One with regions of its own."""
    return HandOver(Regions(Limits()), str(path), mode=0o600)


async def served(path: Path) -> bool:
    """Whether somebody listens there."""
    try:
        _, writer = await asyncio.open_unix_connection(f"{path}{SUFFIX}")
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    """A server deletes somebody's file, or does not start because of his folder."""
    file, folder = Path(f"{tmp_path}/a{SUFFIX}"), Path(f"{tmp_path}/b{SUFFIX}")
    file.write_text("precious")
    folder.mkdir()
    for name in ("a", "b"):
        hand_over = hand_over_at(tmp_path / name)
        hand_over.start()
        await hand_over.stop()
    assert file.read_text() == "precious"
    assert folder.is_dir()


async def test_a_socket_that_was_cleaned_away_is_no_error(tmp_path: Path) -> None:
    """A server whose socket somebody removed ends with an error before it has closed what else there is."""
    hand_over = hand_over_at(tmp_path / "s")
    hand_over.start()
    Path(f"{tmp_path}/s{SUFFIX}").unlink()
    await hand_over.stop()


async def test_the_socket_of_the_next_server_stays(tmp_path: Path) -> None:
    """A server that ends takes the socket of the one that has followed it: its callers share nothing."""
    before, after = hand_over_at(tmp_path / "s"), hand_over_at(tmp_path / "s")
    before.start()
    after.start()
    await before.stop()
    assert await served(tmp_path / "s")
    await after.stop()
    assert not Path(f"{tmp_path}/s{SUFFIX}").exists()

"""A volume of a group that cannot be read is that volume's loss: the others have their T0 and are committed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from proof.load import Load, build
from timezero.jobs.backup import PartialBackupError, backup
from timezero.jobs.moving import Moving
from timezero.jobs.options import SessionOptions
from timezero.repository import Repository

SIZE = 8 << 20


def test_the_others_are_committed(serve: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {name: tmp_path / f"{name}.img" for name in ("good", "bad")}
    for image in images.values():
        image.write_bytes(os.urandom(SIZE))
    served = serve(images)
    load = Load(build(tmp_path), Path(served.nbd_socket), "bad", 1, SIZE, tmp_path, connections=1, seconds=30)
    load.options = {"from": SIZE // 2, "rate": 50}
    run = Moving.run

    def run_and_update(self: Moving, watch: Callable[[int], None]) -> None:
        """The second half of the bad volume goes away behind the server's back; an update of it then punctures
        the session there, for its before-image cannot be read."""
        os.truncate(images["bad"], SIZE // 2)
        run(self, watch)
        load.seconds = 0.2
        load.start()
        load.processes[0].wait(60)

    monkeypatch.setattr(Moving, "run", run_and_update)
    try:
        with pytest.raises(PartialBackupError, match="bad") as caught:
            backup(str(tmp_path / "repository"), ["good", "bad"], session=SessionOptions(control=served.control))
        load.stop()
    finally:
        load.kill()
    assert [dataset.name for dataset in caught.value.result.manifest.datasets] == ["good"]
    assert Repository(str(tmp_path / "repository")).ids() == [caught.value.result.id]
    assert "bad punctured (read)" in served.stderr()

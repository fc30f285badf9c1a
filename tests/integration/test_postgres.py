"""PostgreSQL on two served volumes, its data on one and its log on the other: a group backup without any help from it.

See proof/postgres.py for what is proved; T0 falls at a random moment of each round's load.
"""

from __future__ import annotations

import random

import pytest

from proof.postgres import world

ROUNDS = 10
SECONDS = 3


@pytest.mark.timeout(600)
def test_no_acknowledged_commit_is_lost(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("postgres")
    for parent in folder.parents[:2]:  # the database's user walks through them
        parent.chmod(0o755)
    intercepted = 0
    with world(folder, scale=2) as here:
        for number in range(ROUNDS):
            backup, commits, faults = here.round(number, SECONDS, random.uniform(0.2, SECONDS - 1.0))
            assert not faults, (number, faults)
            assert commits > 10
            assert [dataset["method_used"] for dataset in backup["datasets"]] == ["session", "session"]
            intercepted += sum(dataset["intercepted"] for dataset in backup["datasets"])
        assert intercepted > 0
        # The judge sees what is missing: commits after T0 are not in the backup.
        _, _, faults = here.round(ROUNDS, SECONDS, 0.5, late_s=1.5)
        assert any("is gone" in fault for fault in faults)

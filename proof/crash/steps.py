"""Every crash point there is, and what has to come of a death there. A test compares this list with the sources."""

from __future__ import annotations

from typing import NamedTuple

MOVER, SUBSYSTEM, BOTH = "mover", "subsystem", "both"
WHO = (MOVER, SUBSYSTEM, BOTH)


class Step(NamedTuple):
    """A step. at: whose it is. passes: the pass of the point at which it is this step.

    stays: after whose death the result (recovery point, image) is there all the same. There is no result otherwise.
    """

    point: str
    passes: int
    at: str
    what: str
    stays: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As TIMEZERO_CRASH_AT takes it."""
        return f"{self.point}:{self.passes}"


#: Of a backup of a served volume into a repository that it makes. In the order in which a session passes them.
BACKUP = (
    Step("session.prepare", 1, SUBSYSTEM, "prepare begins"),
    Step("session.tier", 1, SUBSYSTEM, "file tier reserved"),
    Step("session.memory", 1, SUBSYSTEM, "memory made and locked"),
    Step("mover.prepared", 1, MOVER, "session prepared"),
    Step("file.written", 1, MOVER, "repository.json written, not durable"),
    Step("document.synced", 1, MOVER, "repository.json durable, without its name"),
    Step("name.linked", 1, MOVER, "repository.json named, its temporary name there"),
    Step("document.named", 1, MOVER, "repository.json named, its directory not durable"),
    Step("repository.made", 1, MOVER, "repository made, its parent not durable"),
    Step("point.directory", 1, MOVER, "the point's directory made, no lock"),
    Step("point.locked", 1, MOVER, "the point's lock taken"),
    Step("mover.ready", 1, MOVER, "all is allocated, before the suspension"),
    Step("gate.closed", 1, SUBSYSTEM, "gate closed"),
    Step("gate.drained", 1, SUBSYSTEM, "drained"),
    Step("gate.installed", 1, SUBSYSTEM, "session installed: T0"),
    Step("gate.opened", 1, SUBSYSTEM, "gate open again"),
    Step("mover.suspended", 1, MOVER, "after the suspension"),
    Step("image.read", 1, SUBSYSTEM, "before-image read"),
    Step("image.published", 1, SUBSYSTEM, "before-image published, in memory"),
    Step("image.written", 1, SUBSYSTEM, "before-image in the file tier, not published"),
    Step("image.published", 60, SUBSYSTEM, "before-image published, in the file tier"),
    Step("update.issued", 1, SUBSYSTEM, "held update issued"),
    Step("update.done", 1, SUBSYSTEM, "update done, not acknowledged"),
    Step("chunk.read", 1, MOVER, "first chunk read"),
    Step("chunk.copied", 1, MOVER, "copied set"),
    Step("pack.written", 1, MOVER, "first chunk written"),
    Step("slot.pushed", 1, MOVER, "slot given back, not announced"),
    Step("slot.freed", 1, SUBSYSTEM, "slot freed"),
    Step("chunk.copied", 40, MOVER, "copied set, half-way"),
    Step("update.issued", 60, SUBSYSTEM, "held update issued, half-way"),
    Step("pack.written", 60, MOVER, "chunk written, half-way"),
    Step("mover.moved", 1, MOVER, "all is moved, before the end is asked for"),
    Step("session.over", 1, SUBSYSTEM, "session ended intact, not answered"),
    Step("mover.ended", 1, MOVER, "the end is answered: intact", (SUBSYSTEM,)),
    Step("packs.synced", 1, MOVER, "packs durable", (SUBSYSTEM,)),
    Step("file.written", 2, MOVER, "index written, not durable", (SUBSYSTEM,)),
    Step("index.written", 1, MOVER, "index durable", (SUBSYSTEM,)),
    Step("directories.synced", 1, MOVER, "directories durable", (SUBSYSTEM,)),
    Step("file.written", 3, MOVER, "manifest written, not durable", (SUBSYSTEM,)),
    Step("document.synced", 2, MOVER, "manifest durable, without its name", (SUBSYSTEM,)),
    Step("name.linked", 2, MOVER, "manifest named, its temporary name there", WHO),
    Step("document.named", 2, MOVER, "manifest named, its directory not durable", WHO),
    Step("point.committed", 1, MOVER, "committed, lock not given back", WHO),
)

#: Of a copy of a served volume over a file that is there.
COPY = (
    Step("target.written", 1, MOVER, "image written, not durable", (SUBSYSTEM,)),
    Step("target.synced", 1, MOVER, "image durable, without a name", (SUBSYSTEM,)),
    Step("target.linked", 1, MOVER, "image under a temporary name", (SUBSYSTEM,)),
    Step("target.named", 1, MOVER, "image named, its directory not durable", WHO),
)

#: The same of a restore, which nobody serves.
RESTORE = tuple(step._replace(stays=(MOVER,) if MOVER in step.stays else ()) for step in COPY)

#: Of a restore with --delta over an image that is there: it is changed where it is.
DELTA = (
    Step("place.aligned", 1, MOVER, "its size aligned, nothing written"),
    Step("target.stored", 1, MOVER, "first chunk written"),
    Step("target.stored", 60, MOVER, "chunk written, half-way"),
    Step("place.written", 1, MOVER, "all is written", (MOVER,)),
    Step("place.synced", 1, MOVER, "all is durable", (MOVER,)),
)

#: Of a restore with --resume: what is there of the image stays, and the next one goes on with it.
RESUME = (*DELTA[1:3], *RESTORE)

#: Of a restore of files to a directory in which some of them are, with --force. They need root, for the backup.
TREE = (
    Step("target.stored", 12, MOVER, "content of some files written"),
    Step("tree.moved", 1, MOVER, "all content written, not durable"),
    Step("tree.synced", 1, MOVER, "files durable, without names"),
    Step("target.linked", 1, MOVER, "a file under a temporary name"),
    Step("tree.named", 1, MOVER, "first file named"),
    Step("tree.named", 12, MOVER, "half of the files named"),
    Step("tree.durable", 1, MOVER, "all names durable", (MOVER,)),
)

#: Of a backup of two served volumes with one T0: where the one is further than the other, and what decides for both.
PAIR = (
    Step("session.memory", 2, SUBSYSTEM, "memory of the second session made"),
    Step("gate.closed", 1, SUBSYSTEM, "one gate closed"),
    Step("gate.closed", 2, SUBSYSTEM, "both gates closed"),
    Step("gate.installed", 1, SUBSYSTEM, "one session installed"),
    Step("gate.installed", 2, SUBSYSTEM, "both sessions installed: T0"),
    Step("gate.opened", 1, SUBSYSTEM, "one gate open again"),
    Step("mover.suspended", 1, MOVER, "after the suspension"),
    Step("chunk.copied", 40, MOVER, "copied set, on the way"),
    Step("session.over", 1, SUBSYSTEM, "one session ended intact, not answered"),
    Step("session.over", 2, SUBSYSTEM, "both sessions ended intact, not answered"),
    Step("mover.ended", 1, MOVER, "the end is answered: intact", (SUBSYSTEM,)),
    Step("name.linked", 2, MOVER, "manifest named, its temporary name there", WHO),
)

#: Of a backup whose sidefile is too small.
PUNCTURE = (Step("session.punctured", 1, SUBSYSTEM, "session punctured, held updates not issued"),)

#: Of a prune that removes one of two recovery points, and sweeps what a dead backup left.
PRUNE = (
    Step("prune.manifest", 1, MOVER, "manifest removed, not durably"),
    Step("prune.packs", 1, MOVER, "before the packs go"),
    Step("prune.pack", 1, MOVER, "a pack gone"),
    Step("prune.directories", 1, MOVER, "packs gone, directories there"),
)

#: Of a backup of a file on a served volume: its file system is frozen at these. They need root.
FILES = (
    Step("files.frozen", 1, MOVER, "file system frozen, before T0"),
    Step("files.secured", 1, MOVER, "T0 secured, before the thaw"),
)

ALL = (*BACKUP, *COPY, *RESTORE, *DELTA, *RESUME, *TREE, *PAIR, *PUNCTURE, *PRUNE, *FILES)

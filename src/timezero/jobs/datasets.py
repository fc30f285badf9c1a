"""What the user named, resolved: served volumes by name, sources at rest by path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from timezero.errors import UsageError
from timezero.repository.names import dataset_name_problem

if TYPE_CHECKING:
    from timezero.concordance.selection import Selection


class Designated(NamedTuple):
    """A dataset to be copied or backed up: `path` is None for a served volume."""

    name: str
    path: str | None


def designate(text: str) -> Designated:
    """The dataset that `text` means: the path of something that exists, NAME=PATH, or the name of a served volume.

    A name that is also a path in the current directory means the path. Text with a slash in it is always a path.
    Raises UsageError.
    """
    name, path = text, None
    if os.path.lexists(text):
        name, path = os.path.basename(os.path.abspath(text)), text
    elif "=" in text and text.partition("=")[0] and "/" not in text.partition("=")[0]:
        name, _, path = text.partition("=")
        if not path:
            raise UsageError(f"{text!r}: NAME=PATH lacks its path")
    elif "/" in text:
        name, path = os.path.basename(os.path.abspath(text)), text
    if (problem := dataset_name_problem(name)) is not None:
        raise UsageError(f"{text!r} cannot name a dataset: {problem}")
    return Designated(name, path)


def split_files(texts: Sequence[str]) -> tuple[list[str], list[Selection]]:
    """Texts that mean files on served volumes, VOLUME:/path, apart from the rest. Raises UsageError.

    A text that is also a path means the path.
    """
    if not any(":/" in text for text in texts):
        return list(texts), []
    from timezero.concordance import selection

    files = [text for text in texts if selection.is_selection(text) and not os.path.lexists(text)]
    return [text for text in texts if text not in files], [selection.parse(text) for text in files]


def designate_all(texts: Sequence[str]) -> list[Designated]:
    """The datasets that `texts` mean, each name once. Raises UsageError."""
    found = [designate(text) for text in texts]
    names = [dataset.name for dataset in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two datasets are called {name!r}: call one of them otherwise, NAME=PATH")
    return found

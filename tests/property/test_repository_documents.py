"""Whatever happens to a document or an index, it is read back exactly or refused; never something in between."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timezero.errors import VerificationError
from timezero.repository import documents, index, names

texts = st.text(st.characters(codec=None), max_size=20)
members = st.dictionaries(
    texts.filter(lambda key: key != "digest"), st.integers(0, 2**63 - 1) | texts | st.booleans(), max_size=6
)


@given(members)
def test_documents_round_trip(fields: dict[str, int | str | bool]) -> None:
    parsed = documents.parse(documents.render({"format": 1, **fields}), "here")
    for key, value in fields.items():
        if isinstance(value, bool):
            assert parsed.flag(key) is value
        elif isinstance(value, int):
            assert parsed.integer(key) == value
        else:
            assert parsed.text(key) == value


@given(members, st.data())
def test_every_byte_of_a_document_counts(fields: dict[str, int | str | bool], data: st.DataObject) -> None:
    content = bytearray(documents.render({"format": 1, **fields}))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(VerificationError):
        documents.parse(bytes(content), "here")


@given(st.binary(max_size=300))
def test_noise_is_no_document(content: bytes) -> None:
    with pytest.raises(VerificationError):
        documents.parse(content, "here")


@given(st.integers(0, 40 << 16), st.sampled_from([1 << 12, 1 << 16, 1 << 20]), st.data())
def test_every_byte_of_an_index_counts(size: int, chunk: int, data: st.DataObject) -> None:
    header = index.IndexHeader(chunk, size)
    entries = bytes(n % 251 for n in range(header.chunks * index.ENTRY_BYTES))
    digest = index.digest(header, entries)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.idx")
        path.write_bytes(header.encode() + entries)
        assert index.read(str(path), header, digest) == entries
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        with pytest.raises(VerificationError):
            index.read(str(path), header, digest)


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=300), st.text(st.characters(codec="utf-8"), min_size=1)
)
def test_names_in_paths(name: str, other: str) -> None:
    for text in map(names.encode_component, (name, other)):
        assert "/" not in text and not text.startswith(".") and len(text) <= 210 and text.isascii()
    assert (names.encode_component(name) == names.encode_component(other)) == (name == other)
    encoded = names.encode_component(name)
    assert names.decode_component(encoded) == (encoded if "~" in encoded else name)

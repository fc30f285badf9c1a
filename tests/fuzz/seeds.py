"""Write the first inputs of a C fuzz target: python3 seeds.py TARGET DIRECTORY. Each is what a good peer would do."""

import pathlib
import random
import struct
import sys

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = (1 << bit for bit in range(5))


def request(command: int, offset: int = 0, length: int = 0, flags: int = 0, payload: bytes = b"") -> bytes:
    """One request message; the cookie is made of its fields, so that no two are alike."""
    cookie = ((command << 56) ^ (offset << 16) ^ length) % (1 << 64)
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + payload


def write(offset: int, length: int, flags: int = 0) -> bytes:
    """A write of `length` bytes with its payload."""
    return request(WRITE, offset, length, flags, bytes(i & 0xFF for i in range(length)))


CONVERSATIONS = {
    "read": request(READ, 0, 4096) + request(READ, 511, 1026) + request(DISC),
    "write": write(0, 512) + write(4095, 2, FUA) + request(FLUSH) + request(READ, 0, 4096),
    "large": write(1000, 40000) + request(READ, 1000, 40000),
    "zero": write(0, 8192)
    + request(ZEROES, 100, 5000)
    + request(ZEROES, 0, 65536, NO_HOLE | FUA)
    + request(ZEROES, 0, 4096, FAST_ZERO),
    "trim": write(0, 8192) + request(TRIM, 4096, 4096, FUA) + request(TRIM, 1, 70000) + request(CACHE, 0, 8192),
    "status": write(65536, 4096) + request(STATUS, 0, 197608) + request(STATUS, 65536, 100, REQ_ONE),
    "refused": request(READ, 1 << 63, 16)
    + write(197600, 100)
    + request(9, 0, 0)
    + request(READ, 0, 16, 0x8000)
    + request(READ, 0, 40 << 20, DF),
    "oversized": request(WRITE, 0, (32 << 20) + 1),
    "cut": write(0, 3000)[:-1],
    "out-of-step": write(0, 512)[1:],
}


def nbd() -> dict[str, bytes]:
    """Each conversation under several terms."""
    terms = ((0, 7, 0), (3, 7, 0), (11, 0, 0), (7, 2, 9), (8, 1, 5))
    return {f"{name}-{t[0]}": bytes(t) + stream for name, stream in CONVERSATIONS.items() for t in terms}


def index() -> dict[str, bytes]:
    """Datasets of raw and zero chunks in one and two packs, whole and short, and with one field wrong each."""

    def entry(offset: int, pack: int, length: int, codec: int = 0, origin: int = 0) -> bytes:
        return struct.pack("<QIIBB6x16xQ", offset, pack, length, codec, origin, 0)

    zero, data = entry(0, 0, 0, 1), random.Random(1).randbytes(9000)
    raw = [entry(0, 7, 4096), zero, entry(4096, 9, 4096, origin=2), entry(4096, 7, 100, origin=1)]
    found = {}
    for name, entries in {
        "good": raw,
        "far": [entry(1 << 40, 7, 4096), *raw[1:]],
        "unknown-pack": [entry(0, 3, 4096), *raw[1:]],
        "codec": [entry(0, 7, 4096, 2), *raw[1:]],
        "zero-somewhere": [entry(4096, 0, 0, 1), *raw[1:]],
        "long": [entry(0, 7, 8192), *raw[1:]],
    }.items():
        for terms in (0, 1, 3, 5):
            head = struct.pack("<BBBBI", 0, 2, terms, 0, 3 * 4096 + 100)
            found[f"{name}-{terms}"] = head + bytes((7, 9)) + b"".join(entries) + data
    return found


def session() -> dict[str, bytes]:
    """Untouched, and with one thing changed before or after the mapping each."""
    found = {f"good-{terms}": bytes((4, 4, terms, 0)) for terms in (0, 1, 2)}
    for word in range(48):  # the header
        for before in (0, 1):
            found[f"header-{word}-{before}"] = bytes((4, 3, word & 1, before)) + struct.pack("<HI", word, 0x40000001)
    for what in (0, 1, 7, 0xFFFFFFFF):
        for word in (0, 2, 64, 256, 1024, 1025, 1026):
            found[f"shared-{word}-{what}"] = bytes((4, 3, 0, 0)) + struct.pack("<HI", 0x8000 | word, what)
    return found


def gate() -> dict[str, bytes]:
    """Random operations, from quiet to busy."""
    found = {}
    for seed in range(24):
        numbers = random.Random(seed)
        found[f"random-{seed}"] = numbers.randbytes(4 + 12 * seed + 20)
    return found


def main() -> None:
    """TARGET DIRECTORY."""
    target, directory = sys.argv[1], pathlib.Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in {"nbd": nbd, "index": index, "session": session, "gate": gate}[target]().items():
        (directory / name).write_bytes(content)


if __name__ == "__main__":
    main()

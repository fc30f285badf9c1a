"""Write the seed corpus of fuzz_nbd: python3 seeds.py DIRECTORY. Each file is a conversation of a good client."""

import pathlib
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


def main() -> None:
    """Each conversation under several terms."""
    directory = pathlib.Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, stream in CONVERSATIONS.items():
        for terms, requests, cut in ((0, 7, 0), (3, 7, 0), (11, 0, 0), (7, 2, 9), (8, 1, 5)):
            (directory / f"{name}-{terms}").write_bytes(bytes((terms, requests, cut)) + stream)


if __name__ == "__main__":
    main()

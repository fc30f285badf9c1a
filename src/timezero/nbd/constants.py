"""Numbers of the NBD handshake (doc/proto.md), and this server's own limits."""

from __future__ import annotations

from enum import IntEnum, IntFlag

NBD_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
REPLY_MAGIC = 0x0003E889045565A9

DEFAULT_PORT = 10809
NAME_BYTES_MAX = 4096  # of every string, says the protocol
MAX_PAYLOAD = 32 << 20  # bytes; tz/nbd.h: TZ_NBD_MAX_PAYLOAD
PREFERRED_BLOCK = 4096

BASE_ALLOCATION = "base:allocation"
BASE_ALLOCATION_ID = 1


class HandshakeFlag(IntFlag):
    """Server and client flags have the same values."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Reply(IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_TOO_BIG = 0x80000009


class Info(IntEnum):
    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


FLAG_SEND_DF = 1 << 7  # transmission flag that must be clear without structured replies

"""NBD as a server speaks it before the transmission phase: the handshake, endpoints, the accept loop.

Source: NetworkBlockDevice/nbd, doc/proto.md and doc/uri.md.
"""

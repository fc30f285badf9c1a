"""The integration tests' server, for tests that break things."""

from tests.integration.conftest import serve

__all__ = ["serve"]

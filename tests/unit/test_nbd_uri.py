import pytest
from hypothesis import given
from hypothesis import strategies as st

from timezero.errors import UsageError
from timezero.nbd.uri import Endpoint, parse


@pytest.mark.parametrize(
    ("uri", "endpoint"),
    [
        ("nbd+unix:///?socket=/run/a.sock", Endpoint(socket="/run/a.sock")),
        ("nbd+unix:///disk?socket=a%20b", Endpoint(socket="a b", name="disk")),
        ("nbd+unix://?socket=/s", Endpoint(socket="/s")),
        ("nbd://127.0.0.1", Endpoint(host="127.0.0.1")),
        ("nbd://127.0.0.1:1234/", Endpoint(host="127.0.0.1", port=1234)),
        ("nbd://[::1]:0/x", Endpoint(host="::1", port=0, name="x")),
        ("nbd://localhost//hello%20world", Endpoint(host="localhost", name="/hello world")),
    ],
)
def test_parse(uri, endpoint):
    assert parse(uri) == endpoint


@pytest.mark.parametrize(
    "uri",
    [
        "", "disk", "http://x", "nbds://x", "nbds+unix:///?socket=/s", "nbd://", "nbd:///x", "nbd://host:port",
        "nbd://host:99999", "nbd://u@host", "nbd://host?socket=/s", "nbd+unix:///", "nbd+unix:///?socket=",
        "nbd+unix:///?socket=/a&socket=/b", "nbd+unix:///?socket=/a&tls-type=psk", "nbd+unix://host/?socket=/a",
        "nbd+unix:///?socket=%00abstract", "nbd+unix:///?x", "nbd://h/#f", "nbd://h/%ff", "nbd+unix:///?socket=%ff",
    ],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused_in_one_line(uri):
    with pytest.raises(UsageError) as error:
        parse(uri)
    assert "\n" not in str(error.value)


text = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=30)


@given(text, text)
def test_a_unix_endpoint_survives_its_uri(socket, name):
    assert parse(Endpoint(socket=socket).uri(name)) == Endpoint(socket=socket, name=name)


@given(st.ip_addresses(), st.integers(0, 65535), text)
def test_a_tcp_endpoint_survives_its_uri(host, port, name):
    assert parse(Endpoint(host=str(host), port=port).uri(name)) == Endpoint(host=str(host), port=port, name=name)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.0.2.1", False), ("example.org", False)],
)  # fmt: skip
def test_loopback(host, loopback):
    assert Endpoint(host=host).loopback is loopback

"""URLs that may be fetched, and addresses that may be dialled."""

import ipaddress

import pytest

from gateway.media.urls import Url, UrlPolicy, is_public, parse_url, redirect
from tessera.errors import InvalidArgument, PermissionDenied


def test_a_plain_url_is_parsed() -> None:
    """Scheme and host in lower case, the scheme's port, the fragment left out."""
    assert parse_url("HTTPS://Example.COM/a?b=1#c") == Url("https", "example.com", 443, "/a?b=1")
    assert parse_url("http://example.com:8080?q") == Url("http", "example.com", 8080, "/?q")
    assert parse_url("http://[2001:DB8::1]/x").authority == "[2001:db8::1]"


@pytest.mark.parametrize(
    "text",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "//example.com/",
        "http://user@example.com/",
        "http://user:word@example.com/",
        "http://example.com\\@internal/",
        "http:\\\\example.com/",
        "http://exam\tple.com/",
        "http://example.com/\n",
        " http://example.com/",
        "http://example.com./",
        "http://.example.com/",
        "http://exa%6dple.com/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com:/",
        "http://exämple.com/",
        "http:///path",
        "http://",
        "http://[::1",
        "http://[::1%25lo]/",
        "http://example.com/" + "a" * 9000,
    ],
)
def test_what_two_parsers_could_read_differently_is_refused(text: str) -> None:
    """No guess is made."""
    with pytest.raises(InvalidArgument) as caught:
        parse_url(text)
    assert caught.value.reason == "URL_INVALID"


def test_hosts_are_off_by_default() -> None:
    """Without a list no host is allowed."""
    with pytest.raises(PermissionDenied):
        UrlPolicy().check_host(parse_url("https://example.com/"))


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://example.com/", True),
        ("http://example.com/", True),
        ("https://example.com:8443/", False),
        ("https://www.example.com/", False),
        ("https://example.com.evil.org/", False),
        ("https://a.cdn.org/", True),
        ("https://a.b.cdn.org/", True),
        ("https://cdn.org/", False),
        ("https://xcdn.org/", False),
        ("http://store:9000/", True),
        ("http://store/", False),
    ],
)
def test_only_listed_hosts_pass(url: str, allowed: bool) -> None:
    """Names match whole; a star stands for what is below a domain; other ports are named."""
    policy = UrlPolicy(["Example.com", "*.cdn.org", "store:9000"])
    if allowed:
        policy.check_host(parse_url(url))
    else:
        with pytest.raises(PermissionDenied):
            policy.check_host(parse_url(url))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.0.8",
        "192.88.99.1",
        "240.0.0.1",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "fe80::1",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:0:1::1",
        "2001:db8::1",
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    """In each spelling and behind each tunnel."""
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(PermissionDenied):
        UrlPolicy(["h"]).check_addresses(["93.184.215.14", address])


def test_public_addresses_pass() -> None:
    """Both families; a mapped public address is public."""
    for text in ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"):
        assert is_public(ipaddress.ip_address(text))


def test_an_internal_network_can_be_allowed() -> None:
    """By the operator alone, and no other with it."""
    policy = UrlPolicy(["store:9000"], ["10.1.0.0/16"])
    policy.check_addresses(["10.1.2.3"])
    with pytest.raises(PermissionDenied):
        policy.check_addresses(["10.2.0.1"])


def test_redirects_stay_plain() -> None:
    """A path stays on the server; https does not fall to http; other forms are refused."""
    base = parse_url("https://example.com:8443/a")
    assert redirect(base, "/b?c") == Url("https", "example.com", 8443, "/b?c")
    assert redirect(base, "https://other.org/") == Url("https", "other.org", 443, "/")
    for location in ("http://example.com/", "//other.org/", "b", "", "javascript:1"):
        with pytest.raises(InvalidArgument):
            redirect(base, location)

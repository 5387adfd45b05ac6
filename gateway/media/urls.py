"""Which http(s) URLs may be fetched, and which addresses may be dialled. The only URL parser of the gateway.

What two parsers could read differently (backslash, user info, tab, control characters, a trailing dot, percent signs
in the host) is refused instead of interpreted.

Next: gateway/media/download.py
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tessera.errors import InvalidArgument, PermissionDenied

MAX_URL_CHARS = 8192
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>(?:[/?][^#]*)?)(?:#.*)?",
    re.IGNORECASE,
)
_PRINTABLE = re.compile(r"[!-\[\]-~]+")  # ASCII without space and backslash
_PORTS = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Beside what Python calls not global: what carries an IPv4 address inside or leads to one, and protocol assignments.
_TUNNELS = tuple(
    ipaddress.ip_network(text)
    for text in (
        "::/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
        "fec0::/10",
        "192.88.99.0/24",
        "192.0.0.0/24",
    )
)


@dataclass(frozen=True)
class Url:
    """A parsed http(s) URL.

    Attributes:
        scheme: "http" or "https".
        host: Lower case; an IPv6 address without brackets.
        port: The URL's, or the scheme's own.
        target: Path and query, at least "/".
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(text: str) -> Url:
    """Parse an absolute http(s) URL.

    Raises:
        InvalidArgument: URL_INVALID.
    """
    match = _URL.fullmatch(text) if len(text) <= MAX_URL_CHARS and _PRINTABLE.fullmatch(text) else None
    port = int(match["port"]) if match and match["port"] else None
    if match is None or port == 0 or (port or 0) > 65535:
        raise InvalidArgument(
            "The URL is not a plain http or https URL (no user info, backslash, blank or trailing dot).",
            reason="URL_INVALID",
        )
    scheme, target = match["scheme"].lower(), match["target"]
    return Url(
        scheme,
        match["host"].strip("[]").lower(),
        _PORTS[scheme] if port is None else port,
        target if target.startswith("/") else "/" + target,
    )


def redirect(base: Url, location: str) -> Url:
    """Where a redirect leads: an absolute URL, or a path on the same server.

    Raises:
        InvalidArgument: URL_INVALID, or URL_REDIRECT for a step from https to http.
    """
    if location.startswith("/") and not location.startswith("//"):
        location = f"{base.scheme}://{base.authority}{location}"
    url = parse_url(location)
    if base.scheme == "https" and url.scheme == "http":
        raise InvalidArgument("The URL redirects from https to http.", reason="URL_REDIRECT")
    return url


class UrlPolicy:
    """What the operator allows.

    Args:
        hosts: "host" (ports 80 and 443), "host:port", or "*.domain" for every host below it; none = no URL at all.
        networks: Networks that are dialled though they are not public, such as an internal store's.
    """

    def __init__(self, hosts: Sequence[str] = (), networks: Sequence[str] = ()) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)

    def check_host(self, url: Url) -> None:
        """Refuse a URL whose host and port are not on the list.

        Raises:
            PermissionDenied: URL_FORBIDDEN.
        """
        names = {url.host}
        names |= {"*." + url.host.split(".", n)[n] for n in range(1, url.host.count(".") + 1)}
        plain = url.port in _PORTS.values() and names & self._hosts
        if not plain and not {f"{name}:{url.port}" for name in names} & self._hosts:
            raise PermissionDenied("The server does not fetch from this host.", reason="URL_FORBIDDEN")

    def check_addresses(self, addresses: Sequence[str]) -> None:
        """Refuse a host of which one address is not public.

        Raises:
            PermissionDenied: URL_FORBIDDEN.
        """
        for text in addresses:
            address = ipaddress.ip_address(text.partition("%")[0])
            if not is_public(address) and not any(address in network for network in self._networks):
                # The same words as for a forbidden host: the answer must not tell where a name leads.
                raise PermissionDenied("The server does not fetch from this host.", reason="URL_FORBIDDEN")


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet, in whichever spelling."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if any(address in network for network in _TUNNELS if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved

"""Whom a sandbox may reach: the hosts of `network: [pypi.org, …]`, and what an address is.

In: entries as people write them, hosts as a program in the sandbox spells them, addresses that a name leads to. Out: a
verdict; a refusal is one sentence that says which rule, and how to allow it. No I/O: resolving and connecting are left
to proxy.py.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

Address = IPv4Address | IPv6Address
Host = str | Address
"""A name in lower case, without a dot at its end; or an address, IPv4 where it is one in IPv6's clothes."""
USUAL_PORTS = frozenset({80, 443})
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label that resolvers take for a part of an IPv4 address, in decimal, octal or hexadecimal."""
SHOWN = 100
"""Characters of what a program asked for that go into an answer."""

_WELL_KNOWN_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_CLOSED: tuple[tuple[str, str], ...] = (
    ("169.254.169.254/32", "the metadata address of clouds"),
    ("168.63.129.16/32", "the metadata address of Azure"),
    ("100.100.100.200/32", "the metadata address of Alibaba Cloud"),
    ("192.0.0.192/32", "the metadata address of Oracle Cloud"),
    ("fd00:ec2::/32", "the metadata address of AWS"),
    ("fd20:ce::/32", "the metadata address of Google Cloud"),
    ("0.0.0.0/8", "an address of this host itself"),
    ("10.0.0.0/8", "a private address"),
    ("100.64.0.0/10", "an address behind a carrier's NAT"),
    ("127.0.0.0/8", "a loopback address"),
    ("169.254.0.0/16", "a link-local address"),
    ("172.16.0.0/12", "a private address"),
    ("192.0.0.0/24", "an address for protocols only"),
    ("192.0.2.0/24", "an address for documentation"),
    ("192.88.99.0/24", "an address of 6to4 relays"),
    ("192.168.0.0/16", "a private address"),
    ("198.18.0.0/15", "an address for benchmarks"),
    ("198.51.100.0/24", "an address for documentation"),
    ("203.0.113.0/24", "an address for documentation"),
    ("224.0.0.0/4", "a multicast address"),
    ("240.0.0.0/4", "a reserved address"),
    ("::/128", "an address of this host itself"),
    ("::1/128", "a loopback address"),
    ("fc00::/7", "a private address"),
    ("fe80::/10", "a link-local address"),
    ("fec0::/10", "a site-local address"),
    ("ff00::/8", "a multicast address"),
    ("2001::/23", "an address for protocols only"),
    ("2001:db8::/32", "an address for documentation"),
    ("2002::/16", "an IPv4 address in 6to4"),
    ("3fff::/20", "an address for documentation"),
)
"""Narrow before wide. Of IPv6, what is not in 2000::/3 is closed as well. The list is ours and not Python's
`is_global`, which differs between Python's versions, and takes Azure's metadata service for a host like any other."""
_CLOSED_NETWORKS = [(ipaddress.ip_network(text), what) for text, what in _CLOSED]
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


class Refused(Exception):
    """The sentence for whoever asked."""


class Rule(NamedTuple):
    """One entry of the list. Of name, tail and net, one is set."""

    text: str
    name: str
    """This host."""
    tail: str
    """Every host below this name, as ".debian.org"; "." for every host."""
    net: IPv4Network | IPv6Network | None
    """These addresses."""
    ports: frozenset[int] | None
    """None: any."""

    def fits(self, host: Host) -> bool:
        if self.tail == ".":
            return True
        if isinstance(host, str):
            return host == self.name if self.name else bool(self.tail) and host.endswith(self.tail)
        return self.net is not None and host in self.net

    def opens(self, port: int) -> bool:
        return self.ports is None or port in self.ports


class Policy:
    """The list of one sandbox. ValueError for an entry that cannot be."""

    def __init__(self, entries: Sequence[str]) -> None:
        self.rules = [parse_rule(entry) for entry in entries]

    def check(self, host: Host, port: int) -> None:
        """Raises Refused where no entry names this host with this port."""
        fitting = [rule for rule in self.rules if rule.fits(host)]
        if not fitting:
            raise Refused(f"{host} is not among the hosts that this sandbox may reach; {_cure(host, port)}")
        if not any(rule.opens(port) for rule in fitting):
            ports = sorted(set().union(*(rule.ports or () for rule in fitting)))
            raise Refused(f"{host} may be reached on port {_or(ports)} only, not on {port}; {_cure(host, port)}")

    def check_address(self, host: Host, address: Address, port: int) -> None:
        """Raises Refused where `host` leads to an address that only an entry of its own opens, and there is none."""
        what = closed(address)
        if what is not None and not self.names(address, port):
            leads = f"{host} is {what}" if host == address else f"{host} leads to {address}, {what}"
            raise Refused(f"{leads}, which only an entry of its own opens; {_cure(address, port)}")

    def names(self, address: Address, port: int) -> bool:
        """Whether an entry names this address, or a network that it is in, with this port."""
        return any(rule.net is not None and rule.fits(address) and rule.opens(port) for rule in self.rules)


def parse_rule(entry: str) -> Rule:
    """pypi.org, *.debian.org, example.com:8443, 10.1.2.3, 10.0.0.0/8:5432, [fd00::1]:80, *; a port of * is any."""
    if not isinstance(entry, str):
        raise ValueError(f"network: a host is a string; got {entry!r}")
    wrong = f"network: a host to allow is NAME, *.NAME, ADDRESS or ADDRESS/BITS, and :PORT; got {entry!r}"
    text = entry.strip()
    if re.search(r"[\s,]", text) or not text:
        raise ValueError(wrong)
    if "://" in text:
        raise ValueError(f"{wrong}; leave {text.partition('://')[0]}:// out")
    host, ports = text, USUAL_PORTS
    if text.count(":") == 1 or text.startswith("["):
        host, colon, said = text.rpartition(":") if not text.endswith("]") else (text, "", "")
        if colon:
            ports = None if said == "*" else frozenset({_port(said, wrong)})
    net = _network(host, wrong)
    if net is not None:
        return Rule(entry, "", "", net, ports)
    if host == "*":
        return Rule(entry, "", ".", None, ports)
    below = host.startswith("*.")
    try:
        name = host[2:] if below else host
        if not name.isascii():
            import idna  # its tables are large, and few names need them

            name = idna.encode(name, uts46=True).decode()
        found = parse_host(name)
    except (Refused, UnicodeError) as error:  # idna's errors are of the second kind
        raise ValueError(f"{wrong}: {error}") from None
    if not isinstance(found, str):
        raise ValueError(wrong)
    return Rule(entry, "", f".{found}", None, ports) if below else Rule(entry, found, "", None, ports)


def _network(host: str, wrong: str) -> IPv4Network | IPv6Network | None:
    """None where it is no address."""
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if "%" in inner:
        raise ValueError(f"{wrong}; an address with a scope (%) belongs to one link")
    try:
        net = ipaddress.ip_network(inner)
    except ValueError as error:
        if "host bits" in str(error):
            raise ValueError(f"{wrong}; {error}") from None
        if "/" in inner or ":" in inner:
            raise ValueError(wrong) from None
        return None
    if isinstance(net, IPv6Network) and net.prefixlen == 128:
        return ipaddress.ip_network(plain(net.network_address))
    return net


def _port(text: str, wrong: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not 1 <= int(text) <= 65535:
        raise ValueError(f"{wrong}; a port is from 1 to 65535, or * for any")
    return int(text)


def parse_authority(text: str, usual: int | None) -> tuple[Host, int]:
    """(host, port) of HOST[:PORT], as in a request; `usual` is the port where it says none. Raises Refused."""
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        host += bracket
    else:
        host, colon, rest = text.partition(":")
        rest = colon + rest
    if not rest and usual is not None:
        return parse_host(host), usual
    if not re.fullmatch(r":[0-9]{1,5}", rest, re.ASCII) or not 1 <= int(rest[1:]) <= 65535:
        raise Refused(f"{shown(text)} is not HOST:PORT with a port from 1 to 65535")
    return parse_host(host), int(rest[1:])


def parse_host(text: str) -> Host:
    """One spelling of many. Raises Refused for what resolvers and libraries read in more than one way."""
    if text.startswith("["):
        try:
            if not text.endswith("]") or "%" in text:
                raise ValueError
            return plain(IPv6Address(text[1:-1]))
        except ValueError:
            raise Refused(f"{shown(text)} is not an IPv6 address in brackets") from None
    if not text.isascii():
        raise Refused(f"{shown(text)} is not ASCII; write the name in its xn-- form")
    name = text.lower().removesuffix(".")
    try:
        return IPv4Address(name)
    except ValueError:
        pass
    labels = name.split(".")
    if NUMBER.fullmatch(labels[-1]):
        raise Refused(f"{shown(text)} is an odd spelling of an address; write four decimal numbers, as in 192.0.2.1")
    if len(name) > 253 or not all(LABEL.fullmatch(label) for label in labels):
        raise Refused(f"{shown(text)} is not the name of a host")
    return name


def plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 one maps, else itself."""
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def closed(address: Address) -> str | None:
    """What kind of address it is, where a sandbox reaches it by an entry of its own only; None for one of the
    Internet."""
    address = plain(address)
    for net, what in _CLOSED_NETWORKS:
        if address in net:
            return what
    if isinstance(address, IPv4Address) or address in _GLOBAL_UNICAST:
        return None
    if address in _WELL_KNOWN_NAT64:
        inner = closed(IPv4Address(address.packed[-4:]))
        return None if inner is None else f"{inner} behind NAT64"
    return "not an address of the Internet"


def shown(text: str) -> str:
    """What a program wrote, fit for a sentence."""
    return ascii(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def _cure(host: Host, port: int) -> str:
    entry = f"[{host}]" if isinstance(host, IPv6Address) else str(host)
    entry = entry if port in USUAL_PORTS else f"{entry}:{port}"
    return f'whoever starts the sandbox can add "{entry}" to its network list'


def _or(ports: list[int]) -> str:
    return " or ".join(map(str, ports))

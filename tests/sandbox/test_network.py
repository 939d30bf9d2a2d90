"""What the rules of `network: [host, …]` promise: one reading of every spelling, and no address that is not meant."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll import SandboxConfig
from rockroll.sandbox.network import Policy, Refused, closed, parse_authority, parse_host, plain

# ---- who is meant --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "asked", "port"),
    [
        ("pypi.org", "pypi.org", 443),
        ("pypi.org", "pypi.org", 80),
        ("pypi.org", "PyPI.ORG", 443),
        ("PyPI.org.", "pypi.org", 443),
        ("pypi.org", "pypi.org.", 443),
        ("*.debian.org", "deb.debian.org", 80),
        ("*.debian.org", "a.b.debian.org", 80),
        ("example.com:8443", "example.com", 8443),
        ("example.com:*", "example.com", 5432),
        ("bücher.example", "xn--bcher-kva.example", 443),
        ("BÜCHER.example", "xn--bcher-kva.example", 443),
        ("*", "anything.example", 443),
        ("*", "1.1.1.1", 443),
        ("*:*", "anything.example", 22),
        ("1.1.1.1", "1.1.1.1", 443),
        ("1.1.1.0/24:53", "1.1.1.7", 53),
        ("10.0.0.0/8:*", "10.1.2.3", 5432),
        ("[2606:4700::1111]:853", "[2606:4700:0::1111]", 853),
        ("2606:4700::1111", "[2606:4700::1111]", 443),
        ("2606:4700::/32", "[2606:4700::7]", 443),
        ("10.1.2.3", "[::ffff:10.1.2.3]", 80),
        ("[::ffff:10.1.2.3]", "10.1.2.3", 80),
        ("my_host.local", "my_host.local", 80),
    ],
)
def test_an_entry_names_its_hosts_on_its_ports(entry: str, asked: str, port: int) -> None:
    Policy([entry]).check(parse_host(asked), port)


@pytest.mark.parametrize(
    ("entry", "asked", "port"),
    [
        ("pypi.org", "evilpypi.org", 443),
        ("pypi.org", "pypi.org.evil.com", 443),
        ("pypi.org", "files.pypi.org", 443),
        ("pypi.org", "pypi.org", 22),
        ("*.debian.org", "debian.org", 80),
        ("*.debian.org", "evildebian.org", 80),
        ("*.debian.org", "debian.org.evil.com", 80),
        ("example.com:8443", "example.com", 443),
        ("*", "anything.example", 25),
        ("1.1.1.1", "1.0.0.1", 443),
        ("1.1.1.1", "one.one.one.one", 443),
        ("10.0.0.0/8", "inside.example", 80),
    ],
)
def test_and_nobody_else(entry: str, asked: str, port: int) -> None:
    with pytest.raises(Refused, match=r"whoever starts the sandbox can add "):
        Policy([entry]).check(parse_host(asked), port)


def test_a_refusal_says_what_to_add() -> None:
    policy = Policy(["pypi.org", "db.example:5432", "db.example:5433"])
    for host, port, cure in (
        ("evil.com", 443, 'add "evil.com"'),
        ("evil.com", 8080, 'add "evil.com:8080"'),
        ("pypi.org", 22, 'on port 80 or 443 only, not on 22; whoever starts the sandbox can add "pypi.org:22"'),
        ("db.example", 80, "on port 5432 or 5433 only"),
        ("[2606:4700::1]", 853, r'add "[2606:4700::1]:853"'),
    ):
        with pytest.raises(Refused) as refused:
            policy.check(parse_host(host), port)
        assert cure in str(refused.value)
        if port != 80:
            Policy([str(refused.value).rpartition('add "')[2].partition('"')[0]]).check(parse_host(host), port)


WRONG_ENTRIES = """
http://pypi.org pypi.org/simple pypi.org:0 pypi.org:65536 pypi.org:x pypi.org: a..b *. **.org a.*.org *pypi.org
10.0.0.1/8 10.0.0.0/33 fe80::1%eth0 [::1 ::1]:80 1.2.3 0x7f.1 user@host -a.org .org
"""


@pytest.mark.parametrize("entry", ["", "a b", "x" * 64, 7, *WRONG_ENTRIES.split()])
def test_an_entry_that_cannot_be_is_an_error_of_the_config(entry: str) -> None:
    with pytest.raises(ValueError, match=r"^network: "):
        SandboxConfig(network=[entry])


# ---- how it is written in a config ---------------------------------------------------------------------------------


def test_a_config_takes_a_list_or_one_string() -> None:
    hosts = ("pypi.org", "*.debian.org", "example.com:8443")
    for network in (list(hosts), hosts, "allow:pypi.org,*.debian.org,example.com:8443", [*hosts, "pypi.org"]):
        config = SandboxConfig(network=network)
        assert config.network == config.allowed == hosts
        assert config.network_text == "allow:pypi.org,*.debian.org,example.com:8443"
        assert dataclasses.replace(config, cpus=2).allowed == hosts
        assert SandboxConfig(**dataclasses.asdict(config)) == config
    assert (SandboxConfig().network, SandboxConfig().allowed) == ("none", ())
    assert SandboxConfig(network="open").network_text == "open"


@pytest.mark.parametrize("network", ["", "pypi.org", "host", "allow", "allow:", "allow:a,,b", []])
def test_a_network_that_cannot_be_says_how_to_write_one(network: object) -> None:
    with pytest.raises(ValueError, match=r"^network: "):
        SandboxConfig(network=network)  # type: ignore[arg-type]


# ---- addresses that no name leads to -------------------------------------------------------------------------------

_CLOSED = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.1.2.3 169.254.0.1 169.254.169.254
172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.1
203.0.113.1 224.0.0.1 224.0.1.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16 100.100.100.200
:: ::1 ::2 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1
64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::1 100::1 fc00::1 fd00:ec2::254 fd20:ce::254 fdff::1 fe80::1
febf::1 fec0::1 feff::1 ff00::1 ff02::1 ff0e::1 2001::1 2001:0:7f00:1:: 2001:db8::1 2002:7f00:1:: 2002:a00:1::
3fff::1 4000::1 5f00::1
"""
_OPEN = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.1 100.63.255.255 100.128.0.1 126.255.255.255 128.0.0.1 169.253.255.255 169.255.0.1
172.15.255.255 172.32.0.1 191.255.255.255 192.167.255.255 192.169.0.1 198.17.255.255 198.20.0.1 223.255.255.255
2001:4860:4860::8888 2606:4700::1111 2a00:1450:4001::1 64:ff9b::8.8.8.8 ::ffff:8.8.8.8
"""
CLOSED, OPEN = _CLOSED.split(), _OPEN.split()


@pytest.mark.parametrize("address", CLOSED)
def test_an_address_that_is_not_of_the_internet_is_closed_whatever_name_leads_there(address: str) -> None:
    policy, found = Policy(["*:*", "pypi.org"]), plain(ip_address(address))
    assert closed(ip_address(address))
    with pytest.raises(Refused, match=rf"pypi.org leads to {found}.*which only an entry of its own opens"):
        policy.check_address("pypi.org", found, 443)
    with pytest.raises(Refused, match=f"^{found} is "):
        policy.check_address(found, found, 80)


@pytest.mark.parametrize("address", CLOSED)
def test_an_entry_that_names_the_address_opens_it_on_its_ports_only(address: str) -> None:
    found = plain(ip_address(address))
    written = f"[{address}]:8080" if ":" in address else f"{address}:8080"
    for entry in (written, f"{found}/{found.max_prefixlen}"):
        port = 8080 if entry == written else 80
        policy = Policy(["name.example:*", entry])
        policy.check_address("name.example", found, port)
        policy.check_address(found, found, port)
        with pytest.raises(Refused):
            policy.check_address("name.example", found, 22)


@pytest.mark.parametrize("address", OPEN)
def test_an_address_of_the_internet_is_open_to_a_name_that_is_allowed(address: str) -> None:
    assert closed(ip_address(address)) is None
    Policy(["pypi.org"]).check_address("pypi.org", plain(ip_address(address)), 443)


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_is_as_closed_in_the_clothes_of_ipv6(number: int) -> None:
    four = ip_address(number)
    for six in (f"::ffff:{four}", f"64:ff9b::{four}"):
        assert (closed(ip_address(six)) is None) == (closed(four) is None)
    if not four.is_global or four.is_multicast:
        assert closed(four)


# ---- spellings -----------------------------------------------------------------------------------------------------


ODD_SPELLINGS = """
0x7f.1 0x7f000001 0X7F.0.0.1 2130706433 127.1 127.0.1 0177.0.0.1 017700000001 127.0.0.01 127.0.0.0x1 1.2.3.4.5 256.0.0.1
127.0.0.1.. 1.0x 00 0x 169.254.43518 0xa9fea9fe 127。0。0。1 １２７.0.0.1 ①②⑦.0.0.1 ｌocalhost pypi。org büch.example
. .. a..b .a a/b a\\b a@b a%2eb a#b a?b a,b a:b ::1 [::1 [::1]x [127.0.0.1] [fe80::1%eth0] [fe80::1%25eth0] [::1]] []
[::1].org -a.org a-.org a!b *.pypi.org * 'a'
"""
LONG = ["x" * 64 + ".org", ".".join(["x" * 60] * 5)]


@pytest.mark.parametrize("text", ["", "a b", "a\tb", "a\nb", "a\0b", "pypi.org\u200b", *LONG, *ODD_SPELLINGS.split()])
def test_a_host_that_can_be_read_in_two_ways_is_refused_for_its_spelling(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_host(text)
    assert str(refused.value).isascii() and str(refused.value).isprintable()


def test_one_address_has_one_reading() -> None:
    four = ip_address("10.1.2.3")
    assert parse_host("10.1.2.3") == parse_host("10.1.2.3.") == parse_host("[::ffff:10.1.2.3]") == four
    assert parse_host("[::FFFF:A01:203]") == four
    assert parse_host("[0:0:0:0:0:0:0:1]") == parse_host("[::1]") == ip_address("::1")


@pytest.mark.parametrize(
    "text",
    ["a", "a:", "a:0", "a:65536", "a:-1", "a:+80", "a: 80", "a:８0", "a:80:90", "[::1]:", "[::1]80", ":80", "a:99999"],
)
def test_a_place_without_a_plain_port_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_authority(text, None)


def test_a_place_is_a_host_and_a_port() -> None:
    assert parse_authority("Pypi.org:443", None) == ("pypi.org", 443)
    assert parse_authority("[::1]:80", None) == (ip_address("::1"), 80)
    assert parse_authority("pypi.org", 80) == ("pypi.org", 80)
    assert parse_authority("[::1]", 80) == (ip_address("::1"), 80)


@given(st.text(max_size=40))
def test_whatever_is_asked_is_read_or_refused_in_printable_words(text: str) -> None:
    try:
        host = parse_host(text)
    except Refused as refused:
        assert str(refused).isascii() and str(refused).isprintable()
    else:
        assert parse_host(str(host) if isinstance(host, str) or host.version == 4 else f"[{host}]") == host

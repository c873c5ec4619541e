import os
import socket
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from mlp_dist.training.distributed import network
from mlp_dist.training.distributed.network import choose_interface

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", *VARIABLES):
        monkeypatch.delenv(name, raising=False)
    yield
    # monkeypatch does not remove what the test's code has set.
    for name in VARIABLES:
        os.environ.pop(name, None)


Entry = namedtuple("Entry", "family address")

INTERFACES = {
    "lo": [Entry(socket.AF_INET, "127.0.0.1"), Entry(socket.AF_INET6, "::1")],
    "eth0": [Entry(psutil.AF_LINK, "02:fc:00:00:00:01"), Entry(socket.AF_INET, "10.0.0.5")],
    "ib0": [Entry(socket.AF_INET, "10.1.0.5"), Entry(socket.AF_INET6, "fd00::5")],
}

ROUTES = {
    "10.0.0.1": "10.0.0.5",
    "10.1.0.1": "10.1.0.5",
    "fd00::1": "fd00::5",
    "leader": "10.1.0.5",
    "own-name": "127.0.1.1",
    "192.0.2.1": "10.0.0.5",
}
"""Destination -> the local address of its route."""


@pytest.fixture
def one_of_two_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two machines, whose own name is loopback."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(network, "_own_name_is_loopback", lambda: True)
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: INTERFACES)
    monkeypatch.setattr(
        network, "_local_addresses", lambda target: [(ROUTES[target], 9)] if target in ROUTES else []
    )


def chosen() -> list[str | None]:
    return [os.environ.get(name) for name in VARIABLES]


@pytest.mark.usefixtures("one_of_two_machines")
@pytest.mark.parametrize(
    ("master", "interface"),
    [
        ("10.0.0.1", "eth0"),
        ("fd00::1", "ib0"),
        ("leader", "ib0"),
        ("own-name", "eth0"),
    ],
    ids=["IPv4", "IPv6", "a name", "this machine's name"],
)
def test_the_interface_towards_the_main_machine_is_chosen(
    monkeypatch: pytest.MonkeyPatch, master: str, interface: str
) -> None:
    monkeypatch.setenv("MASTER_ADDR", master)
    choose_interface()
    assert chosen() == [interface, f"={interface}"]


@pytest.mark.usefixtures("one_of_two_machines")
def test_a_link_local_address_contains_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    index, name = socket.if_nameindex()[0]
    monkeypatch.setattr(network, "_local_addresses", lambda target: [("fe80::5", 9, 0, index)])
    monkeypatch.setenv("MASTER_ADDR", f"fe80::1%{name}")
    choose_interface()
    assert chosen() == [name, f"={name}"]


@pytest.mark.usefixtures("one_of_two_machines")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GLOO_SOCKET_IFNAME": "eth1"}, ["eth1", "=ib0"]),
        ({"NCCL_SOCKET_IFNAME": "eth1"}, ["ib0", "eth1"]),
        ({"LOCAL_WORLD_SIZE": "4"}, [None, None]),
        ({"MASTER_ADDR": "::1"}, [None, None]),
        ({"MASTER_ADDR": "localhost"}, [None, None]),
        ({"MASTER_ADDR": ""}, [None, None]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_user_variables_and_single_machines_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: list[str | None]
) -> None:
    for name, value in {"MASTER_ADDR": "10.1.0.1", **variables}.items():
        monkeypatch.setenv(name, value)
    choose_interface()
    assert chosen() == expected


@pytest.mark.usefixtures("one_of_two_machines")
@pytest.mark.parametrize("reachable", [True, False], ids=["own name reachable", "no route"])
def test_no_interface_is_chosen(monkeypatch: pytest.MonkeyPatch, reachable: bool) -> None:
    if reachable:
        monkeypatch.setattr(network, "_own_name_is_loopback", lambda: False)
    else:
        monkeypatch.setattr(network, "_local_addresses", lambda target: [])
    monkeypatch.setenv("MASTER_ADDR", "10.1.0.1")
    choose_interface()
    assert chosen() == [None, None]


@pytest.mark.parametrize("master", ["no.such.name.invalid", "a..b", "[fd00::1]"])
def test_an_invalid_address_is_no_error(monkeypatch: pytest.MonkeyPatch, master: str) -> None:
    monkeypatch.setattr(network, "_FAR_AWAY", ())
    monkeypatch.setattr(network, "_own_name_is_loopback", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", master)
    choose_interface()
    assert chosen() == [None, None]


@pytest.mark.parametrize(
    ("addresses", "loopback"),
    [
        (["127.0.1.1"], True),
        ([], True),
        (["203.0.113.7"], True),  # of another machine: gloo cannot bind it and falls back to loopback
        (["203.0.113.7", "127.0.0.1"], True),
        (["0.0.0.0", "127.0.0.1"], False),
    ],
)
def test_gloo_s_address_of_the_own_name(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], loopback: bool
) -> None:
    def getaddrinfo(name: str, port: None, type: int) -> list[Any]:
        if not addresses:
            raise socket.gaierror
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            (family, type, 0, "", (address, 0)) for family, address in zip(families, addresses, strict=True)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert network._own_name_is_loopback() == loopback

import os
from collections import namedtuple
from collections.abc import Iterator
from unittest import mock

import psutil
import pytest

from mlp_dist.console import launcher
from mlp_dist.console.launcher import INTERFACES


@pytest.fixture(autouse=True)
def bare_environment() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_CPU", *INTERFACES):
            os.environ.pop(name, None)
        yield


Entry = namedtuple("Entry", "address")

ADDRESSES = {
    "lo": [Entry("127.0.0.1"), Entry("::1")],
    "eth0": [Entry("02:fc:00:00:00:01"), Entry("10.0.0.5"), Entry("fe80::5%eth0")],
    "ib0": [Entry("10.1.0.5"), Entry("fd00::5")],
}

ROUTES = {
    "10.0.0.1": "10.0.0.5",
    "10.1.0.1": "10.1.0.5",
    "fd00::1": "fd00::5",
    "fe80::1": "fe80::5",
    "leader": "10.1.0.5",
    "192.0.2.1": "10.0.0.5",
}
"""Destination -> the local address of its route."""


@pytest.fixture
def one_of_two_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two machines, whose own name is loopback."""
    os.environ |= {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.1.0.1"}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: ADDRESSES)
    monkeypatch.setattr(launcher, "_own_address", lambda target: ROUTES.get(target, ""))


def chosen() -> list[str | None]:
    launcher.choose_interface()
    return [os.environ.get(name) for name in INTERFACES]


@pytest.mark.usefixtures("one_of_two_machines")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MASTER_ADDR": "10.0.0.1"}, ["eth0", "=eth0"]),
        ({"MASTER_ADDR": "fd00::1"}, ["ib0", "=ib0"]),
        ({"MASTER_ADDR": "fe80::1"}, ["eth0", "=eth0"]),
        ({"MASTER_ADDR": "leader"}, ["ib0", "=ib0"]),
        ({"MASTER_ADDR": "own-name"}, ["eth0", "=eth0"]),
        ({"GLOO_SOCKET_IFNAME": "eth1"}, ["eth1", "=ib0"]),
        ({"NCCL_SOCKET_IFNAME": "eth1"}, ["ib0", "eth1"]),
        ({"LOCAL_WORLD_SIZE": "4"}, [None, None]),
    ],
    ids=lambda value: "+".join(value.values()) if isinstance(value, dict) else "",
)
def test_the_interface_towards_the_main_machine_is_chosen(
    variables: dict[str, str], expected: list[str | None]
) -> None:
    os.environ |= variables
    assert chosen() == expected


@pytest.mark.usefixtures("one_of_two_machines")
def test_without_a_route_no_interface_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_own_address", lambda target: "")
    assert chosen() == [None, None]

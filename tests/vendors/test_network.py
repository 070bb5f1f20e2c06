"""An address is chosen that the other ranks reach, whatever hosts are called."""

from __future__ import annotations

import socket

import pytest

from hetcomm.vendors import network
from hetcomm.vendors.network import Place, reachable_address

BRIDGE = "172.17.0.1"  # every host with containers has it
ONE = Place("one", (BRIDGE, "10.0.0.1", "192.168.0.1"), "127.0.0.1")
TWO = Place("two", (BRIDGE, "10.0.0.2"), "127.0.0.1")


@pytest.fixture(autouse=True)
def routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets to 10.0.0.x leave from whoever asks, those to its own bridge from there, others do not."""
    known = {"10.0.0.2": "10.0.0.1", "10.0.0.1": "10.0.0.2", BRIDGE: BRIDGE}
    monkeypatch.setattr(network, "_source_address", known.get)


def test_ranks_of_one_host_meet_on_its_loopback() -> None:
    assert reachable_address([ONE, ONE], 1) == "127.0.0.1"
    assert reachable_address([Place("one", ONE.addresses, "")] * 2, 0) is None


def test_ranks_of_several_hosts_meet_where_packets_between_them_leave() -> None:
    places = [ONE, ONE, TWO]
    assert [reachable_address(places, rank) for rank in range(3)] == ["10.0.0.1", "10.0.0.1", "10.0.0.2"]


def test_hosts_without_a_route_do_not_meet() -> None:
    lonely = Place("three", ("10.9.9.9",), "127.0.0.1")
    assert reachable_address([lonely, Place("four", (BRIDGE,), "")], 0) is None


@pytest.mark.parametrize(
    ("environ", "places", "expected"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, [ONE, ONE], True),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, [ONE, ONE], False),  # others are elsewhere
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, [ONE, TWO], False),  # in containers
        ({"PMI_SIZE": "3", "MPI_LOCALNRANKS": "3"}, [ONE], True),
        ({"PMI_SIZE": "3"}, [ONE], False),
        ({"SLURM_PROCID": "0"}, [ONE], False),
        ({}, [ONE, ONE], False),
    ],
)
def test_one_host_is_what_the_launcher_says(environ: dict[str, str], places: list[Place], expected: bool) -> None:
    assert network.is_one_host(places, environ) is expected


def test_the_place_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    place = network.here()
    assert place == network.here()
    assert not place.loopback or place.loopback.startswith("127.")
    for address in (*place.addresses, *filter(None, [place.loopback])):
        with socket.socket() as listening:
            listening.bind((address, 0))
            assert network._source_address(address) == address

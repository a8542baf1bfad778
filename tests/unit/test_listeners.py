"""Who may answer on a port of this host."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from model_delivery.places.host.binding import stranger

LOCAL = ("127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1")
ELSEWHERE = ("127.0.0.2", "::1")


def listening(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.bind((address, 0))
    made.listen()
    return made


@pytest.mark.parametrize("address", LOCAL)
def test_a_stranger_is_named_and_whoever_is_ours_is_none(address: str) -> None:
    with listening(address) as one:
        port = one.getsockname()[1]
        assert stranger(port, []).startswith(f"process {os.getpid()} (")
        assert stranger(port, iter([os.getpid()])) == ""
    assert stranger(port, []) == ""


@pytest.mark.parametrize("address", ELSEWHERE)
def test_who_listens_at_another_address_is_nobodys_rival(address: str) -> None:
    with listening(address) as one:
        assert stranger(one.getsockname()[1], []) == ""


def test_a_connection_is_no_listener() -> None:
    with listening("127.0.0.1") as one, socket.create_connection(one.getsockname()) as client:
        assert stranger(client.getsockname()[1], []) == ""


def test_nobody_else_is_looked_up_where_the_first_accounts_for_the_port() -> None:
    def ours() -> Iterator[int]:
        yield os.getpid()
        pytest.fail("all processes of the machine were asked for")

    with listening("127.0.0.1") as one:
        assert stranger(one.getsockname()[1], ours()) == ""

"""Who gets which address, and when again."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from arcbox_guest.errors import UnavailableError
from arcbox_guest.network.addresses import QUARANTINE, AddressPool, Lease


@define
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(clock: Clock) -> AddressPool:
    """One of five addresses: .2 to .6."""
    return AddressPool(IPv4Network("172.20.0.0/29"), clock)


def test_the_first_address_after_the_gateway_s_comes_first(pool: AddressPool) -> None:
    lease = pool.lease()
    assert str(lease.address) == "172.20.0.2"
    assert str(lease.gateway) == "172.20.0.1"
    assert lease.link == "arcb-ac140002"
    assert Lease.parse(str(lease)) == lease


def test_a_pool_that_runs_out_says_so(pool: AddressPool) -> None:
    assert [str(pool.lease().address)[-1] for _ in range(5)] == ["2", "3", "4", "5", "6"]
    with pytest.raises(UnavailableError, match=r"all addresses of 172\.20\.0\.0/29 are in use"):
        pool.lease()


def test_an_address_rests_before_it_is_used_again(pool: AddressPool, clock: Clock) -> None:
    leases = [pool.lease() for _ in range(5)]
    pool.release(leases[2])
    clock.seconds = QUARANTINE - 1
    with pytest.raises(UnavailableError):
        pool.lease()
    clock.seconds = QUARANTINE
    assert pool.lease() == leases[2]


def test_an_address_that_was_returned_twice_is_given_once(pool: AddressPool, clock: Clock) -> None:
    leases = [pool.lease() for _ in range(5)]
    pool.release(leases[0])
    pool.release(leases[0])
    clock.seconds = QUARANTINE
    pool.lease()
    with pytest.raises(UnavailableError):
        pool.lease()


def test_a_claimed_address_is_given_to_nobody_else(pool: AddressPool) -> None:
    pool.claim(Lease.parse("172.20.0.3/29"))
    assert [str(pool.lease().address)[-1] for _ in range(4)] == ["2", "4", "5", "6"]


@pytest.mark.parametrize("address", ["172.20.0.0", "172.20.0.1", "172.20.0.7", "172.20.0.8", "10.0.0.2"])
def test_an_address_that_no_sandbox_can_have_is_not_claimed(pool: AddressPool, address: str) -> None:
    with pytest.raises(UnavailableError, match=address):
        pool.claim(Lease.parse(address + "/29"))


def test_an_address_in_use_is_not_claimed(pool: AddressPool) -> None:
    lease = pool.lease()
    with pytest.raises(UnavailableError):
        pool.claim(lease)


@given(st.lists(st.integers(min_value=0, max_value=40)))
def test_no_address_is_ever_given_to_two_at_once(steps: list[int]) -> None:
    clock = Clock()
    pool, held = AddressPool(IPv4Network("10.9.0.0/29"), clock), list[Lease]()
    for step in steps:
        clock.seconds += step
        if step % 2 and held:
            pool.release(held.pop(step % len(held)))
            continue
        try:
            lease = pool.lease()
        except UnavailableError:
            continue
        assert lease not in held
        held.append(lease)

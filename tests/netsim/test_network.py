"""The simulated network: messages of one kind that are held up on some paths."""

import random

import pytest

from netsim.network import Network
from netsim.plan import Hold, Kill, Plan, Weather
from netsim.shrink import _fewer_nodes

FAST = Weather(delay_min_s=0.0, delay_mean_s=0.000001)


@pytest.fixture
def network() -> Network:
    return Network(random.Random(1), FAST)


def arrives(network: Network, source: int, target: int, now: float, kind: str) -> list[float]:
    return [round(now + delay, 2) for delay in network.delays(source, target, now, kind)]


def test_held_messages_of_a_kind_arrive_at_the_end_and_others_at_once(network: Network) -> None:
    network.hold(Hold(1.0, ("accept", "views"), (0, 1), (1, 2), 5.0))
    assert arrives(network, 0, 2, 2.0, "accept") == [5.0]
    assert arrives(network, 1, 2, 2.0, "views") == [5.0]
    assert arrives(network, 0, 2, 2.0, "accepted") == [2.0]
    assert arrives(network, 2, 0, 2.0, "accept") == [2.0]
    assert arrives(network, 0, 2, 5.5, "accept") == [5.5]
    assert network.lost == 0


def test_dropped_messages_of_a_kind_never_arrive(network: Network) -> None:
    network.hold(Hold(1.0, ("accept",), (0,), (1, 2), 5.0, drop=True))
    assert arrives(network, 0, 1, 2.0, "accept") == []
    assert network.is_dropped(0, 1, "accept", 2.0)
    assert not network.is_dropped(0, 1, "views", 2.0)
    assert network.lost == 1
    assert arrives(network, 0, 1, 5.0, "accept") == [5.0]


def test_healing_ends_it_among_those_who_heal(network: Network) -> None:
    network.hold(Hold(1.0, ("accept",), (0,), (1, 2), 9.0, drop=True))
    network.heal_among([0, 1])
    assert arrives(network, 0, 1, 2.0, "accept") == [2.0]
    assert arrives(network, 0, 2, 2.0, "accept") == []
    network.heal_all()
    assert arrives(network, 0, 2, 2.0, "accept") == [2.0]


def test_weather_is_as_the_latest_change_that_is_not_over(network: Network) -> None:
    rain, storm = Weather(loss=0.1), Weather(loss=0.9)
    for change, weather, now in (
        (network.change_weather, rain, rain),
        (network.change_weather, storm, storm),
        (network.end_weather, rain, storm),
        (network.end_weather, storm, FAST),
    ):
        change(weather)
        assert network.weather_now == now


def test_weather_that_has_calmed_down_stays_calm_when_a_change_ends(network: Network) -> None:
    storm = Weather(loss=1.0)
    network.change_weather(storm)
    assert arrives(network, 0, 1, 2.0, "accept") == []
    network.heal_all()
    assert network.weather_now == Weather()
    network.end_weather(storm)
    assert network.weather_now == Weather()


def test_a_smaller_network_has_the_hold_of_those_who_are_left() -> None:
    faults = (Hold(1.0, ("accept",), (0, 2), (1, 2), 5.0), Hold(1.0, ("accept",), (0,), (2,), 5.0), Kill(1.0, 2, 2.0))
    (smaller, *_) = _fewer_nodes(Plan(1, 3, 1, faults=faults))
    assert smaller.faults == (Hold(1.0, ("accept",), (0,), (1,), 5.0),)

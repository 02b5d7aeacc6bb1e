"""The simulation of replicas (benchmarks/capacity.py): what can be said by hand."""

import pytest

from benchmarks.capacity import BANDWIDTH, Replica, Simulation, Talk, bound, carried, cluster, placed
from tests.timed_device import Times

TALK = Talk(think=4.0, target=0.3, seconds=60.0)


def test_who_is_alone_waits_for_the_prompt_and_one_frame() -> None:
    heard = Simulation(Times({1: 0.01, 2: 0.01}, 0.02), 1, TALK, seed=0).run()
    assert len(heard.first) >= 3 and heard.gaps == 0
    assert heard.first == pytest.approx([0.03] * len(heard.first))


@pytest.mark.slow
def test_a_device_carries_no_more_than_it_makes() -> None:
    slow = Replica(Times({8: 0.04}, 0.005), TALK)  # sixteen seconds of audio a second
    most = carried(slow, 1, TALK, 64)
    assert 4 < most < 16 / TALK.duty
    assert not slow.heard(64).good(TALK.target)
    assert carried(slow, 2, TALK, 128) > most


def test_all_slots_speak_at_once_without_gaps_on_a_device_that_can() -> None:
    heard = cluster(Replica(Times({8: 0.02}, 0.005), TALK), [6, 6])
    assert heard.gaps == 0 and heard.late() < 0.2


def test_sessions_go_to_the_emptier_of_two() -> None:
    of = placed(200, 4)
    assert sum(of) == 200 and max(of) - min(of) <= 10
    assert placed(7, 1) == [7]


def test_a_step_reads_what_is_published() -> None:
    """In bytes, for a memory of one byte a second: each slot more reads its part of the cache more."""
    one, two = (bound("0.6B-Base", 1.0, slots, 1.0, columns=512).step[slots] for slots in (1, 2))
    assert two - one == 2 * 28 * 8 * 128 * 512 * 2
    assert 3.3e9 < one < 4e9
    many = [bound("1.7B-Base", rate, 16, 1.0) for rate in BANDWIDTH.values()]
    assert [times.step[16] for times in many] == sorted((times.step[16] for times in many), reverse=True)
    assert bound("1.7B-Base", 1e12, 16, 0.5).step[16] == pytest.approx(2 * bound("1.7B-Base", 1e12, 16, 1.0).step[16])

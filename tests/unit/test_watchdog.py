"""The verdict over what ranks say of themselves: who is lost, who holds up whom, and whose long work is just long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distill import watchdog
from distill.watchdog import Beat, Limits, Seen, judge

LIMITS = Limits(startup=100.0, train=10.0)
NOW = 1000.0


def rank(number: int, *, heard: float = 0.0, moved: float = 0.0, **changes: object) -> Seen:
    """A rank last heard of, and last getting on, that many seconds ago."""
    told = Beat(number, f"node{number}", 4000 + number, "rollout", 17, 50, 900, True, where="decode.py:55")
    fates = {name: changes.pop(name) for name in ("closed", "left") if name in changes}
    return Seen(replace(told, **changes), NOW - heard, NOW - moved, **fates)  # type: ignore[arg-type]


def verdict(*seen: Seen, own: int = 0, failed: bool = False) -> watchdog.Verdict | None:
    return judge({one.beat.rank: one for one in seen}, NOW, LIMITS, own, failed)


def text(*seen: Seen, own: int = 0, failed: bool = False) -> str:
    found = verdict(*seen, own=own, failed=failed)
    assert found is not None
    return str(found.text)


def test_ranks_that_get_on_are_left_alone() -> None:
    assert verdict(rank(0), rank(1), rank(2, heard=4.9, moved=9.9)) is None


def test_a_closed_connection_is_a_death() -> None:
    assert text(rank(0), rank(1, closed=True)) == (
        "rank 1 (host node1, pid 4001) has died: its connection closed without a goodbye; "
        "its last word was phase 'rollout' at step 17."
    )


def test_silence_is_a_death_after_half_the_limit() -> None:
    assert text(rank(0), rank(1, heard=5.5)).startswith("rank 1 (host node1, pid 4001) has not been heard of for 6 s; ")


def test_silence_is_a_death_after_a_minute_however_long_the_limit() -> None:
    seen = {0: rank(0), 1: rank(1, heard=61.0)}
    assert judge(seen, NOW, Limits(startup=1e5, train=1e4), 0) is not None
    assert judge({0: rank(0), 1: rank(1, heard=59.0)}, NOW, Limits(startup=1e5, train=1e4), 0) is None


def test_own_silence_says_nothing() -> None:
    assert verdict(rank(0, heard=50.0), rank(1)) is None


def test_a_machine_that_fails_is_one_message() -> None:
    lost = [rank(number, closed=True) for number in (4, 5, 6)]
    found = verdict(rank(0), rank(1), *lost)
    assert found is not None
    assert found.ranks == (4, 5, 6)
    assert str(found.text).startswith("rank 4 (host node4, pid 4004) and 2 more (5, 6) have died: ")


def test_a_rank_that_has_finished_is_not_missed() -> None:
    assert verdict(rank(0), rank(1, left=0, closed=True, heard=500.0, moved=500.0)) is None


def test_a_rank_that_failed_speaks_for_itself() -> None:
    found = verdict(rank(0), rank(1, left=1, closed=True))
    assert found == watchdog.Verdict((1,), None)


def test_the_one_that_is_behind_holds_up_the_others() -> None:
    waiting = rank(0, moved=11.0, order=51, waiting=True)
    library = rank(2, moved=12.0, order=52)
    assert text(waiting, rank(1, moved=11.0), library) == (
        "rank 1 (host node1, pid 4001) has made no progress for 10 s (`trainer.timeout`); "
        "its last word was phase 'rollout' at step 17, in decode.py:55."
    )


def test_those_who_wait_for_long_work_are_not_stalled() -> None:
    assert verdict(rank(0, moved=3600.0, order=51), rank(1, moved=1.0)) is None
    assert verdict(rank(0, moved=3600.0, waiting=True), rank(1, moved=1.0)) is None
    # Inside a library, nobody can tell waiting from working.
    assert verdict(rank(0, moved=3600.0), rank(1, moved=1.0)) is None


def test_who_waits_is_not_to_blame_for_the_rank_that_works_alone() -> None:
    exporting = rank(0, moved=11.0, order=60)
    assert text(exporting, rank(1, moved=30.0, waiting=True)).startswith("rank 0 ")


def test_all_waiting_for_different_things_is_a_stall_once_nobody_moves() -> None:
    assert verdict(rank(0, moved=11.0, waiting=True), rank(1, moved=9.0, order=51, waiting=True)) is None
    found = verdict(rank(0, moved=12.0, waiting=True), rank(1, moved=11.0, order=51, waiting=True))
    assert found is not None
    assert found.ranks == (0,)


def test_starting_has_a_limit_of_its_own() -> None:
    loading = {"training": False, "phase": "load", "step": 0}
    assert verdict(rank(0, moved=99.0, **loading), rank(1, **loading)) is None
    told = text(rank(0, moved=101.0, **loading), rank(1, moved=1.0, order=51, **loading))
    assert "no progress for 100 s (`trainer.startup_timeout`); its last word was phase 'load' at step 0" in told


@pytest.mark.parametrize("phase", ["checkpoint", "sparsity"])
def test_saving_and_sparsity_have_the_longer_limit(phase: str) -> None:
    saving = rank(0, moved=99.0, phase=phase)
    assert verdict(saving, rank(1, order=51, waiting=True)) is None
    told = text(rank(0, moved=101.0, phase=phase), rank(1, order=51, waiting=True))
    assert f"no progress for 100 s (`trainer.startup_timeout`); its last word was phase '{phase}'" in told
    patient = Limits(startup=10.0, train=100.0)
    assert judge({0: saving, 1: rank(1, order=51, waiting=True)}, NOW, patient, 0) is None
    assert patient.key(saving.beat) == "`trainer.timeout`"


def test_a_long_import_is_no_silence() -> None:
    limits, loading = Limits(startup=1800.0, train=600.0), {"training": False, "phase": "load", "step": 0}
    assert judge({0: rank(0, **loading), 1: rank(1, heard=299.0, **loading)}, NOW, limits, 0) is None
    assert judge({0: rank(0, **loading), 1: rank(1, heard=301.0, **loading)}, NOW, limits, 0) is not None
    assert judge({0: rank(0), 1: rank(1, heard=61.0, phase="checkpoint")}, NOW, limits, 0) is not None


def test_a_collective_that_failed_blames_the_one_behind() -> None:
    told = text(rank(0, order=51, waiting=True), rank(1), failed=True)
    assert told.startswith("rank 1 (host node1, pid 4001) has kept others waiting beyond 10 s (`trainer.timeout`)")


def test_update_counts_from_the_last_change() -> None:
    one = rank(1, heard=5.0, moved=5.0)
    one.update(one.beat, NOW)
    assert (one.heard, one.moved) == (NOW, NOW - 5.0)
    one.update(replace(one.beat, count=one.beat.count + 1), NOW)
    assert one.moved == NOW


def test_phases_nest_and_an_error_stays_in_its_own() -> None:
    watchdog.reset()
    watchdog.enter("step", 3)
    with watchdog.phase("rollout", 4):
        assert (watchdog.here.phase, watchdog.here.step) == ("rollout", 4)
    assert (watchdog.here.phase, watchdog.here.order) == ("step", 3)
    with pytest.raises(ZeroDivisionError), watchdog.phase("export"):
        _ = 1 / 0
    assert watchdog.here.phase == "export"
    watchdog.reset()
    assert watchdog.here == watchdog.Activity()


def test_a_beat_tells_whether_the_main_thread_is_in_a_collective() -> None:
    assert not watchdog.beat(0, "here").waiting
    # A function that claims to be torch's: the place of its code is all that is looked at.
    code = compile("found = beat(0, 'here')", "/lib/torch/distributed/distributed_c10d.py", "exec")
    names = {"beat": watchdog.beat}
    exec(code, names)
    assert names["found"].waiting  # type: ignore[attr-defined]


def test_a_beat_names_the_line_of_this_package() -> None:
    found = watchdog.beat(0, "here").where
    assert found.startswith("watchdog.py:")
    assert int(found.partition(":")[2]) > 0

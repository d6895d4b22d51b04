"""What the benchmarks of the road make of what was measured, by hand-made tables."""

import pytest

from headrace.bench import load, soak
from headrace.bench.landings import percentiles
from headrace.errors import ConfigError
from headrace.tracking.report import Landing

INF = float("inf")


def fresh(*seconds: float, began_s: float = 0.0, rows: int = 100) -> list[tuple[Landing, float]]:
    return [(Landing(f"s{n}", n + 1, rows, began_s + n), value) for n, value in enumerate(seconds)]


def test_percentiles_are_weighted_and_never_is_none() -> None:
    assert percentiles(fresh(1.0, 2.0, 3.0)) == {"p50_s": 2.0, "p99_s": 3.0, "events": 300}
    assert percentiles(fresh(1.0, INF))["p99_s"] is None
    heavy = [*fresh(1.0), (Landing("big", 9, 10_000, 0.0), 7.0)]
    assert percentiles(heavy)["p50_s"] == 7.0


def test_a_rate_is_sustained_as_long_as_every_lower_one_is() -> None:
    climb = [load.Phase(f"{rate}/s", rate, 10) for rate in (500, 1000, 2000, 3000)]

    def rows(*p99_s: float | None) -> dict[str, dict[str, float | None]]:
        return {phase.name: {"p99_s": value} for phase, value in zip(climb, p99_s, strict=True)}

    assert load._sustained(climb, rows(1.0, 5.0, 12.0, 3.0)) == 1000
    assert load._sustained(climb, rows(1.0, 5.0, 10.0, 9.0)) == 3000
    assert load._sustained(climb, rows(None, 5.0, 1.0, 1.0)) == 0


def test_recovery_is_counted_from_the_end_of_the_burst() -> None:
    before, after = fresh(0.5, 0.5, 0.5), fresh(9.0, 4.0, 0.9, 0.5, began_s=100.0)
    assert load._recovered({"before the burst": before, "after the burst": after}) == 2.0
    assert load._recovered({"before the burst": before, "after the burst": fresh(9.0, INF)}) is None
    assert load._recovered({"before the burst": fresh(40.0), "after the burst": after}) is None, "it was behind before"


def test_a_backlog_drains_when_its_last_row_is_served() -> None:
    assert load._drained([(Landing("a", 1, 10, 0.0), 100.0), (Landing("b", 2, 10, 0.0), 360.0)]) == 10.0
    assert load._drained(fresh(1.0, INF)) is None


def test_phases_follow_one_another() -> None:
    due = load._shards([load.Phase("calm", 200, 2), load.Phase("burst", 2000, 1), load.Phase("backlog", 0, 0, 14_400)])
    assert due == [
        (0.0, 200, "calm"),
        (1.0, 200, "calm"),
        (2.0, 2000, "burst"),
        (3.0, 7200, "backlog"),
        (3.0, 7200, "backlog"),
    ]


def test_growth_is_told_from_the_settled_moment_on() -> None:
    found = {
        "driver MB": [100.0 if n > 60 else float(n) for n in range(200)],
        "files": [float(n) for n in range(200)],
        "parts": [min(float(n), 139.0) for n in range(200)],
    }
    grown = soak._growth([5.0 * n for n in range(200)], found, 400.0)
    none = pytest.approx(0.0, abs=1e-9)
    assert grown["driver MB"] == {"then": 100.0, "end": 100.0, "a_minute": none, "late": none}
    assert grown["files"]["a_minute"] == grown["files"]["late"] == pytest.approx(12.0)
    assert grown["parts"]["a_minute"] > 1.0
    assert grown["parts"]["late"] == none
    assert soak._growth([5.0, 10.0], {"files": [1.0, 2.0]}, 400.0) == {}
    with pytest.raises(ConfigError, match="leaves nothing after"):
        soak.run(minutes=5.0, settled_minutes=5.0)

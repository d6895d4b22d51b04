import numpy as np
import pytest
from serving_kit import WATERMARK_MS, counted

from headrace.catalogue.eligible import Eligible
from headrace.config.answers import PopularConfig
from headrace.errors import StoreError
from headrace.experts.base import Shared
from headrace.experts.build import build_experts, load_experts, read_configs, save_experts
from headrace.experts.popular import Popular
from headrace.inputs.contexts import contexts_of
from headrace.store.arrays import dump_arrays, load_arrays

NOBODY = contexts_of([[]], WATERMARK_MS, 10)


def shares(expert, numbers):
    vote = expert.probabilities(NOBODY, None, Eligible(np.array(numbers)))
    assert isinstance(vote, Shared)
    assert vote.p_E.dtype == np.float32
    return vote.p_E.tolist()


def test_shares_of_counts_over_the_eligible():
    popular = Popular("popular", None)
    popular.apply([popular.reduce(counted([0, 1, 1, 2, 2, 2, 9]))], WATERMARK_MS)
    assert shares(popular, [1, 2]) == pytest.approx([0.4, 0.6])
    assert shares(popular, [0, 5, 9, 40]) == pytest.approx([0.5, 0, 0.5, 0])


def test_an_event_is_worth_half_after_a_half_life():
    popular = Popular("popular", 60.0)
    early, late = WATERMARK_MS, WATERMARK_MS + 120_000
    popular.apply([popular.reduce(counted([0] * 8, ts=[early] * 8))], early)
    popular.apply([popular.reduce(counted([1, 2], ts=[late, late - 60_000]))], late)
    assert shares(popular, [0, 1, 2]) == pytest.approx(np.array([2.0, 1.0, 0.5]) / 3.5)


def test_weights_count():
    popular = Popular("popular", None)
    popular.apply([popular.reduce(counted([0, 1], weight=[3.0, 1.0]))], WATERMARK_MS)
    assert shares(popular, [0, 1]) == [0.75, 0.25]


def test_split_rows_give_the_same_counts():
    draw = np.random.default_rng(0)
    numbers, ts = draw.integers(0, 50, 400), WATERMARK_MS - draw.integers(0, 10**7, 400)
    whole, split = Popular("a", 3600.0), Popular("a", 3600.0)
    whole.apply([whole.reduce(counted(numbers, ts))], WATERMARK_MS)
    halves = [split.reduce(counted(numbers[r::2], ts[r::2])) for r in (0, 1)]
    split.apply(halves, WATERMARK_MS)
    np.testing.assert_allclose(whole.state()["count"], split.state()["count"], rtol=1e-12)


def test_every_rank_holds_the_same_bytes_and_resumes_with_them():
    draw = np.random.default_rng(1)
    ranks = [Popular("popular", 1800.0) for _ in range(2)]
    for increment in range(5):
        watermark_ms = WATERMARK_MS + increment * 300_000
        rows = [
            (draw.integers(0, 30, n), watermark_ms - draw.integers(0, 900_000, n)) for n in (20, 0 if increment else 9)
        ]
        deltas = [rank.reduce(counted(*row)) for rank, row in zip(ranks, rows, strict=True)]
        for rank in ranks:
            rank.apply([load_arrays(dump_arrays(delta)) for delta in deltas], watermark_ms)
        resumed = Popular("popular", 1800.0)
        resumed.load(load_arrays(dump_arrays(ranks[0].state())))
        ranks[1] = resumed if increment == 2 else ranks[1]
    assert dump_arrays(ranks[0].state()) == dump_arrays(ranks[1].state())
    assert ranks[0].size_bytes == 30 * 8


def test_abstains_before_it_has_counted_anything_eligible():
    popular = Popular("popular", None)
    eligible = Eligible(np.array([3, 4]))
    assert popular.probabilities(NOBODY, None, eligible) is None
    popular.apply([popular.reduce(counted([]))], WATERMARK_MS)
    popular.apply([popular.reduce(counted([7, 7]))], WATERMARK_MS)
    assert popular.probabilities(NOBODY, None, eligible) is None
    popular.apply([popular.reduce(counted([4]))], WATERMARK_MS)
    assert shares(popular, [3, 4]) == [0.0, 1.0]


def test_a_long_silence_forgets_nothing():
    popular = Popular("popular", 1.0)
    popular.apply([popular.reduce(counted([0, 1, 1]))], WATERMARK_MS)
    popular.apply([popular.reduce(counted([]))], WATERMARK_MS + 10**10)
    assert shares(popular, [0, 1]) == pytest.approx([1 / 3, 2 / 3])


def test_experts_of_a_recipe_travel_by_name():
    configs = (PopularConfig(), PopularConfig(name="hourly", half_life_s=3600))
    experts = build_experts(configs)
    experts[1].apply([experts[1].reduce(counted([2]))], WATERMARK_MS)
    states = save_experts(experts)
    again = load_experts(read_configs([config.model_dump(mode="json") for config in configs]), states)
    assert [expert.name for expert in again] == ["popular", "hourly"]
    assert shares(again[1], [1, 2]) == [0.0, 1.0]
    with pytest.raises(StoreError, match="hourly"):
        load_experts(configs, {"popular": states["popular"]})

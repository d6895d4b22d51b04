import numpy as np

from headrace.bench import coldstart
from headrace.bench.coldstart import Tally
from headrace.blend.weights import NEURAL
from headrace.recommend.recommender import BLEND

SMALL = (
    "feed.synthetic.num_items=200",
    "feed.synthetic.events_per_shard=200",
    "feed.synthetic.warmup_events=4000",
    "feed.synthetic.births_per_shard=10",
    "model.width=16",
    "train.warmup_epochs=4",
    "train.learning_rate=3e-3",
    "train.epochs=1",
    "evaluation.max_queries=20",
)


def test_a_tally_by_hand():
    tally = Tally()
    rank = np.array([20, 21, 101, 1, 5])
    tally.add(np.array([7, 8, 9, 5, 7]), np.array([0, 0, 0, 20, 3]), {BLEND: rank, NEURAL: np.full(5, 1000)})
    assert tally.asked == {"0": 3, "1-4": 1, "5-19": 0, "20+": 1}
    assert tally.recall(BLEND, "0", 20) == 1 / 3
    assert tally.recall(BLEND, "0", 100) == 2 / 3
    assert tally.recall(BLEND, "5-19", 20) is None
    result = tally.result()
    assert result["cold_over_warm_recall@100"] == {BLEND: 2 / 3, NEURAL: None}
    assert result["new_items"] == 3
    assert result["events_until_found"] == {BLEND: 0.0, NEURAL: None}
    tally.add(np.array([9, 8, 5]), np.array([4, 9, 30]), {BLEND: np.array([3, 3, 3]), NEURAL: np.array([3, 3, 3])})
    assert tally.found[9] == {BLEND: 4, NEURAL: 4}
    assert tally.found[8] == {BLEND: 0, NEURAL: 9}
    assert tally.events_until_found(NEURAL) == 9.0


def test_attributes_find_what_nobody_has_touched(capsys):
    result = coldstart.run(increments=4, overrides=SMALL)
    attributes, ids = (result[name]["recall"][NEURAL]["0"]["recall@20"] for name in ("attributes", "ids only"))
    assert attributes > 2 * ids
    assert attributes > 0.1
    assert "attributes, blend" in capsys.readouterr().out

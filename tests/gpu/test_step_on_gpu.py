"""The same increments on a GPU and on the processor: same figures but for rounding."""

from pathlib import Path

import pytest
import torch
from loop_kit import Stream, events, recipe

from headrace.config.run import StoreConfig
from headrace.feed.ledger import LedgerReader, LedgerWriter
from headrace.feed.rows import cut_rows
from headrace.models.build import model_parts
from headrace.records import KEY_GROUPS
from headrace.store.fence import take_epoch
from headrace.train.committer import Committer
from headrace.train.group import Solo
from headrace.train.increment import train_increment
from headrace.train.state import fresh

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_three_increments_agree_with_the_processor(tmp_path: Path) -> None:
    weights = {}
    for device in ("cpu", "cuda"):
        stream = Stream(tmp_path / device, recipe("model.dropout=0.0"))
        for index in range(3):
            stream.land(events(300, seed=index, start_ms=index * 3_600_000))
        epoch = take_epoch(stream.store)
        cuts = stream.cuts(LedgerWriter.open(stream.store, epoch))
        state = fresh(stream.recipe, Solo(), torch.device(device))
        committer = Committer(stream.store, epoch, Solo(), StoreConfig())
        for cut in cuts:
            part = cut_rows(LedgerReader(stream.store), cut, stream.recipe.columns, range(KEY_GROUPS))
            train_increment(part, state, Solo(), committer)
        weights[device] = torch.from_numpy(model_parts(state.model)["table/00000"]["weight"])
    torch.testing.assert_close(weights["cuda"], weights["cpu"], rtol=1e-3, atol=1e-4)

"""The worked example of docs/add-a-method.md runs as it stands, and does what the page says."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat
from torch import Tensor

from headrace.config.base import Section
from headrace.config.models import SasRecConfig
from headrace.methods.base import Learned, Method
from headrace.models.base import RecallModel
from headrace.models.build import build_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-a-method.md"


def test_the_example_is_a_method():
    names = {
        **{"Literal": Literal, "Section": Section, "PositiveFloat": PositiveFloat, "Method": Method, "Any": Any},
        **{"Mapping": Mapping, "Tensor": Tensor, "RecallModel": RecallModel, "Learned": Learned},
        **{"NDArray": NDArray, "torch": torch, "__name__": "page"},
    }
    blocks = re.findall(r"```python\n(class .*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    method = names["Anchor"](names["AnchorConfig"](strength=0.5))
    model = build_model(SasRecConfig(width=8, blocks=1), 5, 16, seed=1)
    assert method.penalties(model) == {}
    method.end_increment(model, None)
    assert method.penalties(model)["anchor"].item() == 0.0
    with torch.no_grad():
        first = next(iter(model.encoder.parameters()))
        first += 1.0
    np.testing.assert_allclose(method.penalties(model)["anchor"].item(), 0.25 * first.numel(), rtol=1e-6)
    again = names["Anchor"](names["AnchorConfig"](strength=0.5))
    again.load_state_dict(method.state_dict())
    assert again.penalties(model)["anchor"].item() == method.penalties(model)["anchor"].item()

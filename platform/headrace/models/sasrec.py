"""SASRec (arXiv 1808.09781): a causal transformer over the items of a context, newest last.

Three choices of its own. LayerNorm stands on the query path only, and the residual starts at the normalised query (as
in the authors' code). Positions are distances, counted back from the event that asks and added to keys and values
before their projections (arXiv 1803.02155): a prefix alone and the same prefix inside a longer sequence get the same
vector, so "prefixes" and "sessions" train one model. A context without any event is answered by a learned vector.

Shape legend: B batch, L length, D width, H heads, K width of a head, P positions asked for, Z = L distances.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.config.models import SasRecConfig
from headrace.inputs.contexts import Contexts, ModelInputs
from headrace.models.dropout import Dropout
from headrace.models.features import Features
from headrace.models.layers import draw_layers, host, split_heads


class SasRec(nn.Module):
    """The encoder. ``reset`` draws its weights; until then they are whatever torch makes of a layer."""

    reads_empty = False

    def __init__(self, config: SasRecConfig, max_events: int) -> None:
        super().__init__()
        self.config = config
        self.max_events = max_events
        self.scale = config.width**0.5
        self.position = nn.Parameter(torch.zeros(max_events + 1, config.width))
        """A row for each distance; 0 is the event that asks itself."""
        self.start = nn.Parameter(torch.zeros(config.width))
        """What stands for a context without events."""
        self.features = Features(len(config.told), config.width) if config.told else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)

    def reset(self, draw: torch.Generator) -> None:
        """Fresh weights, from this generator alone."""
        draw_layers(self, draw)
        nn.init.xavier_normal_(self.position, generator=draw)
        nn.init.zeros_(self.start)
        if self.features is not None:
            self.features.reset()

    def shapes(self, contexts: Contexts, row_P: NDArray[np.int64], back_P: NDArray[np.int64]) -> NDArray[np.int64]:
        """The length of each."""
        return contexts.length_Q

    def places(self, tokens_B: NDArray[np.int64]) -> int:
        """Padded to the longest."""
        return len(tokens_B) * max(1, int(tokens_B.max(initial=0)))

    def kin(self, contexts: Contexts) -> NDArray[np.int64]:
        """All alike."""
        return np.zeros(len(contexts), dtype=np.int64)

    def forget(self, slot_R: Tensor) -> None:
        """It keeps no rows."""

    def forward(self, inputs: ModelInputs, item_BLD: Tensor, row_P: Tensor, back_P: Tensor) -> Tensor:
        """The query vectors ``(P, D)``; see ``models.base.Encoder``. ValueError for contexts beyond ``max_events``."""
        return self.run(inputs, item_BLD, row_P, back_P, _as_it_is)

    def run(
        self,
        inputs: ModelInputs,
        item_BLD: Tensor,
        row_P: Tensor,
        back_P: Tensor,
        beside: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        """``forward``, where ``beside(place, x)`` stands before each block and may put something in the place of ``x``.

        Before block ``place`` that is ``(B, L, D)``; after the last one, before the last norm, ``(P, D)``.
        """
        length = item_BLD.shape[1]
        if length > self.max_events + 1:
            raise ValueError(f"a context of {length} events; this model reads inputs.max_events = {self.max_events}")
        length_B = (inputs.slot_BL >= 0).sum(axis=1)
        row_np, back_np = host(row_P), host(back_P)
        last_only = not back_np.any()
        mask = _mask(inputs.slot_BL >= 0, item_BLD)
        met_BLD = item_BLD * self.scale
        if self.features is not None:
            met_BLD = met_BLD + self.features(inputs.kind_BL).to(met_BLD.dtype)
        x_BLD = self.dropout(met_BLD)
        for index, block in enumerate(self.blocks):
            x_BLD = block(
                beside(index, x_BLD), self.position[:length], mask, last_only and index == len(self.blocks) - 1
            )
        if last_only:
            x_PD = x_BLD[:, -1] if _is_identity(row_np, len(length_B)) else x_BLD[row_P, -1]
        else:
            x_PD = x_BLD[row_P, (length - 1 - back_P).clamp(min=0)]
        empty_P = back_np >= length_B[row_np]
        if empty_P.any():
            is_empty_P1 = torch.from_numpy(empty_P).to(x_PD.device).unsqueeze(-1)
            x_PD = torch.where(is_empty_P1, self.start.to(x_PD.dtype), x_PD)
        query_PD: Tensor = self.norm(beside(len(self.blocks), x_PD))
        return query_PD.to(item_BLD.dtype)


class Block(nn.Module):
    """Attention over distances, then a feed-forward layer of the same width."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"model.width ({width}) must be a multiple of model.heads ({heads})")
        self.heads = heads
        self.query_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, width)
        self.feed_out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, position_ZD: Tensor, mask: Tensor | None, last_only: bool) -> Tensor:
        """``(B, L, D)``, or ``(B, 1, D)`` where only the newest position is asked for. ``mask`` is added to scores."""
        normal_BLD = self.query_norm(x_BLD[:, -1:] if last_only else x_BLD)
        query_BHLK = split_heads(self.query(normal_BLD), self.heads)
        key_BHLK, value_BHLK = (split_heads(to(x_BLD), self.heads) for to in (self.key, self.value))
        # oldest distance first, so that the columns of the newest query are in the order of its keys
        far_ZD = position_ZD.flip(0)
        far_key_HZK = split_heads(nn.functional.linear(far_ZD, self.key.weight).unsqueeze(0), self.heads)[0]
        far_value_HZK = split_heads(nn.functional.linear(far_ZD, self.value.weight).unsqueeze(0), self.heads)[0]
        by_distance_BHLZ = query_BHLK @ far_key_HZK.transpose(-1, -2)
        score_BHLL = query_BHLK @ key_BHLK.transpose(-1, -2)
        score_BHLL = score_BHLL + (by_distance_BHLZ if last_only else _distance_to_key(by_distance_BHLZ))
        score_BHLL = score_BHLL * query_BHLK.shape[-1] ** -0.5
        if mask is not None:
            score_BHLL = score_BHLL + (mask[:, :, -1:] if last_only else mask)
        share_BHLL = self.dropout(score_BHLL.softmax(-1))
        share_BHLZ = share_BHLL if last_only else _key_to_distance(share_BHLL)
        seen_BHLK = share_BHLL.to(value_BHLK.dtype) @ value_BHLK + share_BHLZ.to(far_value_HZK.dtype) @ far_value_HZK
        normal_BLD = self.feed_norm(normal_BLD + seen_BHLK.transpose(1, 2).flatten(2))
        hidden_BLD = self.dropout(self.feed_in(normal_BLD).relu())
        result_BLD: Tensor = normal_BLD + self.dropout(self.feed_out(hidden_BLD))
        return result_BLD


def _as_it_is(place: int, x: Tensor) -> Tensor:
    return x


def _mask(is_event_BL: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], like: Tensor) -> Tensor | None:
    """What is added to scores ``(B or 1, 1, L, L)``: -inf for later events and padding; None where nothing is hidden.

    A padded position still sees itself, so that no row of the softmax is empty.
    """
    length = is_event_BL.shape[1]
    if length == 1:
        return None
    later_LL = np.triu(np.ones((length, length), dtype=np.bool_), 1)
    hidden = later_LL[None]
    if not is_event_BL.all():
        hidden = later_LL | (~is_event_BL[:, None, :] & ~np.eye(length, dtype=np.bool_))
    mask = np.where(hidden, -np.inf, 0.0).astype(np.float32)[:, None]
    return torch.from_numpy(mask).to(like)


def _distance_to_key(x_BHLZ: Tensor) -> Tensor:
    """Column of distance L - 1 - z at z, to column j of distance i - j; what is later than i holds anything."""
    batch, heads, length, _ = x_BHLZ.shape
    return nn.functional.pad(x_BHLZ, (1, 0)).view(batch, heads, length + 1, length)[:, :, 1:]


def _key_to_distance(x_BHLL: Tensor) -> Tensor:
    """The way back; what is later than i must be 0."""
    batch, heads, length, _ = x_BHLL.shape
    return nn.functional.pad(x_BHLL, (0, 0, 1, 0)).view(batch, heads, length, length + 1)[..., 1:]


def _is_identity(row_P: np.ndarray[tuple[int, ...], np.dtype[np.int64]], num_rows: int) -> bool:
    return len(row_P) == num_rows and bool((row_P == np.arange(num_rows)).all())

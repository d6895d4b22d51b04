"""Next-session prediction: context tokens among the items, as in TBGRecall (arXiv 2508.11977).

A context token opens every session; what it becomes is the query for the session's items, so one pass over a sequence
asks for all of its sessions. models/session_tokens.py says where tokens stand and who sees whom. All tokens of a
session share one rotary position (arXiv 2104.09864). Items and context tokens have projections of their own at the
entrance and in the first block ("separate"); a block's feed-forward layer may be a mixture of experts, of which each
token asks two, beside one that all ask. Every part is a switch of the recipe. Otherwise a block is SASRec's.

Shape legend: B batch, L events, C context tokens, T = L + C, S tokens that ask (all, or the C), D width, H heads, K
width of a head, P questions.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.config.models import NspConfig
from headrace.inputs.contexts import Contexts, ModelInputs
from headrace.inputs.sessions import ragged_begins
from headrace.inputs.told import kind_of
from headrace.models.dropout import Dropout
from headrace.models.features import Features
from headrace.models.layers import draw_layers, host, split_heads
from headrace.models.mixture import FeedForward, Mixture
from headrace.models.session_tokens import Ints, lay_out, rounded_up

_KINDS = 256
"""Kinds of events are told apart by their code's remainder: two of three alike is one chance in a hundred."""
_SILENCES = 24
"""Steps of silence, each twice as long as the one before, from a second on; 0: nothing before."""
_LONGEST = 1000.0
"""Sessions in the slowest turn of the rotary positions, over 2 pi."""


class NextSession(nn.Module):
    """The encoder. ``reset`` draws its weights; until then they are whatever torch makes of a layer."""

    def __init__(self, config: NspConfig, max_events: int) -> None:
        super().__init__()
        width = config.width
        if width % (2 * config.heads):
            raise ValueError(f"model.width ({width}) must be a multiple of twice model.heads ({config.heads})")
        self.config = config
        self.max_events = max_events
        self.scale = width**0.5
        self.start = nn.Parameter(torch.zeros(width))
        """Of every context token."""
        self.kind = nn.Parameter(torch.zeros(_KINDS, width))
        self.features = Features(len(config.features), width) if config.features else None
        self.hour = nn.Parameter(torch.zeros(24, width))
        self.weekday = nn.Parameter(torch.zeros(7, width))
        self.silence = nn.Parameter(torch.zeros(_SILENCES, width))
        self.enter = Projection(width, width, config.separate)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, config.separate and not index) for index in range(config.blocks))
        self.norm = nn.LayerNorm(width)

    def reset(self, draw: torch.Generator) -> None:
        """Fresh weights, from this generator alone."""
        draw_layers(self, draw)
        for entrance in self.enter.each():  # tokens enter as they are
            nn.init.eye_(entrance.weight)
        for table in (self.kind, self.hour, self.weekday, self.silence):
            nn.init.zeros_(table)
        if self.features is not None:
            self.features.reset()
        nn.init.normal_(self.start, std=self.scale**-1, generator=draw)

    def shapes(self, contexts: Contexts) -> NDArray[np.int64]:
        """By length, then by the number of sessions, each of which has a token, too."""
        return contexts.length_Q * (self.max_events + 1) + self._num_sessions(contexts)

    def kin(self, contexts: Contexts) -> NDArray[np.int64]:
        """By the number of sessions and one question, rounded up to a power of two."""
        return rounded_up(1 + self._num_sessions(contexts))

    def _num_sessions(self, contexts: Contexts) -> NDArray[np.int64]:
        begins_T = ragged_begins(contexts.ts_T, contexts.offset_R, self.config.session_gap_s)
        return np.diff(np.append(0, np.cumsum(begins_T))[contexts.offset_R]).astype(np.int64)

    def forget(self, slot_R: Tensor) -> None:
        """It keeps no rows."""

    def forward(self, inputs: ModelInputs, item_BLD: Tensor, row_P: Tensor, back_P: Tensor) -> Tensor:
        """The query vectors ``(P, D)``; see ``models.base.Encoder``. ValueError for contexts beyond ``max_events``."""
        length = item_BLD.shape[1]
        if length > self.max_events + 1:
            raise ValueError(f"a context of {length} events; this model reads inputs.max_events = {self.max_events}")
        config = self.config
        row_np, back_np = host(row_P), host(back_P)
        tokens = lay_out(
            inputs,
            row_np,
            back_np,
            config.session_gap_s,
            "token" if config.rotary == "token" else "session",
            "earlier_sessions" if config.session_mask else "earlier_items",
            is_rounded=not self.training,
        )
        x_BTD = self.dropout(
            self.enter(self._items(inputs, item_BLD), self._contexts(tokens.opens_ms_BC, tokens.silence_ms_BC))
        )
        turn_BTK = None if config.rotary == "none" else self._turns(tokens.place_BT).to(item_BLD.device)
        mask = torch.from_numpy(np.where(tokens.seen_BTT, 0.0, -np.inf).astype(np.float32)).to(item_BLD).unsqueeze(1)
        for index, block in enumerate(self.blocks):
            first = length if index == len(self.blocks) - 1 else 0
            x_BTD = block(x_BTD, length, first, turn_BTK, mask)
        query_PD: Tensor = self.norm(x_BTD[row_P, torch.from_numpy(tokens.question_P)])
        return query_PD.to(item_BLD.dtype)

    def _items(self, inputs: ModelInputs, item_BLD: Tensor) -> Tensor:
        """What item tokens are made of: the item, and how it was met."""
        kind_BL = torch.from_numpy(kind_of(inputs.kind_BL).astype(np.int64) % _KINDS).to(item_BLD.device)
        made_BLD: Tensor = item_BLD * self.scale + nn.functional.embedding(kind_BL, self.kind)
        return made_BLD if self.features is None else made_BLD + self.features(inputs)

    def _contexts(self, opens_ms_BC: Ints, silence_ms_BC: Ints) -> Tensor:
        """What context tokens are made of: the time at which they open a session, and the silence before."""
        hour_BC, day_BC = opens_ms_BC // 3_600_000 % 24, opens_ms_BC // 86_400_000 % 7
        doubled_BC = 1 + np.log2(1 + np.maximum(silence_ms_BC, 0) / 1000).astype(np.int64)
        step_BC = np.where(silence_ms_BC < 0, 0, np.minimum(doubled_BC, _SILENCES - 1))
        pairs = ((self.hour, hour_BC), (self.weekday, day_BC), (self.silence, step_BC))
        parts = [nn.functional.embedding(torch.from_numpy(at_BC).to(table.device), table) for table, at_BC in pairs]
        return self.start + parts[0] + parts[1] + parts[2]

    def _turns(self, place_BT: Ints) -> Tensor:
        """By how much each pair of a head's entries is turned, (B, T, K / 2)."""
        num_pairs = self.config.width // self.config.heads // 2
        speed_K = _LONGEST ** -(np.arange(num_pairs) / num_pairs)
        turn_BTK: Tensor = torch.from_numpy((place_BT[..., None] * speed_K).astype(np.float32))
        return turn_BTK


class Projection(nn.Module):
    """A linear layer over tokens, the same for all or one for items and one for context tokens."""

    def __init__(self, width: int, out: int, separate: bool) -> None:
        super().__init__()
        self.item = nn.Linear(width, out)
        self.context = nn.Linear(width, out) if separate else None

    def each(self) -> list[nn.Linear]:
        """The layers that it consists of."""
        return [self.item] if self.context is None else [self.item, self.context]

    def forward(self, item_BLD: Tensor, context_BCD: Tensor) -> Tensor:
        """All tokens, (B, T, out)."""
        if self.context is None:
            whole: Tensor = self.item(torch.cat([item_BLD, context_BCD], dim=1))
            return whole
        return torch.cat([self.item(item_BLD), self.context(context_BCD)], dim=1)


class Block(nn.Module):
    """Attention over what a token may see, then a feed-forward layer of the same width."""

    def __init__(self, config: NspConfig, separate: bool) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query_norm = nn.LayerNorm(width)
        self.query = Projection(width, width, separate)
        self.key = Projection(width, width, separate)
        self.value = Projection(width, width, separate)
        self.feed_norm = nn.LayerNorm(width)
        self.feed: nn.Module = (
            Mixture(width, config.experts, config.dropout) if config.experts else FeedForward(width, config.dropout)
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, length: int, first: int, turn_BTK: Tensor | None, mask: Tensor) -> Tensor:
        """``(B, S, D)`` for the tokens from ``first`` on; ``mask`` (B, 1, T, T) is added to scores."""
        item_BLD, context_BCD = x_BTD[:, :length], x_BTD[:, length:]
        normal_BSD = self.query_norm(x_BTD[:, first:])
        asking = normal_BSD[:, : length - first], normal_BSD[:, length - first :]
        query_BHSK = split_heads(self.query(*asking), self.heads)
        key_BHTK, value_BHTK = (split_heads(to(item_BLD, context_BCD), self.heads) for to in (self.key, self.value))
        if turn_BTK is not None:
            query_BHSK, key_BHTK = _turned(query_BHSK, turn_BTK[:, first:]), _turned(key_BHTK, turn_BTK)
        score_BHST = query_BHSK @ key_BHTK.transpose(-1, -2) * query_BHSK.shape[-1] ** -0.5 + mask[:, :, first:]
        share_BHST = self.dropout(score_BHST.softmax(-1))
        seen_BHSK = share_BHST.to(value_BHTK.dtype) @ value_BHTK
        normal_BSD = self.feed_norm(normal_BSD + seen_BHSK.transpose(1, 2).flatten(2))
        result_BSD: Tensor = normal_BSD + self.dropout(self.feed(normal_BSD))
        return result_BSD


def _turned(x_BHSK: Tensor, turn_BSK: Tensor) -> Tensor:
    """Each pair of entries, turned by its token's angle."""
    cos, sin = turn_BSK.cos().unsqueeze(1).to(x_BHSK), turn_BSK.sin().unsqueeze(1).to(x_BHSK)
    half = x_BHSK.shape[-1] // 2
    a, b = x_BHSK[..., :half], x_BHSK[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

"""Next-session prediction: context tokens among the items, as in TBGRecall (arXiv 2508.11977).

A context token opens every session; what it becomes is the query for the session's items, so one pass over a sequence
asks for all of its sessions. models/session_tokens.py says where tokens stand and who sees whom. All tokens of a
session share one rotary position (arXiv 2104.09864). Items and context tokens have projections of their own at the
entrance and in the first block ("separate"); a block's feed-forward layer may be a mixture of experts, of which each
token asks two, beside one that all ask. Every part is a switch of the recipe. Otherwise a block is SASRec's.

Tokens of a training step are packed: rows share sequences, so that next to nothing is padded. An answer's are not,
since the shapes of its products must depend on the query alone.

Shape legend: B rows, L events, G rows or what several are joined in, T tokens of each, A of them asking, S all or those
that ask, D width, H heads, K width of a head, P questions, N tokens of all rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from headrace.config.models import NspConfig
from headrace.inputs.contexts import Contexts, ModelInputs
from headrace.inputs.sessions import ragged_begins
from headrace.inputs.told import Codes, kind_of
from headrace.models.bins import join
from headrace.models.dropout import Dropout
from headrace.models.features import Features
from headrace.models.layers import draw_layers, host, split_heads
from headrace.models.mixture import FeedForward, Mixture
from headrace.models.session_tokens import Ints, SessionTokens, lay_out, packed, rounded_up

_KINDS = 256
"""Kinds of events are told apart by their code's remainder: two of three alike is one chance in a hundred."""
_SILENCES = 24
"""Steps of silence, each twice as long as the one before, from a second on; 0: nothing before."""
_LONGEST = 1000.0
"""Sessions in the slowest turn of the rotary positions, over 2 pi."""


class NextSession(nn.Module):
    """The encoder. ``reset`` draws its weights; until then they are whatever torch makes of a layer."""

    reads_empty = True

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
        self.features = Features(len(config.told), width) if config.told else None
        self.request = Features(len(config.features), width) if config.features and config.request else None
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
        for features in (self.features, self.request):
            if features is not None:
                features.reset()
        nn.init.normal_(self.start, std=self.scale**-1, generator=draw)

    def shapes(self, contexts: Contexts, row_P: Ints, back_P: Ints) -> Ints:
        """The number of tokens: each session has one, and so has a question that is not at the start of one."""
        begins_T = ragged_begins(contexts.ts_T, contexts.offset_R, self.config.session_gap_s)
        at_P = np.maximum(contexts.offset_R[row_P + 1] - back_P, contexts.offset_R[row_P])
        is_own_P = (at_P < contexts.offset_R[row_P + 1]) & np.append(begins_T, False)[at_P]
        row_N = row_P[~is_own_P]
        _, first_N = np.unique(at_P[~is_own_P] + row_N, return_index=True)  # one row ends where the next begins
        num_apart_Q = np.bincount(row_N[first_N], minlength=len(contexts))
        return contexts.length_Q + self._num_sessions(contexts) + num_apart_Q

    def places(self, tokens_B: Ints) -> int:
        """Those of the bins that rows share."""
        return join(tokens_B).places

    def kin(self, contexts: Contexts) -> Ints:
        """By the number of sessions and one question, rounded up to a power of two."""
        return rounded_up(1 + self._num_sessions(contexts))

    def _num_sessions(self, contexts: Contexts) -> Ints:
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
        tokens = packed(tokens) if self.training else tokens
        places = _Places.of(tokens, item_BLD.device)
        item_ND = item_BLD.flatten(0, 1).index_select(0, places.event_N)
        items_ND = self._items(inputs.kind_BL.ravel()[tokens.event_N], item_ND)
        x_GTD = self.dropout(places.put(*self.enter.parts(items_ND, self._contexts(tokens))))
        turn_GTK = None if config.rotary == "none" else self._turns(tokens.place_GT).to(item_BLD.device)
        mask = torch.from_numpy(np.where(tokens.seen_GTT, np.float32(0.0), np.float32(-np.inf))).to(item_BLD)
        for index, block in enumerate(self.blocks):
            x_GTD = block(x_GTD, places, index == len(self.blocks) - 1, turn_GTK, mask)
        query_PD: Tensor = self.norm(x_GTD[torch.from_numpy(tokens.row_P), torch.from_numpy(tokens.question_P)])
        return query_PD.to(item_BLD.dtype)

    def _items(self, told_N: Codes, item_ND: Tensor) -> Tensor:
        """What item tokens are made of: the item, and how it was met."""
        kind_N = torch.from_numpy(kind_of(told_N).astype(np.int64) % _KINDS).to(item_ND.device)
        made_ND: Tensor = item_ND * self.scale + nn.functional.embedding(kind_N, self.kind)
        return made_ND if self.features is None else made_ND + self.features(told_N)

    def _contexts(self, tokens: SessionTokens) -> Tensor:
        """What context tokens are made of: when they open a session, the silence before, and what the request says."""
        told = (tokens.opens_ms_BC, tokens.silence_ms_BC, tokens.told_BC)
        opens_ms_N, silence_ms_N, told_N = (of_BC.ravel()[tokens.context_N] for of_BC in told)
        hour_N, day_N = opens_ms_N // 3_600_000 % 24, opens_ms_N // 86_400_000 % 7
        doubled_N = 1 + np.log2(1 + np.maximum(silence_ms_N, 0) / 1000).astype(np.int64)
        step_N = np.where(silence_ms_N < 0, 0, np.minimum(doubled_N, _SILENCES - 1))
        pairs = ((self.hour, hour_N), (self.weekday, day_N), (self.silence, step_N))
        parts = [nn.functional.embedding(torch.from_numpy(at_N).to(table.device), table) for table, at_N in pairs]
        made_ND = self.start + parts[0] + parts[1] + parts[2]
        return made_ND if self.request is None else made_ND + self.request(told_N)

    def _turns(self, place_GT: Ints) -> Tensor:
        """By how much each pair of a head's entries is turned, (G, T, K / 2)."""
        num_pairs = self.config.width // self.config.heads // 2
        speed_K = _LONGEST ** -(np.arange(num_pairs) / num_pairs)
        turn_GTK: Tensor = torch.from_numpy((place_GT[..., None] * speed_K).astype(np.float32))
        return turn_GTK


@dataclass(frozen=True)
class _Places:
    """Where the tokens of a batch lie; see ``SessionTokens``."""

    event_N: Tensor
    event_at_N: Tensor
    context_at_N: Tensor
    asking_GA: Tensor
    """Of each token that asks, among the G x T."""
    shape: tuple[int, int]
    """G and T."""

    @classmethod
    def of(cls, tokens: SessionTokens, device: torch.device) -> "_Places":
        rows, width = tokens.place_GT.shape
        asking_GA = np.arange(rows)[:, None] * width + tokens.asking_GA
        arrays = (tokens.event_N, tokens.event_at_N, tokens.context_at_N, asking_GA)
        event_N, event_at_N, context_at_N, asking = (torch.from_numpy(array).to(device) for array in arrays)
        return cls(event_N, event_at_N, context_at_N, asking, (rows, width))

    def put(self, items_ND: Tensor, contexts_ND: Tensor) -> Tensor:
        """Items and context tokens, each where it lies, (G, T, D); zeros where there is none."""
        rows, width = self.shape
        flat_ND = items_ND.new_zeros(rows * width, items_ND.shape[1])
        flat_ND = flat_ND.index_copy(0, self.event_at_N, items_ND).index_copy(0, self.context_at_N, contexts_ND)
        return flat_ND.view(rows, width, -1)

    def asking(self, x_GTX: Tensor) -> Tensor:
        """Of what belongs to tokens, the part of those that ask, (G, A, ..)."""
        asking_NX = x_GTX.flatten(0, 1).index_select(0, self.asking_GA.flatten())
        return asking_NX.view(*self.asking_GA.shape, -1)


class Projection(nn.Module):
    """A linear layer over tokens, the same for all or one for items and one for context tokens."""

    def __init__(self, width: int, out: int, separate: bool) -> None:
        super().__init__()
        self.item = nn.Linear(width, out)
        self.context = nn.Linear(width, out) if separate else None

    def each(self) -> list[nn.Linear]:
        """The layers that it consists of."""
        return [self.item] if self.context is None else [self.item, self.context]

    def parts(self, items_ND: Tensor, contexts_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Of items and of context tokens."""
        return self.item(items_ND), self.of_contexts(contexts_ND)

    def of_contexts(self, x: Tensor) -> Tensor:
        """Of context tokens alone, in any shape."""
        result: Tensor = (self.item if self.context is None else self.context)(x)
        return result

    def forward(self, x_GTD: Tensor, places: _Places) -> Tensor:
        """Of all tokens, (G, T, out)."""
        if self.context is None:
            whole: Tensor = self.item(x_GTD)
            return whole
        flat_ND = x_GTD.flatten(0, 1)
        items_ND, contexts_ND = (flat_ND.index_select(0, at_N) for at_N in (places.event_at_N, places.context_at_N))
        return places.put(*self.parts(items_ND, contexts_ND))


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

    def forward(
        self, x_GTD: Tensor, places: _Places, is_last: bool, turn_GTK: Tensor | None, mask_GTT: Tensor
    ) -> Tensor:
        """``(G, S, D)``, for the tokens that ask alone where this is the last block; the mask is added to scores."""
        asking_GSD = places.asking(x_GTD) if is_last else x_GTD
        normal_GSD = self.query_norm(asking_GSD)
        asked_GSD = self.query.of_contexts(normal_GSD) if is_last else self.query(normal_GSD, places)
        query_GHSK = split_heads(asked_GSD, self.heads)
        key_GHTK, value_GHTK = (split_heads(to(x_GTD, places), self.heads) for to in (self.key, self.value))
        if turn_GTK is not None:
            turn_GSK = places.asking(turn_GTK) if is_last else turn_GTK
            query_GHSK, key_GHTK = _turned(query_GHSK, turn_GSK), _turned(key_GHTK, turn_GTK)
        mask_G1ST = (places.asking(mask_GTT) if is_last else mask_GTT).unsqueeze(1)
        score_GHST = query_GHSK @ key_GHTK.transpose(-1, -2) * query_GHSK.shape[-1] ** -0.5 + mask_G1ST
        share_GHST = self.dropout(score_GHST.softmax(-1))
        seen_GHSK = share_GHST.to(value_GHTK.dtype) @ value_GHTK
        normal_GSD = self.feed_norm(normal_GSD + seen_GHSK.transpose(1, 2).flatten(2))
        result_GSD: Tensor = normal_GSD + self.dropout(self.feed(normal_GSD))
        return result_GSD


def _turned(x_GHSK: Tensor, turn_GSK: Tensor) -> Tensor:
    """Each pair of entries, turned by its token's angle."""
    cos, sin = turn_GSK.cos().unsqueeze(1).to(x_GHSK), turn_GSK.sin().unsqueeze(1).to(x_GHSK)
    half = x_GHSK.shape[-1] // 2
    a, b = x_GHSK[..., :half], x_GHSK[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

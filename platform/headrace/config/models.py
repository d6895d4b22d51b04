"""What is trained: models, with what counters add to them, and objectives."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from headrace.config.base import Section, Share, kind_is

MOST_TOLD = 3
"""Features and attributes together: as many as find room beside the kind of an event (inputs/told.py)."""


def told_attribute(name: str) -> str:
    """What an attribute of items is called among features; a column of the log may have the same name."""
    return f"item: {name}"


class PriorConfig(Section):
    """What counters expect is added to the model's scores, as logarithms, so that it learns what they lack."""

    experts: Annotated[tuple[str, ...], Field(min_length=1)] = ("popular",)
    """Names of experts, whose probabilities are averaged. They are asked about every example, in every epoch."""
    floor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The share of the average that is spread evenly over all items."""


class TransformerConfig(Section):
    """What every model has, and how its scores are made."""

    width: PositiveInt = 64
    blocks: PositiveInt = 2
    heads: PositiveInt = 1
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    scores: Literal["dot", "cosine"] = "dot"
    temperature: PositiveFloat = 0.0625
    """Of cosine scores; dot products have none."""
    features: Annotated[tuple[str, ...], Field(max_length=3)] = ()
    """Columns of ``columns.context``, three at most: what is told of each event beside its item. Few values each, words
    or numbers."""
    attributes: tuple[str, ...] = ()
    """Of ``catalogue.attributes``: what the side feed says of an event's item is told with it, as it is known when the
    event is trained. Three at most, together with ``features``."""
    prior: PriorConfig | None = None

    @property
    def told(self) -> tuple[str, ...]:
        """Everything that is told of an event beside its item, its time and its kind, by name and in order."""
        return (*self.features, *map(told_attribute, self.attributes))


class SasRecConfig(TransformerConfig):
    """A causal transformer over the context's items (SASRec, arXiv 1808.09781)."""

    kind: Literal["sasrec"] = "sasrec"


class NspConfig(TransformerConfig):
    """Next-session prediction: a context token opens every session (TBGRecall, arXiv 2508.11977).

    Made for ``inputs.context = "user"`` and ``inputs.sessions = "set"``, where a session is asked for at its start.
    """

    kind: Literal["nsp"] = "nsp"
    session_gap_s: Annotated[int, Field(ge=0)] = 1800
    """A silence of more than this ends a session, in the model's eyes."""
    session_mask: bool = True
    """Whether items see earlier sessions alone; else all items before them."""
    rotary: Literal["session", "token", "none"] = "session"
    """What shares a rotary position: all tokens of a session, or no two; or nothing turns."""
    sessions_ahead: PositiveInt = 2
    """A context token is asked for so many sessions, from the one that it opens on; 1: for that one alone."""
    ahead_weight: Share = 0.5
    """Of the targets of each session further on, times the weight of those before it."""
    separate: bool = True
    """Whether items and context tokens have projections of their own, at the entrance and in the first block."""
    request: bool = True
    """Whether context tokens are told what ``features`` say of the request that opens their session."""
    experts: Annotated[int, Field(ge=0)] = 0
    """In place of each feed-forward layer: so many, of which a token asks two, and one that all ask. 0: a plain one."""


ModelConfig = Annotated[SasRecConfig | NspConfig, Field(discriminator="kind"), kind_is("sasrec")]
"""Every kind of model; a section that names none is a "sasrec"."""


class TargetsConfig(Section):
    """Which rows are targets, and how they weigh (TBGRecall, arXiv 2508.11977); every objective has it."""

    levels: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    """Behaviours, the weakest first, whose rows are targets: kinds of event, and columns of ``columns.context`` that
    are true (or not 0) on a row. Beside its own loss a target is held against those of its session that show no more
    than the level below. Empty: targets are the rows that are asked for (``columns.target_kinds``), and alike."""
    level_weight: NonNegativeFloat = 1.0
    """Of what levels add to a target's loss."""
    scene: str | None = None
    """A column of ``columns.context``: the targets of each of its values weigh as much as those of any other, in an
    increment. None: every target weighs what it weighs."""


class SoftmaxConfig(TargetsConfig):
    """Cross-entropy over the whole eligible set."""

    kind: Literal["softmax"] = "softmax"
    examples: Literal["prefixes", "sessions"] = "prefixes"
    """"prefixes": every prefix an example of its own; "sessions": a loss at every position of one pass."""


class SampledSoftmaxConfig(TargetsConfig):
    """Cross-entropy over items that are drawn for each step: what a step costs does not depend on the catalogue's size.

    For training only: served and scored probabilities are those of the whole softmax.
    """

    kind: Literal["sampled_softmax"] = "sampled_softmax"
    examples: Literal["prefixes", "sessions"] = "prefixes"
    """As for "softmax"."""
    negatives: PositiveInt = 4096
    """Items drawn a step, shared by all its examples on all ranks; where fewer are eligible, all of them."""
    draw: Literal["uniform", "frequency"] = "frequency"
    """"frequency": in proportion to how often an item was a target, decayed; the loss is corrected for it (logQ)."""
    half_life_targets: PositiveInt = 1_000_000
    """Of the frequencies: a target so many targets ago counts half."""
    uniform_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Of the draws by frequency: so many are spread evenly, so that every item can be drawn."""


ObjectiveConfig = Annotated[SoftmaxConfig | SampledSoftmaxConfig, Field(discriminator="kind"), kind_is("softmax")]
"""Every kind of objective; a section that names none is a "softmax"."""

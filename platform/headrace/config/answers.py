"""What is answered, and what is published: counting experts, their blend, evaluation, gate."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from headrace.config.base import Section, Share


class PopularConfig(Section):
    """Counts of every item, decayed by event time."""

    kind: Literal["popular"] = "popular"
    name: str = "popular"
    half_life_s: PositiveFloat | None = None
    """None: counts never fade."""


class CovisitConfig(Section):
    """Items met close together in a context, decayed by event time."""

    kind: Literal["covisit"] = "covisit"
    name: str = "covisit"
    half_life_s: PositiveFloat | None = None
    """None: counts never fade."""
    window: PositiveInt = 10
    """A row is paired with so many events before it in its context; d steps apart weigh 1/d."""
    last: PositiveInt = 10
    """The newest distinct items of a context that vote; the n-th newest weighs 1/n."""
    max_per_item: PositiveInt = 200
    """Neighbours that an item keeps (it may hold twice as many between two cuts back)."""
    shrink: PositiveFloat = 10.0
    """Pseudo-events of popularity beside each item's neighbours: the fewer they are, the more popularity says."""


class SimilarSessionsConfig(Section):
    """Past sessions that share items with the context (VMIS-kNN, SIGMOD 2022)."""

    kind: Literal["similar_sessions"] = "similar_sessions"
    name: str = "similar_sessions"
    sessions_per_item: PositiveInt = 500
    """The newest sessions of each item that are looked at."""
    neighbours: PositiveInt = 200
    """The most similar of them, which vote."""
    last: PositiveInt = 10
    """The newest distinct items of a context that are compared; the n-th newest weighs 1/n."""
    max_events: PositiveInt = 2_000_000
    """Events kept, of all sessions together: about 12 bytes each; the sessions that went quiet first go first."""


class OwnItemsConfig(Section):
    """The context's own items, by recency and frequency."""

    kind: Literal["own_items"] = "own_items"
    name: str = "own_items"
    half_life_events: PositiveFloat = 2.0
    """An event so many steps back is worth half: short for "again what was just seen", long for "what is met most"."""


class EncodingsConfig(Section):
    """Past contexts that the model finds alike, with what came next (kNN-LM, arXiv 1911.00172)."""

    kind: Literal["encodings"] = "encodings"
    name: str = "encodings"
    max_rows: PositiveInt = 60_000
    """Of the newest rows kept: a number of two bytes for each of the model's ``width``, and the context. An answer
    compares the query with all of them."""
    neighbours: PositiveInt = 200
    """The nearest of them, which vote."""
    temperature: PositiveFloat = 0.1
    """Of their cosines: the lower, the more the very nearest count."""
    reencode: Annotated[int, Field(ge=0)] = 4096
    """Old rows that are encoded again in an increment, beside the new ones: those that have waited for longest."""


ExpertConfig = Annotated[
    PopularConfig | CovisitConfig | SimilarSessionsConfig | OwnItemsConfig | EncodingsConfig,
    Field(discriminator="kind"),
]
"""Every kind of expert that a recipe may name."""


class BlendConfig(Section):
    """How the experts' probabilities are weighed (Soft-Bayes, arXiv 1901.02230)."""

    eta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01
    share: Share = 0.0001
    """Spread evenly over all experts at every query, so that no weight can die."""
    calibrate: bool = True
    """Whether the stream also learns how sharply each expert is heard: one temperature each."""
    split: Literal["none", "repeat"] = "none"
    """"repeat": the items of a query's own context have weights of their own, and together the share of the score with
    which targets of the stream come again, by length of context; where seen items come last, they have none."""


class RecommendConfig(Section):
    """What a version does with the items that a query's context already holds."""

    seen: Literal["keep", "last", "auto"] = "auto"
    """"keep": they compete; "last": they come after all others; "auto": as ``repeat_share`` says."""
    repeat_share: Share = 0.02
    """"auto" puts them last while a smaller share of the stream's targets than this was in its own context."""


class EvaluationConfig(Section):
    """What is scored before it is trained."""

    eval_share: Share = 0.02
    """Users (else sessions) that are never trained, by hash."""
    max_queries: PositiveInt | Literal["all"] = 2000
    """Queries scored in an increment, over all ranks, and fewer where there are more than 25,000 items."""
    frozen_every: PositiveInt = 1
    """The frozen model is scored in every n-th increment."""


class GateConfig(Section):
    """Hard rules that stand before publication, and the sequential test that follows it."""

    max_abs: PositiveFloat = 1e4
    """reject: an entry of weights or optimizer state beyond this, or not a number."""
    max_update_ratio: PositiveFloat = 5.0
    """reject: the update's norm over the weights' norm (never applied to the warm-up). An increment that is 20 times as
    long as the warm-up moves the weights by about their own norm, and is fine."""
    max_churn: Share = 1.0
    """hold: share of the probe queries' top 20 that changed."""
    max_item_share: Share = 0.9
    """reject: one item's share of the increment's events (increments of 100 events or more)."""
    max_user_share: Share = 0.5
    """reject: one user's (else session's) share of the increment's events (increments of 100 events or more)."""
    max_share_growth: PositiveFloat = 5.0
    """reject: one user's share over the largest of recent increments, where it is more than a tenth; or one item's,
    where it is more than a half."""
    min_coherence: Share = 0.5
    """reject: how often contexts rank their own next item over others of the cut, less one half, over what that usually
    is, where it is 2.5 errors below, of the cut and of the stream. Where items do not belong to their rows it is about
    0. 0: not asked."""
    max_update_growth: PositiveFloat = 4.0
    """reject: the update's norm over what recent increments make one expect of as many steps."""
    max_unusual: PositiveInt = 5
    """After so many cuts in a row that the three rules before this have rejected, the stream is believed to have
    changed, and what is usual is learned anew."""
    max_eligible_loss: Share = 0.5
    """reject: the share of the items that could be answered, and after the increment no longer can. One event with a
    time far ahead moves the watermark, and all else falls out of ``catalogue.alive_s``."""
    num_probes: PositiveInt = 64
    max_holds: PositiveInt = 10
    """After so many holds in a row the learner goes back to the trusted version."""
    window: Annotated[int, Field(ge=0)] = 3
    """A version is trusted after so many cuts on which it and its successors were not found worse than the one trusted
    before. 0: no test; whatever is published is trusted."""
    false_alarm: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.005
    """Chance that a window rolls back a blend that is as good as trusted's; the same again for the neural expert."""

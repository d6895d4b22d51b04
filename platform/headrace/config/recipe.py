"""The schema of a recipe: everything that a run can be told, with its default.

Every section is frozen, and unknown keys are rejected. A validator may reject, but never fills in another section.
Durations end in ``_s`` (seconds), sizes in ``_bytes``; times inside state are event time.
"""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Labels = dict[str, Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]]
"""Of a node of the Ray cluster, by key; who asks for several is placed where all of them are."""


class Section(BaseModel):
    """A frozen section of a recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _kind_is(default: str) -> BeforeValidator:
    """Sections that name no kind are of this one."""
    return BeforeValidator(lambda section: {"kind": default, **section} if isinstance(section, dict) else section)


class RunConfig(Section):
    """Where a run lives and with what it runs."""

    dir: str = "runs/default"
    """Folder of the run: report, log, resolved recipe, landing folder, and the store unless ``store.uri`` is set."""
    name: str = "headrace"
    ray_address: str = "local"
    """"local" starts a Ray of its own, whatever RAY_ADDRESS says; anything else ("auto", a job's cluster) is joined."""
    num_cpus: PositiveInt = 8
    """Logical CPUs of a local Ray; more than the machine has is fine."""
    num_workers: PositiveInt = 2
    use_gpu: bool = False
    torch_threads: PositiveInt = 1
    """Threads of each training worker; part of what makes two runs equal to the byte."""
    nice: Annotated[int, Field(ge=0, le=19)] = 5
    """How far trainers step back behind the replicas that answer users."""
    max_increments: PositiveInt | None = None
    """Stop after the cut of this number (the warm-up is 0); None: until stopped, or until a replayed log ends."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often the supervisor starts training again after workers died without a commit in between."""
    train_labels: Labels = {}
    """Labels of the nodes that hold training workers, such as {"headrace.io/role" = "train"}; none: any node. They need
    a cluster to join, by ``ray_address``."""
    replay_labels: Labels = {}
    """The same, for the actor that keeps replay."""
    read_labels: Labels = {}
    """The same, for the tasks that read shards."""


class ReplayConfig(Section):
    """Land a log as shards, in event time, into the run's own landing folder."""

    slice_s: PositiveInt | Literal["file"] = 300
    """Seconds of event time a shard; "file": one shard for each file of the log."""
    first_slice_s: PositiveInt | None = None
    """Length of the first shard where it differs: the warm-up."""
    speed: PositiveFloat | None = None
    """Times real time; None: as fast as the workers take them."""
    ahead: PositiveInt = 4
    """How many shards may lie uncommitted before the replayer waits."""


class SyntheticConfig(Section):
    """A built-in stream with moving popularity, for trying things out."""

    num_items: PositiveInt = 2000
    events_per_shard: PositiveInt = 200
    warmup_events: PositiveInt = 20000
    """Events of the first shard."""
    shard_interval_s: PositiveFloat = 1.0
    """A shard lands this often, on the wall clock."""
    num_shards: PositiveInt | None = None
    """How many shards land in all, the first included; None: no end."""
    births_per_shard: PositiveFloat | None = None
    """New items, and as many old ones that leave; None: a 2000th of ``num_items``."""
    launch_items: PositiveInt = 1
    """New items come in batches of so many."""
    items: bool = False
    """A side feed lands, too: every item with its attributes a shard before it is met, and when it leaves."""


class PitConfig(Section):
    """Partial incremental training: users take turns to be trained on (TBGRecall, arXiv 2508.11977)."""

    kind: Literal["pit"] = "pit"
    buckets: PositiveInt = 10
    """Users (else sessions) are dealt to so many by hash; cut n trains the rows of bucket n mod buckets. None waits for
    longer than a rotation, even where that is longer than the window."""
    window_s: PositiveInt = 86400
    """Of event time before the cut's newest shard."""


class EveryoneConfig(Section):
    """All rows of the window, at every increment: what PIT is to come close to."""

    kind: Literal["all"] = "all"
    window_s: PositiveInt = 86400
    """As for "pit"."""


class SampleConfig(Section):
    """A share of the window, drawn anew for every increment: what PIT is to be better than, at its cost."""

    kind: Literal["sample"] = "sample"
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    of: Literal["session", "user"] = "session"
    """What is drawn, whole; "session" where contexts are sessions."""
    window_s: PositiveInt = 86400
    """As for "pit". A row that is never drawn while it is in the window stays deferred for good."""


WindowConfig = Annotated[PitConfig | EveryoneConfig | SampleConfig, Field(discriminator="kind")]
"""Every way to pick the rows that an increment trains, of its own and of those of a window before it."""


class FeedConfig(Section):
    """Where shards land and how they become cuts."""

    path: str | None = None
    """Folder (or object-store URI) in which shards land; with ``feed.replay``, the log that is replayed."""
    mode: Literal["unbounded", "per_increment"] = "unbounded"
    """"unbounded": increments flow through workers that live on; "per_increment": each has workers of its own, started
    when its rows are there: what the loop is compared with, tens of seconds slower."""
    cut: Literal["events", "shard"] = "events"
    """"events": all waiting shards up to ``max_events``; "shard": one each, never split (replays)."""
    min_events: PositiveInt = 1
    max_events: PositiveInt = 50000
    items_path: str | None = None
    """Folder (or object-store URI) in which files of the side feed land: item_id and ts, and, where there are any,
    status ("active" or "retired"), name, and the columns of ``catalogue.attributes``. A row is in force from the cut
    after its file landed, whatever its time; with ``feed.replay``, from the first slice that begins after its time."""
    max_wait_s: PositiveFloat = 1.0
    """A cut is made when ``min_events`` wait, or the oldest shard has waited this long."""
    poll_s: PositiveFloat = 0.05
    warmup_shards: PositiveInt = 1
    """The first shards, trained together as cut 0 with the warm-up budget."""
    block_bytes: PositiveInt = 65536
    """Size at which Ray Data hands rows on (ray's target_max_block_size)."""
    duplicate_horizon_s: PositiveInt = 7 * 86400
    """A second arrival of an ``event_id`` within this span of event time trains nothing."""
    max_events_per_user: PositiveInt = 1000
    """Rows of one user (else session) that one increment takes; further ones count as capped."""
    max_bad_rows: Share = 0.01
    """Share of a shard's rows that are dropped and counted when they cannot be used (one row always may); with more,
    the shard is set aside. 0: any bad row sets it aside."""
    allowed_lateness_s: Annotated[int, Field(ge=0)] | None = None
    """Rows older than this, against the watermark of the commit before, are set aside and counted. None: none are."""
    max_ahead_s: PositiveInt | None = None
    """Rows further ahead of that watermark (or of the cut's median time, where that is later: longer than the time that
    a cut spans, then) are dealt with as ``ahead`` says. None: every time is believed."""
    ahead: Literal["clamp", "set_aside"] = "clamp"
    """"clamp": such a row is taken as of the present, without moving the watermark; "set_aside": it is quarantined."""
    session_gap_s: PositiveInt = 1800
    """Where there is no session column: a user's new session begins after this much inactivity."""
    keep_landed: bool = False
    """Whether shards that the run itself lands (``replay``, ``synthetic``) stay when their cut has been committed."""
    window: WindowConfig | None = None
    """Which rows an increment trains, of its own and of a window before it. None: its own, and nothing else."""
    replay: ReplayConfig | None = None
    synthetic: SyntheticConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "FeedConfig":
        if self.synthetic is not None and self.replay is not None:
            raise ValueError("feed.synthetic and feed.replay exclude one another: keep one")
        if self.max_events < self.min_events:
            raise ValueError(f"feed.max_events ({self.max_events}) is below feed.min_events ({self.min_events})")
        return self


class ColumnsConfig(Section):
    """The names that the shards use for what Headrace knows. None (in TOML: ""): the log has no such column."""

    item_id: str = "item_id"
    ts: str = "ts"
    session_id: str | None = "session_id"
    user_id: str | None = None
    event: str | None = None
    event_id: str | None = None
    weight: str | None = None
    request_id: str | None = None
    position: str | None = None
    propensity: str | None = None
    bundle_version: str | None = None
    context: tuple[str, ...] = ()
    """Further columns to carry along."""
    target_kinds: tuple[str, ...] = ()
    """The kinds that are predicted; empty: all. Other kinds are context and are never counted."""

    @field_validator("session_id", "user_id", "event", "event_id", mode="before")
    @classmethod
    def _no_such_column(cls, name: str | None) -> str | None:
        return name or None

    @model_validator(mode="after")
    def _someone(self) -> "ColumnsConfig":
        if self.session_id is None and self.user_id is None:
            raise ValueError("columns.session_id or columns.user_id must name a column: interactions belong to someone")
        if self.target_kinds and self.event is None:
            raise ValueError("columns.target_kinds needs columns.event, the column that holds the kind")
        return self


class InputsConfig(Section):
    """What the model sees of the past."""

    context: Literal["session", "user"] = "session"
    """Whose earlier events are the context of a query."""
    max_events: PositiveInt = 50
    """The newest events of a context that are read."""
    sessions: Literal["sequence", "set"] = "sequence"
    """"set": a session is a basket; the query is its start and its items are the targets."""


class CatalogueConfig(Section):
    """Which items exist and which may be answered."""

    alive_s: PositiveInt | None = None
    """Items whose last event is older than this, against the commit's watermark, are not answered. None: all are."""
    initial_capacity: PositiveInt = 4096
    """Rows of the item table at the start; it grows by doubling."""
    min_events: Annotated[int, Field(ge=0)] = 0
    """An item gets a row of the table, and may be answered, once so many trained events have named it."""
    forget_s: PositiveInt | None = None
    """Items whose last event is older than this, against the watermark, lose their row to others. None: none does."""
    fresh_rows: Literal["attributes", "mean", "random"] = "attributes"
    """What a new item's row starts from. "attributes": the rows of the items that are like it, where the side feed says
    what it is like, else numbers drawn from the seed; "mean": in their place the mean of all rows; "random": always
    such numbers."""
    attributes: tuple[str, ...] = ()
    """Columns of the side feed that say which items are alike."""
    max_items: PositiveInt | None = None
    """Rows in use at most: beyond it the items that have been idle for longest lose theirs. None: no limit."""


class HistoryConfig(Section):
    """The past of sessions or users that go on in later increments."""

    max_bytes: PositiveInt = 256 * 2**20
    """Of all ranks together; the oldest rows go first."""


class ReservoirConfig(Section):
    """Uniform over everything that was ever trained."""

    kind: Literal["reservoir"] = "reservoir"


class RecencyConfig(Section):
    """The newer the likelier, by half-life: kept and drawn alike."""

    kind: Literal["recency"] = "recency"
    half_life_s: PositiveFloat | None = None
    """Of event time."""
    half_life_increments: PositiveFloat | None = None
    """Instead: an example so many increments older is half as likely."""

    @model_validator(mode="after")
    def _one_clock(self) -> "RecencyConfig":
        if (self.half_life_s is None) == (self.half_life_increments is None):
            raise ValueError("replay.policy needs one of half_life_s and half_life_increments, and not both")
        return self


class FrequencyConfig(Section):
    """A quota for each target item, in proportion to its frequency among old and new examples (ADER)."""

    kind: Literal["frequency"] = "frequency"
    within: Literal["hash", "herding"] = "hash"
    """Which of an item's examples stay: as good as drawn evenly; or those whose encodings, in the mean, are nearest to
    the mean of its cut's, by the model that has just trained on them."""


ReplayPolicyConfig = Annotated[ReservoirConfig | RecencyConfig | FrequencyConfig, Field(discriminator="kind")]
"""Every kind of replay policy that a recipe may name."""


class ReplayBufferConfig(Section):
    """The examples of earlier increments that methods may train on again."""

    policy: ReplayPolicyConfig = ReservoirConfig()
    max_bytes: PositiveInt = 64 * 2**20
    """Of all ranks together, with those that wait for their commit; at most three quarters once these are in."""
    segment_bytes: PositiveInt = 4 * 2**20
    """A snapshot's parts are about so large (at most an eighth of a rank's budget); unchanged ones stay as they are."""
    in_flight: PositiveInt = 4
    """Batches that a rank asks for ahead of the step that trains on them."""


class PriorConfig(Section):
    """What counters expect is added to the model's scores, as logarithms, so that it learns what they lack."""

    experts: Annotated[tuple[str, ...], Field(min_length=1)] = ("popular",)
    """Names of experts, whose probabilities are averaged. They are asked about every example, in every epoch."""
    floor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The share of the average that is spread evenly over all items."""


class SasRecConfig(Section):
    """A causal transformer over the context's items (SASRec, arXiv 1808.09781)."""

    kind: Literal["sasrec"] = "sasrec"
    width: PositiveInt = 64
    blocks: PositiveInt = 2
    heads: PositiveInt = 1
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    scores: Literal["dot", "cosine"] = "dot"
    temperature: PositiveFloat = 0.0625
    """Of cosine scores; dot products have none."""
    prior: PriorConfig | None = None


class NspConfig(Section):
    """Next-session prediction: a context token opens every session (TBGRecall, arXiv 2508.11977).

    Made for ``inputs.context = "user"`` and ``inputs.sessions = "set"``, where a session is asked for at its start.
    """

    kind: Literal["nsp"] = "nsp"
    width: PositiveInt = 64
    blocks: PositiveInt = 2
    heads: PositiveInt = 1
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    scores: Literal["dot", "cosine"] = "dot"
    temperature: PositiveFloat = 0.0625
    """Of cosine scores; dot products have none."""
    prior: PriorConfig | None = None
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
    experts: Annotated[int, Field(ge=0)] = 0
    """In place of each feed-forward layer: so many, of which a token asks two, and one that all ask. 0: a plain one."""


ModelConfig = Annotated[SasRecConfig | NspConfig, Field(discriminator="kind"), _kind_is("sasrec")]
"""Every kind of model; a section that names none is a "sasrec"."""


class SoftmaxConfig(Section):
    """Cross-entropy over the whole eligible set."""

    kind: Literal["softmax"] = "softmax"
    examples: Literal["prefixes", "sessions"] = "prefixes"
    """"prefixes": every prefix an example of its own; "sessions": a loss at every position of one pass."""


class SampledSoftmaxConfig(Section):
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


ObjectiveConfig = Annotated[SoftmaxConfig | SampledSoftmaxConfig, Field(discriminator="kind"), _kind_is("softmax")]
"""Every kind of objective; a section that names none is a "softmax"."""


class OnlineConfig(Section):
    """Plain gradient updates, guarded."""

    kind: Literal["online"] = "online"
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps over which the learning rate rises, counted since the optimizer was fresh."""
    max_gradient_norm: PositiveFloat | None = 5.0
    """The summed gradient is scaled down to this norm."""


class ReplayMethodConfig(Section):
    """Examples of earlier increments are trained beside the new ones."""

    kind: Literal["replay"] = "replay"
    ratio: PositiveFloat = 1.0
    """Replayed examples for each new one, as far as the buffer has any."""


class DistillConfig(Section):
    """The model as it was before the increment teaches: what it would answer is a target, too (ADER, arXiv 2007.12000).

    It speaks of the items that it knows; about those among themselves, the model is held to it.
    """

    kind: Literal["distill"] = "distill"
    rows: Literal["replayed", "new", "both"] = "replayed"
    """On which examples it is heard."""
    weight: PositiveFloat = 0.8
    """Of its mean cross-entropy, beside the mean one of new targets, which weighs 1."""
    adaptive: bool = True
    """Times sqrt(old items / items * taught examples / new examples): the more is new, the less the past is held."""
    own_targets: Share = 0.0
    """What a replayed example's own target still weighs. 0, as in ADER: the teacher alone is heard there; targets that
    were trained before are learned by heart when they come again."""
    temperature: PositiveFloat = 1.0
    """By which both models' scores are divided before they are compared."""


class EwcConfig(Section):
    """Elastic weight consolidation: weights that earlier increments lean on are held (arXiv 1612.00796, 1805.06370)."""

    kind: Literal["ewc"] = "ewc"
    strength: PositiveFloat = 1.0
    """Of half the squared distance from where the increment began, each weight by its Fisher information. At 1 one
    earlier increment weighs about as much as the new examples."""
    decay: Share = 0.9
    """What is left of the Fisher information when that of one more increment is added."""
    examples: PositiveInt = 2000
    """Targets of an increment that it is measured on, about so many over all ranks."""
    labels: Literal["model", "target"] = "model"
    """Whose gradients are squared: of labels that the model draws, or of the targets (the empirical Fisher)."""


class ProgressiveConfig(Section):
    """Progressive columns: a frozen copy of the model stays beside the one that learns on (arXiv 1606.04671).

    Each column beside the newest costs an answer about as much as the encoder does, and memory for the table's rows.
    """

    kind: Literal["progressive"] = "progressive"
    every: PositiveInt | None = None
    """Increments from one new column to the next. None: only drift asks for one."""
    drift: Annotated[float, Field(ge=0.0)] = 4.0
    """A new column is asked for where the model's recall on a cut falls below its mean over earlier cuts by so many
    standard deviations. 0: drift asks for none."""
    share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Of a frozen column's answer in what the newer one answers. 0: it is heard by way of adapters alone."""
    adapter_units: PositiveInt = 16
    """Width of the adapters by which the newest column reads the frozen ones."""
    max_columns: Annotated[int, Field(ge=2)] = 3
    """Where there are so many and a new one is asked for, they are distilled into one first."""
    consolidate_every: PositiveInt | None = None
    """Increments after which frozen columns are distilled into the newest in any case. None: only where room is
    needed."""
    consolidate_steps: PositiveInt = 200
    """Steps of about 256 examples of the increment, replayed ones included, in which one column learns to answer as all
    do."""
    consolidate_learning_rate: PositiveFloat = 1e-3
    """At the first of their steps; it falls to zero by the last one."""

    @model_validator(mode="after")
    def _somebody_asks(self) -> "ProgressiveConfig":
        if self.every is None and not self.drift:
            raise ValueError("nothing would ever ask for a new column: set every, or a drift above 0")
        return self


MethodConfig = Annotated[
    OnlineConfig | ReplayMethodConfig | DistillConfig | EwcConfig | ProgressiveConfig,
    Field(discriminator="kind"),
    _kind_is("online"),
]
"""Every kind of method that a recipe may name; they compose. A section that names none is "online"."""


class AdamConfig(Section):
    """Adam for everything (arXiv 1412.6980); without momentum for the table's rows where the objective samples."""

    kind: Literal["adam"] = "adam"


class RowAdagradConfig(Section):
    """Adam for the encoder; Adagrad by rows for the item table, with a sum that fades: a fraction of the state."""

    kind: Literal["row_adagrad"] = "row_adagrad"
    learning_rate: PositiveFloat = 0.02
    """How far a row goes in its first step; later ones are shorter by the root of how many steps count."""
    half_life_steps: PositiveFloat = 1000.0
    """A gradient so many steps ago counts half."""


OptimizerConfig = Annotated[AdamConfig | RowAdagradConfig, Field(discriminator="kind"), _kind_is("adam")]
"""Every kind of optimizer; a section that names none is "adam"."""


class PassesConfig(Section):
    """As many passes over all examples as ``train.warmup_epochs`` and ``train.epochs`` say."""

    kind: Literal["passes"] = "passes"


class EarlyStopConfig(Section):
    """Passes until Recall@20 on a part of the increment's own examples, which is not trained on, rises no more.

    The weights and the optimizer of the best pass are kept. ``train.epochs`` of 0 still means no training, and where
    no example validates, passes are as many as without early stop.
    """

    kind: Literal["early_stop"] = "early_stop"
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Of the examples, by hash."""
    split: Literal["session", "prefix"] = "session"
    """"session": whole sessions validate; "prefix": single examples, as in the published protocol, where other examples
    of the same session are trained on, so that it stops late."""
    patience: PositiveInt = 5
    """Passes without a better one after which training stops."""
    max_epochs: PositiveInt = 100


BudgetConfig = Annotated[PassesConfig | EarlyStopConfig, Field(discriminator="kind"), _kind_is("passes")]
"""Every kind of budget; a section that names none is "passes"."""


class TrainConfig(Section):
    """How an increment is trained."""

    batch: PositiveInt = 256
    """Examples a step, over all ranks."""
    learning_rate: PositiveFloat = 5e-4
    warmup_epochs: Annotated[int, Field(ge=0)] = 3
    """Passes over cut 0."""
    epochs: Annotated[int, Field(ge=0)] = 1
    """Passes over every later cut."""
    budget: BudgetConfig = PassesConfig()
    optimizer: OptimizerConfig = AdamConfig()
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic in a training step (autocast); weights and scores stay float32."""


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
    is, where it is 2.5 standard errors below. Where items do not belong to their rows it is about 0. 0: not asked."""
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


class StoreConfig(Section):
    """Where commits and bundles are kept."""

    uri: str | None = None
    """None: ``store`` inside ``run.dir``."""
    keep: Annotated[int, Field(ge=2)] = 20
    """Commits that stay with their bundles, beside warm-up, live, trusted and pinned ones; two at least, since the
    ledger waits to see each."""
    keep_s: Annotated[float, Field(ge=0.0)] = 60.0
    """What was replaced less than so many seconds ago stays, too: a replica may be loading it. Wall time; not state."""


class AutoscalingConfig(Section):
    """Replicas come and go with the requests that wait or are being answered; ``serve.num_replicas`` stay at least."""

    max_replicas: PositiveInt = 3
    target_ongoing: PositiveFloat = 8.0
    """So many such requests for each replica are aimed at, as a mean over ``look_back_s``."""
    look_back_s: Annotated[float, Field(gt=1.0)] = 10.0
    """Requests are counted every second."""
    upscale_delay_s: Annotated[float, Field(ge=0.0)] = 3.0
    """More replicas are started once they have been called for this long."""
    downscale_delay_s: Annotated[float, Field(ge=0.0)] = 60.0
    """Replicas end once fewer have been enough for this long."""


class ServeConfig(Section):
    """The replicas that answer."""

    enabled: bool = True
    host: Literal["127.0.0.1", "localhost"] = "127.0.0.1"
    """Loopback only: there is no authentication. A gateway of your own goes in front."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0: any free port."""
    num_replicas: PositiveInt = 1
    autoscaling: AutoscalingConfig | None = None
    labels: Labels = {}
    """Labels of the nodes that hold replicas; see ``run.train_labels``."""
    poll_s: PositiveFloat = 0.1
    """How often a replica looks at the pointer."""
    max_batch: PositiveInt = 16
    batch_wait_s: Annotated[float, Field(ge=0.0)] = 0.002
    request_timeout_s: PositiveFloat = 5.0
    """Who has waited for so long gets a 408; a replica that ends is given as long for what it has begun."""
    max_queued: PositiveInt = 256
    """Requests that wait for a replica, at each proxy; further ones get a 503 at once, with Retry-After."""
    client_rps: Annotated[float, Field(ge=0.0)] = 10.0
    """Requests a second that the run's own client sends all the while; 0: none."""

    @model_validator(mode="after")
    def _room_to_grow(self) -> "ServeConfig":
        if self.most_replicas < self.num_replicas:
            raise ValueError(
                f"serve.autoscaling.max_replicas ({self.most_replicas}) is below serve.num_replicas "
                f"({self.num_replicas}), which stay at least"
            )
        return self

    @property
    def most_replicas(self) -> int:
        """How many there may be."""
        return self.num_replicas if self.autoscaling is None else self.autoscaling.max_replicas


class TrackingConfig(Section):
    """Weights & Biases: a mirror of the run for people; nothing is read back from it."""

    enabled: bool = True
    project: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:]+$")] = "headrace"
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """"auto": as the environment's WANDB_MODE says; without it "online" for a user who is logged in (``wandb login``),
    else "offline": files in the folder wandb of ``run.dir``, for ``wandb sync``. "online" needs that login, too."""


class Recipe(Section):
    """A whole run."""

    seed: int = 1
    run: RunConfig = RunConfig()
    feed: FeedConfig = FeedConfig()
    columns: ColumnsConfig = ColumnsConfig()
    inputs: InputsConfig = InputsConfig()
    catalogue: CatalogueConfig = CatalogueConfig()
    history: HistoryConfig = HistoryConfig()
    replay: ReplayBufferConfig = ReplayBufferConfig()
    model: ModelConfig = SasRecConfig()
    objective: ObjectiveConfig = SoftmaxConfig()
    methods: tuple[MethodConfig, ...] = (OnlineConfig(),)
    train: TrainConfig = TrainConfig()
    experts: tuple[ExpertConfig, ...] = (PopularConfig(),)
    blend: BlendConfig = BlendConfig()
    recommend: RecommendConfig = RecommendConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    store: StoreConfig = StoreConfig()
    serve: ServeConfig = ServeConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _distinct_experts(self) -> "Recipe":
        names = [expert.name for expert in self.experts]
        if len(set(names)) < len(names) or {"neural", "uniform"} & set(names):
            raise ValueError(f"experts need names of their own, other than neural and uniform; received {names}")
        return self

    @model_validator(mode="after")
    def _prior_of_counters(self) -> "Recipe":
        prior = self.model.prior
        if prior is None:
            return self
        counters = [expert.name for expert in self.experts if not isinstance(expert, EncodingsConfig)]
        if not set(prior.experts) <= set(counters) or len(set(prior.experts)) < len(prior.experts):
            raise ValueError(
                f"model.prior.experts are {list(prior.experts)}: each must be one of the recipe's counters, {counters}"
            )
        if not isinstance(self.objective, SoftmaxConfig):
            raise ValueError(
                'model.prior is learned with the whole softmax: set objective.kind = "softmax", or leave the prior out'
            )
        return self

    @model_validator(mode="after")
    def _distinct_methods(self) -> "Recipe":
        kinds = [method.kind for method in self.methods]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"each kind of method may stand in methods once; received {kinds}")
        return self

    @model_validator(mode="after")
    def _one_way_to_hold(self) -> "Recipe":
        if {"progressive", "ewc"} <= {method.kind for method in self.methods}:
            raise ValueError(
                'the methods "progressive" and "ewc" exclude one another: a frozen column keeps what was learned, and '
                "the newest is there to move, where ewc would hold it; keep one"
            )
        return self

    @model_validator(mode="after")
    def _columns_of_one_kind(self) -> "Recipe":
        if "progressive" in {method.kind for method in self.methods} and not isinstance(self.model, SasRecConfig):
            raise ValueError(
                f'the method "progressive" freezes columns of model.kind = "sasrec"; received "{self.model.kind}"'
            )
        return self

    @model_validator(mode="after")
    def _rows_to_teach(self) -> "Recipe":
        taught = [method.rows for method in self.methods if isinstance(method, DistillConfig)]
        if "replayed" in taught and not self.replays:
            raise ValueError(
                'the method "distill" has nothing to teach on: add {kind = "replay"} to methods, or set its rows: "new"'
            )
        return self

    @model_validator(mode="after")
    def _sets_need_users(self) -> "Recipe":
        if self.inputs.sessions == "set" and (self.inputs.context != "user" or self.columns.user_id is None):
            raise ValueError(
                'inputs.sessions = "set" asks at a session\'s start, so its context is what the user did before: set '
                'inputs.context = "user" and columns.user_id'
            )
        return self

    @model_validator(mode="after")
    def _whole_contexts_are_drawn(self) -> "Recipe":
        window = self.feed.window
        reach_beyond = self.inputs.context == "user" or self.columns.session_id is None
        if isinstance(window, SampleConfig) and window.of == "session" and reach_beyond:
            raise ValueError(
                'feed.window draws sessions, and contexts reach beyond them here: set feed.window.of = "user"'
            )
        return self

    @model_validator(mode="after")
    def _attributes_are_told(self) -> "Recipe":
        told = self.feed.items_path is not None or (self.feed.synthetic is not None and self.feed.synthetic.items)
        if self.catalogue.attributes and not told:
            raise ValueError("catalogue.attributes are columns of the side feed: set feed.items_path, its folder")
        return self

    @property
    def replays(self) -> bool:
        """Whether a method asks for the past, so that it must be kept."""
        return any(isinstance(method, ReplayMethodConfig) for method in self.methods)

    @property
    def store_uri(self) -> str:
        """Where the store lies."""
        return self.store.uri or f"{self.run.dir}/store"

"""What streams in, whose it is, and what is kept of it: shards and cuts, columns, contexts, catalogue, history."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from headrace.config.base import Section, Share


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

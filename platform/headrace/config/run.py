"""Where a run lives, keeps things, answers and is told of."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from headrace.config.base import Labels, Section


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
    train_labels: Labels = Field(default={})
    """Labels of the nodes that hold training workers, such as {"headrace.io/role" = "train"}; none: any node. They need
    a cluster to join, by ``ray_address``."""
    replay_labels: Labels = Field(default={})
    """The same, for the actor that keeps replay."""
    read_labels: Labels = Field(default={})
    """The same, for the tasks that read shards."""


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
    labels: Labels = Field(default={})
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

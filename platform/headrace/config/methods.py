"""How an increment is trained and the past is kept: replay, methods, optimizers, budgets."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from headrace.config.base import Section, Share, kind_is


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
    kind_is("online"),
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


OptimizerConfig = Annotated[AdamConfig | RowAdagradConfig, Field(discriminator="kind"), kind_is("adam")]
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


BudgetConfig = Annotated[PassesConfig | EarlyStopConfig, Field(discriminator="kind"), kind_is("passes")]
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
    average: Literal["none", "last_pass"] = "none"
    """"last_pass": an increment leaves the mean of the weights over the steps of its last pass (arXiv 1803.05407), not
    those of its last step; for increments of many steps. With early stop there is no telling which pass is the last."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic in a training step (autocast); weights and scores stay float32."""

    @model_validator(mode="after")
    def _known_last_pass(self) -> "TrainConfig":
        if self.average == "last_pass" and isinstance(self.budget, EarlyStopConfig):
            raise ValueError(
                "train.average is last_pass, and with train.budget = early_stop no pass is known to be the last: "
                "leave one of the two out"
            )
        return self

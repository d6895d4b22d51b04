"""The schema of a recipe: everything that a run can be told, with its default.

Every section is frozen, and unknown keys are rejected. A validator may reject, but never fills in another section.
Durations end in ``_s`` (seconds), sizes in ``_bytes``; times inside state are event time.
"""

from pydantic import model_validator

from headrace.config.answers import (
    BlendConfig,
    EncodingsConfig,
    EvaluationConfig,
    ExpertConfig,
    GateConfig,
    PopularConfig,
    RecommendConfig,
)
from headrace.config.base import Section
from headrace.config.feed import CatalogueConfig, ColumnsConfig, FeedConfig, HistoryConfig, InputsConfig, SampleConfig
from headrace.config.methods import (
    DistillConfig,
    MethodConfig,
    OnlineConfig,
    ReplayBufferConfig,
    ReplayMethodConfig,
    TrainConfig,
)
from headrace.config.models import MOST_TOLD, ModelConfig, ObjectiveConfig, SasRecConfig, SoftmaxConfig
from headrace.config.run import RunConfig, ServeConfig, StoreConfig, TrackingConfig


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
        if self.feed.window is not None:
            raise ValueError(
                "model.prior is what counters say before they have counted an event, and feed.window trains rows again "
                "that they have: leave one of them out"
            )
        if not isinstance(self.objective, SoftmaxConfig):
            raise ValueError(
                'model.prior is learned with the whole softmax: set objective.kind = "softmax", or leave the prior out'
            )
        return self

    @model_validator(mode="after")
    def _features_are_carried(self) -> "Recipe":
        features = self.model.features
        if not set(features) <= set(self.columns.context) or len(set(features)) < len(features):
            raise ValueError(
                f"model.features are {list(features)}: each must be one of columns.context, "
                f"{list(self.columns.context)}, the columns that rows carry, and none may stand there twice"
            )
        if features and self.feed.synthetic is not None:
            raise ValueError(
                "model.features are columns of a log, and feed.synthetic makes none: leave one of them out"
            )
        attributes = self.model.attributes
        if not set(attributes) <= set(self.catalogue.attributes) or len(set(attributes)) < len(attributes):
            raise ValueError(
                f"model.attributes are {list(attributes)}: each must be one of catalogue.attributes, "
                f"{list(self.catalogue.attributes)}, and none may stand there twice"
            )
        if len(self.model.told) > MOST_TOLD:
            raise ValueError(
                f"model.features and model.attributes are {len(self.model.told)} together: {MOST_TOLD} can be told"
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
    def _fisher_of_one_kind(self) -> "Recipe":
        if "ewc" in {method.kind for method in self.methods} and not isinstance(self.model, SasRecConfig):
            raise ValueError(
                'the method "ewc" takes the gradients of each example from model.kind = "sasrec"; received '
                f'"{self.model.kind}"'
            )
        if self.model.told and "ewc" in {method.kind for method in self.methods}:
            raise ValueError(
                'the method "ewc" takes the gradients of each example from a model that is told of items alone: leave '
                "model.features, model.attributes or the method out"
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
    def _levels_are_behaviours(self) -> "Recipe":
        levels, columns = self.objective.levels, self.columns
        if not levels:
            return self
        if self.inputs.sessions != "set":
            raise ValueError(
                "objective.levels holds targets of one question against each other, and here a question has one: set "
                'inputs.sessions = "set", or leave the levels out'
            )
        if len(set(levels)) < len(levels):
            raise ValueError(f"objective.levels are {list(levels)}: none may stand there twice")
        kinds = [name for name in levels if name not in columns.context]
        if kinds and columns.event is None:
            raise ValueError(
                f"objective.levels names {kinds}: none of columns.context, {list(columns.context)}, and the log has no "
                "kinds of event: carry the column by columns.context, or name that of the kinds in columns.event"
            )
        if not set(columns.target_kinds) <= set(levels):
            raise ValueError(
                f"objective.levels are {list(levels)}, and columns.target_kinds, {list(columns.target_kinds)}, is what "
                "is asked for: each of these must be one of the levels"
            )
        if "ewc" in {method.kind for method in self.methods}:
            raise ValueError(
                'the method "ewc" takes the gradients of the plain softmax: leave it or objective.levels out'
            )
        return self

    @model_validator(mode="after")
    def _scene_is_carried(self) -> "Recipe":
        scene, carried = self.objective.scene, list(self.columns.context)
        if scene is not None and scene not in carried:
            raise ValueError(f"objective.scene is {scene!r}: it must be one of columns.context, {carried}")
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
    def asked_level(self) -> int:
        """The lowest of ``objective.levels`` that is asked for; 0 where all are, or there are none."""
        levels = self.objective.levels
        return min((levels.index(kind) for kind in self.columns.target_kinds if levels), default=0)

    @property
    def store_uri(self) -> str:
        """Where the store lies."""
        return self.store.uri or f"{self.run.dir}/store"

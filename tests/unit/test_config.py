import contextlib
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.load import dump_recipe, load_recipe, read_resolved
from headrace.config.recipe import Recipe
from headrace.config.reference import reference
from headrace.errors import ConfigError


def _write(folder, name, text):
    (folder / name).write_text(text)
    return str(folder / name)


def test_defaults_need_no_file():
    assert load_recipe() == Recipe()


def test_files_win_left_to_right_and_overrides_win_over_files(tmp_path):
    one = _write(tmp_path, "one.toml", "seed = 7\n[train]\nepochs = 2\nbatch = 64\n")
    two = _write(tmp_path, "two.toml", "[train]\nepochs = 3\n")
    recipe = load_recipe([one, two], ["train.batch=32"])
    assert (recipe.seed, recipe.train.epochs, recipe.train.batch) == (7, 3, 32)
    assert load_recipe([two, one]).train.epochs == 2


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("train.epoch=2", "train.epoch", "train.epochs"),
        ("trian.epochs=2", "trian", "train"),
        ("epochs=2", "epochs", "train.epochs"),
        ("tracking.modus=offline", "tracking.modus", "tracking.mode"),
        ("feed.replay.slice=300", "feed.replay.slice", "feed.replay.slice_s"),
        ("methods=[{warmup_step=5}]", "methods.0.online.warmup_step", "methods.warmup_steps"),
        ("experts=[{kind='popular',half_life=5}]", "experts.0.popular.half_life", "experts.half_life_s"),
    ],
)
def test_a_misspelt_key_names_the_nearest(override, key, nearest):
    with pytest.raises(ConfigError, match=rf"^{key}: no such key; the nearest is {nearest}$"):
        load_recipe((), [override])


def test_every_mistake_is_named_at_once(tmp_path):
    path = _write(tmp_path, "bad.toml", "[train]\nbatch = 0\nepoch = 1\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe([path])
    assert "train.batch: Input should be greater than 0 (received 0)" in str(caught.value)
    assert "train.epoch: no such key" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs=-1", r"train\.epochs: .*\(received -1\)"),
        ("feed.replay.slice_s=never", r"feed\.replay\.slice_s: Input should be 'file' \(received 'never'\)"),
        ("run=3", r"run: .*\(received 3\)"),
        ("feed.max_events=0", r"feed\.max_events"),
        ("columns.session_id=none", r"columns: columns\.session_id or columns\.user_id must name a column"),
        ('columns.target_kinds=["buy"]', r"columns\.target_kinds needs columns\.event"),
        ("experts=[{kind='popular',name='neural'}]", r"names of their own, other than neural"),
        ("tracking.mode=on", r"tracking\.mode: Input should be 'auto', .*\(received 'on'\)"),
        ("tracking.project=a/b", r"tracking\.project: .*\(received 'a/b'\)"),
        ("experts=[{half_life_s=5}]", r"^experts\.0: it names no kind \(received {'half_life_s': 5}\)"),
    ],
)
def test_a_wrong_value_is_said_with_what_was_received(override, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe((), [override])


def test_sections_that_exclude_each_other():
    with pytest.raises(ConfigError, match="exclude one another"):
        load_recipe((), ["feed.replay.slice_s=60", "feed.synthetic.num_items=10"])
    with pytest.raises(ConfigError, match=r"max_events \(5\) is below feed\.min_events \(6\)"):
        load_recipe((), ["feed.max_events=5", "feed.min_events=6"])
    with pytest.raises(ConfigError, match=r"max_replicas \(2\) is below serve\.num_replicas \(4\)"):
        load_recipe((), ["serve.num_replicas=4", "serve.autoscaling.max_replicas=2"])


@pytest.mark.parametrize("word", ["train", "=3", "a..b=3", ".a=3", "a.=3"])
def test_a_word_that_is_no_override(word):
    with pytest.raises(ConfigError, match="is not an override"):
        load_recipe((), [word])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("data/log", "data/log"),
        ("s3://bucket/a=b", "s3://bucket/a=b"),
        ('"quoted"', "quoted"),
        ("none", None),
        ("null", None),
        ("2024-01-01", "2024-01-01"),
        ("a\nb", "a\nb"),
    ],
)
def test_text_needs_no_quotes(text, value):
    assert load_recipe((), [f"feed.path={text}"]).feed.path == value


def test_a_method_or_an_objective_without_a_kind_is_the_usual_one():
    made = load_recipe((), ["methods=[{warmup_steps=5}]", "objective.examples=sessions"])
    assert (made.methods[0].kind, made.methods[0].warmup_steps, made.objective.kind) == ("online", 5, "softmax")


def test_a_shard_per_file_or_per_slice():
    assert load_recipe((), ["feed.replay.slice_s=file"]).feed.replay.slice_s == "file"
    assert load_recipe((), ["feed.replay.slice_s=60"]).feed.replay.slice_s == 60


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe", b"seed = 1\nseed = 2\n"])
def test_a_file_that_is_not_toml(tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML"):
        load_recipe([str(path)])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no recipe at"):
        load_recipe([str(tmp_path / "none.toml")])
    with pytest.raises(ConfigError, match="no recipe at"):
        load_recipe([str(tmp_path)])


def test_the_resolved_recipe_comes_back():
    recipe = load_recipe(
        (),
        [
            "feed.replay.slice_s=file",
            "experts=[{kind='popular',half_life_s=60},{kind='covisit',name='slow'}]",
            "train.epochs=0",
        ],
    )
    assert read_resolved(dump_recipe(recipe)) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_a_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().train.epochs = 3


def test_the_store_lies_in_the_run_unless_told():
    assert load_recipe((), ["run.dir=runs/x"]).store_uri == "runs/x/store"
    assert load_recipe((), ["store.uri=s3://bucket/x"]).store_uri == "s3://bucket/x"


@given(st.integers(), st.floats(min_value=0, max_value=1))
def test_any_number_survives_the_way_through_an_override(seed, share):
    recipe = load_recipe((), [f"seed={seed}", f"evaluation.eval_share={share!r}"])
    assert (recipe.seed, recipe.evaluation.eval_share) == (seed, share)


@given(st.text(min_size=1, max_size=30))
def test_no_word_breaks_the_loader(word):
    with contextlib.suppress(ConfigError):
        load_recipe((), [word])


def test_the_page_of_recipes_is_what_the_schema_says():
    page = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
    assert page.read_text() == reference(), "python -m headrace.config.reference > docs/recipes.md"


def test_every_key_of_a_recipe_is_on_the_page():
    page = reference()
    for section, fields in Recipe().model_dump().items():
        assert f"[{section}]" in page or f"`{section}`" in page
        for key in fields if isinstance(fields, dict) else ():
            assert f"`{key}`" in page or f".{key}]" in page or key == "kind"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ('methods=[{kind="progressive"}]', 'freezes columns of model.kind = "sasrec"'),
        ('methods=[{kind="ewc"}]', "gradients of each example"),
        ('model.prior={experts=["popular"]}', "feed.window trains rows again"),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(word, said):
    with pytest.raises(ConfigError, match=said):
        load_recipe((), ['model.kind="nsp"', 'feed.window={kind="pit"}', word])

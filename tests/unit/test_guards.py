"""What the architecture promises and no other tool checks."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.config.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "platform" / "headrace"
MODULES = sorted(path for folder in ("platform", "jobs", "serve") for path in (ROOT / folder).rglob("*.py"))
RAY_MODULES = {
    "cli.py",
    "feed/stream.py",
    "replay/actor.py",
    "train/worker.py",
    "host.py",  # Ray's start and end, which train/driver.py and serving/app.py had each
    "train/driver.py",
    "serving/deployment.py",
    "serving/app.py",
}
MAX_FUNCTION_LINES = 60


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def _functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def test_platform_stays_a_plain_folder():
    # with platform/__init__.py the standard library's module of that name is hidden: import uuid and import ray break
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not list((ROOT / "platform").glob("*.py"))


def test_the_standard_librarys_platform_wins_even_from_the_root():
    done = subprocess.run(
        [sys.executable, "-c", "import platform, uuid; print(platform.python_version())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_ray_is_imported_only_where_the_plan_says():
    users = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "ray" in _imports(path)}
    assert {name for name in users if not name.startswith("bench/")} <= RAY_MODULES


def test_no_function_is_longer_than_a_screen():
    long = {
        f"{path.relative_to(ROOT)}:{name}": lines
        for path in MODULES
        for name, lines in _functions(path)
        if lines > MAX_FUNCTION_LINES
    }
    assert not long


def test_every_module_says_what_it_owns():
    assert not [str(path.relative_to(ROOT)) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]


def test_only_the_clock_reads_wall_clocks():
    wall = re.compile(r"\btime\.(time|time_ns|monotonic)\(|datetime\.(now|utcnow)\(|date\.today\(")
    assert not [
        str(path.relative_to(ROOT)) for path in MODULES if path.name != "clock.py" and wall.search(path.read_text())
    ]


def test_pythons_salted_hash_is_not_used():
    calls = {
        (str(path.relative_to(ROOT)), node.func.id)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not [path for path, name in calls if name == "hash"]


def test_nothing_is_pickled_into_a_store():
    unsafe = re.compile(r"\bimport (cloud)?pickle\b|\bfrom (cloud)?pickle\b|torch\.(load|save)\(|allow_pickle=True")
    assert not [str(path.relative_to(ROOT)) for path in MODULES if unsafe.search(path.read_text())]


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path):
    recipe = load_recipe([str(path)])
    assert recipe.run.name == path.stem
    assert recipe.run.dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_names_columns_that_its_log_has(path, log_dir):
    import pyarrow.parquet as pq

    files = sorted((log_dir / path.stem.removesuffix("_sessions")).glob("*.parquet"))
    if not files:
        pytest.skip(f"no log of the name {path.stem}")
    columns = load_recipe([str(path)]).columns.model_dump(exclude={"context", "target_kinds"})
    wanted = {name for name in columns.values() if name is not None} | set(load_recipe([str(path)]).columns.context)
    assert wanted <= set(pq.read_schema(files[0]).names)


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_job_entry_points_are_thin(path):
    assert len(path.read_text().splitlines()) <= 30


def test_every_pinned_version_is_exact_and_the_projects_own_ranges_admit_it():
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[name.lower().replace("_", "-")] = version
    for text in requires("headrace"):
        wanted = Requirement(text)
        assert pins[wanted.name.lower().replace("_", "-")] in wanted.specifier, text

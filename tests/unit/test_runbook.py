"""Whatever the pages for operators name is there: commands, keys of a recipe, files, headings."""

import re
from pathlib import Path

import pytest
import typer.main

from headrace.cli import app
from headrace.config.base import Section
from headrace.config.feed import FeedConfig
from headrace.config.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / "runbook.md", ROOT / "docs" / "deploy" / "README.md"]
FILES = {"log", "yaml"}
SECTIONS = {name: field.annotation for name, field in Recipe.model_fields.items()}


@pytest.fixture(params=PAGES, ids=lambda path: path.stem)
def page(request):
    return request.param


def _commands():
    command = typer.main.get_command(app)
    for name, inner in command.commands.items():
        yield name
        yield from (f"{name} {deeper}" for deeper in getattr(inner, "commands", ()))


def test_commands_are_ones_that_exist(page):
    known = set(_commands())
    words = re.findall(r"^ {4}(?:\S*/)?headrace ([a-z]+(?: (?:list|show|release))?)", page.read_text(), re.MULTILINE)
    words += re.findall(r"`headrace ([a-z]+(?: (?:list|show|release))?)", page.read_text())
    assert words
    assert set(words) <= known


def test_keys_are_ones_that_a_recipe_has(page):
    for section, key in re.findall(r"(?:`|\s)([a-z]+)\.([a-z_]+)(?:`|=| = )", page.read_text()):
        kind = SECTIONS.get(section)
        if isinstance(kind, type) and issubclass(kind, Section) and key not in FILES:
            assert key in kind.model_fields, f"{section}.{key}"


def test_what_may_not_change_is_what_the_driver_refuses():
    from headrace.train.driver import _FIXED_FEED, _FIXED_SECTIONS

    text = PAGES[0].read_text().partition("## Restart")[2].partition("## Roll back")[0]
    assert set(_FIXED_FEED) <= set(FeedConfig.model_fields)
    assert not [name for name in (*_FIXED_SECTIONS, *_FIXED_FEED) if f"`{name}`" not in text]


def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, heading = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert heading in {name.lower().replace(" ", "-").replace(",", "") for name in headings}, target

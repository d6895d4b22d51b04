"""docs/decisions: short pages of one shape, all in the index, with links that lead somewhere."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "decisions"
PAGES = sorted(FOLDER.glob("0*.md"))
INDEX = (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_is_short_and_has_its_four_parts_and_its_line_in_the_index(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 30
    parts = re.findall(r"^\*\*(Context|Decision|Evidence|Consequences)\b", text, flags=re.MULTILINE)
    assert parts == ["Context", "Decision", "Evidence", "Consequences"]
    number, title = re.match(r"# (\d+)\. (.*)", text).groups()
    changed = " (changed)" if title.endswith(" (changed)") else ""
    line = f"| {number} | [{title.removesuffix(changed)}]({path.name}) | {'changed ' if changed else ''}|"
    assert line in INDEX.splitlines()
    assert path.name.startswith(f"{int(number):04d}-")


def test_every_link_leads_to_a_file() -> None:
    for path in [*PAGES, FOLDER / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert (FOLDER / target).exists(), (path.name, target)

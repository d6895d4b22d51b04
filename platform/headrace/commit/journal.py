"""What stays of commits that retention has removed: one line each, in pages that fold as the stream goes on.

A line is written before anything of its commit is deleted, and says from then on that it is leaving. Only rank 0 of the
newest epoch writes; reading is safe anywhere.
"""

from headrace.commit.summary import Summary
from headrace.store.pages import PAGE_LINES, Page, Pages
from headrace.store.store import Store


class Journal:
    """The summaries of commits that are gone, or about to go, in one store."""

    def __init__(self, store: Store) -> None:
        self._pages = Pages(store, "journal")
        self._written: tuple[Page, dict[int, str]] | None = None
        """The page written last, and its lines by cut: cuts leave in order, nearly."""

    def add(self, summary: Summary) -> None:
        """Write the line of a commit, whole or not at all; writing it again changes nothing."""
        page, lines = self._page_of(summary.cut)
        line = summary.to_json()
        if lines.get(summary.cut) == line:
            return
        lines = {**lines, summary.cut: line}  # what is remembered is what was stored
        self._pages.put(page, [lines[cut] for cut in sorted(lines)])
        self._written = page, lines
        if len(lines) == 1:
            self._pages.fold(below=page.first)

    def _page_of(self, cut: int) -> tuple[Page, dict[int, str]]:
        """The page that is to hold this cut, and what it has."""
        if self._written is not None and self._written[0].first <= cut <= self._written[0].last:
            return self._written
        first = cut - cut % PAGE_LINES
        page = self._pages.of(cut) or Page(first, first + PAGE_LINES - 1)
        return page, {Summary.from_json(line).cut: line for line in self._pages.lines(cut)}

    def has(self, cut: int) -> bool:
        """Whether this commit has a line, as stored now."""
        self._pages.refresh()
        return any(summary.cut == cut for summary in _read(self._pages.lines(cut)))

    def summaries(self, after_cut: int = -1) -> list[Summary]:
        """All lines of cuts beyond this one, by cut."""
        self._pages.refresh()
        return [summary for summary in _read(self._pages.above(after_cut)) if summary.cut > after_cut]


def _read(lines: list[str]) -> list[Summary]:
    return [Summary.from_json(line) for line in lines]

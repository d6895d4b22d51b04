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

    def add(self, summary: Summary) -> None:
        """Write the line of a commit, whole or not at all; writing it again changes nothing."""
        known = {line.cut: line for line in _read(self._pages.lines(summary.cut))}
        if known.get(summary.cut) == summary:
            return
        known[summary.cut] = summary
        first = summary.cut - summary.cut % PAGE_LINES
        page = self._pages.of(summary.cut) or Page(first, first + PAGE_LINES - 1)
        self._pages.put(page, [known[cut].to_json() for cut in sorted(known)])
        if len(known) == 1:
            self._pages.fold(below=page.first)

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

"""Numbered lines, one for each number, in pages that fold: sixteen of one size into one of the next.

So a log that only grows stays a few dozen objects, however long it is, and each line is written again once for every
sixteenfold of its age. A page is stored before those that it holds are deleted; one that lies within a larger one
does not count, and goes at the next fold. One writer; readers look again where a page has been folded away.
"""

import threading
from dataclasses import dataclass
from itertools import pairwise

from headrace.store.store import Store

PAGE_LINES = 64
"""Lines of the smallest pages."""
_FOLDED = 16
_CACHED_PAGES = 4


@dataclass(frozen=True)
class Page:
    """Lines ``first`` to ``last``; ``mark`` is whatever number the writer gives the last of them."""

    first: int
    last: int
    mark: int = 0

    @property
    def size(self) -> int:
        """How many numbers it spans."""
        return self.last - self.first + 1


class Pages:
    """The pages in one folder of a store. Lists it when first used, and again at ``refresh``."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder
        self._pages: list[Page] | None = None
        self._cached: dict[Page, list[str]] = {}
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Look again at what is there."""
        self._pages = None

    def listed(self) -> list[Page]:
        """The pages that count, in order, as last listed."""
        if self._pages is None:
            self._pages = _outermost([_page(name) for name in self._store.names(self._folder)])
        return self._pages

    def of(self, number: int) -> Page | None:
        """The page that spans this number, as last listed."""
        return next((page for page in reversed(self.listed()) if page.first <= number <= page.last), None)

    @property
    def last(self) -> int:
        """The last number of all pages, as last listed; 0 where there are none."""
        return self.listed()[-1].last if self.listed() else 0

    def line(self, number: int) -> str | None:
        """One line, of pages that have a line for each number; None where no page spans it, as last listed."""
        while (page := self.of(number)) is not None:
            try:
                return self._read(page)[number - page.first]
            except FileNotFoundError:  # folded since
                self.refresh()
        return None

    def lines(self, number: int) -> list[str]:
        """The lines of the page that spans this number, as last listed; none where no page does."""
        while (page := self.of(number)) is not None:
            try:
                return self._read(page)
            except FileNotFoundError:  # folded since
                self.refresh()
        return []

    def above(self, number: int) -> list[str]:
        """The lines of all pages that end above this number, in order."""
        lines: list[str] = []
        while page := next((page for page in self.listed() if page.last > number), None):
            lines += self.lines(page.last)
            number = page.last
        return lines

    def put(self, page: Page, lines: list[str]) -> None:
        """Store a page, in place of what was there under its name."""
        self._store.put(self._name(page), "".join(f"{line}\n" for line in lines).encode())
        with self._lock:
            self._cached.pop(page, None)
        if page not in self.listed():
            self._pages = _outermost([*self.listed(), page])

    def fold(self, below: int) -> None:
        """Fold what can be folded among the pages that end before ``below``, and delete what lies in larger ones."""
        while (folded := _to_fold([page for page in self.listed() if page.last < below])) is not None:
            whole = Page(folded[0].first, folded[-1].last, folded[-1].mark)
            self.put(whole, [line for page in folded for line in self._read(page)])
        there = [_page(name) for name in self._store.names(self._folder)]
        for page in set(there) - set(_outermost(there)):
            self._store.delete(self._name(page))

    def _read(self, page: Page) -> list[str]:
        with self._lock:
            if page not in self._cached:
                while len(self._cached) >= _CACHED_PAGES:
                    del self._cached[next(iter(self._cached))]
                self._cached[page] = self._store.get(self._name(page)).decode().splitlines()
            return self._cached[page]

    def _name(self, page: Page) -> str:
        return f"{self._folder}/{page.first:010d}-{page.last:010d}-{page.mark:08d}.jsonl"


def _page(name: str) -> Page:
    return Page(*(int(word) for word in name.removesuffix(".jsonl").split("-")))


def _outermost(pages: list[Page]) -> list[Page]:
    """Those that do not lie within another one, in order."""
    kept: list[Page] = []
    for page in sorted(pages, key=lambda page: (page.first, -page.last, page.mark)):
        if not kept or page.last > kept[-1].last:
            kept.append(page)
    return kept


def _to_fold(pages: list[Page]) -> list[Page] | None:
    """The first sixteen of one size without a gap; None where there are none. Larger ones are older."""
    for place in range(len(pages) - _FOLDED + 1):
        some = pages[place : place + _FOLDED]
        if all(page.size == some[0].size and page.first == before.last + 1 for before, page in pairwise(some)):
            return some
    return None

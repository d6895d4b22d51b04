"""Numbered lines in pages that fold."""

import pytest

from headrace.store.pages import Page, Pages
from headrace.store.store import Store

FOLDER = "log"


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def written(pages, first, last):
    """Pages of two lines each."""
    for number in range(first, last + 1, 2):
        pages.put(Page(number, number + 1, number // 100), [f"line {number}", f"line {number + 1}"])


def test_sixteen_neighbours_fold_into_one_and_sixteen_of_those_again(store):
    pages = Pages(store, FOLDER)
    written(pages, 1, 514)
    pages.fold(below=515)
    assert pages.listed() == [Page(1, 512, 5), Page(513, 514, 5)]
    assert len(store.names(FOLDER)) == 2
    fresh = Pages(store, FOLDER)
    assert (fresh.line(77), fresh.line(514), fresh.line(515), fresh.last) == ("line 77", "line 514", None, 514)
    assert fresh.above(512) == ["line 513", "line 514"]
    assert len(fresh.above(0)) == 514


def test_only_pages_below_the_bound_and_without_a_gap_between_them_fold(store):
    pages = Pages(store, FOLDER)
    written(pages, 1, 32)
    pages.fold(below=32)
    assert len(pages.listed()) == 16
    gap = Pages(store, "gap")
    written(gap, 1, 20)
    written(gap, 23, 40)
    gap.fold(below=100)
    assert len(gap.listed()) == 19


def test_a_reader_finds_lines_that_were_folded_after_it_had_listed(store):
    pages, reader = Pages(store, FOLDER), Pages(store, FOLDER)
    written(pages, 1, 32)
    assert len(reader.listed()) == 16
    pages.fold(below=33)
    assert (reader.line(5), reader.lines(5)[:1]) == ("line 5", ["line 1"])
    assert len(reader.above(0)) == 32


def test_a_page_within_a_larger_one_does_not_count_and_goes(store):
    pages = Pages(store, FOLDER)
    written(pages, 1, 32)
    pages.fold(below=33)
    late = Pages(store, FOLDER)
    late.put(Page(3, 4), ["old", "old"])  # as a crash between the two would leave it
    assert Pages(store, FOLDER).line(3) == "line 3"
    Pages(store, FOLDER).fold(below=0)
    assert len(store.names(FOLDER)) == 1

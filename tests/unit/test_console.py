import io
from dataclasses import replace

from headrace.bench.output import print_table
from headrace.tracking.console import IncrementRow, Observer, align

ROW = IncrementRow(
    cut=1,
    events=200,
    queries=150,
    recall_live=0.55,
    recall_frozen=0.5,
    recall_experts={"popular": 0.4, "uniform": 0.6, "neural": 0.5},
    freshness_s=0.8,
    version=2,
    verdict="publish",
    reason="",
    failed_requests=0,
    backlog_shards=1,
    train_s=0.2,
    increment_s=123.4,
)


def _lines(*rows):
    stream = io.StringIO()
    observer = Observer(stream)
    for row in rows:
        observer.increment(row)
    return stream.getvalue().splitlines()


def test_a_row_stands_under_its_header():
    legend, header, row = _lines(ROW)
    assert legend.startswith("Recall@20")
    assert " ".join(header.split()) == (
        "cut events queries live frozen neural popular fresh version verdict failed behind train all"
    )
    assert " ".join(row.split()) == "1 200 150 55.0 50.0 50.0* 40.0 0.80 2 publish 0 1 0.20 123"
    for name, value in [("live", "55.0"), ("popular", "40.0"), ("version", "2"), ("all", "123")]:
        assert header.index(name) + len(name) == row.index(value, header.index(name) - 6) + len(value)


def test_what_is_not_known_is_a_dash():
    row = _lines(replace(ROW, recall_live=None, recall_frozen=None, recall_experts={}, freshness_s=None, version=None))
    assert " ".join(row[-1].split()) == "1 200 150 - - - - publish 0 1 0.20 123"


def test_a_roll_back_says_why():
    reason = "rolled back to version 3: live's recall@20 is below trusted's; passed every rule"
    assert _lines(replace(ROW, reason=reason))[-1].strip() == f"publish: {reason}"
    assert len(_lines(replace(ROW, reason="passed every rule"))) < len(_lines(replace(ROW, reason=reason)))


def test_a_verdict_other_than_publish_gives_its_reason():
    assert _lines(replace(ROW, verdict="hold", reason="churn 0.4 is above 0.3"))[-1].split(maxsplit=1) == [
        "hold:",
        "churn 0.4 is above 0.3",
    ]


def test_the_star_stands_at_the_best_mean_so_far():
    lines = _lines(*[replace(ROW, recall_experts={"neural": 0.5, "popular": popular}) for popular in (0.4, 0.7)])
    assert "50.0*" in lines[-2]
    assert "70.0*" in lines[-1]


def test_the_header_comes_again():
    lines = _lines(*[replace(ROW, cut=cut) for cut in range(45)])
    assert [index for index, line in enumerate(lines) if line.startswith("  cut")] == [1, 22, 43]
    assert sum(line.startswith("Recall@20") for line in lines) == 1


def test_new_experts_bring_a_new_header():
    lines = _lines(replace(ROW, recall_experts={}), ROW)
    assert "popular" not in lines[1]
    assert "popular" in lines[3]


def test_long_lines_and_brackets_come_through_a_pipe_as_they_are():
    stream = io.StringIO()
    text = "[red]" + "x" * 300
    Observer(stream).notice(text)
    assert stream.getvalue() == text + "\n"


def test_phases_name_their_seconds():
    stream = io.StringIO()
    Observer(stream).phase("cluster up", 4.26)
    assert stream.getvalue().rstrip().endswith("cluster up (4.3 s)")


def test_align():
    assert align(("name", "n"), [("a", "1"), ("bcdef", "22")], left=frozenset({0})) == [
        "name    n",
        "a       1",
        "bcdef  22",
    ]
    assert align(("name", "n"), []) == ["name  n"]


def test_a_table_of_a_benchmark(capsys):
    print_table("Title", ("name", "R@20"), [("online", "50.1"), ("ewc", "9.0")])
    assert capsys.readouterr().out == "Title\nname    R@20\n------------\nonline  50.1\newc      9.0\n"


def test_a_table_goes_on_row_by_row(capsys):
    print_table(None, ("name", "R@20"), [("online", "50.1")])
    print_table(None, ("name", "R@20"), [("cycle2", "9.0")], with_header=False)
    assert capsys.readouterr().out == "name    R@20\n------------\nonline  50.1\ncycle2   9.0\n"


def test_an_expert_that_was_left_out_is_named():
    assert _lines(replace(ROW, faults={"covisit": 7}))[-1].strip() == (
        "expert covisit was left out of 7 queries: it failed, or its vote is no probability"
    )

from evaluation.markdown import Rows, interval, number, percent, percents, points

POINT = {"value": 0.9162, "low": 0.85, "high": None}


def test_a_table_has_a_line_for_each_row() -> None:
    assert Rows(["a", "b"], [[1, "x"]]).markdown() == "| a | b |\n| --- | --- |\n| 1 | x |\n"


def test_a_terminal_shows_the_same_table_with_its_title() -> None:
    shown = Rows(["a", "b"], [[1, "x"]], "c").__rich__()
    assert shown.title == "c"
    assert [(one.header, *one.cells) for one in shown.columns] == [("a", "1"), ("b", "x")]


def test_numbers_come_with_their_intervals() -> None:
    assert interval(POINT, 2) == "0.92 (0.85--)"
    assert percents(POINT) == "91.6 (85--)"
    assert [number(0.9162, 1), number(2, 0), number(None)] == ["0.9", "2", "-"]
    assert points({"value": 2.04, "low": -1, "high": 4}) == "+2.0 (-1.0 to +4.0)"
    assert [percent(0.9162), percent(0.0, 2), percent(None)] == ["91.6 %", "0.00 %", "-"]

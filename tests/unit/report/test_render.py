"""The page: complete, self-contained, honest, and made from whatever there is."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from distill.commands.report import run
from distill.report.charts import MAX_POINTS, Line, line_chart, thin
from distill.report.collect import FILES, collect
from distill.report.render import render
from distill.report.tables import groups, heat_map, samples
from tests.unit.report.conftest import records, write_run

VOID = {"meta", "br", "link", "img"}


class Balanced(HTMLParser):
    """Collects the text and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def page(path: Path) -> str:
    html = path.read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    for address in re.findall(r"""https?://[^"' <)]*""", html):
        assert address == "http://www.w3.org/2000/svg"
    assert "<script" not in html
    assert "url(" not in re.sub(r"url\(#\w+\)", "", html)
    return re.sub(r"\s+", " ", " ".join(parser.text))


def test_one_run(run_dir: Path) -> None:
    assert run({"runs": [str(run_dir)], "out": None}, Path()) == 0
    text = page(run_dir / "report.html")
    for expected in (
        "student 3.1 % → 88.2 %, teacher 97.0 %, 91 % of the gap closed in 140 s",
        "finished, 4 steps",
        "Update sparsity after 4 steps",
        "78.0 %",
        "<b>2</b>",
        "✓ right",
        "max_steps: 4",
        "python: 3.11.7",
        "mlp.c_proj",
    ):
        assert expected in text
    assert "not comparable" not in text
    assert (run_dir / "report.html").read_text().count("<svg") == 5


def test_output_does_not_depend_on_when_it_is_written(run_dir: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        render([collect(run_dir)], tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize("norm", [0.05, 1e-5])
def test_a_run_outside_the_usual_range_is_called_not_comparable(tmp_path: Path, norm: float) -> None:
    write_run(tmp_path / "run", records(norm=norm))
    run({"runs": [str(tmp_path / "run")], "out": None}, Path())
    assert "the sparsity is not comparable to published tables" in page(tmp_path / "run" / "report.html")


@pytest.mark.parametrize("kept", FILES)
def test_a_page_from_any_single_file(run_dir: Path, kept: str) -> None:
    for name in FILES:
        if name != kept:
            (run_dir / name).unlink()
    render([collect(run_dir)], run_dir / "report.html")
    text = page(run_dir / "report.html")
    assert text.count("is missing.") == 3


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", records()[:2])
    (path / "metrics.jsonl").write_text((path / "metrics.jsonl").read_text() + '{"step": 2, "lo')
    render([collect(path)], path / "report.html")
    text = page(path / "report.html")
    assert "stopped or running, 1 of 4 steps" in text
    assert "cut off while writing" in text


def test_heat_map_keeps_layer_order_and_module_names(run_dir: Path) -> None:
    found = heat_map(collect(run_dir))
    assert found is not None
    assert found.columns == ["q_proj", "mlp.c_proj"]
    assert [layer for layer, _ in found.rows] == list(range(12))
    assert (found.least, found.most) == (0.5, 0.9)
    assert found.rows[0][1][0] == (0.5, 0.0)
    assert found.rows[11][1][1] == (0.9, 1.0)


def test_groups_and_samples(run_dir: Path) -> None:
    assert [name for name, *_ in groups(collect(run_dir))] == ["attention", "mlp"]
    found = samples(collect(run_dir))
    assert [step for step, _ in found] == [4, 0]
    assert [row.right for _, rows in found for row in rows] == [True, False]


def test_a_long_curve_is_thinned_to_means() -> None:
    points = [(step, float(step % 2)) for step in range(10 * MAX_POINTS)]
    short = thin(points)
    assert len(short) == MAX_POINTS
    assert {value for _, value in short} == {0.5}
    assert thin(points[:5]) == points[:5]


def test_charts_follow_the_theme_and_escape_labels() -> None:
    svg = line_chart("t", [Line("_a$<b>$", [(1, 2.0), (2, 3.0)]), Line("c", [(1, 1.0)], reference=True)])
    assert svg is not None
    assert "_a$&lt;b&gt;$" in svg
    assert "var(--c1)" in svg
    assert "var(--c2)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert line_chart("t", [Line("empty", [])]) is None

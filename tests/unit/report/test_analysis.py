"""The page of an analysis: complete, self-contained, escaped, the same each time, and made from whatever there is."""

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import save_file

from distill.commands.analyze import run
from distill.config.schema_analyze import AnalyzeConfig
from distill.errors import UserError
from distill.report.analysis import clear, render
from distill.report.glossary import GLOSSARY, SOURCES
from tests.unit.report.analysis_sample import MODULES, write_analysis
from tests.unit.report.test_render import Balanced

EVIL = 'model.<script>alert("&")</script>.weight'


def page(folder: Path) -> tuple[str, str]:
    """The rendered page and its text, after checking what holds for every page."""
    path = render(folder)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    links = re.findall(r'(?:href|src)="([^#"][^"]*)"', text)
    assert links == [f"https://arxiv.org/abs/{paper}" for paper in SOURCES]
    assert set(re.findall(r"""https?://[^"' <)]*""", text)) == {*links, "http://www.w3.org/2000/svg"}
    assert "<script" not in text
    assert "<img" not in text
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text)
    assert "nan" not in re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL).lower().split()
    assert "#1d2126" not in text.split("</style>")[1], "charts follow the theme"
    return text, re.sub(r"\s+", " ", " ".join(parser.text))


def test_everything_is_on_the_page_and_every_picture_is_drawn(tmp_path: Path) -> None:
    unmatched: dict[str, Any] = {
        "missing": [EVIL],
        "extra": ["score.weight"],
        "misshaped": ["a & b"],
        "tied": ["lm_head.weight"],
        "skipped": {"source": ["rotary.inv_freq"], "trained": []},
    }
    folder = write_analysis(tmp_path / "a", other=True, change={"unmatched": unmatched, "source": "runs/<b>a"})
    text, words = page(folder)
    for expected in (
        "82.4 % of the weights did not move; rounding alone would leave 80.0 %",
        "runs/<b>a",
        "More weights stayed where they were than rounding explains.",
        "null 80.0 % ± 0.08 (difference +2.4 points, z +30.0)",
        "Other than rounding explains",
        "No more than rounding explains",
        "Two runs from one source",
        "runs/b/model",
        *("attention", "mlp", "embedding", "norm"),
        *MODULES,
        EVIL,
        "a & b",
        *("score.weight", "lm_head.weight", "rotary.inv_freq"),
        "1 in the source only",
        "1 tied to a tensor that was counted",
        *GLOSSARY,
        "arXiv 2606.13657",
    ):
        assert expected in words, expected
    assert html.escape(EVIL, quote=False) in text.replace("&#34;", '"')
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 5 + 2 + 4 + 1
    for picture in pictures:
        assert np.ptp(imread(picture)[..., :3]) > 0.5, picture
    clear(folder)
    assert not list(folder.glob("*.png"))
    assert not (folder / "report.html").exists()


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    folder = write_analysis(tmp_path / "a", layers=1, matrices=False)
    render(folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    render(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_a_model_without_layers_or_matrices_or_a_null(tmp_path: Path) -> None:
    folder = write_analysis(tmp_path / "a", layers=0, draws=0, matrices=False)
    _, words = page(folder)
    assert "No null was drawn" in words
    assert "No part of this model is named like a layer" in words
    assert "No spectra" in words
    assert "Two runs" not in words
    assert "Left out" not in words
    assert "Measured without a null" in words
    assert not list(folder.glob("heatmap_*.png"))


def test_a_single_draw_and_a_single_layer(tmp_path: Path) -> None:
    _, words = page(write_analysis(tmp_path / "a", layers=1, draws=1, matrices=False))
    assert "Not decided" in words
    assert "80.0 % ± ?" in words


def test_a_hundred_layers_have_a_cell_each_and_no_numbers_in_them(tmp_path: Path) -> None:
    text, _ = page(write_analysis(tmp_path / "a", layers=100, matrices=False))
    table = text.split('<table class="heat">')[1].split("</table>")[0]
    assert table.count("<td") == 100 * len(MODULES)
    assert re.search(r'<td style="--v:[01]\.\d{3}" title="layer 99, q_proj: 8\d\.\d %"></td>', table)


def test_summary_alone_is_enough(tmp_path: Path) -> None:
    folder = write_analysis(tmp_path / "a", layers=1)
    for name in ("groups.csv", "spectra.json"):
        (folder / name).unlink()
    _, words = page(folder)
    assert "More weights stayed" in words
    assert "By group" not in words


def test_cells_without_a_number_are_marked_as_such(tmp_path: Path) -> None:
    folder = write_analysis(tmp_path / "a", layers=2, matrices=False)
    path = folder / "groups.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("module,1.q_proj")) + "\n")
    text, _ = page(folder)
    assert 'class="none" title="layer 1, q_proj: none"' in text


def test_distill_analyze_ends_with_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    source = {EVIL: 0.02 * torch.randn(32, 16, generator=generator), "a.<b>": torch.tensor(1.0), "c": torch.empty(0, 4)}
    for name, scale in (("a", 0.0), ("b", 2e-5)):
        (tmp_path / name).mkdir()
        save_file({key: value + scale for key, value in source.items()}, tmp_path / name / "model.safetensors")
    paths = {"source": str(tmp_path / "a"), "trained": str(tmp_path / "b"), "out": str(tmp_path / "out")}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "heatmap_stable_rank.png").write_text("of an earlier analysis")
    (tmp_path / "out" / "heatmap_mine.png").write_text("not of an analysis")
    assert run(AnalyzeConfig(**paths, null_draws=2).model_dump(), tmp_path) == 0
    _, words = page(tmp_path / "out")
    # A constant shift has one direction, whatever the weights are.
    assert "The update is concentrated in fewer directions than a random one." in words
    assert "513 weights in 3 tensors" in words
    assert [path.name for path in (tmp_path / "out").glob("heatmap*")] == ["heatmap_mine.png"]
    assert str(tmp_path / "out" / "report.html") in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("broken", ["{", "[]", ""])
def test_a_broken_or_missing_summary_is_named(tmp_path: Path, broken: str) -> None:
    with pytest.raises(UserError, match=r"`out` must be a folder written by .distill analyze.*, but is"):
        render(tmp_path)
    (tmp_path / "summary.json").write_text(broken)
    with pytest.raises(UserError, match=r"`out` must be a JSON .*summary\.json"):
        render(tmp_path)

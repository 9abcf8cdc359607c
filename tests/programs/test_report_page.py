"""The page of an evaluation: complete in itself, and alive in a browser."""

import html.parser
import re
import shutil
import subprocess

import numpy as np
import pytest

from flaxseg.evaluation.metrics import ConfusionMatrix
from flaxseg.programs.report_page import Curve, ReportData, ReportImage, render_page, write_page

NAMES = ("sky", "a <tag> & more", "road")
COLORS = ((10, 20, 200), (200, 0, 0), (90, 90, 90))


@pytest.fixture(scope="module")
def report():
    rng = np.random.default_rng(0)
    images, rows, matrix = [], [], ConfusionMatrix(3)
    for index in range(4):
        label = np.repeat(rng.integers(0, 3, (30, 1)), 40, 1)
        label[:2] = 255
        pred = np.where(rng.random(label.shape) < 0.1 * index, 1, label)
        pred[label == 255] = 0
        one = ConfusionMatrix(3)
        one.update(label, pred)
        matrix.update(label, pred)
        image = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
        miou = one.metrics().miou
        images.append(ReportImage(f"image {index}", miou, image, label, pred))
        rows.append((f"image {index}", miou, one.metrics().pixel_accuracy))
    rows.append(("all ignored", float("nan"), float("nan")))
    curves = [
        Curve("Loss", {"loss": [(10, 2.0), (20, 0.5), (30, float("nan"))]}),
        Curve("Scores", {"mIoU": [(30, 0.4)], "accuracy": [(10, 0.1), (30, 0.9)]}, percent=True),
        Curve("Nothing", {"none": []}),
    ]
    return ReportData(
        "model <b> on data",
        [("a fact", "<script>alert(1)</script>")],
        matrix.metrics(),
        NAMES,
        COLORS,
        curves,
        worst=images[::-1][:2],
        best=images[:2],
        records=rows,
        details={"Settings": {"steps": 3, "text": "</pre></script>"}},
    )


class Outline(html.parser.HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]


def test_needs_nothing_else_and_shows_everything(report):
    page = render_page(report)
    outline = Outline(page)
    assert outline.links
    assert all(link.startswith("data:image/") for link in outline.links)
    assert "http" not in re.sub(r"data:image[^\"]*", "", page)
    assert outline.tags.count("script") == 1
    assert outline.tags.count("figure") == 4 + 2  # images, and curves that have points
    for name in ("sky", "a &lt;tag&gt; &amp; more", "image 3", "all ignored", "steps"):
        assert name in page
    assert f"{100 * report.metrics.miou:.2f} %" in page
    assert "nan" not in re.sub(r"data:image[^\"]*", "", page)


def test_is_written_whole(report, tmp_path):
    write_page(tmp_path / "report.html", report)
    assert (tmp_path / "report.html").read_text() == render_page(report)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="no Chromium or Chrome is installed")
def test_toggles_and_tables_work_in_a_browser(report, tmp_path):
    probe = """<script>
      const says = [], figure = document.querySelector('figure[data-show]');
      const shown = name => getComputedStyle(figure.querySelector('.' + name)).opacity;
      says.push(shown('prediction'), shown('truth'));
      figure.querySelector('button[data-layer=truth]').click();
      says.push(shown('prediction'), shown('truth'));
      const slider = figure.querySelector('input');
      slider.value = 25;
      slider.dispatchEvent(new Event('input'));
      says.push(shown('truth'));
      figure.querySelector('button[data-layer=errors]').click();
      says.push(shown('errors'), figure.querySelectorAll('[aria-pressed=true]').length);
      const table = [...document.querySelectorAll('table.sortable')].at(-1);
      const first = () => table.tBodies[0].rows[0].cells[0].textContent;
      table.tHead.rows[0].cells[1].click();
      says.push(first());
      table.tHead.rows[0].cells[1].click();
      says.push(first());
      const images = [...document.images];
      says.push(images.length, images.every(i => i.complete && i.naturalWidth > 0));
      document.body.insertAdjacentHTML('beforeend', '<p id=says>' + says.join('|') + '</p>');
    </script></html>"""
    path = tmp_path / "report.html"
    page = render_page(report)
    path.write_text(page[: page.rindex("</html>")] + probe)
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000",
        "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
        path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr
    says = re.search(r'<p id="says">([^<]*)</p>', done.stdout)[1].split("|")
    assert says == [
        "0.6", "0", "0", "0.6", "0.25", "1", "1", "image 0", "all ignored", "16", "true",
    ]  # fmt: skip

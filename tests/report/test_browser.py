"""The report in a real browser: chromium, headless, at the width of a desktop and of a phone.

./launch.sh test tests/report/test_browser.py
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--hide-scrollbars", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=2000"),
]
WIDTHS = {"desktop": 1280, "phone": 390}

# Run inside the page: what a person would notice.
LOOK = """
<script>
addEventListener("load", () => {
  const box = e => e.getBoundingClientRect();
  const seen = [...document.querySelectorAll("svg, img")].filter(e => box(e).width > 0);
  const wide = [...document.querySelectorAll("body > *, .charts, figure, svg")]
    .filter(e => box(e).right > innerWidth + 1);
  const texts = [...document.querySelectorAll("svg text")].filter(e => box(e).width > 0);
  const size = e => {  // of a letter, in pixels of the screen, whichever way the text runs
    const m = e.getScreenCTM();
    return parseFloat(getComputedStyle(e).fontSize) * Math.hypot(m.a, m.b);
  };
  const colour = getComputedStyle(document.body);
  document.body.dataset.found = JSON.stringify({
    width: innerWidth, page: document.documentElement.scrollWidth,
    drawn: seen.length, broken: [...document.images].filter(e => !e.naturalWidth).length,
    beyond: wide.map(e => e.outerHTML.slice(0, 80)),
    smallest: Math.min(...texts.map(size)),
    paper: colour.backgroundColor, ink: colour.color,
    line: getComputedStyle(document.querySelector("svg path[style*='--line-0']")).stroke,
  });
});
</script>
"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian's package chromium)"),
]


def shown(page: Path, width: int, folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    """What `LOOK` finds in a browser of `width` pixels, and what the browser's console said.

    Chromium has no window narrower than 500 pixels: the page is in a frame of that width.
    """
    looked = folder / "looked.html"
    looked.write_text(page.read_text().replace("</head>", f"{LOOK}</head>"))
    outer = folder / "outer.html"
    outer.write_text(
        f'<iframe id="f" src="looked.html" style="width:{width}px;height:3000px;border:0"></iframe>'
        '<script>addEventListener("load", () => setTimeout(() => { document.body.dataset.found = '
        'document.getElementById("f").contentDocument.body.dataset.found }, 100))</script>'
    )
    assert CHROMIUM is not None
    command = [
        CHROMIUM, *OPTIONS, *options, f"--user-data-dir={folder / 'profile'}",
        "--allow-file-access-from-files", "--window-size=1400,3000", "--dump-dom", f"file://{outer}",
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(folder)}
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    said = "\n".join(line for line in answer.stderr.splitlines() if "CONSOLE" in line)
    match = re.search(r'data-found="([^"]*)"', answer.stdout)
    assert match, answer.stderr[-2000:]
    found: dict[str, Any] = json.loads(match[1].replace("&quot;", '"').replace("&amp;", "&"))
    return found, said


@pytest.mark.parametrize("device", WIDTHS)
def test_the_report_is_readable_and_the_console_silent(
    device: str, finished: Path, tmp_path: Path
) -> None:
    found, said = shown(finished / "report.html", WIDTHS[device], tmp_path)
    assert said == ""
    assert found["width"] == WIDTHS[device]
    assert found["page"] == found["width"], "nothing makes the page scroll sideways"
    assert found["beyond"] == []
    assert found["broken"] == 0
    assert found["drawn"] > 11 + 24, "charts and images take up room"
    assert found["smallest"] >= 8, "pixels of the smallest text in a chart"


def test_the_report_is_dark_where_the_person_likes_it_dark(finished: Path, tmp_path: Path) -> None:
    light, _ = shown(finished / "report.html", 1280, tmp_path)
    dark, _ = shown(
        finished / "report.html", 1280, tmp_path, "--blink-settings=preferredColorScheme=0"
    )
    assert (light["paper"], light["ink"]) == ("rgb(255, 255, 255)", "rgb(28, 33, 40)")
    assert (dark["paper"], dark["ink"]) == ("rgb(14, 18, 23)", "rgb(227, 232, 238)")
    assert light["line"] != dark["line"], "charts follow"


def test_console_errors_would_be_noticed(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    text = (finished / "report.html").read_text()
    page.write_text(text.replace("</body>", "<script>undefined_name()</script></body>"))
    _, said = shown(page, 1280, tmp_path)
    assert "undefined_name is not defined" in said

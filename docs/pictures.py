"""`python -m docs.pictures DEMO STUDY` takes the pictures of images/ from two reports, as `make demo` and `make docs`
write them, such as report/demo/report.html and docs/results/small/report/report.html. Needs Chromium.
"""

import shutil
import sys
from pathlib import Path

IMAGES = Path(__file__).parent / "images"


def main(demo: str, study: str) -> None:
    """Writes demo.png and demo_dark.png, the top of the demo's report, and verdicts.png, those of the study."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, report, height in (("demo", demo, 1250), ("demo_dark", demo, 1250), ("verdicts", study, 1000)):
            page = browser.new_page(viewport={"width": 1200, "height": height})
            page.emulate_media(color_scheme="dark" if name == "demo_dark" else "light")
            page.goto(Path(report).resolve().as_uri())
            page.wait_for_selector("html[data-ready=true]")
            if name == "verdicts":
                page.evaluate("scrollBy(0, document.getElementById('verdicts').getBoundingClientRect().top - 16)")
            else:
                page.locator("#learning-mean:not([data-stale]) .main-svg").first.wait_for()
            page.wait_for_timeout(1000)  # the other figures
            page.screenshot(path=IMAGES / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

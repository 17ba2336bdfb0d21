"""The documentation's site, opened from disk in a real headless Chromium."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

pytestmark = pytest.mark.apart

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


@pytest.fixture
def page(browser):
    """A page which, after the test, wants no error and no request to the network to have happened."""
    page, complaints = browser.new_page(viewport={"width": 1280, "height": 900}), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith("http") and complaints.append(request.url))
    yield page
    page.close()
    assert complaints == []


def test_search_finds_pages_from_disk(page, site):
    page.goto((site / "getting-started.html").as_uri())
    page.locator("input.md-search__input").click()
    page.keyboard.type("hellinger")
    link = page.locator(".md-search-result__link").first
    link.wait_for()
    found = link.get_attribute("href")
    assert Path(unquote(urldefrag(found.removeprefix("file://")).url)).is_file()


@pytest.mark.parametrize(("scheme", "picture"), [("light", "demo.png"), ("dark", "demo_dark.png")])
def test_first_page_has_a_picture_in_the_reader_s_mode(page, site, scheme, picture):
    page.emulate_media(color_scheme=scheme)
    page.goto((site / "index.html").as_uri())
    image = page.locator("article img")
    assert image.evaluate("image => image.currentSrc").rpartition("/")[2] == picture
    assert image.evaluate("image => image.complete && image.naturalWidth > 0") and image.is_visible()


def test_pages_fit_the_screen_commands_are_whole_and_links_lead_somewhere(page, site):
    pages = [file for file in sorted(site.glob("*.html")) if file.name != "404.html"]
    assert len(pages) > 15
    commands = 0
    for width in (390, 820, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        for file in pages:
            page.goto(file.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (file.name, width)
            clipped = page.evaluate(
                "[...document.querySelectorAll('.language-sh pre > code')].map(c => c.scrollWidth - c.clientWidth)"
            )
            commands += len(clipped)
            assert all(over <= 1 for over in clipped), (file.name, width)
            if width == 1280:
                links = page.evaluate("[...document.querySelectorAll('a[href], img[src]')].map(a => a.href || a.src)")
                local = [Path(unquote(urldefrag(link).url[7:])) for link in links if link.startswith("file:")]
                assert [str(target) for target in local if not target.is_file()] == [], file.name
    assert commands > 50

"""The page in a real browser that reaches nothing but the service: what a user does, with the mouse and with the keyboard.

Needs Chromium and playwright, and for accessibility axe-core: ``make more-ready`` installs them.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

import perigee
from perigee.bitstream.metadata import Acquisition, Metadata

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make more-ready")
CHROMIUM = shutil.which("chromium")
AXE = Path(os.environ.get("PERIGEE_AXE", "build/page/package/axe.min.js"))
SHOTS = Path(os.environ.get("PERIGEE_SCREENSHOTS", "build/page/screenshots"))
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: make more-ready")
SAMPLE = Path(__file__).resolve().parents[2] / "benchmarks" / "sample"
TOKEN = "a token of enough letters"
PLACE = Metadata(
    epsg=32633, transform=(2.0, 0.0, 5e5, 0.0, -2.0, 5e6), acquisition=Acquisition(gsd_m=2.0, sun_elevation_deg=41.0)
)


def landscape(bands: int, rows: int, cols: int, dtype: str = "uint8") -> np.ndarray:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:rows, 0:cols]
    planes = [
        110 + 60 * np.sin(x / (23 + 3 * k)) * np.cos(y / 31) + 30 * ((x // 60 + y // 80) % 2) for k in range(bands)
    ]
    found = (np.stack(planes) + rng.normal(0, 4, (bands, rows, cols))).clip(0, 255)
    return (found * (1 if dtype == "uint8" else 16) + (0 if dtype == "uint8" else 900)).astype(dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    tiles = [np.asarray(Image.open(path).convert("RGB"))[:256, :256] for path in sorted(SAMPLE.glob("naip60*.tif"))[:4]]
    town = np.tile(np.concatenate(tiles, 1), (3, 1, 1))[:700, :900].transpose(2, 0, 1)
    (folder / "town.peri").write_bytes(perigee.encode(np.ascontiguousarray(town), 25, metadata=PLACE))
    (folder / "many-bands.peri").write_bytes(perigee.encode(landscape(5, 600, 600, "uint16"), 55, metadata=PLACE))
    return folder


@pytest.fixture(scope="module")
def address(folder, guided_profiles, ground_serve):
    with ground_serve("--scenes", folder, "--profiles", guided_profiles) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address, scheme="light", width=1280, height=860, quiet=True, **options):
    """The page; nothing but the service is reached, and nothing may be complained of in the console."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True, **options
    )
    page = context.new_page()
    complaints, foreign = [], []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((address, "blob:", "data:")) else foreign.append(request.url),
    )
    page.goto(address)
    page.wait_for_selector("#scenes li")
    yield page
    context.close()
    assert not foreign and (not quiet or not complaints), complaints + foreign


def until(page, script, argument=None, seconds=120):
    """Wait until a script is true. The page's policy does not let playwright's own waiting evaluate it."""
    for _ in range(10 * seconds):
        if page.evaluate(script, argument):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not in {seconds} s: {script}")


def choose(page, name):
    page.click(f"#scenes button.open:text-is('{name}')")
    until(page, "name => document.querySelector('#status').textContent.startsWith(name + ':')", name)


def settled(page):
    until(page, "document.querySelector('#busy').textContent === ''")
    page.wait_for_timeout(300)


def colours(page, selector="#viewer") -> np.ndarray:
    with rasterio.MemoryFile(page.locator(selector).screenshot()) as file, file.open() as shot:
        return shot.read([1, 2, 3])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_scene_is_shown_in_both_schemes_and_on_a_phone(browser, address, scheme, width):
    with opened(browser, address, scheme, width) as page:
        choose(page, "town")
        settled(page)
        shot = colours(page)
        assert shot.std() > 20, "an image is there"
        assert "flight3" in page.inner_text("#provenance") and "West 15" in page.inner_text("#place")
        assert "None." in page.inner_text("#damage") and "sun elevation" in page.inner_text("#facts").lower()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out"
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{scheme}-{width}.png")
        page.locator("#place-title").scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        page.screenshot(path=SHOTS / f"{scheme}-{width}-place.png")


def test_the_slider_moves_by_keyboard_and_shows_either_image(browser, address):
    with opened(browser, address) as page:
        choose(page, "town")
        settled(page)
        page.locator("#swipe").focus()
        page.keyboard.press("Home")
        page.wait_for_timeout(400)
        right = colours(page)
        page.keyboard.press("End")
        page.wait_for_timeout(400)
        left = colours(page)
        assert (np.abs(left.astype(int) - right) > 3).mean() > 0.05, "what is added can be seen"
        assert page.inner_text("#left-label") == "Base image" and "cosmic" in page.inner_text("#right-label")
        page.select_option("#right", "none")
        assert not page.is_visible("#compare")


def test_the_overlay_of_trust_is_drawn_at_full_size(browser, address):
    with opened(browser, address) as page:
        choose(page, "town")
        page.click("#pixels")
        settled(page)
        page.locator("#swipe").focus()
        page.keyboard.press("Home")
        page.wait_for_timeout(400)
        before = colours(page).astype(int)
        page.check("#trust")
        page.wait_for_timeout(300)
        settled(page)
        after = colours(page).astype(int)
        assert (after[0] - after[2]).mean() > (before[0] - before[2]).mean() + 4, "redder than before"


def test_bands_and_stretch_of_a_scene_of_many_bands(browser, address):
    with opened(browser, address) as page:
        choose(page, "many-bands")
        settled(page)
        assert page.locator("#red option").count() == 5 and not page.is_visible("#compare")
        assert float(page.input_value("#low")) > 900 and float(page.input_value("#high")) < 5500
        before = colours(page)
        for band in ("red", "green", "blue"):
            page.select_option(f"#{band}", "5")
        settled(page)
        after = colours(page)
        middle = after[:, 300:500, 300:600].astype(int)
        assert np.abs(middle[0] - middle[1]).max() == 0 and (before != after).any(), "grey"


def test_a_window_becomes_a_download(browser, address, folder, tmp_path):
    with opened(browser, address) as page:
        choose(page, "town")
        settled(page)
        for field, value in {"top": "100", "left-px": "200", "rows": "64", "cols": "96"}.items():
            page.fill(f"#{field}", value)
        with page.expect_download() as waiting:
            page.click("#download")
        waiting.value.save_as(tmp_path / "a.tif")
        assert waiting.value.suggested_filename == "town.tif"
        with rasterio.open(tmp_path / "a.tif") as found:
            wanted = perigee.decode(folder / "town.peri", window=(100, 200, 64, 96)).samples
            assert np.array_equal(found.read(), wanted) and found.transform.c == 5e5 + 400


def test_a_job_shows_its_progress_and_can_be_saved_or_cancelled(browser, address, tmp_path):
    with opened(browser, address) as page:
        choose(page, "town")
        settled(page)
        page.click("#whole")
        page.click("#from-view")
        page.select_option("#added", "cosmic")
        page.click("#as-job")
        page.click("#as-job")
        page.wait_for_selector("#jobs li:nth-child(2)")
        page.click("#jobs li:nth-child(1) button:text-is('Cancel')")
        until(
            page,
            "document.querySelector('#jobs li:nth-child(1) span').nextSibling.nextSibling.textContent === 'cancelled'",
        )
        seen = set()
        for _ in range(600):
            seen.add(page.evaluate("document.querySelector('#jobs li:nth-child(2) progress').value"))
            if page.locator("#jobs li:nth-child(2) button:text-is('Save')").count():
                break
            page.wait_for_timeout(100)
        assert 1 in seen and len(seen) > 2, "progress that moves"
        with page.expect_download() as waiting:
            page.click("#jobs li:nth-child(2) button:text-is('Save')")
        waiting.value.save_as(tmp_path / "a.tif")
        with rasterio.open(tmp_path / "a.tif") as found:
            assert found.shape == (700, 900) and found.tags()["PERIGEE_GENERATED_DETAIL"] == "YES"


def test_a_map_guides_a_product_and_its_buildings_are_told(browser, address, tmp_path):
    left, top = PLACE.transform[2] + 120, PLACE.transform[5] - 160  # 60 x 50 pixels at column 60, row 80
    ring = [[left, top], [left + 120, top], [left + 120, top - 100], [left, top - 100], [left, top]]
    shape = {
        "type": "Feature",
        "properties": {"building": "yes"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    crs = {"type": "name", "properties": {"name": "EPSG:32633"}}
    (tmp_path / "m.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [shape]}))
    with opened(browser, address) as page:
        choose(page, "town")
        settled(page)
        assert page.is_disabled("#guide"), "no map without a compensator that takes one"
        assert "guided" not in page.inner_text("#right"), "a view has no map"
        page.select_option("#added", "guided")
        page.set_input_files("#guide", tmp_path / "m.geojson")
        for field, value in {"top": "40", "left-px": "40", "rows": "128", "cols": "128"}.items():
            page.fill(f"#{field}", value)
        with page.expect_download() as waiting:
            page.click("#download")
        waiting.value.save_as(tmp_path / "a.tif")
        until(page, "document.querySelector('#objects').textContent.startsWith('town, buildings of the map: ')")
        with rasterio.open(tmp_path / "a.tif") as found:
            assert found.tags()["PERIGEE_MAP_OBJECTS"] == "1" and found.shape == (128, 128)
        page.click("#as-job")
        page.wait_for_selector("#jobs button:text-is('Save')", timeout=60_000)
        until(page, "document.querySelector('#objects').textContent.startsWith('town.tif, buildings of the map: ')")
        choose(page, "many-bands")
        assert page.input_value("#guide") == "" and page.inner_text("#objects") == ""


def test_a_file_is_dropped_shown_and_deleted(browser, address, folder):
    data = perigee.encode(landscape(3, 300, 300), 40)
    with opened(browser, address) as page:
        drop(page, "my scene.peri", data)
        until(page, "document.querySelector('#status').textContent.startsWith('my-scene:')")
        assert (folder / "my-scene.peri").read_bytes() == data and "no place" in page.inner_text("#place")
        page.click("button[aria-label='Delete my-scene']")
        until(page, "document.querySelector('#status').textContent === 'No scene is open.'")
        assert not (folder / "my-scene.peri").exists()


def drop(page, name, data):
    page.evaluate(
        """([name, bytes]) => {
            const moved = new DataTransfer();
            moved.items.add(new File([new Uint8Array(bytes)], name));
            document.dispatchEvent(new DragEvent('drop', { dataTransfer: moved, bubbles: true, cancelable: true }));
        }""",
        [name, list(data)],
    )


def test_a_hostile_file_is_an_error_that_is_read_out(browser, address):
    with opened(browser, address, quiet=False) as page:
        drop(page, "<img src=x onerror=alert(1)>.peri", b"PERI" + bytes(400))
        page.wait_for_selector("#alert:not([hidden])")
        assert page.get_attribute("#alert", "role") == "alert" and len(page.inner_text("#alert-text")) > 10
        page.click("#alert-close")
        assert not page.is_visible("#alert")


def test_the_token_is_asked_for_once(browser, folder, tmp_path, ground_serve):
    (tmp_path / "token").write_text(TOKEN)
    with ground_serve("--scenes", folder, "--auth-token-file", tmp_path / "token") as address:
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#ask[open]")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#scenes li")
        choose(page, "town")
        settled(page)
        assert colours(page).std() > 20
        page.reload()
        page.wait_for_selector("#scenes li")
        assert not page.is_visible("#ask")
        context.close()


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not there: make more-ready")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(browser, address, scheme):
    with opened(browser, address, scheme, bypass_csp=True) as page:
        choose(page, "town")
        settled(page)
        page.add_script_tag(content=AXE.read_text())
        found = page.evaluate("axe.run()")
        told = [(v["id"], v["help"], [n["html"][:120] for n in v["nodes"]]) for v in found["violations"]]
        assert not told, json.dumps(told, indent=1)


def test_everything_can_be_reached_by_keyboard(browser, address):
    with opened(browser, address) as page:
        choose(page, "town")
        settled(page)
        reached = set()
        page.locator("body").press("Tab")
        for _ in range(60):
            reached.add(page.evaluate("document.activeElement.id"))
            page.keyboard.press("Tab")
        assert {"viewer", "swipe", "file", "left", "right", "trust", "low", "download", "as-job", "map"} <= reached

"""The Explore and Choose tabs, and the layout of the page, in a browser."""

from __future__ import annotations

import json

import pytest

from DeepCache.app.explorer import SHIPPED_ABLATION
from DeepCache.config import DeepCacheConfig
from DeepCache.files import read_json_text
from DeepCache.plan import Plan
from tests.app.shown import rows, same, shown

GROUPS = {
    (group["scheduler_class"], group["steps"]): {cell["label"]: cell for cell in group["cells"]}
    for group in json.loads(read_json_text(SHIPPED_ABLATION, "result"))["groups"]
}
TABS = ("Generate", "Explore", "Choose")
DEFAULT = DeepCacheConfig().forecast
# The end of the labels in the first grid: that of the default forecast, otherwise the first of the file.
END = f" {DEFAULT}" if f"I=3 B=0 {DEFAULT}" in GROUPS["DDIMScheduler", 50] else ""


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()
    page.wait_for_selector({"Generate": "#generate", "Explore": "#grid button", "Choose": "#advice p"}[name])
    # The code editor measures its font, and the tab slides in.
    page.wait_for_timeout(200)


def pick(page, label, option):
    page.get_by_label(label).locator("visible=true").click()
    page.get_by_role("option", name=option, exact=True).click()


def test_a_cell_shows_its_images_and_figures(visit):
    page = visit()
    open_tab(page, "Explore")
    cells = GROUPS["DDIMScheduler", 50]
    cell = page.locator("#grid button[data-interval='5'][data-branch='1']")
    assert f"{cells[f'I=5 B=1{END}']['psnr']['mean']:.1f} dB" in cell.inner_text()
    # The default settings are shown first; the bundled ablation has images of them.
    assert page.locator("#grid button[aria-pressed=true]").get_attribute("data-interval") == "3"
    assert page.locator("#choice .samples figure").count() == 4
    assert page.locator("#choice .sample:first-child img").count() == 12
    first = "#choice .samples figure:first-child .sample div:nth-child({}) img"
    assert shown(page, first.format(1)).size == (64, 64)
    assert not same(shown(page, first.format(1)), shown(page, first.format(3)))
    cell.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#choice h2:text-is('I=5 B=1{END}')")
    assert page.locator("#grid button[aria-pressed=true]").count() == 1
    assert page.evaluate("[document.activeElement.dataset.interval, document.activeElement.dataset.branch]") == [
        "5",
        "1",
    ]
    figures = {name: value for name, value, *_ in rows(page, "#choice")}
    measured = cells[f"I=5 B=1{END}"]
    assert figures["MACs of the U-Net"].replace("\xa0", " ") == f"{100 * measured['mac_share']:.1f} %"
    assert figures["PSNR, dB, mean ± 95 % confidence interval"].startswith(f"{measured['psnr']['mean']:.2f} ±")
    assert page.locator("#choice .samples figure").count() == 0
    page.wait_for_selector("#choice :text('no images are kept')")


def test_the_last_of_two_quick_clicks_counts(visit):
    page = visit()
    open_tab(page, "Explore")
    page.evaluate(
        """() => {
            document.querySelector("#grid button[data-interval='5'][data-branch='1']").click();
            setTimeout(() => document.querySelector("#grid button[data-interval='2'][data-branch='0']").click(), 20);
        }"""
    )
    page.wait_for_selector(f"#choice h2:text-is('I=2 B=0{END}')")
    assert page.locator("#grid button[aria-pressed=true]").get_attribute("data-interval") == "2"


def test_the_scheduler_and_forecast_can_be_changed(visit):
    page = visit()
    open_tab(page, "Explore")
    pick(page, "Forecast and schedule", "re-use, non-uniform")
    page.wait_for_selector("#choice h2:text('I=3 B=0 non-uniform')")
    pick(page, "Scheduler and steps", "DPMSolverMultistepScheduler, 25 steps")
    wanted = GROUPS["DPMSolverMultistepScheduler", 25]["I=2 B=3 non-uniform"]["psnr"]["mean"]
    page.wait_for_selector(f"#grid button[data-interval='2'][data-branch='3'] :text('{wanted:.1f} dB')")
    # The selection stays.
    assert page.get_by_label("Forecast and schedule").input_value() == "re-use, non-uniform"


def test_settings_are_recommended_for_a_goal(visit):
    page = visit()
    open_tab(page, "Choose")
    page.wait_for_selector("#advice :text('For a speed-up of 2 or more: I=3 B=0 quadratic.')")
    # The chart is above the text.
    assert page.locator("#chart .plot").bounding_box()["y"] < page.locator("#advice").bounding_box()["y"]
    assert page.get_attribute("#chart .plot .best", "title").startswith("I=3 B=0 quadratic: 2.37×, 65.24 dB")
    page.wait_for_selector("#advice-lines :text('quadratic')")
    page.fill("#wanted input", "3")
    page.wait_for_selector("#advice :text('For a speed-up of 3 or more: plan ddim-299.')")
    with page.expect_download() as download:
        page.click("text=Save the plan as plan.json")
    plan = GROUPS["DDIMScheduler", 50]["plan ddim-299"]["config"]["plan"]
    assert Plan.from_file(download.value.path()) == Plan.from_dict(plan)
    page.fill("#wanted input", "")
    page.locator("#wanted input").press_sequentially("2.75", delay=20)
    page.wait_for_selector("#advice :text('For a speed-up of 2.75 or more')")
    page.fill("#wanted input", "30")
    page.wait_for_selector("#advice .problem :text('Nothing measured on shapes')")
    page.fill("#wanted input", "")
    page.wait_for_selector("#advice .problem :text('The number is empty.')")
    page.get_by_label("The highest speed at a PSNR of").check()
    page.wait_for_selector("#advice :text('For a PSNR of 50 dB or more')")
    assert page.query_selector("#advice .problem") is None


def test_no_tab_is_wider_than_the_screen(visit):
    page = visit()
    for width in (360, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        for tab in TABS:
            open_tab(page, tab)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (tab, width)
            if tab == "Explore" and width >= 390:
                scrolled = page.evaluate(
                    "[...document.querySelectorAll('.ablation-grid, .scrolling')]"
                    ".filter(element => element.scrollWidth > element.clientWidth).length"
                )
                assert scrolled == 0, width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(visit, scheme):
    page = visit(color_scheme=scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(dark[:3]) < 150) == (scheme == "dark")
    for tab in TABS:
        open_tab(page, tab)
        faint = page.evaluate(
            """() => {
                const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
                const over = (colours) => {
                    canvas.fillStyle = "#fff"; canvas.fillRect(0, 0, 1, 1);
                    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
                    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
                };
                const light = colour => colour.map(v => v / 255)
                    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
                const behind = element => {
                    const found = [];
                    for (; element; element = element.parentElement)
                        found.unshift(getComputedStyle(element).backgroundColor);
                    return found;
                };
                return [...document.querySelectorAll("body *:not(svg *)")]
                    .filter(e => e.checkVisibility({opacityProperty: true, visibilityProperty: true}))
                    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
                    .filter(e => !e.closest(":disabled, .cm-editor"))
                    .map(e => {
                        const ground = behind(e);
                        const [a, b] = [light(over([...ground, getComputedStyle(e).color])), light(over(ground))];
                        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 120)];
                    }).filter(([ratio]) => ratio < 4.5);
            }"""
        )
        assert faint == [], tab

"""The page in a browser."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from DeepCache.report import write_report
from tests.report.synthetic_results import ablation, benchmark, run_out_of_memory, wait, write

# More than what fits a phone, in words that no line breaks at.
LONG = "NVIDIA-" + "Simulated" * 12


@pytest.fixture(scope="module")
def results():
    speed = benchmark(sizes=((512, 512), (768, 768)), batches=(1, 4), scopes=("pipeline", "unet"))
    run_out_of_memory(speed["cells"][1])
    wait(speed["cells"][-1])
    speed["device"]["name"] = LONG
    speed["command"] += f" --output {'a' * 200}.json"
    labels = ["I=2 B=0", "I=3 B=0", "I=2 B=1", "I=3 B=1", "I=5 B=0 linear"]
    prompts = ("<script>alert(1)</script>", "b" * 120)
    return [speed, ablation(labels=labels, prompts=prompts, samples=2)]


@pytest.fixture(scope="module")
def path(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    paths = [write(result, folder / f"{number}.json") for number, result in enumerate(results, start=1)]
    return write_report(paths, folder / "report.html")


@pytest.fixture
def visit(browser, path) -> Callable:
    """Opens the page, blocks and records all other requests, and records console messages."""
    pages, complaints, requests = [], [], []

    def visit(**options):
        page = browser.new_page(**options)
        pages.append(page)
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else 0
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        own = path.as_uri()
        page.route("**/*", lambda route: route.continue_() if route.request.url == own else route.abort())
        page.goto(own)
        return page

    yield visit
    for page in pages:
        page.close()
    assert not complaints
    assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}


def test_images_tables_and_charts_are_all_there(visit, results):
    page = visit()
    widths = page.eval_on_selector_all("img:not(.chart)", "images => images.map(image => image.naturalWidth)")
    assert len(widths) == 2 * (1 + 2 * len(page.query_selector_all(".prompt:first-of-type .sample")))
    assert all(width == 64 for width in widths)
    speed, fidelity = results
    sizes = page.eval_on_selector_all(
        "table",
        """tables => Object.fromEntries(tables.map(table =>
            [table.id, [table.tBodies.length, table.querySelectorAll("tbody tr").length]]))""",
    )
    assert sizes["result-1-1-table"] == [1, 4]
    assert sizes["result-1-2-table"] == [1, 4]
    in_cells = [len(cell["rows"]) for cell in speed["cells"] if cell["scope"] == "pipeline" and cell["rows"]]
    assert sizes["result-1-1-all"] == [1, sum(in_cells)]
    assert sizes["result-2-1-front"][1] + sizes["result-2-1-others"][1] == len(fidelity["groups"][0]["cells"])
    areas = page.eval_on_selector_all(".chart", "charts => charts.map(one => one.getBoundingClientRect().height)")
    assert len(areas) == 2 + 2 + 1
    assert all(height > 80 for height in areas)
    # The text of a chart stays within it.
    outside = page.evaluate(
        """() => [...document.querySelectorAll(".chart")].flatMap(chart => {
            const held = document.createElement("div");
            const bytes = Uint8Array.from(atob(chart.src.split(",")[1]), letter => letter.charCodeAt());
            held.innerHTML = new TextDecoder().decode(bytes);
            document.body.append(held);
            return [...held.querySelectorAll("svg text")];
        }).filter(text => {
            const own = text.getBoundingClientRect(), chart = text.closest("svg").getBoundingClientRect();
            return own.left < chart.left - 2 || own.right > chart.right + 2 || own.top < chart.top - 2
                || own.bottom > chart.bottom + 2;
        }).map(text => text.textContent)"""
    )
    assert outside == []


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_the_page_is_never_wider_than_the_screen(visit, width):
    page = visit(viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 360:
        wide = page.evaluate(
            "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        )
        assert wide > 0


def test_light_and_dark(visit):
    found = {}
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        found[scheme] = page.evaluate(
            """() => [[document.body, "backgroundColor"], [document.body, "color"],
                [document.querySelector("caption"), "color"]]
                .map(([element, key]) => getComputedStyle(element)[key])"""
        )
    assert all(light != dark for light, dark in zip(*found.values(), strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page(visit, scheme):
    page = visit(color_scheme=scheme)
    worst = page.evaluate(
        """() => {
            const numbers = text => text.match(/[\\d.]+/g).map(Number);
            const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const behind = element => {
                for (; element; element = element.parentElement) {
                    const colour = numbers(getComputedStyle(element).backgroundColor);
                    if (colour.length === 3) return colour;
                }
            };
            const ratios = [...document.querySelectorAll("body *:not(svg *)")]
                .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
                .map(e => [light(numbers(getComputedStyle(e).color)), light(behind(e))])
                .map(([a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
            return Math.min(...ratios);
        }"""
    )
    assert worst >= 4.5


def test_the_keyboard_reaches_everything(visit):
    page = visit(viewport={"width": 360, "height": 800})
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-labelledby')") == "result-1-1-table-caption"
    page.keyboard.press("ArrowRight")
    for _ in range(100):
        if scrolled := page.evaluate("document.activeElement.scrollLeft"):
            break
        page.wait_for_timeout(50)
    assert scrolled > 0
    waiting = page.eval_on_selector_all(
        ".scroll", "all => all.filter(one => one.checkVisibility()).map(one => one.getAttribute('aria-labelledby'))"
    )
    assert len(waiting) == 5
    for _ in range(60):
        reached = page.evaluate("document.activeElement.getAttribute('aria-labelledby')")
        waiting = [region for region in waiting if region != reached]
        if not waiting:
            break
        page.keyboard.press("Tab")
    assert not waiting


def test_in_print_everything_is_open_and_nothing_scrolls(visit):
    page = visit(viewport={"width": 700, "height": 1000}, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 29, 32)"
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(e => getComputedStyle(e).overflowX === 'visible')"
    )
    assert page.evaluate(
        "[...document.querySelectorAll('table')].every(e => e.checkVisibility({contentVisibilityAuto: true}))"
    )
    assert page.evaluate("document.querySelector('nav').checkVisibility()") is False
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_a_result_file_can_be_saved(visit, path):
    page = visit()
    with page.expect_download() as download:
        page.click("a[download='1.json']")
    assert download.value.suggested_filename == "1.json"
    with open(download.value.path(), "rb") as saved:
        assert saved.read() == path.with_name("1.json").read_bytes()

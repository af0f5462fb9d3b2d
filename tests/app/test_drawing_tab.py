"""Drawing on the page, in a browser."""

from __future__ import annotations

import re

import pytest

from DeepCache import DeepCacheConfig
from DeepCache.app.python_lines import python_lines
from DeepCache.engine.fingerprint import fingerprint, scheduler_settings
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule
from tests.app.shown import MILLISECONDS, rows, same, shown

PROMPT = "a red circle left of a blue square"
ORIGINAL, PICTURE = ".wipe img:not(.wipe-over)", ".wipe-over"


def ask(page, prompt=PROMPT, **values):
    """Fills in the form and presses the button."""
    page.fill("#prompt textarea", prompt)
    for name, value in values.items():
        page.fill(f"#{name} :is(input, textarea)", str(value))
    page.click("#draw")


def ask_after_each_other(first, second):
    """The second asks while the first is drawn for."""
    ask(first, "a red circle", steps=8)
    told(first, "Warming up")
    ask(second, "a blue square", steps=6)
    told(second, "Waiting: one picture is drawn first.")


def told(page, text):
    # Which says what was told instead.
    playwright = pytest.importorskip("playwright.sync_api")
    playwright.expect(page.locator("#status")).to_contain_text(text, timeout=MILLISECONDS)


def test_a_picture_is_drawn_with_and_without(visit, drawn):
    page = visit()
    ask(page, steps=10, seed=7, interval=4)
    page.wait_for_selector(".comparison")
    assert same(shown(page, PICTURE), drawn(PROMPT, steps=10, seed=7, cache=DeepCacheConfig(cache_interval=4)))
    assert same(shown(page, ORIGINAL), drawn(PROMPT, steps=10, seed=7))
    assert not same(shown(page, PICTURE), shown(page, ORIGINAL))
    assert page.get_attribute(PICTURE, "alt") == f"With DeepCache: {PROMPT}"
    # What can be saved holds what made it.
    assert shown(page, PICTURE).info["seed"] == "7"
    figures = {name: value for name, value, _ in rows(page, ".measured")}
    assert list(figures) == [
        "Without DeepCache",
        "With DeepCache",
        "Speed-up",
        "Multiply-accumulates",
        "PSNR",
        "SSIM",
        "Steps",
    ]
    assert figures["Steps"] == "3 full, 7 shallow"
    assert re.fullmatch(r"\d\d\.\d\d dB", figures["PSNR"])
    assert page.get_attribute(".steps .step-strip", "aria-label") == "3 full and 7 shallow steps: full steps 1, 5, 9"
    assert "amplified ×" in page.inner_text(".difference")
    assert shown(page, ".difference img").size == (64, 64)
    told(page, "Done.")
    assert "longer than" not in page.inner_text(".measured")
    page.get_by_role("button", name="The same in Python").click()
    page.wait_for_selector("#lines :text('cache_interval')")


def test_guidance_negative_prompt_and_size_count_with_and_without_deepcache(visit, drawn):
    page = visit()
    assert [page.input_value(f"#{name} input") for name in ("guidance", "width", "height")] == ["2", "64", "64"]
    ask(page, negative_prompt="a star", guidance=7.5, width=72, height=48, steps=4)
    page.wait_for_selector(".comparison")
    wanted = {"negative_prompt": "a star", "guidance": 7.5, "width": 72, "height": 48, "steps": 4}
    assert shown(page, PICTURE).size == (72, 48)
    assert same(shown(page, PICTURE), drawn(PROMPT, cache=DeepCacheConfig(), **wanted))
    assert same(shown(page, ORIGINAL), drawn(PROMPT, **wanted))
    assert not same(shown(page, ORIGINAL), drawn(PROMPT, **(wanted | {"negative_prompt": None})))
    page.get_by_role("button", name="The same in Python").click()
    page.wait_for_selector("#lines .cm-line")
    lines = page.inner_text("#lines")
    for line in ('negative_prompt="a star"', "guidance_scale=7.5", "width=72", "height=48"):
        assert line in lines
    # Empty fields are the model's own values.
    ask(page, negative_prompt="", guidance="", width="", height="", steps=3)
    page.wait_for_selector(".measured :text('1 full, 2 shallow')")
    assert same(shown(page, ORIGINAL), drawn(PROMPT, steps=3))


def test_what_takes_guidance_is_refused_without_it(visit):
    page = visit()
    ask(page, guidance=1, negative_prompt="a star", steps=2)
    told(page, "Not drawn: a negative prompt requires a guidance scale above 1, got 1")
    page.get_by_label("Guidance reuse").check()
    ask(page, guidance=1, negative_prompt="", steps=2)
    told(page, "Not drawn: guidance_reuse runs half of a guided batch, and")
    told(page, "(guidance_scale is 1 or less, or built in); turn it off")


def test_an_interval_of_one_shows_no_difference(visit):
    page = visit()
    ask(page, steps=4, interval=1)
    page.wait_for_selector(".comparison")
    assert {name: value for name, value, _ in rows(page, ".measured")}["PSNR"] == "identical"
    assert page.inner_text(".difference") == "No difference: the two pictures are identical."


def test_the_slider_wipes_between_the_two(visit):
    page = visit()
    ask(page, steps=4)
    page.wait_for_selector(".comparison")

    def clipped():
        return page.evaluate(f"getComputedStyle(document.querySelector('{PICTURE}')).clipPath")

    assert clipped() == "inset(0px 0px 0px 50%)"
    slider = page.locator(".wipe-position")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert clipped() == "inset(0px 0px 0px 51%)"
    page.keyboard.press("Home")
    assert clipped() == "inset(0px 0px 0px 0%)"
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    (position,) = re.findall(r"(\d+)%", clipped())
    assert 70 <= int(position) <= 80
    # The next picture is looked at in the same place.
    ask(page, steps=5)
    page.wait_for_selector(".measured :text('2 full, 3 shallow')")
    assert clipped() == f"inset(0px 0px 0px {position}%)"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert clipped() == f"inset(0px 0px 0px {int(position) - 1}%)"


def test_cancel_while_it_is_drawn_and_the_next_one_is_whole(visit, served, drawn):
    page = visit()
    with served.held() as release:
        ask(page, steps=10)
        told(page, "Warming up")
        page.click("#cancel")
        release.set()
        told(page, "Cancelled.")
    assert page.query_selector(".comparison") is None
    ask(page, steps=10, seed=3)
    page.wait_for_selector(".comparison")
    assert same(shown(page, PICTURE), drawn(PROMPT, steps=10, seed=3, cache=DeepCacheConfig()))


def test_two_visitors_at_once_get_their_own_pictures(visit, served, drawn):
    first, second = visit(), visit()
    with served.held() as release:
        ask_after_each_other(first, second)
        release.set()
        for page in (first, second):
            page.wait_for_selector(".comparison")
    assert same(shown(first, ORIGINAL), drawn("a red circle", steps=8))
    assert same(shown(second, ORIGINAL), drawn("a blue square", steps=6))
    assert "square" not in first.inner_html("#result")
    assert "circle" not in second.inner_html("#result")


def test_who_waits_can_cancel_and_that_is_nothing_to_the_other(visit, served, drawn):
    first, second = visit(), visit()
    with served.held() as release:
        ask_after_each_other(first, second)
        second.click("#cancel")
        told(second, "Cancelled.")
        release.set()
        first.wait_for_selector(".comparison")
    assert same(shown(first, ORIGINAL), drawn("a red circle", steps=8))
    assert second.query_selector(".comparison") is None


def test_who_leaves_is_not_drawn_for(visit, served):
    first, second = visit(), visit()
    with served.held() as release:
        ask(first, steps=250)
        told(first, "Warming up")
        ask(second, steps=4)
        told(second, "Waiting: one picture is drawn first.")
        first.close()
        # Which is noticed while the easel is held: nobody is before the second any longer.
        told(second, "Beginning")
        release.set()
        second.wait_for_selector(".comparison")


WRONG = (
    ("prompt", "  ", "the prompt is empty"),
    ("prompt", "x" * 2001, "the prompt has 2001 characters; at most 2000 are taken"),
    ("steps", "0", "steps must be a whole number from 1 to 250, got 0"),
    ("steps", "2.5", "steps must be a whole number from 1 to 250, got 2.5"),
    ("steps", "", "steps must be a whole number from 1 to 250, got nothing"),
    ("negative_prompt", "x" * 2001, "the negative prompt has 2001 characters; at most 2000 are taken"),
    ("guidance", "20.5", "guidance must be a number from 0 to 20, got 20.5"),
    ("guidance", "-1", "guidance must be a number from 0 to 20, got -1"),
    ("width", "63", "width must be a multiple of 8 for this model, got 63; nearest: 56 and 64"),
    ("width", "", "the width is empty: give both width and height, or neither for the model's own size"),
    ("height", "0", "height must be a whole number from 8 to 4096, got 0"),
    ("height", "264", "64x264 is too large here: an image may have 4 times the pixels of the model's own 64x64"),
    ("seed", "-1", "seed must be a whole number from 0 to 9007199254740992, got -1"),
    ("interval", "0", "interval must be a whole number from 1 to 1000, got 0"),
    ("branch", "99", "cache_branch_id must be"),
)


def test_what_is_wrong_is_told_and_nothing_is_lost(visit):
    page = visit()
    right = {"prompt": PROMPT, "negative_prompt": "", "guidance": 2, "width": 64, "height": 64}
    right |= {"steps": 4, "seed": 0, "interval": 2, "branch": 0}
    ask(page, **right)
    page.wait_for_selector(".comparison")
    for field, value, message in WRONG:
        ask(page, **(right | {field: value}))
        told(page, f"Not drawn: {message}")
        assert page.query_selector(".comparison") is not None
        assert page.input_value(f"#{field} :is(input, textarea)") == value
    ask(page, **(right | {"steps": 3}))
    page.wait_for_selector(".measured :text('2 full, 1 shallow')")
    told(page, "Done.")


def test_a_plan_is_drawn_with_and_what_is_none_is_refused(visit, served, drawn, tmp_path):
    pipe = served.easel.load("shapes")
    steps = (Step(True), Step(False, forecast="linear"), Step(True), Step(False, branch=1), Step(False, branch=1))
    unet, scheduler = fingerprint(pipe.unet), scheduler_settings(pipe.scheduler)
    plan = Plan(StepSchedule(steps), unet, scheduler, tuned={"steps": 5}, guidance=(2, 2))
    page = visit()
    page.get_by_role("button", name="A plan of deepcache tune instead").click()
    (tmp_path / "other.json").write_text('{"format": "something else"}')
    page.set_input_files("#plan input[type=file]", tmp_path / "other.json")
    page.wait_for_selector("#plan :text('other.json')")
    ask(page, steps=5)
    told(page, "Not drawn: the file is no plan of deepcache tune")
    page.get_by_role("button", name="Remove other.json").click()
    ask(page, steps=5)
    told(page, "Done.")
    plan.to_file(tmp_path / "plan.json")
    page.set_input_files("#plan input[type=file]", tmp_path / "plan.json")
    page.wait_for_selector("#plan :text('plan.json')")
    ask(page, steps=4)
    told(page, "Not drawn: the plan was tuned for 5 steps")
    ask(page, steps=5)
    told(page, "Done.")
    assert page.get_attribute(".steps .step-strip", "aria-label").startswith("2 full and 3 shallow steps")
    assert same(shown(page, PICTURE), drawn(PROMPT, steps=5, cache=DeepCacheConfig(plan=plan)))


def test_a_plan_that_is_too_large_is_told(visit, tmp_path):
    page = visit()
    page.get_by_role("button", name="A plan of deepcache tune instead").click()
    (tmp_path / "large.json").write_text(" " * 1_000_001)
    page.set_input_files("#plan input[type=file]", tmp_path / "large.json")
    page.wait_for_selector("#plan :text('large.json')")
    ask(page, steps=4)
    told(page, "Not drawn: the plan has more than 1000000 characters")


def test_text_is_shown_as_text(visit):
    prompt = "a <b>red</b> circle <img src=x onerror=alert(1)> ${1 + 1} {{value}} \" ' &amp;"
    page = visit()
    ask(page, prompt, steps=2)
    page.wait_for_selector(".comparison")
    assert page.get_attribute(PICTURE, "alt") == f"With DeepCache: {prompt}"
    assert page.query_selector("#result [onerror]") is None
    assert "The prompt is longer than this model reads" in page.inner_text(".measured")


def test_the_keyboard_is_enough(visit, served):
    page = visit()
    page.fill("#steps input", "4")
    page.focus("#prompt textarea")
    page.keyboard.press("Tab")
    with served.held() as release:
        page.keyboard.press("Enter")
        told(page, "Warming up")
        # The focus stays where it was.
        assert page.evaluate("document.activeElement.id") == "draw"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "cancel"
        page.keyboard.press("Enter")
        told(page, "Cancelled.")
        release.set()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".comparison")
    assert page.evaluate("document.activeElement.id") == "draw"
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.getAttribute('download') || document.activeElement.className")
        )
        if reached[-1].endswith("-original.png"):
            break
    assert [name for name in reached if "wipe-position" in name or ".png" in name] == [
        "wipe-position",
        "0001-a-big-striped-red-circle-left-of-a-blue-seed0.png",
        "0001-a-big-striped-red-circle-left-of-a-blue-seed0-original.png",
    ]


def test_a_preset_fills_in_the_settings_for_the_guidance_scale(visit, drawn):
    expect = pytest.importorskip("playwright.sync_api").expect
    page = visit()

    def radio(name):
        return page.get_by_role("radio", name=name, exact=True)

    expect(radio("custom")).to_be_checked()
    page.get_by_label("Guidance reuse").check()
    # With the keyboard.
    radio("custom").focus()
    for key in ("Tab", "Tab", "Space"):
        page.keyboard.press(key)
    expect(radio("balanced")).to_be_checked()
    for name in ("skipped", "limited", "uniform"):
        expect(radio(name)).to_be_checked()
    expect(page.get_by_label("Guidance reuse")).not_to_be_checked()
    page.fill("#guidance input", "7.5")
    radio("fast").check()
    expect(page.locator("#interval input")).to_have_value("5")
    expect(radio("response")).to_be_checked()
    ask(page, guidance=7.5, steps=11)
    page.wait_for_selector(".comparison")
    assert same(shown(page, PICTURE), drawn(PROMPT, steps=11, guidance=7.5, cache=DeepCacheConfig.preset("fast", 7.5)))
    # An empty field is the scale that is recommended for the model.
    page.fill("#guidance input", "")
    expect(radio("limited")).to_be_checked()
    expect(radio("fast")).to_be_checked()
    page.fill("#interval input", "4")
    expect(radio("custom")).to_be_checked()
    page.fill("#guidance input", "7.5")
    page.wait_for_timeout(500)
    expect(radio("limited")).to_be_checked()


def test_every_field_of_the_form_counts(visit, drawn):
    page = visit()
    page.get_by_label("Scheduler").locator("visible=true").click()
    page.get_by_role("option", name="pndm", exact=True).click()
    page.get_by_label("none (re-use)").check()
    page.get_by_label("non-uniform").check()
    page.get_by_label("Guidance reuse").check()
    ask(page, steps=9, seed=5, interval=4, branch=1)
    page.wait_for_selector(".comparison")
    cache = DeepCacheConfig(4, 1, skip_mode="non-uniform", forecast="none", guidance_reuse=True)
    wanted = {"steps": 9, "seed": 5, "scheduler": "pndm"}
    assert same(shown(page, PICTURE), drawn(PROMPT, cache=cache, **wanted))
    assert same(shown(page, ORIGINAL), drawn(PROMPT, **wanted))
    page.get_by_role("button", name="The same in Python").click()
    page.wait_for_selector("#lines .cm-line")
    lines = page.eval_on_selector_all("#lines .cm-line", "lines => lines.map(line => line.textContent)")
    assert (
        lines
        == python_lines("shapes", cache, 9, "pndm", seed=5, prompt=PROMPT, guidance=2.0, size=(64, 64)).splitlines()
    )

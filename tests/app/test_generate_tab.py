"""The Generate tab, in a browser."""

from __future__ import annotations

import re

import pytest

from DeepCache import DeepCacheConfig
from DeepCache.app.comparison_view import EXAMPLE
from DeepCache.app.python_lines import python_lines
from DeepCache.engine.fingerprint import fingerprint, scheduler_settings
from DeepCache.generation import GenerationSettings
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule
from tests.app.shown import MILLISECONDS, rows, same, shown

PROMPT = "a red circle left of a blue square"
ORIGINAL, CACHED = ".wipe img:not(.wipe-over)", ".wipe-over"


def submit(page, prompt=PROMPT, **values):
    """Fills in the form and presses the button."""
    page.fill("#prompt textarea", prompt)
    for name, value in values.items():
        page.fill(f"#{name} :is(input, textarea)", str(value))
    page.click("#generate")


def submit_in_turn(first, second):
    """The second visitor submits while the image of the first is generated."""
    submit(first, "a red circle", steps=8)
    expect_status(first, "Warming up")
    submit(second, "a blue square", steps=6)
    expect_status(second, "Waiting for 1 other image")


def expect(page, selector):
    return pytest.importorskip("playwright.sync_api").expect(page.locator(selector))


def expect_status(page, text):
    expect(page, "#status").to_contain_text(text, timeout=MILLISECONDS)


def wait_for(page, steps):
    """Waits for the comparison with these steps."""
    page.wait_for_selector(f".measured :text-is('{steps}')")
    expect_status(page, "Done.")


def figures(page):
    return {name: value for name, value, _ in rows(page, ".measured")}


def test_the_first_screen_shows_an_example_that_the_form_reproduces(visit, generated):
    page = visit()
    assert page.inner_text("#status").startswith("Example: the bundled model shapes, 50 steps, interval 3.")
    assert page.input_value("#prompt textarea") == EXAMPLE.prompts[0]
    assert same(shown(page, CACHED), generated(EXAMPLE.prompts[0], cache=DeepCacheConfig()))
    assert same(shown(page, ORIGINAL), generated(EXAMPLE.prompts[0]))
    expect(page, ".previous").to_be_hidden()
    expect(page, "#cancel").to_be_disabled()
    example = figures(page)
    page.click("#generate")
    expect_status(page, "Done.")
    for name in ("MACs", "PSNR", "SSIM", "Steps"):
        assert figures(page)[name] == example[name]


def test_an_image_is_generated_with_and_without_deepcache(visit, generated):
    page = visit()
    submit(page, steps=10, seed=7, interval=4)
    wait_for(page, "3 full, 7 shallow")
    assert same(shown(page, CACHED), generated(PROMPT, steps=10, seed=7, cache=DeepCacheConfig(cache_interval=4)))
    assert same(shown(page, ORIGINAL), generated(PROMPT, steps=10, seed=7))
    assert not same(shown(page, CACHED), shown(page, ORIGINAL))
    assert page.get_attribute(CACHED, "alt") == f"With DeepCache: {PROMPT}"
    # The saved files contain their settings.
    assert shown(page, CACHED).info["seed"] == "7"
    measured = figures(page)
    assert list(measured) == ["Without DeepCache", "With DeepCache", "Speed-up", "MACs", "PSNR", "SSIM", "Steps"]
    assert re.fullmatch(r"\d\d\.\d\d dB", measured["PSNR"])
    assert page.get_attribute(".steps .step-strip", "aria-label") == "3 full and 7 shallow steps: full steps 1, 5, 9"
    assert "amplified ×" in page.inner_text(".difference")
    assert shown(page, ".difference img").size == (64, 64)
    assert "longer than" not in page.inner_text(".measured")
    page.get_by_role("button", name="The same in Python").click()
    page.wait_for_selector("#lines :text('cache_interval')")


def test_guidance_negative_prompt_and_size_count_with_and_without_deepcache(visit, generated):
    page = visit()
    assert [page.input_value(f"#{name} input") for name in ("guidance", "width", "height")] == ["2", "64", "64"]
    submit(page, negative_prompt="a star", guidance=7.5, width=72, height=48, steps=4)
    wait_for(page, "2 full, 2 shallow")
    wanted = {"negative_prompt": "a star", "guidance": 7.5, "width": 72, "height": 48, "steps": 4}
    assert shown(page, CACHED).size == (72, 48)
    assert same(shown(page, CACHED), generated(PROMPT, cache=DeepCacheConfig(), **wanted))
    assert same(shown(page, ORIGINAL), generated(PROMPT, **wanted))
    assert not same(shown(page, ORIGINAL), generated(PROMPT, **(wanted | {"negative_prompt": None})))
    page.get_by_role("button", name="The same in Python").click()
    page.wait_for_selector("#lines .cm-line")
    lines = page.inner_text("#lines")
    for line in ('negative_prompt="a star"', "guidance_scale=7.5", "width=72", "height=48"):
        assert line in lines
    # Empty fields are the model's own values.
    submit(page, negative_prompt="", guidance="", width="", height="", steps=3)
    wait_for(page, "1 full, 2 shallow")
    assert same(shown(page, ORIGINAL), generated(PROMPT, steps=3))


def test_settings_that_require_guidance_are_refused_without_it(visit):
    page = visit()
    submit(page, guidance=1, negative_prompt="a star", steps=2)
    expect_status(page, "Not generated: a negative prompt requires a guidance scale above 1, got 1")
    page.get_by_label("Guidance reuse").check()
    submit(page, guidance=1, negative_prompt="", steps=2)
    expect_status(page, "Not generated: guidance_reuse")


def test_an_interval_of_one_shows_no_difference(visit):
    page = visit()
    submit(page, steps=4, interval=1)
    wait_for(page, "4 full")
    assert figures(page)["PSNR"] == "identical"
    assert page.inner_text(".difference") == "No difference: the two images are identical."


def test_the_slider_wipes_between_the_images_and_keeps_its_position(visit):
    page = visit()

    def clipped():
        return page.evaluate(f"getComputedStyle(document.querySelector('{CACHED}')).clipPath")

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
    submit(page, steps=5)
    wait_for(page, "2 full, 3 shallow")
    assert clipped() == f"inset(0px 0px 0px {position}%)"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert clipped() == f"inset(0px 0px 0px {int(position) - 1}%)"


def test_the_page_is_busy_at_once_and_a_cancelled_request_leaves_the_previous_image(visit, served, generated):
    page, requests = visit(), []
    with served.held() as release:
        page.route("**/queue/join*", lambda route: requests.append(route))
        submit(page, steps=10)
        # The server has not received the request yet.
        expect(page, "#status .busy").to_contain_text("Starting")
        expect(page, "#cancel").to_be_enabled()
        expect(page, ".previous").to_be_visible()
        page.unroute("**/queue/join*")
        requests.pop().continue_()
        expect_status(page, "Warming up")
        page.click("#cancel")
        release.set()
        expect_status(page, "Cancelled.")
    expect(page, "#cancel").to_be_disabled()
    expect(page, ".previous").to_be_visible()
    assert page.get_attribute(CACHED, "alt") == f"With DeepCache: {EXAMPLE.prompts[0]}"
    submit(page, steps=10, seed=3)
    wait_for(page, "4 full, 6 shallow")
    expect(page, ".previous").to_be_hidden()
    assert same(shown(page, CACHED), generated(PROMPT, steps=10, seed=3, cache=DeepCacheConfig()))


def test_two_visitors_get_their_own_images(visit, served, generated):
    first, second = visit(), visit()
    with served.held() as release:
        submit_in_turn(first, second)
        release.set()
        expect_status(first, "Done.")
        expect_status(second, "Done.")
    assert same(shown(first, ORIGINAL), generated("a red circle", steps=8))
    assert same(shown(second, ORIGINAL), generated("a blue square", steps=6))
    assert "blue square" not in first.inner_html("#result")
    assert "red circle" not in second.inner_html("#result")


def test_a_waiting_visitor_can_cancel_without_effect_on_others(visit, served, generated):
    first, second = visit(), visit()
    with served.held() as release:
        submit_in_turn(first, second)
        second.click("#cancel")
        expect_status(second, "Cancelled.")
        release.set()
        expect_status(first, "Done.")
    assert same(shown(first, ORIGINAL), generated("a red circle", steps=8))
    assert second.get_attribute(CACHED, "alt") == f"With DeepCache: {EXAMPLE.prompts[0]}"


def test_leaving_the_page_cancels(visit, served):
    first, second = visit(), visit()
    with served.held() as release:
        submit_in_turn(first, second)
        first.close()
        # Noticed while the worker is held: nobody is ahead of the second any more.
        expect_status(second, "Starting")
        release.set()
        expect_status(second, "Done.")


WRONG = (
    ("prompt", "  ", "the prompt is empty"),
    ("prompt", "x" * 2001, "the prompt must have at most 2000 characters, got 2001"),
    ("steps", "0", "steps must be a whole number between 1 and 250, got 0"),
    ("steps", "2.5", "steps must be a whole number between 1 and 250, got 2.5"),
    ("steps", "", "steps must be a whole number between 1 and 250, got nothing"),
    ("negative_prompt", "x" * 2001, "the negative prompt must have at most 2000 characters, got 2001"),
    ("guidance", "20.5", "guidance must be a number between 0 and 20, got 20.5"),
    ("guidance", "-1", "guidance must be a number between 0 and 20, got -1"),
    ("width", "63", "width must be a multiple of 8 for this model, got 63; nearest: 56 and 64"),
    ("width", "", "the width is empty: give both width and height, or neither for the model's own size"),
    ("height", "0", "height must be a whole number between 8 and 4096, got 0"),
    ("height", "264", "64x264 is too large: an image may have 4 times the pixels of the model's own 64x64"),
    ("seed", "-1", "seed must be a whole number between 0 and 9007199254740992, got -1"),
    ("interval", "0", "interval must be a whole number between 1 and 1000, got 0"),
    ("branch", "99", "cache_branch_id must be"),
)


def test_errors_name_the_field_and_mark_the_image_as_previous(visit):
    page = visit()
    right = {"prompt": PROMPT, "negative_prompt": "", "guidance": 2, "width": 64, "height": 64}
    right |= {"steps": 4, "seed": 0, "interval": 2, "branch": 0}
    submit(page, **right)
    wait_for(page, "2 full, 2 shallow")
    for field, value, message in WRONG:
        submit(page, **(right | {field: value}))
        expect_status(page, f"Not generated: {message}")
        expect(page, ".previous").to_be_visible()
        expect(page, "#cancel").to_be_disabled()
        assert page.get_attribute(CACHED, "alt") == f"With DeepCache: {PROMPT}"
        assert page.input_value(f"#{field} :is(input, textarea)") == value
    submit(page, **(right | {"steps": 3}))
    wait_for(page, "2 full, 1 shallow")
    expect(page, ".previous").to_be_hidden()


def test_a_plan_replaces_the_settings_and_other_files_are_refused(visit, served, generated, tmp_path):
    pipe = served.worker.load("shapes")
    steps = (Step(True), Step(False, forecast="linear"), Step(True), Step(False, branch=1), Step(False, branch=1))
    unet, scheduler = fingerprint(pipe.unet), scheduler_settings(pipe.scheduler)
    plan = Plan(StepSchedule(steps), unet, scheduler, tuned={"steps": 5}, guidance=(2, 2))
    page = visit()
    page.get_by_role("button", name="Use a plan of deepcache tune").click()

    def choose(name, content=None):
        if content is not None:
            (tmp_path / name).write_text(content)
        page.set_input_files("#plan input[type=file]", tmp_path / name)
        page.wait_for_selector(f"#plan :text('{name}')")

    choose("other.json", '{"format": "something else"}')
    submit(page, steps=5)
    expect_status(page, "Not generated: the file is not a plan of deepcache tune")
    choose("large.json", " " * 1_000_001)
    submit(page, steps=5)
    expect_status(page, "Not generated: the file is not a plan of deepcache tune: it has more than 1000000 characters")
    page.get_by_role("button", name="Remove large.json").click()
    submit(page, steps=5)
    wait_for(page, "2 full, 3 shallow")
    plan.to_file(tmp_path / "plan.json")
    choose("plan.json")
    submit(page, steps=4)
    expect_status(page, "Not generated: the plan was tuned for 5 steps")
    submit(page, steps=5)
    expect_status(page, "Done.")
    assert "at branch 1" in page.get_attribute(".steps .step-strip", "aria-label")
    assert same(shown(page, CACHED), generated(PROMPT, steps=5, cache=DeepCacheConfig(plan=plan)))


def test_text_is_shown_as_text(visit):
    prompt = "a <b>red</b> circle <img src=x onerror=alert(1)> ${1 + 1} {{value}} \" ' &amp;"
    page = visit()
    submit(page, prompt, steps=2)
    wait_for(page, "1 full, 1 shallow")
    assert page.get_attribute(CACHED, "alt") == f"With DeepCache: {prompt}"
    assert page.query_selector("#result [onerror]") is None
    assert "The prompt is longer than this model reads" in page.inner_text(".measured")


def test_the_page_works_with_the_keyboard_alone(visit, served):
    page = visit()
    page.fill("#steps input", "4")
    page.focus("#prompt textarea")
    page.keyboard.press("Tab")
    with served.held() as release:
        page.keyboard.press("Enter")
        expect_status(page, "Warming up")
        # The focus does not move.
        assert page.evaluate("document.activeElement.id") == "generate"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "cancel"
        page.keyboard.press("Enter")
        expect_status(page, "Cancelled.")
        release.set()
    # Cancel is disabled now, so that the focus is on Generate.
    assert page.evaluate("document.activeElement.id") == "generate"
    page.keyboard.press("Enter")
    wait_for(page, "2 full, 2 shallow")
    assert page.evaluate("document.activeElement.id") == "generate"
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


def test_a_preset_sets_the_settings_for_the_guidance_scale(visit, generated):
    page = visit()

    def expect_radio(name):
        return pytest.importorskip("playwright.sync_api").expect(page.get_by_role("radio", name=name, exact=True))

    expect_radio("custom").to_be_checked()
    page.get_by_label("Guidance reuse").check()
    # With the keyboard.
    page.get_by_role("radio", name="custom", exact=True).focus()
    for key in ("Tab", "Tab", "Space"):
        page.keyboard.press(key)
    for name in ("balanced", "skipped", "limited", "uniform"):
        expect_radio(name).to_be_checked()
    expect(page, "label:has-text('Guidance reuse') input").not_to_be_checked()
    page.fill("#guidance input", "7.5")
    page.get_by_role("radio", name="fast", exact=True).check()
    expect(page, "#interval input").to_have_value("5")
    expect_radio("response").to_be_checked()
    submit(page, guidance=7.5, steps=11)
    expect_status(page, "Done.")
    cache = DeepCacheConfig.preset("fast", 7.5)
    assert same(shown(page, CACHED), generated(PROMPT, steps=11, guidance=7.5, cache=cache))
    # An empty field is the scale recommended for the model.
    page.fill("#guidance input", "")
    expect_radio("limited").to_be_checked()
    expect_radio("fast").to_be_checked()
    page.fill("#interval input", "4")
    expect_radio("custom").to_be_checked()
    page.fill("#guidance input", "7.5")
    page.wait_for_timeout(500)
    expect_radio("limited").to_be_checked()


def test_every_field_of_the_form_counts(visit, generated):
    page = visit()
    page.get_by_label("Scheduler").locator("visible=true").click()
    page.get_by_role("option", name="pndm", exact=True).click()
    page.get_by_label("none (re-use)").check()
    page.get_by_label("non-uniform").check()
    page.get_by_label("Guidance reuse").check()
    submit(page, steps=9, seed=5, interval=4, branch=1)
    expect_status(page, "Done.")
    cache = DeepCacheConfig(4, 1, skip_mode="non-uniform", forecast="none", guidance_reuse=True)
    wanted = {"steps": 9, "seed": 5, "scheduler": "pndm"}
    assert same(shown(page, CACHED), generated(PROMPT, cache=cache, **wanted))
    assert same(shown(page, ORIGINAL), generated(PROMPT, **wanted))
    page.get_by_role("button", name="The same in Python").click()
    page.wait_for_selector("#lines .cm-line")
    lines = page.eval_on_selector_all("#lines .cm-line", "lines => lines.map(line => line.textContent)")
    settings = GenerationSettings((PROMPT,), guidance=2.0, size=(64, 64), cache=cache, **wanted)
    assert lines == python_lines(settings).splitlines()

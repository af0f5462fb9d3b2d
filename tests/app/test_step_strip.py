import re

import pytest

from DeepCache.app.server import asset
from DeepCache.app.step_strip import step_strip
from tests.app.contrast import contrast
from tests.report.reading import parse


def strip_of(html):
    (strip,) = [element for element in parse(html).all("div") if element.attributes.get("role") == "img"]
    return strip


def cells(html):
    return "".join(re.findall(r"<[bis]>(.)</[bis]>", html))


def test_full_and_shallow_steps_have_different_elements_and_letters():
    html = step_strip("F..F.")
    assert cells(html) == "F..F."
    assert re.findall(r"<b>(.)</b>", html) == ["F", "F"]
    assert re.findall(r"<i>(.)</i>", html) == [".", ".", "."]
    assert "to-come" not in html


def test_skipped_steps_have_another_element():
    html = step_strip("F.-F-", done=3)
    assert cells(html) == "F.-F-"
    assert re.findall(r"<s>(.)</s>", html) == ["-", "-"]


@pytest.mark.parametrize("count", [1, 2, 50, 100, 101, 250, 1000])
def test_every_step_has_a_cell(count):
    pattern = ("F" + "." * 6) * 143
    html = step_strip(pattern[:count], done=count // 2)
    assert cells(html) == pattern[:count]
    assert strip_of(html).attributes["class"] == ("step-strip long" if count > 100 else "step-strip")
    before, after = html.split('<span class="to-come">')
    assert (len(cells(before)), len(cells(after))) == (count // 2, count - count // 2)


@pytest.mark.parametrize(
    ("pattern", "done", "words"),
    [
        ("F", None, "1 full step: full step 1"),
        ("F.", None, "1 full and 1 shallow step: full step 1"),
        ("F..F.", None, "2 full and 3 shallow steps: full steps 1, 4"),
        ("F..F.", 0, "2 full and 3 shallow steps: full steps 1, 4; 0 of 5 steps are done"),
        ("F.F.", 2, "2 full and 2 shallow steps: full steps 1, 3; 2 of 4 steps are done"),
        ("F0c0", None, "1 full and 3 shallow steps (2 at branch 0, 1 at branch 12): full step 1"),
        ("F-", None, "1 full and 1 skipped step: full step 1"),
        ("F.-F--", None, "2 full, 1 shallow and 3 skipped steps: full steps 1, 4"),
        ("F0-2-F", None, "2 full, 2 shallow and 2 skipped steps (1 at branch 0, 1 at branch 2): full steps 1, 6"),
        (
            "F.." * 16 + "F.",
            None,
            "17 full and 33 shallow steps: full steps 1, 4, 7, 10, 13, 16, 19, 22, 25, …, 49",
        ),
        ("F." * 10, None, "10 full and 10 shallow steps: full steps 1, 3, 5, 7, 9, 11, 13, 15, 17, 19"),
    ],
)
def test_the_label_describes_the_steps(pattern, done, words):
    assert strip_of(step_strip(pattern, done)).attributes["aria-label"] == words


@pytest.mark.parametrize("pattern", ["", "F<b>", "F..X", 'F"', "F. "])
def test_an_invalid_pattern_is_refused(pattern):
    with pytest.raises(ValueError, match=r"a pattern has one character per step: F, \., - or a branch, got"):
        step_strip(pattern)


@pytest.mark.parametrize("done", [-1, 6])
def test_done_must_be_within_the_steps(done):
    with pytest.raises(ValueError, match=f"done must be between 0 and 5, got {done}"):
        step_strip("F..F.", done)


@pytest.mark.parametrize(("selector", "page"), [(".step-strip", "#ffffff"), (".dark .step-strip", "#0b0f19")])
def test_colors_and_letters_have_enough_contrast(selector, page):
    rules = dict(re.findall(r"^([^{}\n]+) \{ ([^}]*) \}$", asset("step_strip.css"), re.MULTILINE))
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", rules[".step-strip"]))
    colours |= dict(re.findall(r"--([\w-]+): (#\w{6})", rules[selector]))
    for kind in ("full", "shallow", "skipped"):
        assert contrast(colours[kind], page) >= 3
        assert contrast(colours[f"on-{kind}"], colours[kind]) >= 4.5

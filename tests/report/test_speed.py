import copy

import pytest

from tests.report.made_up_results import PUBLISHED, benchmark, fail, find_row, run_out_of_memory, stop_early, wait
from tests.report.reading import columns, is_written_as, rows

SIZES = ((512, 512), (768, 768), (512, 768))


@pytest.fixture(scope="module")
def result():
    return benchmark(sizes=SIZES, batches=(1, 4, 8), scopes=("pipeline", "unet"), modes=("eager", "compiled"))


@pytest.fixture(scope="module")
def page(report, result):
    return report(result)


def table(page, number=1, name="table"):
    return page.by_id(f"result-1-{number}-{name}")


def cell_of(result, size, batch, scope="pipeline", mode="eager"):
    wanted = {"scope": scope, "mode": mode, "width": size[0], "height": size[1], "batch": batch}
    return next(cell for cell in result["cells"] if all(cell[key] == value for key, value in wanted.items()))


def is_measurement(row, text):
    """Whether seconds and ratio are those of a row."""
    seconds, _, ratio = text.partition(" (")
    return is_written_as(row["median"], seconds) and is_written_as(row["speed_up"], ratio.removesuffix("×)"))


def test_there_is_a_table_for_every_mode_and_scope(page):
    assert [heading.text for heading in page.all("h3")] == [
        "Whole pipeline, float16, eager",
        "U-Net alone, float16, eager",
        "Whole pipeline, float16, compiled",
        "U-Net alone, float16, compiled",
    ]


def test_it_is_laid_out_as_the_published_one(page):
    label = "published: SD 2.1, RTX A5000, 50 steps"
    assert columns(table(page)) == [
        "Resolution",
        "Batch size",
        "Original",
        *(
            f"DeepCache({variant}) / {column}"
            for variant in ("I=3, B=0", "I=5, B=0", "I=5, B=1")
            for column in ("measured", label)
        ),
    ]
    places = [(row[0], row[1]) for row in rows(table(page))]
    assert places == [(size, batch) for size in ("512", "512×768", "768") for batch in ("8", "4", "1")]
    # The resolution is said once for all of its batches.
    assert [body.all("th")[0].attributes["rowspan"] for body in table(page).all("tbody")] == ["3", "3", "3"]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_number_is_that_of_the_result(page, result, number):
    scope, mode = ("pipeline", "unet")[(number - 1) % 2], ("eager", "compiled")[(number - 1) // 2]
    sizes = {"512": (512, 512), "768": (768, 768), "512×768": (512, 768)}
    found = rows(table(page, number))
    assert len(found) == 9
    for size, batch, original, *rest in found:
        cell = cell_of(result, sizes[size], int(batch), scope, mode)
        assert is_written_as(find_row(cell, "no caching")["median"], original)
        for variant, text in zip(PUBLISHED, rest[::2], strict=True):
            assert is_measurement(find_row(cell, "DeepCache", variant), text)


def test_published_ratios_stand_where_something_was_published_and_nowhere_else(page):
    published = {row[:2]: row[2:] for row in (tuple(row[:2] + row[4::2]) for row in rows(table(page)))}
    assert published == {
        ("512", "8"): ("2.32×", "3.18×", "2.20×"),
        ("512", "4"): ("2.33×", "3.21×", "2.24×"),
        ("512", "1"): ("2.33×", "3.24×", "2.35×"),
        ("768", "8"): ("2.29×", "3.12×", "2.05×"),
        ("768", "4"): ("2.30×", "3.13×", "2.07×"),
        ("768", "1"): ("2.33×", "3.21×", "2.12×"),
        **{("512×768", batch): ("–", "–", "–") for batch in ("8", "4", "1")},
    }


def test_another_model_or_setting_has_no_published_ratios(report):
    assert "published:" not in report(benchmark("sdxl", fewer_steps=False)).text
    page = report(benchmark(variants=("I=4 B=0", "I=3 B=0 linear", "I=3 B=0")))
    assert columns(table(page))[3:6] == [
        "DeepCache(I=4, B=0)",
        "DeepCache(I=3, B=0, linear)",
        "DeepCache(I=3, B=0) / measured",
    ]


def test_other_steps_than_the_published_ones_are_told(report):
    words = "Here it was 20 steps and not 50"
    assert words in report(benchmark(steps=20)).text
    assert words not in report(benchmark()).text


def test_limit_reference_package_and_fewer_steps(report):
    result = benchmark(batches=(1, 8), variants=(*PUBLISHED, "I=3 B=0 linear"))
    page = report(result)
    assert columns(table(page, name="limit")) == [
        "Resolution",
        "Batch size",
        "Settings",
        *(f"DeepCache / {name}" for name in ("cost", "speed-up", "limit", "share of the limit")),
        *(f"Reference package / {name}" for name in ("seconds (speed-up)", "DeepCache against it")),
        *(f"Fewer steps, no caching / {name}" for name in ("steps", "cost", "seconds (speed-up)")),
    ]
    found = rows(table(page, name="limit"))
    assert [row[1:3] for row in found] == [
        [batch, name] for batch in ("8", "1") for name in result["settings"]["variants"]
    ]
    for _, batch, variant, cost, speed_up, limit, share, *rest in found:
        cell = cell_of(result, (512, 512), int(batch))
        row = find_row(cell, "DeepCache", variant)
        assert is_written_as(100 * row["mac_share"], cost.removesuffix(" %"))
        assert is_written_as(row["speed_up"], speed_up.removesuffix("×"))
        assert is_written_as(row["limit"], limit.removesuffix("×"))
        assert is_written_as(100 * row["share_of_limit"], share.removesuffix(" %"))
        theirs, against, steps, fewer_cost, fewer = rest
        if variant.endswith("linear"):
            assert theirs == against == "has no such settings"
        else:
            reference = find_row(cell, "reference package", variant)
            assert is_measurement(reference, theirs)
            ratios = sorted(their / our for their, our in zip(reference["seconds"], row["seconds"], strict=True))
            assert is_written_as(ratios[1], against.removesuffix("×"))
        nearest = find_row(cell, "fewer steps", f"{steps} steps")
        assert abs(nearest["mac_share"] - row["mac_share"]) <= 0.5 / 50
        assert is_written_as(100 * nearest["mac_share"], fewer_cost.removesuffix(" %"))
        assert is_measurement(nearest, fewer)


def test_what_was_not_measured_has_no_columns(report):
    page = report(benchmark(reference=False, fewer_steps=False))
    assert len(columns(table(page, name="limit"))) == 7
    assert "Reference package /" not in " ".join(columns(table(page, name="limit")))


def test_every_measurement_is_there(report):
    result = benchmark()
    page = report(result)
    names = columns(table(page, name="all"))
    found = [dict(zip(names, row, strict=True)) for row in rows(table(page, name="all"))]
    assert len(found) == len(result["cells"][0]["rows"])
    for shown, row in zip(found, result["cells"][0]["rows"], strict=True):
        assert (shown["Method"], shown["Settings"]) == (row["method"], row["variant"])
        assert is_written_as(row["median"], shown["Seconds"])
        assert is_written_as(row["first_seconds"], shown["First run, seconds"])
        assert shown["Pattern"] == (row["pattern"] if row["method"] == "DeepCache" else "–")
        assert shown["Cost"] == "–" or is_written_as(100 * row["mac_share"], shown["Cost"].removesuffix(" %"))
        assert shown["Kept between steps"] == {0: "0 B", 5 * 2**20: "5 MiB", 113 * 2**20: "113 MiB"}[row["bytes_kept"]]
        assert shown["Peak memory"].startswith("6")
    spreads = [row[5].split(" to ") for row in rows(table(page, name="all"))]
    for (low, high), row in zip(spreads, result["cells"][0]["rows"], strict=True):
        assert is_written_as(row["spread"][0], low)
        assert is_written_as(row["spread"][1], high)


def test_peak_memory_is_left_out_where_nobody_knows_it(report):
    result = benchmark()
    for row in result["cells"][0]["rows"]:
        row["peak_memory"] = None
    assert "Peak memory" not in columns(table(report(result), name="all"))


def test_memory_that_ran_out_is_told_in_words(report):
    result = benchmark(batches=(1, 8))
    run_out_of_memory(result["cells"][1], "CUDA out of memory. Tried to allocate 20 GiB")
    page = report(result)
    first, second = rows(table(page))
    assert first[:2] == ["512", "8"]
    assert set(first[2:]) == {"out of memory: CUDA out of memory. Tried to allocate 20 GiB"}
    assert is_measurement(find_row(result["cells"][0], "DeepCache", "I=3 B=0"), second[3])
    assert "not finished" not in page.text.lower()


def test_memory_that_ran_out_later_leaves_what_was_measured(report):
    result = benchmark()
    stop_early(result["cells"][0], 2)
    result["cells"][0] |= {"status": "out of memory", "reason": "no room"}
    (row,) = rows(table(report(result)))
    assert row[1] == "1 out of memory after 2 of 3 rounds: no room"
    assert is_measurement(find_row(result["cells"][0], "DeepCache", "I=3 B=0"), row[3])


def test_rows_that_failed_say_why(report):
    result = benchmark()
    cell = result["cells"][0]
    fail(find_row(cell, "DeepCache", "I=5 B=0"), "out of memory")
    fail(find_row(cell, "reference package", "I=3 B=0"), "KeyError: 'mid_block'")
    page = report(result)
    (row,) = rows(table(page))
    assert row[5] == "out of memory"
    limit = rows(table(page, name="limit"))
    assert limit[0][7:9] == ["failed: KeyError: 'mid_block'", "–"]
    assert limit[1][3:7] == ["out of memory"] * 4
    everything = rows(table(page, name="all"))
    assert [line[3] for line in everything if line[4] == "–"] == [
        "I=5 B=0 out of memory",
        "I=3 B=0 failed: KeyError: 'mid_block'",
    ]


def test_what_is_not_finished_says_so(report):
    result = benchmark(batches=(1, 4, 8))
    stop_early(result["cells"][1], 2)
    wait(result["cells"][2])
    page = report(result)
    waiting, partial, done = rows(table(page))
    assert set(waiting[2:]) == {"not measured yet"}
    assert partial[1] == "4 not finished: 2 of 3 rounds"
    assert done[1] == "1"
    assert "Not finished: 2 of 3 cells to go" in page.text
    assert rows(page.by_id("overview-table"))[0][-1] == "not finished"


def test_nothing_measured_at_all(report):
    result = benchmark(batches=(1, 8))
    for cell in result["cells"]:
        wait(cell)
    page = report(result)
    assert {text for row in rows(table(page)) for text in row[2:]} == {"not measured yet"}
    assert not page.all("svg")


def test_charts_have_every_size_and_say_where_the_numbers_are(page, result):
    titles = [svg.all("title")[0].text for svg in page.all("svg")]
    assert titles == [f"Speed-up at {size} px" for size in ("512", "512×768", "768")] * 4
    texts = [text.text for text in page.all("svg")[0].all("text")]
    cell = cell_of(result, (512, 512), 8)
    for variant in PUBLISHED:
        ours, theirs = (find_row(cell, method, variant) for method in ("DeepCache", "reference package"))
        numbers = f"{ours['speed_up']:.2f}×, reference {theirs['speed_up']:.2f}×, limit {ours['limit']:.2f}×"
        assert f"{variant}: {numbers}" in texts
    for word in (
        "batch 8",
        "batch 4",
        "batch 1",
        "DeepCache",
        "reference package",
        "limit of the multiply-accumulates",
    ):
        assert word in texts


def test_a_dash_stands_for_what_is_null(report):
    result = copy.deepcopy(benchmark())
    row = find_row(result["cells"][0], "DeepCache", "I=3 B=0")
    row |= {"mac_share": None, "limit": None, "share_of_limit": None, "bytes_kept": None}
    page = report(result)
    assert rows(table(page, name="limit"))[0][3:7] == ["–", f"{row['speed_up']:.2f}×", "–", "–"]
    assert rows(table(page, name="limit"))[0][9] == "not measured"

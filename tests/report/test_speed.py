import copy
import re

import pytest

from tests.report.reading import charts, columns, is_written_as, rows
from tests.report.synthetic_results import PUBLISHED, benchmark, fail, find_row, run_out_of_memory, stop_early, wait

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


def test_the_table_has_the_layout_of_the_published_one(page):
    assert columns(table(page)) == [
        "Resolution",
        "Batch size",
        "Original",
        *(
            f"DeepCache({variant}){column}"
            for variant in ("I=3, B=0", "I=5, B=0", "I=5, B=1")
            for column in ("", " published speed-up")
        ),
    ]
    places = [(row[0], row[1]) for row in rows(table(page))]
    assert places == [(size, batch) for size in ("512", "512×768", "768") for batch in ("8", "4", "1")]
    assert "SD 2.1, RTX A5000, 50 steps" in page.text


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
    assert "published" not in report(benchmark("sdxl", fewer_steps=False)).by_id("main").text.partition("Terms")[0]
    page = report(benchmark(variants=("I=4 B=0", "I=3 B=0 linear", "I=3 B=0")))
    assert columns(table(page))[3:6] == [
        "DeepCache(I=4, B=0)",
        "DeepCache(I=3, B=0, linear)",
        "DeepCache(I=3, B=0)",
    ]


def test_other_steps_than_the_published_ones_are_noted(report):
    words = "Here there are 20 steps instead of 50"
    assert words in report(benchmark(steps=20)).text
    assert words not in report(benchmark()).text


def test_every_measurement_is_there(report):
    result = benchmark(batches=(1, 8), variants=(*PUBLISHED, "I=3 B=0 linear"))
    page = report(result)
    names = columns(table(page, name="all"))
    found = [dict(zip(names, row, strict=True)) for row in rows(table(page, name="all"))]
    every = [(cell, row) for cell in reversed(result["cells"]) for row in cell["rows"]]
    assert len(found) == len(every)
    for shown, (cell, row) in zip(found, every, strict=True):
        assert (shown["Resolution"], shown["Batch size"]) == ("512", str(cell["batch"]))
        assert (shown["Method"], shown["Settings"]) == (row["method"], row["variant"])
        seconds, low, high = re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", shown["Seconds"]).groups()
        assert is_written_as(row["median"], seconds)
        assert is_written_as(row["spread"][0], low)
        assert is_written_as(row["spread"][1], high)
        assert shown["Speed-up"].startswith(f"{row['speed_up']:.2f}× ({row['speed_up_spread'][0]:.2f}× to ")
        assert is_written_as(row["first_seconds"], shown["First run, seconds"])
        assert shown["Pattern"] == (row["pattern"] if row["method"] == "DeepCache" else "–")
        assert shown["Cost"] == "–" or is_written_as(100 * row["mac_share"], shown["Cost"].removesuffix(" %"))
        assert shown["Limit"] == ("–" if row["limit"] is None else f"{row['limit']:.2f}×")
        share = shown["Share of the limit"].removesuffix(" %")
        assert share in ("–", "100") or is_written_as(100 * row["share_of_limit"], share)
        assert shown["Kept between steps"] == {0: "0 B", 5 * 2**20: "5 MiB", 113 * 2**20: "113 MiB"}[row["bytes_kept"]]
        assert shown["Peak memory"].startswith("6")


def test_peak_memory_has_no_column_if_it_is_unknown(report):
    result = benchmark()
    for row in result["cells"][0]["rows"]:
        row["peak_memory"] = None
    assert "Peak memory" not in columns(table(report(result), name="all"))


def test_a_cell_out_of_memory_has_a_note(report):
    result = benchmark(batches=(1, 8))
    run_out_of_memory(result["cells"][1], "CUDA out of memory. Tried to allocate 20 GiB")
    page = report(result)
    first, second = rows(table(page))
    assert first[:2] == ["512", "8"]
    assert first[-1] == "out of memory: CUDA out of memory. Tried to allocate 20 GiB"
    assert [first[place] for place in (2, 3, 5, 7)] == ["–"] * 4
    assert is_measurement(find_row(result["cells"][0], "DeepCache", "I=3 B=0"), second[3])
    assert "not finished" not in page.text.lower()


def test_memory_that_ran_out_later_leaves_what_was_measured(report):
    result = benchmark()
    stop_early(result["cells"][0], 2)
    result["cells"][0] |= {"status": "out of memory", "reason": "no room"}
    (row,) = rows(table(report(result)))
    assert row[-1] == "out of memory after 2 of 3 rounds: no room"
    assert is_measurement(find_row(result["cells"][0], "DeepCache", "I=3 B=0"), row[3])


def test_failed_rows_have_the_reason(report):
    result = benchmark()
    cell = result["cells"][0]
    fail(find_row(cell, "DeepCache", "I=5 B=0"), "out of memory")
    fail(find_row(cell, "reference package", "I=3 B=0"), "KeyError: 'mid_block'")
    page = report(result)
    (row,) = rows(table(page))
    assert row[5] == "out of memory"
    found = {tuple(line[2:4]): line[4:6] for line in rows(table(page, name="all"))}
    assert found["DeepCache", "I=5 B=0"] == ["out of memory"] * 2
    assert found["reference package", "I=3 B=0"] == ["failed: KeyError: 'mid_block'"] * 2


def test_unfinished_cells_have_a_note(report):
    result = benchmark(batches=(1, 4, 8))
    stop_early(result["cells"][1], 2)
    wait(result["cells"][2])
    page = report(result)
    waiting, partial, done = rows(table(page))
    assert [waiting[place] for place in (2, 3, 5, 7)] == ["–"] * 4
    assert waiting[-1] == "not measured yet"
    assert (partial[1], partial[-1]) == ("4", "not finished: 2 of 3 rounds")
    assert (done[1], done[-1]) == ("1", "")
    assert "Not finished: 2 of 3 cells to go" in page.text
    assert "(not finished)" in page.all("nav")[0].text


def test_nothing_measured_at_all(report):
    result = benchmark(batches=(1, 8))
    for cell in result["cells"]:
        wait(cell)
    page = report(result)
    assert {row[-1] for row in rows(table(page))} == {"not measured yet"}
    assert "DeepCache is not measured yet." in page.text
    assert not charts(page)


def test_every_size_has_a_chart_with_its_numbers(page, result):
    alts = [image.attributes["alt"] for image in page.all("img")]
    assert [alt.partition(". ")[0] for alt in alts] == [
        f"Speed-up at {size} px" for size in ("512", "512×768", "768")
    ] * 4
    found = charts(page)["Speed-up at 512 px"]
    cell = cell_of(result, (512, 512), 8)
    for variant in PUBLISHED:
        for method in ("DeepCache", "reference package"):
            assert f"{find_row(cell, method, variant)['speed_up']:.2f}×" in found
        assert variant in found
    for word in ("batch 8", "batch 4", "batch 1", "DeepCache", "reference package", "limit"):
        assert word in found


def test_a_dash_stands_for_what_is_null(report):
    result = copy.deepcopy(benchmark())
    row = find_row(result["cells"][0], "DeepCache", "I=3 B=0")
    row |= {"mac_share": None, "limit": None, "share_of_limit": None, "bytes_kept": None}
    page = report(result)
    (shown,) = (line for line in rows(table(page, name="all")) if line[2:4] == ["DeepCache", "I=3 B=0"])
    assert shown[5].startswith(f"{row['speed_up']:.2f}×")
    assert shown[6:10] == ["–"] * 4

import base64
import gzip
import json
import re

import pytest

from DeepCache.report import write_report
from tests.report.reading import charts, parse
from tests.report.synthetic_results import ablation, benchmark, fail, find_row, run_out_of_memory, wait, write

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>--> ]]> $x^{2$ 𝒳 {{ 7 * 7 }}"
RESOURCES = ("script", "link", "iframe", "object", "embed", "video", "audio", "source", "base", "form", "style")


@pytest.fixture(scope="module")
def results():
    speed = benchmark(sizes=((512, 512), (768, 768)), batches=(1, 4), scopes=("pipeline", "unet"))
    run_out_of_memory(speed["cells"][-1])
    other = benchmark("shapes", sizes=((64, 64),), variants=("I=3 B=0", "I=5 B=0 linear"), steps=20)
    labels = ["I=2 B=0", "I=3 B=0", "I=3 B=1", "I=2 B=1", "I=5 B=0 linear"]
    fidelity = ablation(groups=(("DDIMScheduler", 50), ("EulerDiscreteScheduler", 30)), labels=labels, samples=2)
    return {"result-1.json": fidelity, "result-2.json": speed, "result-3.json": other}


@pytest.fixture(scope="module")
def paths(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return [write(result, folder / name) for name, result in results.items()]


@pytest.fixture(scope="module")
def text(paths):
    return write_report(paths, paths[0].parent / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return parse(text)


@pytest.fixture(scope="module")
def hostile(report):
    """A page from results in which everything that is text is an attack."""
    speed = benchmark(HOSTILE, variants=("I=3 B=0",), batches=(1, 2, 4))
    for cell in speed["cells"]:
        cell["dtype"] = HOSTILE
        for row in cell["rows"]:
            row["variant"] = HOSTILE
            row["pattern"] = HOSTILE
    speed["settings"]["variants"] = {HOSTILE: speed["settings"]["variants"]["I=3 B=0"]}
    fail(find_row(speed["cells"][0], "reference package"), HOSTILE)
    run_out_of_memory(speed["cells"][1], HOSTILE)
    labels = ["I=2 B=0", "I=3 B=0", "I=2 B=1", "I=3 B=1"]
    fidelity = ablation(HOSTILE, groups=((HOSTILE, 50),), labels=labels, prompts=(HOSTILE, "b"), samples=2)
    for cell in fidelity["groups"][0]["cells"]:
        cell["label"] += HOSTILE
        if cell["dominated_by"]:
            cell["dominated_by"]["label"] = HOSTILE
        if cell["config"]:
            cell["config"]["forecast"] = HOSTILE
        cell["samples"] = f"{HOSTILE}.png"
    fidelity["settings"]["left_out"] = {HOSTILE: HOSTILE}
    for result in (speed, fidelity):
        result |= {"command": HOSTILE, "date": HOSTILE, "versions": {HOSTILE: HOSTILE}}
        result["device"] |= {"name": HOSTILE, "driver": HOSTILE}
        result["machine"] |= {"cpu": HOSTILE, "system": HOSTILE}
        result["settings"] |= {"pipeline": HOSTILE, "unet": HOSTILE}
    speed["settings"]["scheduler"] = HOSTILE
    return report(speed, fidelity, title=HOSTILE)


def test_it_is_one_file_that_loads_nothing(page):
    elements = page.all()
    assert not [element.tag for element in elements if element.tag in RESOURCES and element.tag != "style"]
    for element in elements:
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in ("src", "srcset", "poster", "data", "background"):
                assert value.startswith("data:image/")
            if name in ("href", "xlink:href"):
                links = (
                    ("#", "data:application/json;base64,", "data:application/gzip;base64,")
                    if element.tag == "a"
                    else ("#",)
                )
                assert value.startswith(links) or (element.tag == "a" and value.startswith("https://huggingface.co/"))
            assert "url(" not in value.replace("url(#", "")


def test_addresses_in_the_text_are_links_and_names_alone(text):
    found = {match.group(1) for match in re.finditer(r"=\"(https?:[^\"]*)\"", text)}
    assert found == {"https://huggingface.co/docs/diffusers/optimization/deepcache"}
    assert text.count("//huggingface.co") == text.count('<a href="https://huggingface.co/')
    style = text[text.index("<style>") : text.index("</style>")]
    assert "http" not in style
    assert "@import" not in style
    assert "url(" not in style


def test_the_policy_allows_styles_and_data_images_alone(page):
    (policy,) = [meta for meta in page.all("meta") if meta.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy.attributes["content"].split("; ")[:3] == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
    ]


def test_every_id_is_unique_and_every_reference_leads_to_one(page):
    names = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(names) == len(set(names))
    for element in page.all():
        wanted = []
        for name, value in element.attributes.items():
            wanted += re.findall(r"url\(#([^)]+)\)", value)
            if name in ("href", "xlink:href") and value.startswith("#"):
                wanted.append(value[1:])
            if name in ("aria-labelledby", "aria-describedby"):
                wanted += value.split()
        assert set(wanted) <= set(names)


def test_headings_are_in_order(page):
    levels = [int(heading.tag[1]) for heading in page.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_landmarks_and_a_skip_link(page):
    (body,) = page.all("body")
    assert [child.tag for child in body.children if not isinstance(child, str)] == [
        "a",
        "header",
        "nav",
        "main",
        "footer",
    ]
    skip = body.all("a")[0]
    assert skip.attributes["href"] == "#main"
    assert page.by_id("main").tag == "main"
    assert page.all("html")[0].attributes["lang"] == "en"


def test_every_image_and_chart_has_a_text(page):
    assert page.all("img")
    assert all(image.attributes["alt"] for image in page.all("img"))
    described = [image.attributes["alt"] for image in page.all("img") if image.attributes.get("class") == "chart"]
    assert len(described) == 2 * 2 + 1 + 2
    assert all(alt.endswith("The tables of this section have the numbers.") for alt in described)


def test_every_table_has_a_caption_scopes_and_a_region_that_scrolls(page):
    regions = [element for element in page.all("div") if element.attributes.get("class") == "scroll"]
    maps = [element for element in page.all("div") if element.attributes.get("class") == "ablation-grid"]
    assert len(regions) + len(maps) == len(page.all("table"))
    assert all(each.attributes["tabindex"] == "0" and each.all("caption")[0].text for each in maps)
    for region in regions:
        (table,) = region.all("table")
        (caption,) = table.all("caption")
        assert caption.text
        assert region.attributes["role"] == "region"
        assert region.attributes["tabindex"] == "0"
        assert region.attributes["aria-labelledby"] == caption.attributes["id"]
        assert all(heading.attributes["scope"] for heading in table.all("th"))


def test_every_result_ends_with_the_command_that_made_it(page, results):
    made = [part for part in page.all("p") if "made-by" in part.attributes.get("class", "")]
    commands = [code.text for part in made for code in part.all("code")]
    assert commands == [results[f"result-{number}.json"]["command"] for number in (2, 3, 1)]


def test_the_page_opens_with_headline_numbers_and_one_chart(page):
    (header,) = page.all("header")
    numbers = [term.text for term in header.all("dt")]
    assert [number for number in numbers if re.fullmatch(r"[\d.]+(×| s| %| dB)|[\d.]+× to [\d.]+×", number)] == numbers
    assert [link.text for link in header.all("a")] == [
        "Speed: sd21 on NVIDIA Simulated GPU",
        "Speed: shapes on NVIDIA Simulated GPU",
        "Fidelity and cost: shapes on NVIDIA Simulated GPU",
    ]
    (chart,) = header.all("img")
    assert chart.attributes["alt"].startswith("PSNR against cost: DDIMScheduler, 50 steps. ")
    sources = [image.attributes["src"] for image in page.all("img") if image.attributes.get("class") == "chart"]
    assert sources.count(chart.attributes["src"]) == 1


def test_the_conditions_of_every_result_are_there(page):
    facts = [element for element in page.all("dl") if element.attributes.get("class") == "facts"]
    assert len(facts) == 3
    for words in (
        "model sd21",
        "random weights True",
        "device type cuda, name NVIDIA Simulated GPU, memory gib 79.6, compute capability 9.0",
        "driver 570.86.15, cuda 12.8",
        "machine cpu Simulated CPU, cpu features avx2, cores 16, memory gib 128, system Linux x86_64",
        "versions python 3.11.7, DeepCache 0.2.0, torch 2.13.0",
        "rounds 3",
        "warm up 1",
        "sizes 512×512, 768×768",
        "batches 1, 4",
        "date 2026-11-23 04:41 UTC",
    ):
        assert words in facts[0].text
    assert "seeds 0, 100" in facts[2].text
    assert "prompts 3" in facts[2].text
    assert "schedulers DDIMScheduler, EulerDiscreteScheduler" in facts[2].text


def test_results_of_other_machines_have_their_own_conditions(report):
    second = benchmark("shapes")
    second["device"] = {"type": "cpu", "name": "Other CPU"}
    second["versions"] = {"torch": "9.9"}
    second["machine"] |= {"cores": None, "memory_gib": None, "cpu_features": []}
    page = report(benchmark(), second)
    facts = [element.text for element in page.all("dl") if element.attributes.get("class") == "facts"]
    assert "device type cuda, name NVIDIA Simulated GPU" in facts[0]
    assert "device type cpu, name Other CPU machine cpu Simulated CPU, cpu features , system Linux x86_64" in facts[1]
    assert "torch 9.9" in facts[1]


def test_the_result_files_can_be_downloaded_from_the_page(page, results):
    links = {
        link.attributes["download"]: link.attributes["href"] for link in page.all("a") if "download" in link.attributes
    }
    assert list(links) == ["result-2.json", "result-3.json", "result-1.json"]
    for name, result in results.items():
        data = links[name].removeprefix("data:application/json;base64,")
        assert json.loads(base64.b64decode(data)) == result


def test_a_result_is_embedded_as_its_file_has_it(paths, text):
    for path in paths:
        assert base64.b64encode(path.read_bytes()).decode() in text


def test_two_pages_of_the_same_results_are_equal(paths, text):
    again = write_report(paths, paths[0].parent / "again.html")
    assert again.read_text(encoding="utf-8") == text


def test_every_text_of_a_result_is_escaped(hostile):
    assert not hostile.all("script")
    for element in hostile.all():
        assert not [name for name in element.attributes if name.startswith("on")]
    assert all(image.attributes["src"].startswith("data:image/") for image in hostile.all("img"))
    assert hostile.all("h1")[0].text == HOSTILE
    assert hostile.all("title")[0].text == HOSTILE
    assert HOSTILE in [code.text for code in hostile.all("code")]
    assert f"failed: {HOSTILE}" in hostile.text
    assert f"out of memory: {HOSTILE}" in hostile.text
    assert any(text.startswith(HOSTILE[:20]) for texts in charts(hostile).values() for text in texts)


def test_hostile_names_leave_the_page_whole(hostile):
    names = [element.attributes["id"] for element in hostile.all() if "id" in element.attributes]
    assert len(names) == len(set(names))
    assert [child.tag for child in hostile.all("body")[0].children if not isinstance(child, str)][-1] == "footer"


def test_a_large_result_is_compressed_in_the_page(tmp_path):
    result = ablation(prompts=[f"prompt {number}" for number in range(300)])
    path = write(result, tmp_path / "large.json")
    text = write_report([path], tmp_path / "report.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'download="large.json.gz" href="data:application/gzip;base64,([^"]*)"', text)
    assert gzip.decompress(base64.b64decode(data)) == path.read_bytes()
    assert len(data) < path.stat().st_size / 2


def test_charts_do_not_say_when_and_with_what_they_were_made(page):
    for image in page.all("img"):
        kind, _, data = image.attributes["src"].partition(";base64,")
        if kind == "data:image/svg+xml":
            svg = base64.b64decode(data).decode()
            assert not re.search(r"<dc:date>|<dc:creator>|matplotlib\.org", svg)


def test_the_heading_names_the_models(report, page):
    assert page.all("h1")[0].text == "DeepCache on shapes, sd21"
    model = "/home/someone/models/My Model"
    assert report(benchmark(model, reference=False)).all("h1")[0].text == "DeepCache on My Model"
    assert report(benchmark("owner/name", reference=False), title="Mine").all("title")[0].text == "Mine"


def test_results_with_one_name_get_two(tmp_path):
    paths = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        result = benchmark()
        wait(result["cells"][0])
        paths.append(write(result, tmp_path / name / "result.json"))
    text = write_report(paths, tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'download="result.json"' in text
    assert 'download="result-2.json"' in text

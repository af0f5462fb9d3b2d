import base64
import json
import re

import pytest

from DeepCache.report import write_report
from tests.report.made_up_results import ablation, benchmark, fail, find_row, run_out_of_memory, wait, write
from tests.report.reading import parse, rows

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
                links = ("#", "data:application/json;base64,") if element.tag == "a" else ("#",)
                assert value.startswith(links) or (element.tag == "a" and value.startswith("https://huggingface.co/"))
            assert "url(" not in value.replace("url(#", "")


def test_addresses_in_the_text_are_links_and_names_alone(text):
    found = {match.group(1) for match in re.finditer(r"=\"(https?:[^\"]*)\"", text)}
    assert found == {"https://huggingface.co/docs/diffusers/optimization/deepcache", "http://www.w3.org/2000/svg"}
    assert text.count("//www.w3.org") == text.count('xmlns="http://www.w3.org/2000/svg"')
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
    for svg in page.all("svg"):
        title, description = svg.children[:2]
        assert svg.attributes["role"] == "img"
        assert svg.attributes["aria-labelledby"].split() == [title.attributes["id"], description.attributes["id"]]
        assert title.text
        assert description.text


def test_every_table_has_a_caption_scopes_and_a_region_that_scrolls(page):
    regions = [element for element in page.all("div") if element.attributes.get("class") == "scroll"]
    assert len(regions) == len(page.all("table"))
    for region in regions:
        (table,) = region.all("table")
        (caption,) = table.all("caption")
        assert caption.text
        assert region.attributes["role"] == "region"
        assert region.attributes["tabindex"] == "0"
        assert region.attributes["aria-labelledby"] == caption.attributes["id"]
        assert all(heading.attributes["scope"] for heading in table.all("th"))


def test_every_section_with_numbers_ends_with_the_command_that_made_them(page, results):
    commands = {result["command"] for result in results.values()}
    sections = [section for section in page.all("section") if section.all("table") and not section.all("section")]
    assert len(sections) == 1 + 2 + 1 + 2
    for section in sections:
        last = [child for child in section.children if not isinstance(child, str)][-1]
        assert last.attributes["class"] == "made-by"
        assert {code.text for code in last.all("code")} <= commands


def test_what_was_measured_and_on_what(page):
    found = rows(page.by_id("overview-table"))
    assert [row[:7] for row in found] == [
        [
            "result-2.json",
            "speed",
            "sd21 StableDiffusionPipeline",
            "DDIMScheduler",
            "50",
            "NVIDIA Made-Up GPU",
            "2026-11-23 04:41 UTC",
        ],
        [
            "result-3.json",
            "speed",
            "shapes StableDiffusionPipeline",
            "DDIMScheduler",
            "20",
            "NVIDIA Made-Up GPU",
            "2026-11-23 04:41 UTC",
        ],
        [
            "result-1.json",
            "fidelity and cost",
            "shapes StableDiffusionPipeline",
            "DDIMScheduler, EulerDiscreteScheduler",
            "50, 30",
            "NVIDIA Made-Up GPU",
            "2026-11-23 04:41 UTC",
        ],
    ]
    facts = [element for element in page.all("dl") if element.attributes.get("class") == "facts"]
    assert len(facts) == 3
    for words in (
        "Model sd21, random weights",
        "Device NVIDIA Made-Up GPU (cuda), 79.6 GiB, compute capability 9.0, driver 570.86.15, CUDA 12.8",
        "Machine Made-Up CPU, 16 cores, 128 GiB, avx2, Linux x86_64",
        "Versions python 3.11.7, DeepCache 0.2.0, torch 2.13.0",
        "Rounds 3, after 1 to warm up",
        "Seed 0",
        "Sizes 512, 768 px",
        "Batches 1, 4",
    ):
        assert words in facts[0].text
    assert "Seeds 0, 100" in facts[2].text
    assert "Prompts 3" in facts[2].text


def test_results_of_other_machines_each_say_theirs(report):
    second = benchmark("shapes")
    second["device"] = {"type": "cpu", "name": "Other CPU"}
    second["versions"] = {"torch": "9.9"}
    second["machine"] |= {"cores": None, "memory_gib": None, "cpu_features": []}
    page = report(benchmark(), second)
    facts = [element.text for element in page.all("dl") if element.attributes.get("class") == "facts"]
    assert "NVIDIA Made-Up GPU (cuda)" in facts[0]
    assert "Device Other CPU (cpu) Machine Made-Up CPU, Linux x86_64" in facts[1]
    assert "torch 9.9" in facts[1]


def test_the_result_files_can_be_taken_from_the_page(page, results):
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


def test_whatever_a_result_says_is_text(hostile):
    assert not hostile.all("script")
    for element in hostile.all():
        assert not [name for name in element.attributes if name.startswith("on")]
    assert all(image.attributes["src"].startswith("data:image/") for image in hostile.all("img"))
    assert hostile.all("h1")[0].text == HOSTILE
    assert hostile.all("title")[0].text == HOSTILE
    assert HOSTILE in [code.text for code in hostile.all("code")]
    assert f"failed: {HOSTILE}" in hostile.text
    assert f"out of memory: {HOSTILE}" in hostile.text
    assert any(text.text.startswith(HOSTILE) for svg in hostile.all("svg") for text in svg.all("text"))


def test_hostile_names_leave_the_page_whole(hostile):
    names = [element.attributes["id"] for element in hostile.all() if "id" in element.attributes]
    assert len(names) == len(set(names))
    assert [child.tag for child in hostile.all("body")[0].children if not isinstance(child, str)][-1] == "footer"


def test_charts_follow_the_colours_of_the_page(text):
    assert "#0d0e0f" not in text
    assert "currentColor" in text
    body = text[text.index("<body>") :]
    assert not re.search(r"#(0072b2|009e73|d55e00)", body)
    # Fonts are the page's, and nothing says when or with what the charts were made.
    assert "DejaVu Sans" not in body
    for word in ("<metadata", "<!DOCTYPE svg", "<?xml", "matplotlib", "xlink"):
        assert word not in body


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

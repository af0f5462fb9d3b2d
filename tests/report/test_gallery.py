import base64
import io
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from DeepCache.report import write_report
from DeepCache.report.numerals import seconds
from tests.report.reading import parse
from tests.report.synthetic_results import ablation, write

LABELS = ("I=2 B=0", "I=3 B=0", "I=3 B=0 linear", "I=5 B=0")


@pytest.fixture
def result():
    return ablation(labels=LABELS, fewer=(10,), samples=2)


@pytest.fixture
def page(result, tmp_path):
    """Writes the result and its samples, lets the test change some, and reads the page."""

    def page(spoil=lambda folder: None):
        path = write(result, tmp_path / "result.json")
        spoil(tmp_path / "samples" / "0")
        return parse(write_report([path], tmp_path / "report.html").read_text(encoding="utf-8"))

    return page


def decoded(element):
    kind, _, data = element.attributes["src"].partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == f"data:image/{image.format.lower()}"
    assert image.size == tuple(int(element.attributes[side]) for side in ("width", "height"))
    return image.convert("RGB")


def samples(page):
    return [figure for figure in page.all("figure") if figure.attributes.get("class") == "sample"]


def test_original_cached_and_difference_stand_side_by_side(page, result, tmp_path):
    found = page()
    prompts = [figure for figure in found.all("figure") if figure.attributes.get("class") == "prompt"]
    captions = [figure.all("figcaption")[0].text for figure in prompts]
    assert captions == ["“a red circle” seed 0", "“a blue square” seed 1"]
    strips = tmp_path / "samples" / "0"

    def kept(name, number):
        with Image.open(strips / f"{name}.png") as strip:
            return strip.crop((64 * number, 0, 64 * (number + 1), 64)).tobytes()

    for number, prompt in enumerate(prompts):
        text = ("a red circle", "a blue square")[number]
        original = prompt.all("img")[0]
        assert original.attributes["alt"] == f"{text}: without caching"
        assert decoded(original).tobytes() == kept("reference", number)
        for figure in samples(prompt):
            label = figure.all("strong")[0].text
            cached, difference = figure.all("img")
            assert decoded(cached).tobytes() == kept(label.replace(" ", "_"), number)
            expected = ImageChops.difference(decoded(original), decoded(cached)).point(
                lambda value: min(255, 8 * value)
            )
            assert decoded(difference).tobytes() == expected.tobytes()
            assert [image.attributes["alt"] for image in (cached, difference)] == [
                f"{text}: with DeepCache, {label}",
                f"{text}: difference, amplified 8 times",
            ]


def test_captions_have_latency_cost_and_nearness(page, result):
    cells = {cell["label"]: cell for cell in result["groups"][0]["cells"]}
    found = page()
    for number, figure in enumerate(samples(found)):
        caption = figure.all("figcaption")[0]
        cell = cells[caption.all("strong")[0].text]
        image = number // (len(samples(found)) // 2)
        assert caption.all("span")[0].text == (
            f"{seconds(cell['seconds'] / 6)} s, cost {100 * cell['mac_share']:.1f} %, "
            f"{cell['psnr']['values'][image]:.2f} dB"
        )
    assert "The original took 0.320 s per image." in found.text
    assert "amplified 8 times" in found.text


def test_settings_of_the_front_and_the_published_ones_are_shown(page, result):
    shown = {figure.all("strong")[0].text for figure in samples(page())}
    front = {cell["label"] for cell in result["groups"][0]["cells"] if cell["front"] and cell["method"] == "DeepCache"}
    assert shown == front | {"I=3 B=0", "I=5 B=0"}


def test_of_a_long_front_six_are_shown_spread_over_the_cost(tmp_path):
    labels = [f"I={interval} B=8 linear" for interval in range(2, 12)]
    result = ablation(labels=labels, fewer=(), samples=1)
    for cell in result["groups"][0]["cells"]:
        cell["front"] = True
    page = parse(
        write_report([write(result, tmp_path / "result.json")], tmp_path / "report.html").read_text(encoding="utf-8")
    )
    shown = [figure.all("strong")[0].text for figure in samples(page)]
    assert len(shown) == 6
    assert (shown[0], shown[-1]) == ("I=10 B=8 linear", "I=2 B=8 linear")


def test_a_missing_file_is_left_out_with_a_note(page):
    found = page(lambda folder: (folder / "I=5_B=0.png").unlink())
    assert "I=5 B=0" not in {figure.all("strong")[0].text for figure in samples(found)}
    assert samples(found)
    assert "Samples omitted: I=5 B=0: the file 'samples/0/I=5_B=0.png' does not exist" in found.text


def test_without_the_original_there_is_nothing_to_compare_with(page):
    found = page(lambda folder: (folder / "reference.png").unlink())
    assert not samples(found)
    assert (
        "Samples omitted: the images without caching are needed for samples: "
        "the file 'samples/0/reference.png' does not exist" in found.text
    )


@pytest.mark.parametrize("outside", ["../secret.png", "an absolute path", "samples/../../secret.png", "link.png"])
def test_nothing_outside_of_the_folder_is_read(tmp_path, outside, monkeypatch):
    inside = tmp_path / "inside"
    inside.mkdir()
    secret = tmp_path / "secret.png"
    Image.new("RGB", (128, 64), "purple").save(secret)
    (inside / "link.png").symlink_to(secret)
    result = ablation(labels=LABELS, fewer=(10,), samples=2)
    path = write(result, inside / "result.json")
    cell = next(cell for cell in result["groups"][0]["cells"] if cell["label"] == "I=5 B=0")
    cell["samples"] = str(secret) if outside == "an absolute path" else outside
    result["settings"]["samples"] = 0  # so that the samples are not written again
    write(result, path)
    opened = []
    monkeypatch.setattr(
        Image, "open", lambda path, *more, real=Image.open, **named: opened.append(path) or real(path, *more, **named)
    )
    page = parse(write_report([path], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert opened
    assert all(Path(each).resolve().is_relative_to(inside) for each in opened)
    assert "is outside the folder of 'result.json'" in page.text
    assert "I=5 B=0" not in {figure.all("strong")[0].text for figure in samples(page)}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b"no picture"), "is damaged or not a PNG"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "is damaged or not a PNG"),
        (lambda path: Image.new("RGB", (128, 64)).save(path, "JPEG"), "is damaged or not a PNG"),
        (lambda path: Image.new("RGB", (100, 64)).save(path), "is 100×64 pixels, not a row of images of 64×64"),
        (lambda path: Image.new("RGB", (128, 32)).save(path), "is 128×32 pixels"),
        (lambda path: Image.new("RGB", (64 * 7, 64)).save(path), "is 448×64 pixels"),
        (lambda path: Image.new("RGB", (64, 64)).save(path), "holds 1 images instead of 2"),
        (lambda path: (path.unlink(), path.mkdir()), "does not exist"),
    ],
    ids=["no picture", "half a PNG", "JPEG", "other width", "other height", "too many", "too few", "folder"],
)
def test_files_that_hold_something_else_are_left_out(page, spoil, words, tmp_path):
    found = page(lambda folder: spoil(folder / "I=5_B=0.png"))
    assert words in found.text
    assert str(tmp_path) not in found.text
    assert samples(found)


def test_samples_that_were_not_kept(page, result, tmp_path):
    page()
    result["settings"]["samples"] = 0
    for cell in result["groups"][0]["cells"]:
        cell["samples"] = None
    found = page()
    assert not samples(found)
    assert "I=3 B=0, I=2 B=0: no images are kept" in found.text
    result["groups"][0]["reference"]["samples"] = None
    assert "Samples omitted: the images without caching are needed for samples: no images are kept" in page().text


def test_large_images_are_scaled_down_after_the_difference_is_taken(tmp_path):
    result = ablation(labels=["I=3 B=0"], fewer=(), samples=1, size=(512, 384))
    page = parse(
        write_report([write(result, tmp_path / "result.json")], tmp_path / "report.html").read_text(encoding="utf-8")
    )
    images = [image for image in page.all("img") if image.attributes.get("class") != "chart"]
    assert [image.attributes["src"][:16] for image in images] == ["data:image/webp;"] * 3
    assert {decoded(image).size for image in images} == {(256, 192)}
    with (
        Image.open(tmp_path / "samples/0/reference.png") as original,
        Image.open(tmp_path / "samples/0/I=3_B=0.png") as cached,
    ):
        difference = ImageChops.difference(original, cached).point(lambda value: min(255, 8 * value))
    difference.thumbnail((256, 256))
    worst = max(high for _, high in ImageChops.difference(difference, decoded(images[2])).getextrema())
    assert worst < 64  # WebP is not exact

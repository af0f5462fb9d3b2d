"""The scripts in examples/, run as people run them: with `--tiny`, and with a simulated hub and GPU."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image, ImageChops, ImageOps
from torch.nn.modules import module as modules

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.attach import DeepCacheEngine
from DeepCache.models import load_pipeline
from tests.engine.backend import use_backend

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "tiny_models")
PROMPT = "a red circle left of a blue square"

pytestmark = [
    # Torch's own, when inductor is imported.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
    # Diffusers' schedulers, with numpy 2.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
]


def every_third(steps: int) -> str:
    return ("F.." * steps)[:steps]


class Examples:
    """Runs scripts as `python examples/NAME.py …` does, each with nothing left of those before."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.engines: list[DeepCacheEngine] = []
        attach = DeepCacheEngine.attach

        def noted(engine: DeepCacheEngine) -> None:
            self.engines.append(engine)
            attach(engine)

        monkeypatch.setattr(DeepCacheEngine, "attach", noted)
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.chdir(folder)

    def run(self, name: str, *arguments: str) -> list[str]:
        """The lines that a script prints."""
        self._monkeypatch.setattr(sys, "argv", [f"examples/{name}.py", *arguments])
        self._monkeypatch.delitem(sys.modules, "tiny_models", raising=False)
        self._capsys.readouterr()
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return self._capsys.readouterr().out.splitlines()

    def image(self, name: str) -> Image.Image:
        with Image.open(self.folder / name) as image:
            image.load()
            return image


@pytest.fixture
def examples(tmp_path, monkeypatch, capsys):
    examples = Examples(tmp_path, monkeypatch, capsys)
    before = outside()
    yield examples
    assert outside() == before


def outside() -> tuple[Any, ...]:
    """Global state that later tests in this process share."""
    hooks = len(modules._global_forward_hooks), len(modules._global_forward_pre_hooks)
    return torch.get_num_threads(), torch.is_grad_enabled(), hooks, UNet2DConditionModel.forward


@pytest.fixture(scope="module")
def cached():
    """The image of the bundled model at the default settings, every third step full."""
    pipe = load_pipeline("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    apply_deepcache(pipe, DeepCacheConfig(cache_interval=3))
    return pipe(PROMPT, num_inference_steps=50, generator=torch.Generator().manual_seed(0)).images[0]


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and ImageChops.difference(first, second).getbbox() is None


def test_text_to_image_generates_and_frees_the_pipeline(examples):
    lines = examples.run("text_to_image", "--tiny")
    assert lines[0] == every_third(50)
    assert lines[-1] == "wrote text-to-image.png"
    assert examples.image("text-to-image.png").size == (64, 64)
    assert [engine.attached for engine in examples.engines] == [False]


def test_sdxl_lists_its_nine_branches_and_halves_its_shallow_steps(examples):
    branches, pattern, share, _ = examples.run("sdxl", "--tiny")
    assert branches.startswith("branches: 0 conv_in, ")
    assert branches.endswith(", 8 down_blocks.2 layer 1")
    assert pattern == every_third(50)
    assert share.startswith("17 full and 33 shallow steps (33 with guidance reuse)")
    assert examples.image("sdxl.png").size == (64, 64)


def test_image_to_image_counts_the_steps_that_run(examples):
    pattern, *_ = examples.run("image_to_image", "--tiny")
    assert pattern == every_third(30)
    assert examples.image("image-to-image.png").size == (64, 64)


def test_controlnet_that_has_learned_nothing_changes_nothing(examples, cached):
    pattern, *_ = examples.run("controlnet", "--tiny")
    assert pattern == every_third(50)
    assert same(examples.image("controlnet.png"), cached)


def test_video_has_all_frames_of_the_model(examples):
    pattern, _, last = examples.run("video", "--tiny")
    assert pattern == every_third(25)
    assert last == "wrote video.gif with 14 frames"
    film = Image.open(examples.folder / "video.gif")
    assert (film.size, film.n_frames) == ((64, 64), 14)
    film.close()


def test_lora_is_in_the_second_image_only(examples, cached):
    pattern, *_ = examples.run("lora", "--tiny")
    assert pattern == every_third(50)
    both = examples.image("lora.png")
    assert both.size == (128, 64)
    assert same(both.crop((0, 0, 64, 64)), cached)
    assert not same(both.crop((64, 0, 128, 64)), cached)


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that are run as they were traced, and what they were compiled for: inductor takes too long here."""
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    use_backend(monkeypatch, backend)
    yield compiled
    torch.compiler.reset()


def test_compiled_has_all_its_graphs_after_the_warm_up(examples, graphs, cached, monkeypatch):
    counts = []
    run = StableDiffusionPipeline.__call__

    def counted(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        output = run(pipe, *args, **kwargs)
        counts.append(len(graphs))
        return output

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", counted)
    lines = examples.run("compiled", "--tiny")
    assert [line for line in lines if set(line) == set("F.")] == [every_third(50)]
    assert same(examples.image("compiled.png"), cached)
    warm, generated = counts
    assert 0 < warm == generated


def test_cpu_offload_changes_no_pixel(examples, cached):
    pattern, *_ = examples.run("cpu_offload", "--tiny")
    assert pattern == every_third(50)
    assert same(examples.image("cpu-offload.png"), cached)


def test_batch_resumes_where_it_stopped(examples):
    assert examples.run("batch", "--tiny")[0] == "4 rows: 4 done, 0 failed; 4 in this run"
    images = sorted(examples.folder.glob("pictures/pictures/*/*.png"))
    assert [examples.image(str(path)).size for path in images] == [(64, 64)] * 4
    lost = images[2].read_bytes()
    images[2].unlink()
    assert examples.run("batch", "--tiny")[0] == "4 rows: 4 done, 0 failed; 1 in this run"
    assert images[2].read_bytes() == lost


def test_a_third_partys_unet_is_cut_at_its_second_branch(examples):
    branches, pattern, share, _ = examples.run("third_party_unet", "--tiny")
    assert branches.endswith(", 5 down_blocks.1 layer 1")
    assert pattern == every_third(50)
    assert share.startswith("17 full and 33 shallow steps")
    assert examples.image("third-party-unet.png").size == (64, 64)


def test_every_script_is_run_here_and_on_the_page():
    tests = Path(__file__).read_text(encoding="utf-8")
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    assert len(SCRIPTS) == 10
    assert [name for name in SCRIPTS if f'examples.run("{name}", "--tiny")' not in tests] == []
    assert sorted(re.findall(r"^\| \[(\w+)\.py\]\(\.\./examples/\1\.py\)", page, flags=re.MULTILINE)) == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_documents_how_to_run_it(name, examples, capsys):
    with pytest.raises(SystemExit, match="0"):
        examples.run(name, "--help")
    shown = capsys.readouterr().out
    assert f"\n    python examples/{name}.py  " in shown
    assert f"\n    python examples/{name}.py --tiny  " in shown
    assert {"--tiny", "--output"} <= set(re.findall(r"^  (--\w+)", shown, flags=re.MULTILINE))


def small_unet() -> UNet2DConditionModel:
    """One that is soon compiled, for the text encoder of `sd15-tiny`."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def small_stable_diffusion() -> Any:
    pipe = load_pipeline("sd15-tiny", device="cpu")
    pipe.unet = small_unet()
    return pipe


HUB = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": small_stable_diffusion,
    "stabilityai/stable-diffusion-xl-base-1.0": lambda: load_pipeline("sdxl-tiny", device="cpu"),
    "stabilityai/stable-video-diffusion-img2vid-xt": lambda: load_pipeline("svd-tiny", device="cpu"),
}


@pytest.fixture
def hub(monkeypatch):
    """A simulated hub and GPU for scripts without `--tiny`: records requests and returns tiny models."""
    asked: list[Any] = []

    def pipeline(kind: Any, name: str, dtype: torch.dtype, variant: str = "", **components: Any) -> Any:
        asked.append((name, dtype))
        known = HUB[name]()
        options = {"requires_safety_checker": False} if "safety_checker" in known.components else {}
        return kind(**known.components | components, **options)

    def controlnet(kind: Any, name: str, dtype: torch.dtype) -> Any:
        asked.append((name, dtype))
        return kind.from_unet(small_unet())

    def lora(pipe: Any, name: str, weight_name: str) -> None:
        asked.append((name, weight_name))

    def offload(pipe: Any, device: Any) -> None:
        # After each run the pipeline calls it again, with a device instead of a name.
        asked.extend([device] if isinstance(device, str) else [])
        model_offload(pipe, device="cpu")

    def image(url: str) -> Image.Image:
        asked.append(url)
        return Image.linear_gradient("L").convert("RGB")

    def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        asked.append(size)
        return image.resize((64, 64))

    def move(pipe: Any, *device: str, **options: Any) -> Any:
        # Offloading begins by moving everything to the CPU.
        asked.extend(name for name in device if torch.device(name).type != "cpu")
        return pipe

    model_offload = DiffusionPipeline.enable_model_cpu_offload
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(pipeline))
    monkeypatch.setattr(ControlNetModel, "from_pretrained", classmethod(controlnet))
    monkeypatch.setattr(StableDiffusionXLPipeline, "load_lora_weights", lora)
    monkeypatch.setattr(StableDiffusionXLPipeline, "fuse_lora", lambda pipe: None)
    monkeypatch.setattr(DiffusionPipeline, "enable_model_cpu_offload", offload)
    monkeypatch.setattr(DiffusionPipeline, "to", move)
    monkeypatch.setattr("diffusers.utils.load_image", image)
    monkeypatch.setattr(ImageOps, "fit", fit)
    return asked


SD15, SDXL, SVD = ((name, torch.float16) for name in HUB)


# The scheduler of Stable Diffusion 1.5 calls the U-Net once more than it is asked to.
@pytest.mark.parametrize(
    ("name", "asked", "steps"),
    [
        ("text_to_image", [SD15, "cuda"], 51),
        ("sdxl", [SDXL, "cuda"], 50),
        ("image_to_image", [SD15, "cuda", (768, 512)], 31),
        ("controlnet", [("lllyasviel/control_v11p_sd15_canny", torch.float16), SD15, "cuda", (512, 512)], 51),
        ("video", [SVD, "cuda", (1024, 576)], 25),
        ("lora", [SDXL, "cuda", ("nerijs/pixel-art-xl", "pixel-art-xl.safetensors")], 50),
        ("compiled", [SD15, "cuda"], 51),
        ("cpu_offload", [SDXL, "cuda"], 50),
    ],
)
def test_without_tiny_scripts_use_published_models_and_a_gpu(name, asked, steps, examples, hub, graphs):
    lines = examples.run(name)
    assert every_third(steps) in lines
    assert (examples.folder / lines[-1].split()[1]).stat().st_size > 1000
    urls = [each for each in hub if isinstance(each, str) and each.startswith("https://")]
    assert len(urls) == (name in ("image_to_image", "controlnet", "video"))
    assert [each for each in hub if each not in urls] == asked


def test_batch_without_tiny(examples, monkeypatch):
    loaded = []

    def load(model: str, dtype: str, device: str, vae: str | None, config: str | None) -> Any:
        assert (vae, config) == (None, None)
        loaded.append((model, dtype, device))
        return HUB[model]()

    monkeypatch.setattr("DeepCache.generation.prepare.load_pipeline", load)
    assert examples.run("batch")[0] == "4 rows: 4 done, 0 failed; 4 in this run"
    assert loaded == [("stable-diffusion-v1-5/stable-diffusion-v1-5", "auto", "cuda")]

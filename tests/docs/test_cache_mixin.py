"""The patch of docs/cache-mixin.md, on a copy of the installed diffusers.

A second process imports the patched copy. It runs this file as a program, which makes every check of `CHECKS`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.docs.code_blocks import ROOT, blocks_of

PAGE = ROOT / "docs" / "cache-mixin.md"
PATCH = ROOT / "docs" / "patches" / "diffusers-deepcache.patch"
DIFFUSERS = "0.42.1"
PATCHED = re.findall(r"^\+\+\+ b/(\S+)$", PATCH.read_text(encoding="utf-8"), flags=re.MULTILINE)
PROGRAM, APPLY, REVERT = (block.text for block in blocks_of(PAGE))

CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def installed() -> Path:
    """The folder of the installed diffusers, found without importing it."""
    if version("diffusers") != DIFFUSERS:
        pytest.skip(f"the patch is for diffusers {DIFFUSERS}, and {version('diffusers')} is installed")
    (folder,) = find_spec("diffusers").submodule_search_locations
    return Path(folder)


@pytest.fixture
def sources(installed, tmp_path):
    """The files that the patch changes and an empty `diffusers/__init__.py`: little to copy, quick to import."""
    for name in PATCHED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(installed.parent / name, tmp_path / name)
    (tmp_path / "diffusers" / "__init__.py").touch()
    return tmp_path


def apply_patch(folder: Path) -> None:
    """Applies the patch to the `diffusers` in a folder."""
    if shutil.which("git"):
        # Git would look for the files in the repository that the folder is in.
        environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
        command = ["git", "apply", "-p1", str(PATCH)]
        _run(command, cwd=folder, env=environment)
    elif shutil.which("patch"):
        _run(["patch", "-p1", "-i", str(PATCH)], cwd=folder)
    else:
        pytest.skip("neither git nor patch is installed")


def _run(command: list[str], **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _environment(folder: Path) -> dict[str, str]:
    """An environment in which `python` finds the `diffusers` of a folder before the installed one."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
    }


def test_the_patch_applies_to_the_installed_diffusers(sources):
    before = {name: (sources / name).read_text(encoding="utf-8") for name in PATCHED}
    apply_patch(sources)
    for name, text in before.items():
        patched = (sources / name).read_text(encoding="utf-8")
        assert patched != text
        compile(patched, name, "exec")


def test_the_commands_of_the_page_apply_and_revert_the_patch(sources):
    for program in ("bash", "patch"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    environment = _environment(sources)
    # Otherwise the commands would change the installed one.
    found = _run(["python", "-c", "import diffusers; print(diffusers.__path__[0])"], cwd=ROOT, env=environment)
    assert Path(found.strip()) == sources / "diffusers"
    before = {name: (sources / name).read_bytes() for name in PATCHED}
    _run(["bash", "-ec", APPLY], cwd=ROOT, env=environment)
    assert all((sources / name).read_bytes() != text for name, text in before.items())
    _run(["bash", "-ec", REVERT], cwd=ROOT, env=environment)
    assert {name: (sources / name).read_bytes() for name in PATCHED} == before


@pytest.fixture(scope="module")
def results(installed, tmp_path_factory) -> dict[str, str]:
    """What went wrong in each check with the patched diffusers; an empty string where nothing did."""
    folder = tmp_path_factory.mktemp("patched")
    # With the bytecode, which saves seconds: what the patch changes has another size, and Python compiles it again.
    shutil.copytree(installed, folder / "diffusers")
    apply_patch(folder)
    command = [sys.executable, "-m", "tests.docs.test_cache_mixin", str(folder / "results.json")]
    _run(command, cwd=folder, env=_environment(folder))
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


# What follows runs with the patched diffusers.


def _unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def _transformer() -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=4,
        num_attention_heads=1,
        joint_attention_dim=4,
        pooled_projection_dim=4,
    )


@torch.no_grad()
def _denoise(unet: Any, steps: int = 6, reset_before: int | None = None, context: str | None = None) -> torch.Tensor:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    sample, prompt = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 3, 8)))
    for step, timestep in enumerate(scheduler.timesteps):
        if step == reset_before:
            unet._reset_stateful_cache()
        with contextlib.nullcontext() if context is None else unet.cache_context(context):
            noise = unet(sample, timestep, encoder_hidden_states=prompt).sample
        sample = scheduler.step(noise, timestep, sample).prev_sample
    return sample


def _pattern(unet: Any) -> str:
    return unet.__dict__["_deepcache_engine"].pattern


@check
def the_u_nets_of_the_page_inherit_from_the_mixin() -> None:
    import diffusers

    table = PAGE.read_text(encoding="utf-8").split("## What the patch changes")[1].split("##")[0]
    named = set(re.findall(r"`(\w*UNet\w*)`", table))
    assert len(named) == 10
    for name in named:
        assert issubclass(getattr(diffusers, name), diffusers.CacheMixin), name


@check
def enable_cache_gives_what_apply_deepcache_gives() -> None:
    from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache

    unet, config = _unet(), DeepCacheConfig(cache_interval=2)
    plain = _denoise(unet)
    apply_deepcache(unet, config)
    expected = _denoise(unet)
    assert _pattern(unet) == "F.F.F."
    remove_deepcache(unet)
    assert not unet.is_cache_enabled
    unet.enable_cache(config)
    assert unet.is_cache_enabled
    assert torch.equal(_denoise(unet), expected)
    assert _pattern(unet) == "F.F.F."
    assert not torch.equal(expected, plain)


@check
def disable_cache_restores_the_outputs() -> None:
    from DeepCache import DeepCacheConfig

    unet = _unet()
    plain = _denoise(unet)
    unet.enable_cache(DeepCacheConfig(cache_interval=2))
    _denoise(unet)
    unet.disable_cache()
    assert not unet.is_cache_enabled
    assert "_deepcache_engine" not in unet.__dict__
    assert "_reset_stateful_cache" not in unet.__dict__
    assert torch.equal(_denoise(unet), plain)
    # A warning, as with any other cache.
    unet.disable_cache()


@check
def a_second_enable_cache_raises() -> None:
    from DeepCache import DeepCacheConfig

    unet = _unet()
    unet.enable_cache(DeepCacheConfig(cache_interval=2))
    with pytest.raises(ValueError, match="Caching has already been enabled"):
        unet.enable_cache(DeepCacheConfig(cache_interval=3))
    _denoise(unet)
    assert _pattern(unet) == "F.F.F."


@check
def the_end_of_a_pipeline_run_ends_the_run() -> None:
    from DeepCache import DeepCacheConfig

    unet = _unet()
    unet.enable_cache(DeepCacheConfig(cache_interval=3))
    _denoise(unet, steps=8)
    assert _pattern(unet) == "F..F..F."
    unet._reset_stateful_cache()
    _denoise(unet, steps=8, reset_before=4)
    # The last four steps: the first of them would have been shallow.
    assert _pattern(unet) == "F..F"


@check
def a_cache_context_changes_nothing() -> None:
    from DeepCache import DeepCacheConfig

    unet = _unet()
    unet.enable_cache(DeepCacheConfig(cache_interval=2))
    assert torch.equal(_denoise(unet, context="cond"), _denoise(unet))


@check
def what_deepcache_refuses_is_not_enabled() -> None:
    from DeepCache import DeepCacheConfig

    unet = _unet()
    with pytest.raises(ValueError, match="99"):
        unet.enable_cache(DeepCacheConfig(cache_branch_id=99))
    assert not unet.is_cache_enabled
    transformer = _transformer()
    with pytest.raises(TypeError):
        transformer.enable_cache(DeepCacheConfig())
    assert not transformer.is_cache_enabled


@check
def other_configurations_are_dispatched_as_before() -> None:
    from diffusers import FirstBlockCacheConfig

    transformer = _transformer()
    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    assert transformer.is_cache_enabled
    transformer.disable_cache()
    assert not transformer.is_cache_enabled
    with pytest.raises(ValueError, match="is not supported"):
        transformer.enable_cache({"cache_interval": 2})


@check
def diffusers_does_not_need_deepcache() -> None:
    from diffusers import FirstBlockCacheConfig

    transformer = _transformer()
    with pytest.MonkeyPatch.context() as patch:
        # As if it were not installed.
        patch.setitem(sys.modules, "DeepCache", None)
        transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
        transformer.disable_cache()
        with pytest.raises(ValueError, match="is not supported"):
            _unet().enable_cache({"cache_interval": 2})


@check
def the_program_of_the_page_gives_what_apply_deepcache_gives() -> None:
    import numpy

    enabled, applied = {}, {}
    exec(compile(PROGRAM, str(PAGE), "exec"), enabled)
    program = PROGRAM.replace("pipe.unet.enable_cache(", "apply_deepcache(pipe.unet, ")
    program = program.replace("pipe.unet.disable_cache()", "remove_deepcache(pipe.unet)")
    program = program.replace("import DeepCacheConfig", "import DeepCacheConfig, apply_deepcache, remove_deepcache")
    assert "_cache(" not in program
    exec(compile(program, str(PAGE), "exec"), applied)
    assert not enabled["pipe"].unet.is_cache_enabled
    assert numpy.array_equal(enabled["image"], applied["image"])


@pytest.mark.parametrize("name", CHECKS)
def test_with_the_patched_diffusers(results, name):
    assert results[name] == ""


def main(file: Path) -> None:
    import diffusers

    assert Path(diffusers.__file__).is_relative_to(file.parent), diffusers.__file__
    torch.set_num_threads(1)
    found = dict.fromkeys(CHECKS, "")
    for name, function in CHECKS.items():
        try:
            function()
        except BaseException:
            found[name] = traceback.format_exc()
    file.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

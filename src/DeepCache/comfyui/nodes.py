"""The ComfyUI nodes: DeepCache on a model, and a report of the last run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from DeepCache.comfyui.wrappers import KEY, Applied, apply
from DeepCache.config import PRESETS, DeepCacheConfig
from DeepCache.engine.layouts import layout_of
from DeepCache.engine.layouts.paired_lists import PairedListsLayout
from DeepCache.plan import Plan
from DeepCache.schedule import BETWEEN, FORECASTS

__all__ = ["DeepCacheNode", "DeepCacheReportNode"]

CUSTOM = "custom"


class DeepCacheNode:
    """Applies DeepCache to a model."""

    CATEGORY = "model/patch/unet"
    DESCRIPTION = (
        "Makes sampling with SD 1.x, 2.x, SDXL and SVD faster, without training: the whole U-Net runs at some steps "
        "only. The steps between use cached features or predictions."
    )
    RETURN_TYPES: ClassVar = ("MODEL",)
    OUTPUT_TOOLTIPS: ClassVar = ("The same model with DeepCache. Give it to a sampler.",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        required = {
            "model": _input("MODEL", "A model with a U-Net: SD 1.x, 2.x, SDXL or SVD."),
            "preset": _input(
                [*PRESETS, CUSTOM],
                "faithful: every 2nd step runs the U-Net; balanced: every 3rd; fast: every 5th. "
                f"{CUSTOM}: the inputs from interval to adaptive_threshold, which the others ignore.",
                default="balanced",
            ),
            "interval": _input(
                "INT",
                "Steps from one full run of the U-Net to the next. 1 caches nothing. Larger is faster and less "
                "faithful.",
                default=3,
                min=1,
                max=100,
            ),
            "branch": _input(
                "INT",
                "Where the U-Net is cut on shallow steps, counted from the shallowest skip connection: 0 to 11 for "
                "SD 1.x and 2.x, 0 to 8 for SDXL. Deeper is slower and more faithful.",
                default=0,
                min=0,
                max=100,
            ),
            "between": _input(
                list(BETWEEN),
                "What the steps between full ones run: the layers above the branch (shallow), no layers (skipped), or "
                "one after the other (alternating).",
                default="shallow",
            ),
            "forecast": _input(
                list(FORECASTS),
                "How cached features and predictions are extrapolated. none: reused unchanged (the paper). limited: "
                "for any guidance scale. response: for skipped steps at a high scale. linear, quadratic: for a low "
                "scale.",
                default="limited",
            ),
            "guidance_reuse": _input(
                "BOOLEAN",
                "Shallow steps run the positive prompt only, and the negative prediction is forecast from the "
                "difference of the two: half the cost of a shallow step.",
                default=False,
            ),
            "adaptive_threshold": _input(
                "FLOAT",
                "Above 0, a step is full if the expected error of the forecast exceeds this share, and after the "
                "interval at the latest. 0: every interval-th step is full.",
                default=0.0,
                **share,
            ),
            "start_percent": _input("FLOAT", "Before this part of the run every step is full.", default=0.0, **share),
            "end_percent": _input("FLOAT", "After this part of the run every step is full.", default=1.0, **share),
        }
        plan = "A file written by deepcache tune. It sets what each step does and replaces the inputs above."
        return {"required": required, "optional": {"plan": _input("STRING", plan, default="")}}

    @classmethod
    def IS_CHANGED(cls, plan: str = "", **_: Any) -> int:
        """Makes ComfyUI run the node again after the file of the plan has changed."""
        path = Path(plan.strip())
        return path.stat().st_mtime_ns if path.is_file() else 0

    def apply(
        self,
        model: Any,
        preset: str,
        interval: int,
        branch: int,
        between: Any,
        forecast: Any,
        guidance_reuse: bool,
        adaptive_threshold: float,
        start_percent: float,
        end_percent: float,
        plan: str = "",
    ) -> tuple[Any]:
        """The model with DeepCache.

        Raises:
            TypeError: the model has no U-Net with skip connections.
            ValueError: a value is out of range, or the file is not a plan.
            OSError: the plan cannot be read.
        """
        if start_percent >= end_percent:
            limits = f"got {start_percent:g} and {end_percent:g}"
            raise ValueError(f"DeepCache: start_percent must be less than end_percent, {limits}")
        settings: DeepCacheConfig | str = preset
        if plan.strip():
            settings = DeepCacheConfig(plan=Plan.from_file(Path(plan.strip())))
        elif preset == CUSTOM:
            adaptive = {"skip_mode": "adaptive", "threshold": adaptive_threshold} if adaptive_threshold else {}
            values = {"between": between, "forecast": forecast, "guidance_reuse": guidance_reuse, **adaptive}
            settings = DeepCacheConfig(interval, branch, **values)
        _check_branches(model, settings if isinstance(settings, DeepCacheConfig) else DeepCacheConfig())
        changed = model.clone()
        apply(changed, Applied(settings, start_percent, end_percent))
        return (changed,)


class DeepCacheReportNode:
    """Reports what the last run of a model with DeepCache did."""

    CATEGORY = "model/patch/unet"
    DESCRIPTION = (
        "Reports the last run with DeepCache: which steps were full, the share of the U-Net's work, and why steps ran "
        "in full that the schedule does not make full."
    )
    RETURN_TYPES: ClassVar = ("LATENT", "STRING")
    RETURN_NAMES: ClassVar = ("latent", "report")
    OUTPUT_TOOLTIPS: ClassVar = ("The latent, unchanged.", "The report. Show it with Preview as Text (Preview Any).")
    FUNCTION = "report"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        model = _input("MODEL", "The model that the DeepCache node returned.")
        latent = _input("LATENT", "The output of the sampler, so that this node runs after it.")
        return {"required": {"model": model, "latent": latent}}

    def report(self, model: Any, latent: Any) -> dict[str, Any]:
        """The latent, and the report as text."""
        applied = model.model_options.get("transformer_options", {}).get(KEY)
        if not isinstance(applied, Applied):
            # To compare, users bypass the DeepCache node.
            text = "DeepCache is not on this model: enable the DeepCache node, or connect the model that it returns"
        else:
            text = "no run yet" if applied.stats is None else str(applied.stats)
        return {"ui": {"text": [text]}, "result": (latent, text)}


def _input(kind: str | list[str], tooltip: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    return kind, {**options, "tooltip": tooltip}


def _check_branches(model: Any, config: DeepCacheConfig) -> None:
    """Raises an error for a model without skip branches, and for branches that it does not have."""
    unet = model.get_model_object("diffusion_model")
    if not PairedListsLayout.recognises(unet):
        raise TypeError(
            f"DeepCache needs a U-Net with skip connections (SD 1.x, 2.x, SDXL, SVD), and this model is a "
            f"{type(unet).__name__}; EasyCache is for models without"
        )
    branches = layout_of(unet).branches
    for number in config.branches:
        if number >= len(branches):
            raise ValueError(
                f"DeepCache: branch must be between 0 and {len(branches) - 1} for this model, got {number}"
            )

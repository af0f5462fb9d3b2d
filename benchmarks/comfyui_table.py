"""The tables of docs/comfyui.md: cost and fidelity in ComfyUI's engine, and the conditions that were tried."""

from __future__ import annotations

from typing import Any

__all__ = ["compared_in_comfyui", "conditions_in_comfyui"]

_SAMPLERS = {"euler": "Euler", "dpmpp_2m": "DPM++ 2M", "heun": "Heun"}
_METHODS = {
    "preset": "DeepCache, {}",
    "re-use": "DeepCache as in the paper, {}",
    "EasyCache": "EasyCache, {}",
    "LazyCache": "LazyCache, {}",
    "fewer steps": "*fewer steps*",
}


def compared_in_comfyui(result: dict[str, Any]) -> str:
    """Cost and PSNR of the node, of EasyCache and LazyCache, and of fewer steps, as Markdown."""
    samplers = [
        f"{name} with {result['samplers'][key]['steps']} steps ({result['samplers'][key]['scheduler']})"
        for key, name in _SAMPLERS.items()
    ]
    lead = (
        f"The bundled model in the engine of ComfyUI {result['comfyui']}, {len(result['prompts'])} held-out prompts, "
        f"{', '.join(samplers)}: 25 evaluations of the model each. Each cell: the share of the multiply-accumulates of "
        "the U-Net without caching, and the mean PSNR of the images against those without caching with its 95 % "
        "confidence interval ([comfyui.json.gz](../benchmarks/comfyui.json.gz))."
    )
    return "\n\n".join([lead, *(_table(result, guidance) for guidance in reversed(result["guidance"]))])


def _table(result: dict[str, Any], guidance: float) -> str:
    cases = [case for case in result["cases"] if case["guidance"] == guidance and case["method"] in _METHODS]
    rows = [
        f"| guidance {guidance:g} | {' | '.join(_SAMPLERS.values())} |",
        "|---" * (1 + len(_SAMPLERS)) + "|",
    ]
    by_place: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for sampler in _SAMPLERS:
        counts: dict[str, int] = {}
        for case in cases:
            if case["sampler"] == sampler:
                # Numbers of steps differ from sampler to sampler, so that a row is one of its method's cases in order.
                place = counts[case["method"]] = counts.get(case["method"], -1) + 1
                by_place.setdefault((case["method"], place), {})[sampler] = case
    for method, named in _METHODS.items():
        for (of, _), found in by_place.items():
            if of == method:
                name = named.format(next(iter(found.values()))["label"])
                rows.append(f"| {name} | {' | '.join(_cell(found[sampler]) for sampler in _SAMPLERS)} |")
    return "\n".join(rows)


def _cell(case: dict[str, Any]) -> str:
    mean, (_, upper) = case["psnr"]["mean"], case["psnr"]["confidence"]
    return f"{case['mac_share']:.0%}, {mean:.1f} ± {upper - mean:.1f} dB"


# How other DeepCache nodes are described to behave.
_OTHERS = {
    "a ControlNet": "residuals missing on shallow steps",
    "one prompt after another": "another image",
    "areas": "error",
    "PAG": "[error](https://github.com/styler00dollar/ComfyUI-deepcache/issues/4)",
    "SAG": "error",
}


def conditions_in_comfyui(result: dict[str, Any]) -> str:
    """Exactness by condition, as Markdown."""
    lead = (
        f"ComfyUI {result['comfyui']}, tiny models with random weights, Euler with {result['steps']} steps. "
        "Interval 1: the largest difference from a run without the node. True feature: the same for a shallow step "
        "with the deep feature of its own input. Error: the relative difference of the final latent at interval "
        f"{result['interval']}, branch 0, re-use; random weights make it large, and it does not predict image quality "
        "([comfyui_conditions.json](../benchmarks/comfyui_conditions.json)). Others: how other DeepCache nodes "
        "are described to behave; they also [fail in current versions]"
        "(https://github.com/SoftMeng/ComfyUI-DeepCache-Fix/issues/3)."
    )
    rows = ["| condition | interval 1 | true feature | error | steps | others |", "|---|---|---|---|---|---|"]
    for each in result["conditions"]:
        exact = [f"{each[name]:.1g}" for name in ("interval_1", "true_feature")]
        others = _OTHERS.get(each["name"], "")
        rows.append(
            f"| {each['name']} | {' | '.join(exact)} | {each['relative_error']:.1%} | `{each['pattern']}` | {others} |"
        )
    return lead + "\n\n" + "\n".join(rows)

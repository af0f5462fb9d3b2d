"""`deepcache info`: the skip branches of a model and their largest speed-ups."""

from __future__ import annotations

from dataclasses import asdict

from DeepCache.cli.console import explain, print_json, print_table, table
from DeepCache.cli.options import Config, Json, ModelArgument

_INTERVALS = (2, 3, 5)
_STEPS = 50


def info_command(model: ModelArgument = "shapes", *, config: Config = None, as_json: Json = False) -> None:
    """List the skip branches of a model, and an upper bound on the speed-up with each.

    Reads only the configuration of the model, not its weights.

    Example: deepcache info shapes
    """
    from DeepCache.cli.loading import quiet_libraries

    with quiet_libraries():
        from DeepCache.models import describe_pipeline, limit_speed_up, load_without_weights, recommended_guidance

        pipe = load_without_weights(model, config=config)
        found = describe_pipeline(pipe, recommended_guidance(model, pipe))
    if as_json:
        print_json(asdict(found))
        return
    guidance = "with guidance" if found.batch > 1 else "without guidance"
    print(
        f"{found.pipeline} with {found.unet}\n"
        f"One full step takes {found.full_macs / 1e9:.3g} GMAC {guidance} at the default size "
        f"(a U-Net input of {'×'.join(map(str, found.sample))}).\n"
    )
    columns = ("channels", "shallow\nstep", *(f"interval\n{interval}" for interval in _INTERVALS))
    shown = table("branch", "name", *columns, text=["name"], space=0)
    for branch in found.branches:
        limits = (limit_speed_up(interval, branch.mac_share, _STEPS) for interval in _INTERVALS)
        shown.add_row(
            str(branch.number),
            branch.name,
            str(branch.channels),
            f"{branch.mac_share:.1%}",
            *(f"{limit:.2f}×" for limit in limits),
        )
    print_table(shown)
    explain(
        "\nshallow step: multiply-accumulates (MACs) relative to a full step.\n"
        f"interval: speed-up of the U-Net over {_STEPS} steps if its time were proportional to MACs."
    )

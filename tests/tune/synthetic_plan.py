"""A small plan as `tune` makes it, with synthetic results."""

from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule


def measured(cost, psnr, **values):
    return {"cost": cost, "psnr": psnr, "ssim": 0.9, "seconds": 1.0, **values}


def synthetic_plan(uniform=None, predicted_psnr=None, held_out_uniform=26.5, fewer_steps=17.0, scales=None):
    """One that was tuned at guidance 7.5, or at those of `scales`, with the PSNR of the plan and of fewer steps on the
    held-out prompts at each."""
    scales = {7.5: (29.0, fewer_steps)} if scales is None else scales
    predicted = {"cost": 0.28, "psnr": predicted_psnr}
    if uniform is None:
        uniform = [
            measured(0.3, 25.0, name="interval 4, none"),
            measured(0.55, 31.0, name="interval 2, none"),
            measured(0.3, 27.0, name="interval 4, linear"),
            measured(0.25, 26.5, name="interval 4, linear, guidance reuse"),
            measured(0.3, 26.0, name="interval 4, quadratic"),
        ]
    return Plan(
        StepSchedule((Step(True), Step(False))),
        model={},
        scheduler={"class": "DDIMScheduler"},
        tuned={"model": "shapes", "steps": 2},
        results={
            "tuning": {
                "predicted": predicted,
                "measured": measured(0.28, 30.0),
                "seconds_without": 2.0,
                "scales": [
                    {"guidance": scale, "measured": measured(0.28, psnr)} for scale, (psnr, _) in scales.items()
                ],
            },
            "held_out": {
                "predicted": predicted,
                "measured": measured(0.28, 29.0),
                "seconds_without": 2.0,
                "uniform": measured(0.25, held_out_uniform, name="interval 4, linear, guidance reuse"),
                "fewer_steps": measured(0.25, fewer_steps, steps=1),
                "scales": [
                    {
                        "guidance": scale,
                        "measured": measured(0.28, psnr),
                        "fewer_steps": measured(0.25, fewer, steps=1),
                    }
                    for scale, (psnr, fewer) in scales.items()
                ],
            },
            "frontier": {
                "uniform": uniform,
                "fewer_steps": [measured(0.6, 22.0, steps=3), measured(0.25, 17.0, steps=1)],
                "tuned": [measured(0.2, 24.0), measured(0.3, 23.0), measured(0.28, 30.0)],
            },
        },
        guidance=None if None in scales else (min(scales), max(scales)),
    )

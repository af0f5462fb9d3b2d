"""A small plan as `tune` makes it, with made-up results."""

from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule


def measured(cost, psnr, **values):
    return {"cost": cost, "psnr": psnr, "ssim": 0.9, "seconds": 1.0, **values}


def made_up_plan(uniform=None, predicted_psnr=None, held_out_uniform=26.5):
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
            "tuning": {"predicted": predicted, "measured": measured(0.28, 30.0), "seconds_without": 2.0},
            "held_out": {
                "predicted": predicted,
                "measured": measured(0.28, 29.0),
                "seconds_without": 2.0,
                "uniform": measured(0.25, held_out_uniform, name="interval 4, linear, guidance reuse"),
                "fewer_steps": measured(0.25, 17.0, steps=1),
            },
            "frontier": {
                "uniform": uniform,
                "fewer_steps": [measured(0.6, 22.0, steps=3), measured(0.25, 17.0, steps=1)],
                "tuned": [measured(0.2, 24.0), measured(0.3, 23.0), measured(0.28, 30.0)],
            },
        },
    )

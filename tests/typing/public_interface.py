"""What a type checker must accept, and refuse, of the public interface: `make lint` checks this file."""

from __future__ import annotations

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, Plan, Schedule, UniformSchedule, apply_deepcache
from DeepCache.models import load_pipeline


def generate() -> None:
    pipe = load_pipeline("shapes")
    pipe("a red circle", num_inference_steps=6).images[0].save("circle.png")
    engine = apply_deepcache(pipe.unet, DeepCacheConfig(cache_interval=3, forecast="linear"))
    config: DeepCacheConfig = engine.config
    pattern: str = engine.stats.pattern
    reasons: tuple[tuple[int, str], ...] = engine.stats.reasons
    print(config, pattern, reasons)


def options() -> None:
    DeepCacheConfig(skip_mode="adaptive", between="skipped", compile="regional")
    DeepCacheConfig(forecast="cubic")  # type: ignore[arg-type]
    DeepCacheSDHelper().set_params(skip_mode="even")  # type: ignore[arg-type]


def schedules(plan: Plan) -> list[Schedule]:
    return [UniformSchedule(3), plan.schedule]

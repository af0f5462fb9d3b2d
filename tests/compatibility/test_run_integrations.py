"""What acts during a run of a pipeline, beside DeepCache: alone, and in the pairs that people use.

Two checks of `integrations` carry most of these tests: `exact` compares cached runs at several branches with what they
must return, to the last bit, and `as_if_new` compares a pipeline that was changed while DeepCache was on with one that
DeepCache came to afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    LCMScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.callbacks import IPAdapterScaleCutoffCallback, SDCFGCutoffCallback, SDXLControlnetCFGCutoffCallback
from diffusers.models.attention_processor import SlicedAttnProcessor

from tests.compatibility.components import TEXT_WIDTH, clip_text_encoder, clip_tokenizer, image, projecting_text_encoder
from tests.compatibility.integrations import (
    BRANCHES,
    DEEPEST,
    MIDDLE,
    PATTERN,
    SHALLOWEST,
    adapter,
    as_if_new,
    at_the_end_of_step,
    build,
    build_sdxl,
    cached,
    cached_at_each_branch,
    controlnet,
    deep_feature_replaced,
    differing,
    exact,
    generate,
    generate_sdxl,
    helper,
    image_embedding,
    ip_adapter,
    lora,
    normal,
    sdxl_adapter,
    sdxl_controlnet,
    sdxl_unet,
    small_unet,
    watched,
)

EACH_BRANCH = set(BRANCHES)
# Of the five steps the last is shallow; what changes at the end of the last full step is new to that one alone.
LAST_FULL_STEP = PATTERN.rindex("F")
FREEU = {"s1": 0.6, "s2": 0.4, "b1": 1.4, "b2": 1.6}
CONDITION, OTHER_CONDITION = image(1), image(2)
# The same sums, in another order.
CLOSE = {"atol": 1e-3, "rtol": 1e-3}

Run = Callable[[Any], torch.Tensor]


def generating(**call: Any) -> Run:
    """A run with these arguments."""
    return lambda pipe: generate(pipe, **call)


def tensor_changed_for_the_last_step(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    """The arguments of a call that gives the last step another value of a tensor."""

    def change(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return tensors | ({name: tensor} if step == LAST_FULL_STEP else {})

    return {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": [name]}


class TestControlNet:
    @pytest.mark.integration("ControlNet")
    def test_one(self):
        pipe = build(StableDiffusionControlNetPipeline, controlnet=controlnet())
        results = exact(pipe, generating(image=CONDITION))
        assert not torch.equal(results[MIDDLE], cached(pipe, generating(image=OTHER_CONDITION)))

    @pytest.mark.integration("ControlNet")
    def test_a_shallow_step_sees_a_condition_that_changes_at_it(self):
        """The ControlNet runs at every step, and the layers of a shallow step take what it gives there."""
        pipe = build(StableDiffusionControlNetPipeline, controlnet=controlnet())
        change = tensor_changed_for_the_last_step("image", torch.cat([OTHER_CONDITION] * 2))
        unchanged = cached_at_each_branch(pipe, generating(image=CONDITION))
        assert differing(exact(pipe, generating(image=CONDITION, **change)), unchanged) == EACH_BRANCH

    @pytest.mark.integration("ControlNet", "`control_guidance_start` and `control_guidance_end`")
    def test_that_starts_and_ends_within_the_run(self):
        pipe = build(StableDiffusionControlNetPipeline, controlnet=controlnet())
        # It starts at a shallow step, and goes on to the end of the run or of its last full step.
        to_the_end, shorter = (
            exact(pipe, generating(image=CONDITION, control_guidance_start=0.3, control_guidance_end=end))
            for end in (1.0, 0.8)
        )
        assert differing(to_the_end, shorter) == EACH_BRANCH

    @pytest.mark.integration("ControlNet", "guess mode")
    @pytest.mark.parametrize("scale", [7.5, pytest.param(1.0, marks=pytest.mark.integration("Guidance off"))])
    def test_guess_mode(self, scale):
        pipe = build(StableDiffusionControlNetPipeline, controlnet=controlnet())
        results = exact(pipe, generating(image=CONDITION, guess_mode=True, guidance_scale=scale))
        not_guessed = cached(pipe, generating(image=CONDITION, guess_mode=False, guidance_scale=scale))
        assert not torch.equal(results[MIDDLE], not_guessed)

    @pytest.mark.integration("Several ControlNets")
    def test_two(self):
        pipe = build(StableDiffusionControlNetPipeline, controlnet=[controlnet(1), controlnet(2)])
        call = {"image": [CONDITION, OTHER_CONDITION], "controlnet_conditioning_scale": [1.0, 0.5]}
        results = exact(pipe, generating(**call))
        without_the_second = cached(pipe, generating(**call | {"controlnet_conditioning_scale": [1.0, 0.0]}))
        assert not torch.equal(results[MIDDLE], without_the_second)
        second_ends = cached_at_each_branch(pipe, generating(**call, control_guidance_end=[1.0, 0.8]))
        assert differing(results, second_ends) == EACH_BRANCH


class TestT2IAdapter:
    @pytest.mark.integration("T2I-Adapter")
    def test_one(self):
        pipe = build(StableDiffusionAdapterPipeline, adapter=adapter())
        results = exact(pipe, generating(image=CONDITION))
        weaker = cached(pipe, generating(image=CONDITION, adapter_conditioning_scale=0.5))
        assert not torch.equal(results[MIDDLE], weaker)

    @pytest.mark.integration("Several T2I-Adapters")
    def test_two(self):
        pipe = build(StableDiffusionAdapterPipeline, adapter=[adapter(1), adapter(2)])
        images = [CONDITION, OTHER_CONDITION]
        results = exact(pipe, generating(image=images, adapter_conditioning_scale=[0.8, 0.4]))
        without_the_second = cached(pipe, generating(image=images, adapter_conditioning_scale=[0.8, 0.0]))
        assert not torch.equal(results[MIDDLE], without_the_second)

    @pytest.mark.integration("T2I-Adapter", "`adapter_conditioning_factor`")
    def test_that_ends_before_the_last_step(self):
        pipe = build_sdxl(StableDiffusionXLAdapterPipeline, adapter=sdxl_adapter())
        to_the_end, shorter = (
            exact(
                pipe,
                lambda pipe, factor=factor: generate_sdxl(pipe, image=CONDITION, adapter_conditioning_factor=factor),
            )
            for factor in (1.0, 0.8)
        )
        # The shallowest branch keeps no down block, and so takes no residual of the adapter that it could lack.
        assert differing(to_the_end, shorter) == {MIDDLE, DEEPEST}


def load_ip_adapter(pipe: Any, *seeds: int) -> None:
    weights = [ip_adapter(pipe.unet, seed) for seed in seeds]
    names = [""] * len(weights)
    pipe.load_ip_adapter(weights, subfolder=names, weight_name=names, image_encoder_folder=None)


def with_ip_adapter(*seeds: int) -> Any:
    pipe = build()
    load_ip_adapter(pipe, *seeds)
    return pipe


def generating_like(*seeds: int, scale: Any = None, **call: Any) -> Run:
    """A run with an image embedding for every IP-Adapter."""

    def run(pipe: Any) -> torch.Tensor:
        if scale is not None:
            pipe.set_ip_adapter_scale(scale)
        return generate(pipe, ip_adapter_image_embeds=[image_embedding(seed) for seed in seeds], **call)

    return run


class TestIPAdapter:
    @pytest.mark.integration("IP-Adapter")
    def test_one(self):
        pipe = with_ip_adapter(1)
        results = exact(pipe, generating_like(1))
        assert not torch.equal(results[MIDDLE], cached(pipe, generating_like(2)))

    @pytest.mark.integration("IP-Adapter", "scale changed during a run")
    def test_a_shallow_step_sees_a_scale_that_changes_at_it(self):
        pipe = with_ip_adapter(1)
        cutoff = IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=LAST_FULL_STEP)
        unchanged = cached_at_each_branch(pipe, generating_like(1, scale=0.7))
        assert (
            differing(exact(pipe, generating_like(1, scale=0.7, callback_on_step_end=cutoff)), unchanged) == EACH_BRANCH
        )

    @pytest.mark.integration("IP-Adapter", "a scale for each block")
    @pytest.mark.parametrize(
        ("changed", "where"),
        [
            ({"down": {"block_0": 0.2}}, {MIDDLE, DEEPEST}),
            ({"down": {"block_1": 0.2}}, {MIDDLE, DEEPEST}),
            ({"up": {"block_1": 0.2}}, {MIDDLE, DEEPEST}),
            ({"up": {"block_2": 0.2}}, EACH_BRANCH),
        ],
    )
    def test_a_shallow_step_sees_the_scale_of_the_blocks_it_runs_alone(self, changed, where):
        pipe = with_ip_adapter(1)
        scale = {"down": {"block_0": 1.0, "block_1": 1.0}, "up": {"block_1": 1.0, "block_2": 1.0}}
        other = {part: blocks | changed.get(part, {}) for part, blocks in scale.items()}
        callback = at_the_end_of_step(LAST_FULL_STEP, lambda pipe: pipe.set_ip_adapter_scale(other))
        unchanged = cached_at_each_branch(pipe, generating_like(1, scale=scale))
        results = cached_at_each_branch(pipe, generating_like(1, scale=scale, callback_on_step_end=callback))
        assert differing(results, unchanged) == where

    @pytest.mark.integration("Several IP-Adapters")
    def test_two(self):
        pipe = with_ip_adapter(1, 2)
        results = exact(pipe, generating_like(1, 2, scale=[0.7, 0.4]))
        assert not torch.equal(results[MIDDLE], cached(pipe, generating_like(1, 2, scale=[0.7, 0.0])))

    @pytest.mark.integration("IP-Adapter", "loaded while DeepCache is enabled")
    def test_loaded_while_enabled(self):
        as_if_new(lambda pipe: load_ip_adapter(pipe, 1), generating_like(1), run_before=generate)

    @pytest.mark.integration("IP-Adapter", "unloaded while DeepCache is enabled")
    def test_unloaded_while_enabled(self):
        after = as_if_new(
            lambda pipe: pipe.unload_ip_adapter(),
            generate,
            start=lambda: with_ip_adapter(1),
            run_before=generating_like(1),
        )
        assert torch.equal(after, cached(build(), generate))


def load_lora(pipe: Any, seed: int = 1, **weights: Any) -> None:
    pipe.load_lora_weights(lora(type(pipe.unet).from_config(pipe.unet.config), seed, **weights), adapter_name=str(seed))


def with_lora(*seeds: int, **weights: Any) -> Any:
    """A pipeline with LoRAs, of which the first is active."""
    pipe = build()
    for seed in seeds:
        load_lora(pipe, seed, **weights)
    pipe.set_adapters(str(seeds[0]))
    return pipe


two_loras = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")


class TestLoRA:
    @pytest.mark.integration("LoRA")
    def test_one(self):
        pipe = with_lora(1)
        results = exact(pipe, generate)
        assert not torch.equal(results[MIDDLE], cached(build(), generate))

    @pytest.mark.integration("LoRA", "loaded while DeepCache is enabled")
    def test_loaded_while_enabled(self):
        as_if_new(load_lora, generate)

    @pytest.mark.integration("LoRA", "scale of a call")
    def test_scale_of_a_call(self):
        pipe = with_lora(1)
        results = exact(pipe, generating(cross_attention_kwargs={"scale": 0.5}))
        assert not torch.equal(results[MIDDLE], cached(pipe, generate))
        nothing = cached(pipe, generating(cross_attention_kwargs={"scale": 0.0}))
        torch.testing.assert_close(nothing, cached(build(), generate), **CLOSE)

    @pytest.mark.integration("LoRA", "weights of its parts, changed during a run")
    @pytest.mark.parametrize(("part", "where"), [("down", {MIDDLE, DEEPEST}), ("mid", set()), ("up", EACH_BRANCH)])
    def test_a_shallow_step_sees_the_weights_of_the_layers_it_runs_alone(self, part, where):
        pipe = with_lora(1)
        weights = {"down": 1.0, "mid": 1.0, "up": 1.0}

        def run(pipe: Any, weight: float) -> torch.Tensor:
            pipe.set_adapters("1", {"unet": weights})
            change = at_the_end_of_step(
                LAST_FULL_STEP, lambda pipe: pipe.set_adapters("1", {"unet": weights | {part: weight}})
            )
            return generate(pipe, callback_on_step_end=change)

        results, unchanged = (
            cached_at_each_branch(pipe, lambda pipe, weight=weight: run(pipe, weight)) for weight in (0.3, 1.0)
        )
        assert differing(results, unchanged) == where

    @pytest.mark.integration("LoRA", "several at once, with weights")
    @two_loras
    def test_two_with_weights(self):
        pipe = with_lora(1, 2)
        without_the_second = cached(pipe, generate)
        pipe.set_adapters(["1", "2"], [1.0, 0.4])
        assert not torch.equal(exact(pipe, generate)[MIDDLE], without_the_second)

    @pytest.mark.integration("LoRA", "switched while DeepCache is enabled")
    @two_loras
    def test_switched_while_enabled(self):
        after = as_if_new(lambda pipe: pipe.set_adapters("2"), generate, start=lambda: with_lora(1, 2))
        assert torch.equal(after, cached(with_lora(2), generate))

    @pytest.mark.integration("LoRA", "disabled and enabled while DeepCache is enabled")
    def test_disabled_and_enabled(self):
        pipe = with_lora(1)
        expected = cached(pipe, generate)
        with helper(pipe):
            pipe.disable_lora()
            assert torch.equal(generate(pipe), cached(build(), generate))
            pipe.enable_lora()
            assert torch.equal(generate(pipe), expected)

    @pytest.mark.integration("LoRA", "fused and unfused while DeepCache is enabled")
    def test_fused_and_unfused_while_enabled(self):
        def fuse(pipe: Any) -> None:
            pipe.fuse_lora(components=["unet"], lora_scale=0.7)

        def fused() -> Any:
            pipe = with_lora(1)
            fuse(pipe)
            return pipe

        def unfuse(pipe: Any) -> None:
            pipe.unfuse_lora(components=["unet"])
            pipe.unload_lora_weights()

        as_if_new(fuse, generate, start=lambda: with_lora(1))
        after = as_if_new(unfuse, generate, start=fused)
        torch.testing.assert_close(after, cached(build(), generate), **CLOSE)

    @pytest.mark.integration("LoRA", "unloaded while DeepCache is enabled")
    def test_unloaded_while_enabled(self):
        after = as_if_new(lambda pipe: pipe.unload_lora_weights(), generate, start=lambda: with_lora(1))
        assert torch.equal(after, cached(build(), generate))

    @pytest.mark.integration("DoRA")
    def test_dora(self):
        pipe = with_lora(1, dora=True)
        results = exact(pipe, generate)
        assert not torch.equal(results[MIDDLE], cached(with_lora(1), generate))


def with_freeu() -> Any:
    pipe = build()
    pipe.enable_freeu(**FREEU)
    return pipe


class TestFreeU:
    @pytest.mark.integration("FreeU")
    def test_on(self):
        results = exact(with_freeu(), generate)
        assert differing(results, cached_at_each_branch(build(), generate)) == EACH_BRANCH

    @pytest.mark.integration("FreeU", "switched while DeepCache is enabled")
    def test_switched_while_enabled(self):
        as_if_new(lambda pipe: pipe.enable_freeu(**FREEU), generate)
        after = as_if_new(lambda pipe: pipe.disable_freeu(), generate, start=with_freeu)
        assert torch.equal(after, cached(build(), generate))

    @pytest.mark.integration("FreeU", "switched during a run")
    def test_switched_on_within_the_run(self):
        def run(pipe: Any) -> torch.Tensor:
            pipe.disable_freeu()
            change = at_the_end_of_step(LAST_FULL_STEP, lambda pipe: pipe.enable_freeu(**FREEU))
            return generate(pipe, callback_on_step_end=change)

        pipe = build()
        unchanged = cached_at_each_branch(pipe, generate)
        # It acts on the two deepest of the three up blocks, and the shallowest branch keeps none of them.
        assert differing(exact(pipe, run), unchanged) == {MIDDLE, DEEPEST}


def cut_off_guidance(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == 1:
        pipe._guidance_scale = 1.0
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
    return tensors


def lower_guidance(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    pipe._guidance_scale = 7.5 - step
    return tensors


def lcm() -> LCMScheduler:
    return LCMScheduler(beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False)


class TestGuidance:
    @pytest.mark.integration("guidance_rescale")
    def test_rescale(self):
        pipe = build()
        results = exact(pipe, generating(guidance_rescale=0.7))
        assert not torch.equal(results[MIDDLE], cached(pipe, generate))

    @pytest.mark.integration("Guidance off")
    def test_off(self):
        pipe = build()
        results = exact(pipe, generating(guidance_scale=1.0))
        assert not torch.equal(results[MIDDLE], cached(pipe, generate))

    @pytest.mark.integration("Guidance off")
    def test_off_and_on_again_between_two_runs(self):
        pipe = build()
        expected = [cached(pipe, generating(guidance_scale=scale)) for scale in (7.5, 1.0, 7.5)]
        with helper(pipe), watched(pipe.unet) as calls:
            results = [generate(pipe, guidance_scale=scale) for scale in (7.5, 1.0, 7.5)]
        assert "".join(calls) == PATTERN * 3
        assert all(map(torch.equal, results, expected))

    @pytest.mark.integration("Guidance cut off in mid-run", "the next step is full")
    def test_cut_off_in_mid_run(self):
        call = {"steps": 6, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        pipe = build()
        results = exact(pipe, generating(callback_on_step_end=cut_off_guidance, **call), pattern="F.FF..")
        assert not torch.equal(results[MIDDLE], cached(pipe, generating(**call)))

    @pytest.mark.integration("Guidance cut off in mid-run")
    def test_cut_off_by_the_callback_of_diffusers_before_a_full_step(self):
        pipe = build()
        results = exact(pipe, generating(callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.4)))
        assert not torch.equal(results[MIDDLE], cached(pipe, generate))

    @pytest.mark.integration("ControlNet + guidance cut off in mid-run", "the next step is full")
    def test_cut_off_with_a_controlnet(self):
        cut = SDXLControlnetCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
        pipe = build_sdxl(StableDiffusionXLControlNetPipeline, controlnet=sdxl_controlnet())
        exact(pipe, lambda pipe: generate_sdxl(pipe, image=CONDITION, callback_on_step_end=cut), pattern="F.FF.")

    @pytest.mark.integration("Dynamic guidance", "a different scale at every step")
    def test_dynamic(self):
        pipe = build()
        results = exact(pipe, generating(callback_on_step_end=lower_guidance))
        assert not torch.equal(results[MIDDLE], cached(pipe, generate))

    @pytest.mark.integration("Guidance embedded in the U-Net", "as in latent consistency models")
    def test_embedded_in_the_unet(self):
        pipe = build(unet=small_unet(time_cond_proj_dim=8), scheduler=lcm())
        results = exact(pipe, generating(guidance_scale=8.0))
        assert not torch.equal(results[MIDDLE], cached(pipe, generating(guidance_scale=4.0)))


class TestPAG:
    """Perturbed-attention guidance: a further part of the batch, perturbed in some self-attention layers."""

    @pytest.mark.integration("PAG")
    @pytest.mark.parametrize("layers", ["mid", "up_blocks.2"])
    @pytest.mark.parametrize("scale", [7.5, pytest.param(1.0, marks=pytest.mark.integration("Guidance off"))])
    def test_in_deep_and_in_shallow_layers(self, scale, layers):
        pipe = build(StableDiffusionPAGPipeline, pag_applied_layers=[layers])
        results = exact(pipe, generating(guidance_scale=scale, pag_scale=3.0))
        assert not torch.equal(results[MIDDLE], cached(pipe, generating(guidance_scale=scale, pag_scale=1.0)))

    @pytest.mark.integration("PAG", "adaptive scale")
    def test_adaptive_scale(self):
        pipe = build(StableDiffusionPAGPipeline, pag_applied_layers=["mid"])
        results = exact(pipe, generating(pag_scale=3.0, pag_adaptive_scale=0.005))
        assert not torch.equal(results[MIDDLE], cached(pipe, generating(pag_scale=3.0)))

    @pytest.mark.integration("PAG")
    def test_off_and_on_again_between_two_runs(self):
        pipe = build(StableDiffusionPAGPipeline, pag_applied_layers=["mid"])
        expected = [cached(pipe, generating(pag_scale=scale)) for scale in (3.0, 0.0, 3.0)]
        with helper(pipe), watched(pipe.unet) as calls:
            results = [generate(pipe, pag_scale=scale) for scale in (3.0, 0.0, 3.0)]
        assert "".join(calls) == PATTERN * 3
        assert all(map(torch.equal, results, expected))

    @pytest.mark.integration("PAG + ControlNet")
    def test_with_a_controlnet(self):
        pipe = build(StableDiffusionControlNetPAGPipeline, controlnet=controlnet(), pag_applied_layers=["mid"])
        results = exact(pipe, generating(image=CONDITION, pag_scale=3.0))
        assert not torch.equal(results[MIDDLE], cached(pipe, generating(image=OTHER_CONDITION, pag_scale=3.0)))
        assert not torch.equal(results[MIDDLE], cached(pipe, generating(image=CONDITION, pag_scale=1.0)))


class TestPrompt:
    @pytest.mark.integration("Textual inversion", "loaded and unloaded while DeepCache is enabled")
    def test_textual_inversion(self):
        def start() -> Any:
            return build(text_encoder=copy.deepcopy(clip_text_encoder()), tokenizer=copy.deepcopy(clip_tokenizer()))

        def load(pipe: Any) -> None:
            pipe.load_textual_inversion({"<thing>": normal(3, 2, TEXT_WIDTH)})

        def loaded() -> Any:
            pipe = start()
            load(pipe)
            return pipe

        run = generating(prompt="a red <thing>")
        exact(loaded(), run)
        as_if_new(load, run, start=start)
        after = as_if_new(lambda pipe: pipe.unload_textual_inversion(), run, start=loaded)
        assert torch.equal(after, cached(build(), run))

    @pytest.mark.integration("clip_skip")
    def test_clip_skip(self):
        pipe = build_sdxl(
            StableDiffusionXLPipeline, text_encoder_2=projecting_text_encoder(), tokenizer_2=clip_tokenizer()
        )
        results = exact(pipe, generating(clip_skip=1))
        assert not torch.equal(results[MIDDLE], cached(pipe, generate))

    @pytest.mark.integration("Prompt embeddings")
    def test_embeddings_given(self):
        pipe = build()
        embeddings, negative = pipe.encode_prompt("a red circle", "cpu", 1, True, "a blue square")
        results = exact(pipe, generating(prompt=None, prompt_embeds=embeddings, negative_prompt_embeds=negative))
        assert differing(results, cached_at_each_branch(pipe, generating(negative_prompt="a blue square"))) == set()

    @pytest.mark.integration("Prompt embeddings", "changed during a run")
    def test_a_step_at_which_the_prompt_changes_is_full(self):
        pipe = build()
        embeddings, negative = pipe.encode_prompt("a blue square", "cpu", 1, True)
        change = tensor_changed_for_the_last_step("prompt_embeds", torch.cat([negative, embeddings]))
        results = exact(pipe, generating(**change), f"{PATTERN[:-1]}F")
        assert differing(results, cached_at_each_branch(pipe, generate)) == EACH_BRANCH

    @pytest.mark.integration("Several images per prompt")
    def test_several_images_per_prompt(self):
        pipe, noise = build(), normal(1, 2, 4, 8, 8)
        results = exact(pipe, generating(num_images_per_prompt=2, latents=noise))
        for number, together in enumerate(results[MIDDLE].split(1)):
            alone = cached(pipe, generating(latents=noise[number : number + 1]))
            torch.testing.assert_close(together, alone, **CLOSE)

    @pytest.mark.integration("Several prompts at once")
    def test_several_prompts_at_once(self):
        pipe, noise = build(), normal(1, 3, 4, 8, 8)
        prompts = ["a red circle", "a blue square", "a green triangle"]
        results = exact(pipe, generating(prompt=prompts, latents=noise))
        for number, together in enumerate(results[MIDDLE].split(1)):
            alone = cached(pipe, generating(prompt=prompts[number], latents=noise[number : number + 1]))
            torch.testing.assert_close(together, alone, **CLOSE)


class TestSlicing:
    @pytest.mark.integration("VAE slicing and tiling")
    @pytest.mark.parametrize("switch", ["slicing", "tiling"])
    def test_of_the_vae(self, switch):
        def start() -> Any:
            pipe = build()
            pipe.vae = copy.deepcopy(pipe.vae)
            pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 4, 32
            return pipe

        def turn_on(pipe: Any) -> None:
            getattr(pipe.vae, f"enable_{switch}")()

        decoded: list[torch.Size] = []

        def run(pipe: Any) -> torch.Tensor:
            decoded.clear()
            handle = pipe.vae.decoder.register_forward_pre_hook(lambda module, args: decoded.append(args[0].shape))
            images = generate(pipe, num_images_per_prompt=2, output_type="pt")
            handle.remove()
            return images

        as_if_new(turn_on, run, start=start)
        assert len(decoded) > 1

    @pytest.mark.integration("Attention slicing")
    def test_of_the_attention(self):
        pipe = build()
        pipe.enable_attention_slicing(1)
        results = exact(pipe, generate)
        assert any(isinstance(processor, SlicedAttnProcessor) for processor in pipe.unet.attn_processors.values())
        torch.testing.assert_close(results[MIDDLE], cached(build(), generate), **CLOSE)

    @pytest.mark.integration("Attention slicing", "switched while DeepCache is enabled")
    def test_of_the_attention_switched_while_enabled(self):
        as_if_new(lambda pipe: pipe.enable_attention_slicing(1), generate)


class TestRun:
    @pytest.mark.integration("Interrupt", "the next run is unaffected")
    @pytest.mark.parametrize("step", [0, 1, LAST_FULL_STEP])
    def test_the_run_after_an_interrupted_one_is_clean(self, step):
        def interrupt(pipe: Any, at: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = at == step
            return tensors

        pipe = build()
        expected = cached(pipe, generate)
        with helper(pipe), watched(pipe.unet) as calls:
            generate(pipe, "a blue square", callback_on_step_end=interrupt)
            assert torch.equal(generate(pipe), expected)
        assert "".join(calls) == PATTERN[: step + 1] + PATTERN

    @pytest.mark.integration("DDIM with eta", "adds noise at every step")
    def test_noise_at_every_step(self):
        pipe = build()
        results = exact(pipe, generating(eta=1.0))
        assert not torch.equal(results[MIDDLE], cached(pipe, generate))


class TestPairs:
    @pytest.mark.integration("LCM-LoRA", "`LCMScheduler`, a LoRA and no guidance")
    def test_lcm_lora(self):
        pipe = build(scheduler=lcm())
        without = cached(pipe, generating(guidance_scale=1.0))
        load_lora(pipe)
        assert not torch.equal(exact(pipe, generating(guidance_scale=1.0))[MIDDLE], without)

    @pytest.mark.integration("Image to image + LoRA")
    def test_image_to_image_with_lora(self):
        pipe, run = build(StableDiffusionImg2ImgPipeline), generating(steps=10, image=image(3), strength=0.5)
        without = cached(pipe, run)
        load_lora(pipe)
        assert not torch.equal(exact(pipe, run)[MIDDLE], without)

    @pytest.mark.integration("ControlNet + IP-Adapter")
    def test_controlnet_with_ip_adapter(self):
        pipe = build(StableDiffusionControlNetPipeline, controlnet=controlnet())
        load_ip_adapter(pipe, 1)
        results = exact(pipe, generating_like(1, image=CONDITION))
        assert not torch.equal(results[MIDDLE], cached(pipe, generating_like(2, image=CONDITION)))
        assert not torch.equal(results[MIDDLE], cached(pipe, generating_like(1, image=OTHER_CONDITION)))

    @pytest.mark.integration("ControlNet + LoRA")
    def test_controlnet_with_lora(self):
        def start() -> Any:
            return build(StableDiffusionControlNetPipeline, controlnet=controlnet())

        pipe, run = start(), generating(image=CONDITION)
        load_lora(pipe)
        results = exact(pipe, run)
        assert not torch.equal(results[MIDDLE], cached(pipe, generating(image=OTHER_CONDITION)))
        as_if_new(load_lora, run, start=start)

    @pytest.mark.integration("T2I-Adapter + LoRA")
    def test_t2i_adapter_with_lora(self):
        pipe = build_sdxl(StableDiffusionXLAdapterPipeline, adapter=sdxl_adapter())
        runs = [lambda pipe, seed=seed: generate_sdxl(pipe, image=image(seed)) for seed in (1, 2)]
        without = cached(pipe, runs[0])
        load_lora(pipe)
        results = exact(pipe, runs[0])
        assert not torch.equal(results[MIDDLE], without)
        assert not torch.equal(results[MIDDLE], cached(pipe, runs[1]))

    @pytest.mark.integration("IP-Adapter + LoRA")
    def test_ip_adapter_with_lora(self):
        pipe = with_ip_adapter(1)
        without = cached(pipe, generating_like(1))
        load_lora(pipe)
        results = exact(pipe, generating_like(1))
        assert not torch.equal(results[MIDDLE], without)
        assert not torch.equal(results[MIDDLE], cached(pipe, generating_like(2)))

    @pytest.mark.integration("FreeU + LoRA")
    def test_freeu_with_lora(self):
        pipe = with_lora(1)
        without = cached_at_each_branch(pipe, generate)
        pipe.enable_freeu(**FREEU)
        assert differing(exact(pipe, generate), without) == EACH_BRANCH
        as_if_new(load_lora, generate, start=with_freeu)


class TestBaseAndRefiner:
    @pytest.mark.integration("SDXL base and refiner", "a helper with its own settings for each")
    @pytest.mark.parametrize("branches", [(SHALLOWEST, DEEPEST), (MIDDLE, SHALLOWEST), (DEEPEST, MIDDLE)])
    def test_refiner_continues_after_the_base(self, branches):
        """Of ten steps the base takes six and the refiner four."""
        base = build_sdxl(StableDiffusionXLPipeline)
        refiner = build_sdxl(
            StableDiffusionXLImg2ImgPipeline, unet=sdxl_unet(time_ids=5), requires_aesthetics_score=True
        )

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            handed_over = generate_sdxl(base, steps=10, denoising_end=0.6)
            return handed_over, generate_sdxl(refiner, steps=10, denoising_start=0.6, image=handed_over)

        plain = run()
        patterns = ("F..F..", "F.F.")
        with (
            deep_feature_replaced(base.unet, branches[0], patterns[0]),
            deep_feature_replaced(refiner.unet, branches[1], patterns[1]),
        ):
            expected = run()
        with (
            helper(base, branches[0], interval=3),
            helper(refiner, branches[1], interval=2),
            watched(base.unet) as calls_of_base,
            watched(refiner.unet) as calls_of_refiner,
        ):
            results = [run(), run()]
        assert ("".join(calls_of_base), "".join(calls_of_refiner)) == (patterns[0] * 2, patterns[1] * 2)
        assert all(map(torch.equal, results[0], expected))
        assert all(map(torch.equal, results[1], expected))
        assert not any(map(torch.equal, plain, expected))
        assert all(map(torch.equal, run(), plain))

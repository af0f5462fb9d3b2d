"""Editors such as MasaCtrl and Prompt-to-Prompt replace the `forward` of attention layers and count the calls. A
shallow step calls fewer, so they are refused by name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from tests.engine.tiny_pipeline import generate, tiny_pipeline

INTERVAL = DeepCacheConfig(3, forecast="none")


class MutualSelfAttention:
    """Uses the keys and values of the first image for all images, from a step and a layer on."""

    def __init__(self, first_step=1, first_layer=4):
        self.num_att_layers = -1
        self.step, self.layer = 0, 0
        self._first = first_step, first_layer

    def __call__(self, attention, hidden_states, context):
        chosen = (self.step, self.layer) >= self._first and context is None
        self.layer += 1
        if self.layer == self.num_att_layers:
            self.step, self.layer = self.step + 1, 0
        if chosen:
            context = hidden_states[:1].expand_as(hidden_states)
        return type(attention).forward(attention, hidden_states, context)


def register(unet, editor):
    """Attaches an editor to all attention layers, and returns a function that detaches it."""

    def edited(attention):
        def forward(hidden_states, encoder_hidden_states=None, **options):
            return editor(attention, hidden_states, encoder_hidden_states)

        return forward

    layers = [module for module in unet.modules() if type(module).__name__ == "Attention"]
    for layer in layers:
        layer.forward = edited(layer)
    editor.num_att_layers = len(layers)

    def unregister():
        for layer in layers:
            del layer.forward

    return unregister


@pytest.mark.parametrize("registered", ["before", "after"])
def test_editor_is_refused_by_name_at_the_first_call(registered):
    pipe, plain = tiny_pipeline(), tiny_pipeline()
    editor, of_plain = MutualSelfAttention(), MutualSelfAttention()
    if registered == "before":
        unregister = register(pipe.unet, editor)
    helper = DeepCacheSDHelper(pipe)
    helper.enable()
    if registered == "after":
        unregister = register(pipe.unet, editor)
    helper.set_params(cache_interval=3)
    for _ in range(2):
        with pytest.raises(ValueError, match="a MutualSelfAttention counts the calls of attention layers"):
            generate(pipe)
    assert (editor.step, editor.layer) == (0, 0)
    helper.disable()
    register(plain.unet, of_plain)
    assert torch.equal(generate(pipe), generate(plain))
    assert editor.step == of_plain.step
    unregister()


def test_pipeline_is_cached_again_without_the_editor():
    pipe, other = tiny_pipeline(), tiny_pipeline()
    apply_deepcache(other, INTERVAL)
    unregister = register(pipe.unet, MutualSelfAttention())
    engine = apply_deepcache(pipe, INTERVAL)
    with pytest.raises(ValueError, match="MutualSelfAttention"):
        generate(pipe)
    unregister()
    assert torch.equal(generate(pipe), generate(other))
    assert engine.pattern == "F..F.."


def test_editor_attached_later_is_refused_at_the_next_run():
    pipe = tiny_pipeline()
    apply_deepcache(pipe, INTERVAL)
    generate(pipe)
    unregister = register(pipe.unet, MutualSelfAttention())
    with pytest.raises(ValueError, match="MutualSelfAttention"):
        generate(pipe)
    unregister()
    generate(pipe)


def test_editor_works_if_every_step_is_full():
    pipe, plain = tiny_pipeline(), tiny_pipeline()
    editor, of_plain = MutualSelfAttention(), MutualSelfAttention()
    register(pipe.unet, editor)
    register(plain.unet, of_plain)
    apply_deepcache(pipe, DeepCacheConfig(1, forecast="none"))
    assert torch.equal(generate(pipe), generate(plain))
    assert editor.step == of_plain.step == 6


def test_other_replaced_forward_is_cached():
    pipe = tiny_pipeline()
    scale = torch.tensor(0.5)

    def scaled(attention):
        def forward(hidden_states, encoder_hidden_states=None, **options):
            return scale * type(attention).forward(attention, hidden_states, encoder_hidden_states)

        return forward

    for module in pipe.unet.modules():
        if type(module).__name__ == "Attention":
            module.forward = scaled(module)
    engine = apply_deepcache(pipe, INTERVAL)
    generate(pipe)
    assert engine.pattern == "F..F.."


def test_closure_over_an_unbound_name():
    pipe = tiny_pipeline()
    layer = next(module for module in pipe.unet.modules() if type(module).__name__ == "Attention")

    def forward(hidden_states, encoder_hidden_states=None, **options):
        return (
            never(hidden_states)
            if "never" in options
            else type(layer).forward(layer, hidden_states, encoder_hidden_states)
        )

    if pipe is None:
        never = None
    layer.forward = forward
    engine = apply_deepcache(pipe, INTERVAL)
    generate(pipe)
    assert engine.pattern == "F..F.."


class Counting(AttnProcessor):
    """Current Prompt-to-Prompt: each layer has a processor, and all share a controller."""

    def __init__(self, controller, place):
        self.controller, self._place = controller, place

    def __call__(self, attention, hidden_states, encoder_hidden_states=None, **options):
        self.controller.seen.append((self.controller.step, self.controller.layer, self._place))
        self.controller.layer += 1
        if self.controller.layer == self.controller.num_att_layers:
            self.controller.step, self.controller.layer = self.controller.step + 1, 0
        return super().__call__(attention, hidden_states, encoder_hidden_states)


def test_processors_that_share_a_controller_count_each_layer():
    """A shallow step calls the deep layers for them."""
    pipes = tiny_pipeline(), tiny_pipeline()
    engine = apply_deepcache(pipes[0], INTERVAL)
    seen = []
    for pipe in pipes:
        controller = SimpleNamespace(seen=[], step=0, layer=0, num_att_layers=len(pipe.unet.attn_processors))
        pipe.unet.set_attn_processor({name: Counting(controller, name) for name in pipe.unet.attn_processors})
        generate(pipe)
        seen.append(controller.seen)
    assert engine.pattern == "F..F.."
    assert seen[0] == seen[1]

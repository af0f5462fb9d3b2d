import torch
from transformers import CLIPTokenizer

from training.captions import held_out_scenes, read_held_out, training_scenes
from training.parallel import Replicas
from training.scenes import render_uint8
from training.tokenizer import build_tokenizer, words


def test_no_training_caption_is_held_out():
    held_out = set(read_held_out())
    assert len(held_out) >= 128
    assert held_out.isdisjoint(scene.caption for scene in training_scenes(3000, seed=2))
    assert {scene.caption for scene in held_out_scenes(200, seed=3)}.isdisjoint(
        scene.caption for scene in training_scenes(3000, seed=2)
    )


def test_a_scene_looks_the_same_from_the_same_seed():
    scenes = training_scenes(8, seed=4)
    first, again, other = (render_uint8(scenes, seed) for seed in (5, 5, 6))
    assert first.shape == (8, 3, 64, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_word_is_one_token_after_a_round_trip(tmp_path):
    build_tokenizer().save_pretrained(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    for word in words():
        assert len(tokenizer(word)["input_ids"]) == 3  # with a start and an end


def test_replicas_learn_what_one_model_would():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
    rows = torch.randn(6, 3, dtype=torch.float64)
    model(rows).pow(2).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    total = Replicas(model, 2).backward(
        lambda replica, part: replica(rows[part]).pow(2).sum(), torch.arange(6).split(3)
    )
    assert torch.isclose(torch.tensor(total).double(), model(rows).pow(2).sum())
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)

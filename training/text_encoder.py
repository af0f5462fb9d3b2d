"""The text encoder: trained on captions alone to predict which object is where, then frozen.

Every token of the output can be seen by the U-Net's cross-attention, the padding too, so the
padding is put to use: by its position each padding token learns to stand for the first, the
second or the third object or for the background, and the end token for the whole scene.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from DeepCache.judge.captions import (
    BACKGROUNDS,
    COLOURS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
)
from training.captions import held_out_scenes, training_scenes
from training.progress import CsvLog, cosine_rate, progress_bar, save_model, set_rate
from training.tokenizer import MAX_LENGTH, build_tokenizer

RATE = 2e-3
BATCH = 128
POOL = 60_000
IGNORED = -100  # the label that cross_entropy ignores

# The parts of an object to predict; the last class of each means that the object is absent.
PARTS = {
    "colour": len(COLOURS) + 1,
    "shape": len(SHAPES) + 1,
    "size": len(SIZES) + 1,
    "texture": len(TEXTURES) + 1,
    "place": 9 + 1,
}
_PART_SIZES = list(PARTS.values())
_OBJECT_WIDTH = sum(_PART_SIZES)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text model with random weights; unused symbols start as zeros."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            projection_dim=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    used = encode_captions(tokenizer, [s.caption for s in training_scenes(4000, 0)]).unique()
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        unused = torch.ones(len(table), dtype=torch.bool)
        unused[used] = False
        table[unused] = 0
    return model


def encode_captions(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token numbers, padded to the full length as the pipeline pads them."""
    encoded = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


@dataclass
class Lesson:
    """Captions as tokens, and the labels of each token.

    ``own`` holds, per token, the parts of the one object that the token stands for, ``ground``
    the background, and ``scene``, for the end token alone, the parts of all three objects.
    """

    ids: Tensor
    own: Tensor
    ground: Tensor
    scene: Tensor


def _parts(scene: Scene, index: int) -> list[int]:
    """The classes of an object's parts, or the absent classes where there is no such object."""
    if index >= len(scene.objects):
        return [size - 1 for size in _PART_SIZES]
    item, (x, y) = scene.objects[index], scene.places[index]
    place = 3 * _third(y) + _third(x)
    return [
        COLOURS.index(item.colour),
        SHAPES.index(item.shape),
        SIZES.index(item.size),
        TEXTURES.index(item.texture),
        place,
    ]


def _third(share: float) -> int:
    """The third of the image that a position is in."""
    return min(2, int(share * 3))


def make_lesson(scenes: list[Scene], tokenizer: CLIPTokenizer) -> Lesson:
    """Tokens and labels of scenes."""
    ids = encode_captions(tokenizer, [scene.caption for scene in scenes])
    parts = torch.tensor([[_parts(scene, k) for k in range(MAX_OBJECTS)] for scene in scenes])
    grounds = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
    own = torch.full((*ids.shape, len(PARTS)), IGNORED)
    ground = torch.full(ids.shape, IGNORED)

    # Shape words know their own adjectives (not the position, which may follow).
    shape_ids = torch.tensor(tokenizer.convert_tokens_to_ids([f"{name}</w>" for name in SHAPES]))
    is_shape = torch.isin(ids, shape_ids)
    rank = (is_shape.cumsum(1) - 1).clamp(0, MAX_OBJECTS - 1)
    told = parts.gather(1, rank[:, :, None].expand(-1, -1, len(PARTS)))
    told[:, :, -1] = IGNORED
    own[is_shape] = told[is_shape]

    # Padding takes turns: the first, second and third object, then the background.
    end = (ids == tokenizer.eos_token_id).int().argmax(1)
    position = torch.arange(MAX_LENGTH).expand_as(ids)
    padding = position > end[:, None]
    for role in range(MAX_OBJECTS):
        mine = padding & (position % 4 == role)
        own[mine] = parts[:, role, None].expand(-1, MAX_LENGTH, -1)[mine]
    at_end = position == end[:, None]
    knows_ground = at_end | (padding & (position % 4 == 3))
    ground[knows_ground] = grounds[:, None].expand_as(ids)[knows_ground]
    return Lesson(ids, own, ground, parts)


class Teacher(nn.Module):
    """The text encoder with its training heads."""

    def __init__(self, encoder: CLIPTextModel, end_token: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.end_token = end_token
        width = encoder.config.hidden_size
        self.own = nn.Linear(width, _OBJECT_WIDTH)
        self.ground = nn.Linear(width, len(BACKGROUNDS))
        self.scene = nn.Linear(width, MAX_OBJECTS * _OBJECT_WIDTH)

    def forward(self, lesson: Lesson) -> list[tuple[Tensor, Tensor]]:
        """Pairs of logits and labels, one pair a part."""
        hidden = self.encoder(input_ids=lesson.ids).last_hidden_state
        end = (lesson.ids == self.end_token).int().argmax(1)
        whole = self.scene(hidden[torch.arange(len(end)), end]).unflatten(1, (MAX_OBJECTS, -1))
        told = lesson.own[..., 0] != IGNORED
        pairs = [(self.ground(hidden).flatten(0, 1), lesson.ground.flatten())]
        for logits, labels in (
            (self.own(hidden[told]), lesson.own[told]),
            (whole.flatten(0, 1), lesson.scene.flatten(0, 1)),
        ):
            split = logits.split(_PART_SIZES, dim=-1)
            pairs += [(part, labels[:, index]) for index, part in enumerate(split)]
        return pairs


def _accuracy(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The share of correct labels over all parts."""
    right = sum(int(((logits.argmax(-1) == y) & (y != IGNORED)).sum()) for logits, y in pairs)
    return right / sum(int((labels != IGNORED).sum()) for _, labels in pairs)


def train_text_encoder(folder: Path, log: CsvLog, seed: int, steps: int) -> None:
    """Train the text encoder and save it with its tokenizer under the folder."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(tokenizer)
    teacher = Teacher(encoder, tokenizer.eos_token_id)
    lesson = make_lesson(training_scenes(POOL, seed), tokenizer)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=RATE, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(seed)
    started, total = time.time(), 0.0
    with progress_bar() as bar:
        task = bar.add_task("text encoder", total=steps, note="")
        for step in range(steps):
            rate = cosine_rate(RATE, step / steps, step, warm_up=50)
            set_rate(optimizer, rate)
            chosen = torch.randint(POOL, (BATCH,), generator=generator)
            pairs = teacher(_choose(lesson, chosen))
            loss = torch.stack([functional.cross_entropy(*pair) for pair in pairs]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
            if (step + 1) % 25 == 0:
                log.add("text", step + 1, time.time() - started, total / 25, rate)
                bar.update(task, completed=step + 1, note=f"loss {total / 25:.4f}")
                total = 0.0
    encoder.eval()
    with torch.no_grad():
        told = _accuracy(teacher(make_lesson(held_out_scenes(1024, seed), tokenizer)))
    print(f"text encoder: {100 * told:.2f} % of parts right on held-out captions")
    tokenizer.save_pretrained(folder / "tokenizer")
    save_model(encoder, folder / "text_encoder")


def _choose(lesson: Lesson, rows: Tensor) -> Lesson:
    """Some rows of a lesson."""
    return Lesson(lesson.ids[rows], lesson.own[rows], lesson.ground[rows], lesson.scene[rows])

"""The model card: what the model knows, and how well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from DeepCache.judge.captions import BACKGROUNDS, COLOURS, SHAPES

_CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# shapes

A small latent text-to-image model with the topology of Stable Diffusion 1.5: four levels, two
layers per block and cross-attention in the first three, so twelve branches. It was trained from
scratch for DeepCache's examples and tests, and loads with the standard
`StableDiffusionPipeline`. It generates one to three plain objects in 64×64 pixels.

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained(folder)
caption = "a red circle left of a blue square"
image = pipeline(caption, guidance_scale={guidance}).images[0]
```

## Vocabulary

- Colours: {colours}.
- Shapes: {shapes}.
- Before the colour, all optional: *small* or *big*, then *striped*, *spotted* or *checkered*.
- Backgrounds, at the end: {backgrounds}.
  Without one, a light studio backdrop.
- Two objects: *a red circle left of a blue square*, *right of*, *above* or *below*.
- Three: *a red circle left of a blue square, with a green star above* (or *below*), and
  *a red circle above a blue square, with a green star on the left* (or *on the right*).

Other words are tokenized letter by letter. The model was not trained on them: they have no
effect, or add an unrelated object.

## Parts

| Part | Class | Parameters |
|---|---|---|
| U-Net | `UNet2DConditionModel`, widths 48, 64, 96, 96 | {unet_size} |
| Autoencoder | `AutoencoderKL`, factor 4, 4 latent channels | {vae_size} |
| Text encoder | `CLIPTextModel`, width 128, 4 layers, 32 tokens | {text_size} |
| Tokenizer | `CLIPTokenizer`, own vocabulary, a token a word | |
| Noise | scaled linear betas 0.00085 to 0.012, 1000 steps, epsilon prediction | |

All weights are half-precision safetensors, {megabytes} MB together.

## Data

Scenes rendered on the fly, with their captions, by the programs in `training/`: signed-distance
shapes with soft light, shadow, texture and background. No other images or texts were used. One in
ten combinations of coloured shapes (by a hash of the combination) was held out from the training
of every part.

## Training

On a {cores}-core processor without an accelerator, {minutes} minutes in all:

| Part | Steps | Minutes |
|---|---|---|
{stages}

The text encoder was first trained, on captions alone, to predict what is where, and then frozen.
The U-Net was trained with a tenth of the captions dropped. All training was in single precision, from
seed {seed}; the U-Net's weights are an exponential average.

## Figures

Measured on {captions} held-out captions with {objects} objects, {sampler} with {steps} steps,
guidance {guidance}, image number n from seed n. An object is right if the recogniser finds
its colour and its shape within {tolerance} of the image width of the place in the
caption. The recogniser was trained on renders alone and is right on {recogniser} of the objects
of held-out renders; it is in `DeepCache.judge`.

| | Share |
|---|---|
| Objects right in colour, shape and place | {objects_right} |
| Something at the place | {place_right} |
| Right colour at the place | {colour_right} |
| Right shape at the place | {shape_right} |
| Images with every object right and no others | {images_right} |

Guidance and other samplers, on {few} of the captions:

| Sampler | Steps | Guidance | Objects right |
|---|---|---|---|
{others}

The autoencoder's reconstruction of held-out renders has a PSNR of {psnr} dB.

## Limits

- It supports only the words above, in the order above, at 64×64 pixels.
- It generates at most three objects, in the few places that captions can name.
- Two objects of the same colour and shape in one image were not in the training data.
- Small objects with a texture are the least sharp; the autoencoder smooths details finer than two
  pixels.
- DDIM, DPM-Solver++ and Euler need about 20 steps, PNDM about 50.
- It is made for quick trials of caching. Its speed and its fidelity with caching are not
  representative of large models.
"""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"*{name}*" for name in names)


def write_card(results: dict[str, Any], path: Path) -> None:
    """Write the card from the measured figures."""
    held_out, training = results["held_out"], results["training"]
    names = {"vae": "Autoencoder", "text": "Text encoder", "unet": "U-Net",
             "recogniser": "Recogniser"}  # fmt: skip
    stages = [
        f"| {names[stage]} | {figures['steps']:,} | {figures['minutes']:.0f} |" for stage, figures in training.items()
    ]
    others = [
        f"| {row['sampler']} | {row['steps']} | {row['guidance']} | {_percent(row['objects_right'])} |"
        for row in [*results["guidance_search"], *results["other_samplers"]]
    ]
    shares = {name: _percent(held_out[name]) for name in held_out if name.endswith("_right")}
    text = _CARD.format(
        guidance=results["recommended_guidance"],
        colours=_listed(COLOURS),
        shapes=_listed(SHAPES),
        backgrounds=_listed(BACKGROUNDS[1:]),
        unet_size=f"{results['parameters']['unet'] / 1e6:.2f} M",
        vae_size=f"{results['parameters']['vae'] / 1e6:.2f} M",
        text_size=f"{results['parameters']['text_encoder'] / 1e6:.2f} M",
        megabytes=f"{results['bytes'] / 1e6:.1f}",
        cores=results["machine"]["cores"],
        minutes=f"{sum(figures['minutes'] for figures in training.values()):.0f}",
        stages="\n".join(stages),
        seed=results["seed"],
        captions=held_out["captions"],
        objects=held_out["objects"],
        sampler=held_out["sampler"],
        steps=held_out["steps"],
        tolerance=results["place_tolerance"],
        recogniser=_percent(results["recogniser_objects_right"]),
        others="\n".join(others),
        few=results["guidance_search"][0]["captions"],
        psnr=f"{results['vae_psnr_db']:.1f}",
        **shares,
    )
    path.write_text(text, encoding="utf-8")

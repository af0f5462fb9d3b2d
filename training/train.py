"""Trains the small text-to-image model from scratch: ``python -m training.train``.

Stages run in order; one that is done is skipped, and one that was stopped resumes from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from training.evaluate import evaluate
from training.export import export
from training.judge import ship_judge
from training.progress import CsvLog, parse_deadline
from training.recogniser import train_recogniser
from training.text_encoder import train_text_encoder
from training.unet import cache_latents, train_unet
from training.vae import train_vae

STAGES = ("vae", "text", "recogniser", "latents", "unet", "export", "judge", "evaluate")
HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "src" / "DeepCache"
MODEL = PACKAGE / "models" / "shapes"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE.parent / "build" / "shapes",
        help="folder for checkpoints and other working files",
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="folder that the finished model is written to")
    parser.add_argument("--report", type=Path, default=HERE, help="folder for the figures, the log and the images")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--vae-steps", type=int, default=2824)
    parser.add_argument("--text-steps", type=int, default=900)
    parser.add_argument("--recogniser-steps", type=int, default=400)
    parser.add_argument("--unet-steps", type=int, default=4337)
    parser.add_argument(
        "--vae-until",
        metavar="HH:MM",
        type=parse_deadline,
        help="end the autoencoder's training at this time, regardless of the steps",
    )
    parser.add_argument(
        "--unet-until",
        metavar="HH:MM",
        type=parse_deadline,
        help="end the U-Net's training at this time, regardless of the steps",
    )
    parser.add_argument("--threads", type=int, help="processor threads (default: all cores)")
    parser.add_argument("--quick", action="store_true", help="evaluate 128 captions, not 256")
    return parser.parse_args(arguments)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that are not done yet."""
    options = parse_arguments(arguments)
    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    folder, seed = options.output, options.seed
    folder.mkdir(parents=True, exist_ok=True)
    log = CsvLog(folder / "log.csv")

    def wanted(stage: str, product: str) -> bool:
        return stage in options.stages and not (folder / product).exists()

    if wanted("vae", "vae"):
        train_vae(folder, log, seed, options.vae_steps, options.vae_until)
    if wanted("text", "text_encoder"):
        train_text_encoder(folder, log, seed, options.text_steps)
    if wanted("recogniser", "recogniser.safetensors"):
        # The finished model's where only the recogniser is trained again.
        vae = folder / "vae" if (folder / "vae").exists() else options.model / "vae"
        train_recogniser(folder, vae, log, seed, options.recogniser_steps)
    if wanted("latents", "latents.safetensors"):
        cache_latents(folder, seed)
    if wanted("unet", "unet"):
        train_unet(folder, log, seed, options.unet_steps, options.unet_until)
    if "export" in options.stages:
        print(f"{options.model}: {export(folder, options.model):,} bytes")
    if "judge" in options.stages:
        print(f"{PACKAGE / 'judge'}: {ship_judge(folder, options.model, PACKAGE / 'judge', seed):,} bytes")
    if "evaluate" in options.stages:
        evaluate(folder, options.model, options.report, seed, options.quick)


if __name__ == "__main__":
    main()

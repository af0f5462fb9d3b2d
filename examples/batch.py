"""A file of prompts, each drawn once, whatever interrupts it.

    python examples/batch.py          # takes a GPU and `pip install '.[batch]'`, and downloads the model
    python examples/batch.py --tiny   # at once on a CPU, offline, with the model that comes with DeepCache

Stop it at any time and run it again: it draws what is missing and nothing twice. Rows added to the file are drawn by
the same command too. A folder keeps to its settings: for others take another folder. Each row may have a seed, a size
and more; `manifest.parquet` in the folder says what came of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from DeepCache import DeepCacheConfig
from DeepCache.batch import BatchSettings, BatchSummary, generate_batch

PROMPTS = Path(__file__).with_name("prompts.csv")


def draw(prompts: str | Path, folder: str, model: str, device: str) -> BatchSummary:
    settings = BatchSettings(
        model=model, steps=50, cache=DeepCacheConfig(cache_interval=3, cache_branch_id=0, guidance_reuse=True)
    )
    # Rows in one pipeline call; stay with one number for a folder, since another draws close to the same, not the same.
    return generate_batch(prompts, folder, settings, batch=4, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="draw with the model that comes with DeepCache")
    parser.add_argument("--prompts", default=PROMPTS, help="a file of prompts (default: prompts.csv beside this file)")
    parser.add_argument("--output", default="pictures", help="the folder to draw into (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        summary = draw(options.prompts, options.output, "shapes", device="cpu")
    else:
        summary = draw(options.prompts, options.output, "stable-diffusion-v1-5/stable-diffusion-v1-5", device="cuda")
    print(f"{summary.rows} rows: {summary.done} done, {summary.failed} failed; {summary.drawn} in this run")
    print("wrote", options.output)


if __name__ == "__main__":
    main()

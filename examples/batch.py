"""A file of prompts: each is generated once, regardless of interruptions.

    python examples/batch.py          # needs a GPU and `pip install '.[batch]'`, and downloads the model
    python examples/batch.py --tiny   # on a CPU, offline, with the bundled model

Stop it at any time and run it again: it generates the missing images, those of rows added to the file as well. All
images of a folder have the same settings; use another folder for other settings. Each row may have a seed, a size and
more; `manifest.parquet` in the folder has the result of each row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from DeepCache import DeepCacheConfig
from DeepCache.batch import BatchSettings, BatchSummary, generate_batch

PROMPTS = Path(__file__).with_name("prompts.csv")


def generate(prompts: str | Path, folder: str, model: str, device: str) -> BatchSummary:
    settings = BatchSettings(
        model=model, steps=50, cache=DeepCacheConfig(cache_interval=3, cache_branch_id=0, guidance_reuse=True)
    )
    # Rows in one pipeline call. Keep the number for a folder: another one changes the images slightly.
    return generate_batch(prompts, folder, settings, batch=4, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="use the bundled model")
    parser.add_argument("--prompts", default=PROMPTS, help="a file of prompts (default: prompts.csv beside this file)")
    parser.add_argument("--output", default="pictures", help="the folder to write to (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        summary = generate(options.prompts, options.output, "shapes", device="cpu")
    else:
        summary = generate(
            options.prompts, options.output, "stable-diffusion-v1-5/stable-diffusion-v1-5", device="cuda"
        )
    print(f"{summary.rows} rows: {summary.done} done, {summary.failed} failed; {summary.drawn} in this run")
    print("wrote", options.output)


if __name__ == "__main__":
    main()

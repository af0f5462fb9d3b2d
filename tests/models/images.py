from __future__ import annotations

from typing import Any

import numpy as np
import torch


def image_of(pipe: Any) -> np.ndarray[Any, Any]:
    """The image of 64 pixels that a pipeline generates in two steps."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return np.asarray(pipe("a red circle", num_inference_steps=2, generator=generator, height=64, width=64).images[0])

"""Whether generated images show what their prompts ask for: objects with the right colour, shape and place."""

from DeepCache.judge.judge import JUDGED, Judge, load_judge
from DeepCache.judge.verdict import PLACE_TOLERANCE, Verdict, shares

__all__ = ["JUDGED", "PLACE_TOLERANCE", "Judge", "Verdict", "load_judge", "shares"]

"""Judges whether generated images show the objects that their prompts ask for: colour, shape and place."""

from DeepCache.judge.judge import JUDGED, PLACE_TOLERANCE, Judge, Verdict, load_judge, shares

__all__ = ["JUDGED", "PLACE_TOLERANCE", "Judge", "Verdict", "load_judge", "shares"]

"""A local page: images with and without DeepCache side by side, an ablation to explore, and recommended settings."""

from DeepCache.app.server import AppSettings, serve

__all__ = ["AppSettings", "serve"]

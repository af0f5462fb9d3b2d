"""A local page: pictures with and without DeepCache side by side, an ablation to explore, and settings to take."""

from DeepCache.app.server import AppSettings, serve

__all__ = ["AppSettings", "serve"]

"""The page: its tabs and its theme."""

from __future__ import annotations

import gradio as gr

from DeepCache.app.choose_tab import choose_tab
from DeepCache.app.explore_tab import explore_tab
from DeepCache.app.explorer import Explorer
from DeepCache.app.generate_tab import generate_tab
from DeepCache.app.render_worker import RenderWorker

__all__ = ["build_page", "page_theme"]

_HEADING = """<header class="heading"><h1>DeepCache</h1>
<p>Compare an image generated with DeepCache to the same image without it. A full step runs the whole U-Net, a shallow
step only the layers above one skip branch, a skipped step none.</p></header>"""


def build_page(worker: RenderWorker, explorer: Explorer) -> gr.Blocks:
    """The page, with the first of the worker's models selected."""
    page = gr.Blocks(title="DeepCache", analytics_enabled=False)
    with page:
        gr.HTML(_HEADING)
        with gr.Tabs():
            with gr.Tab("Generate"):
                generate_tab(page, worker)
            with gr.Tab("Explore"):
                explore_tab(explorer)
            with gr.Tab("Choose"):
                choose_tab(explorer)
    return page


def page_theme() -> gr.Theme:
    """The theme, with fonts that every machine has: none is loaded from elsewhere."""
    theme = gr.themes.Default(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
    # The contrast of its own colors is too low.
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )

"""The page: its tabs, and what it looks like."""

from __future__ import annotations

import gradio as gr

from DeepCache.app.advice_tab import advice_tab
from DeepCache.app.drawing_tab import drawing_tab
from DeepCache.app.easel import Easel
from DeepCache.app.explorer import Explorer
from DeepCache.app.explorer_tab import explorer_tab

__all__ = ["build_page", "page_theme"]

_HEADING = """<header class="heading"><h1>DeepCache</h1>
<p>The same picture without DeepCache and with it: a full step runs the whole U-Net, the shallow steps in between only
the layers above one skip branch, and skipped steps no layer at all.</p></header>"""


def build_page(easel: Easel, explorer: Explorer, models: tuple[str, ...]) -> gr.Blocks:
    """The page.

    Args:
        easel: where pictures are drawn.
        explorer: the ablation that the second and the third tab are about.
        models: those that can be drawn with, the first of which is set.
    """
    page = gr.Blocks(title="DeepCache", analytics_enabled=False)
    with page:
        gr.HTML(_HEADING)
        with gr.Tabs():
            with gr.Tab("Draw"):
                drawing_tab(page, easel, models)
            with gr.Tab("Explore"):
                explorer_tab(explorer)
            with gr.Tab("Choose"):
                advice_tab(explorer)
    return page


def page_theme() -> gr.Theme:
    """The look of the page, in fonts that every machine has: none is loaded from elsewhere."""
    theme = gr.themes.Default(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
    # Its own colours are too near to each other to be read by everybody.
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

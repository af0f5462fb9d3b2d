"""Two images side by side, labelled."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["compare_side_by_side"]

# Images narrower than this are enlarged.
_WIDTH = 320
_MARGIN = 16
_BACKGROUND, _INK, _GREY = "white", "#1a1a1a", "#5c5c5c"

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def compare_side_by_side(
    left: Image.Image,
    right: Image.Image,
    *,
    title: str,
    captions: tuple[Sequence[str], Sequence[str]],
) -> Image.Image:
    """Places two images of the same size side by side, with a title above and captions below.

    Args:
        left: the image on the left.
        right: the image on the right.
        title: the title, which is wrapped to the width.
        captions: the lines below the left and the right image, each wrapped to its width. The first line of each is
            emphasised.

    Returns:
        An RGB image. Images narrower than 320 pixels are enlarged by an integer factor.

    Example:
        >>> red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
        >>> compare_side_by_side(red, blue, title="two", captions=(["red"], ["blue"])).width
        688
    """
    factor = -(-_WIDTH // left.width)
    size = (left.width * factor, left.height * factor)
    text_size = max(15, min(32, size[0] // 24))
    title_font, name_font, font = (ImageFont.load_default(size=text_size * share) for share in (1.25, 1.1, 1.0))
    title_text = _wrap(title, title_font, 2 * size[0] + _MARGIN)
    texts = [_caption_lines(lines, name_font, font, size[0]) for lines in captions]

    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    top = _MARGIN + round(measure.multiline_textbbox((0, 0), title_text, font=title_font)[3]) + _MARGIN
    line = round(1.45 * text_size)
    height = top + size[1] + _MARGIN + line * max(map(len, texts)) + _MARGIN
    sheet = Image.new("RGB", (2 * size[0] + 3 * _MARGIN, height), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((_MARGIN, _MARGIN), title_text, fill=_INK, font=title_font)
    for index, (image, lines) in enumerate(zip((left, right), texts, strict=True)):
        x = _MARGIN + index * (size[0] + _MARGIN)
        sheet.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (x, top))
        for number, (text, text_font, colour) in enumerate(lines):
            y = top + size[1] + _MARGIN + number * line
            pen.text((x, y), text, fill=colour, font=text_font)
    return sheet


def _caption_lines(lines: Sequence[str], name_font: _Font, font: _Font, width: int) -> list[tuple[str, _Font, str]]:
    """The wrapped lines of a caption, with the font and colour of each."""
    found = []
    for index, text in enumerate(lines):
        chosen, colour = (name_font, _INK) if index == 0 else (font, _GREY)
        found += [(part, chosen, colour) for part in _wrap(text, chosen, width).splitlines()]
    return found


def _wrap(text: str, font: _Font, width: int) -> str:
    """Breaks the text into lines of this width, between words and in words that are longer."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return "\n".join(lines)

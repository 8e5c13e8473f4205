"""A contact sheet of pictures with their captions."""

import textwrap
from pathlib import Path

import torch
from einops import rearrange

LINE = 11  # pixels of height for a line of text
LINES = 3


def save_sheet(path: Path, pictures: torch.Tensor, captions: list[str], columns: int = 8) -> None:
    """Write a PNG with one labelled cell for each picture.

    Args:
        path: where to write.
        pictures: (b, 3, h, w) in [0, 1].
        captions: b lines of text; what does not fit below a picture is cut.
        columns: pictures in a row.
    """
    from PIL import Image, ImageDraw

    pixels = rearrange((pictures.float().cpu().clamp(0, 1) * 255).round().byte(), "b c h w -> b h w c").numpy()
    height, width = pixels.shape[1] + LINES * LINE + 4, pixels.shape[2] + 4
    rows = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (picture, text) in enumerate(zip(pixels, captions, strict=True)):
        x, y = number % columns * width, number // columns * height
        sheet.paste(Image.fromarray(picture), (x + 2, y + 2))
        for line, words in enumerate(textwrap.wrap(text, 22)[:LINES]):
            pen.text((x + 3, y + pixels.shape[1] + 2 + line * LINE), words, fill="black")
    sheet.save(path)

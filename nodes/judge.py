"""Edit Scorecard and Compare Grid."""

from comfy_api.latest import io

from ..modules.files.strict_json import to_json
from ..modules.judging.host.compare import compare_clips
from ..modules.judging.host.judges import NONE, clip_folders, lpips_files, make_judges
from ..modules.judging.plot import plot_scorecard
from ..modules.judging.scorecard import judge_edit, report_text
from ..modules.sockets.pictures import read_images, read_mask
from .node import Node
from .sample import flow_input
from .types import MENU, PREFIX

EDITS = tuple(f"edit_{number}" for number in range(1, 7))


class EditScorecard(Node):
    """An edited clip against its source, in figures."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "EditScorecard",
            display_name="Edit Scorecard",
            category=MENU + "report",
            description="Measures an edited clip against its source: whether it follows the prompt, keeps the motion "
            "and the background, flickers, or lost its texture. The source as its own edit is always measured as well: "
            "it tells how much a measure rewards doing nothing. What needs weights that are not there is left out by "
            "name; nothing is downloaded.",
            search_aliases=["CLIP score", "warp error", "LPIPS", "metrics", "evaluate", "temporal consistency"],
            inputs=[
                io.Image.Input("source", tooltip="The source clip. Its alpha and the edits' are left out."),
                io.Image.Input("edited", tooltip="The edited clip: as many frames, of the same size."),
                io.String.Input("edit_text", multiline=True, tooltip="Edited prompt, for CLIP-T."),
                io.String.Input(
                    "source_text",
                    multiline=True,
                    optional=True,
                    tooltip="Prompt of the source clip: how much of it CLIP still sees. May be empty.",
                ),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="CLIP's vision model, for CLIP-F; with clip also for CLIP-T."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Text encoder of the same CLIP model, with its text projection: for ViT-L/14 "
                    "clip_l.safetensors by Load CLIP. A checkpoint of SD1.x has no projection.",
                ),
                io.Combo.Input(
                    "clip_folder",
                    options=clip_folders(),
                    default=NONE,
                    optional=True,
                    tooltip="CLIP model in transformers' form, a folder in models/clip_score, used instead of both.",
                ),
                flow_input("flow"),
                io.Combo.Input(
                    "lpips",
                    options=lpips_files(),
                    default=NONE,
                    optional=True,
                    tooltip="Weights for LPIPS, a file in models/lpips: torchvision's alexnet-owt-7be5be79.pth.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="What is edited: white. The rest is background that is to stay."
                ),
            ],
            outputs=[
                io.String.Output("report", tooltip="Markdown table, what its columns mean and what measured them."),
                io.String.Output("data", tooltip="The same as JSON."),
                io.Image.Output("plot", tooltip="Each measure of the edit next to that of doing nothing."),
            ],
        )

    @classmethod
    def execute(cls, source, edited, edit_text, source_text="", mask=None, **models) -> io.NodeOutput:
        before = read_images(source, "source").movedim(-1, 1)
        after = read_images(edited, "edited").movedim(-1, 1)
        where = None if mask is None else read_mask(mask).cpu()
        card = judge_edit(before, after, edit_text, source_text, where, make_judges(**models))
        return io.NodeOutput(report_text(card), to_json(card.data()), plot_scorecard(card))


class CompareGrid(Node):
    """Several edits of a clip, side by side."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "CompareGrid",
            display_name="Compare Grid",
            category=MENU + "report",
            description="Shows the source and several edits of it side by side as one clip, and as a strip of frames "
            "with their numbers; if wanted with heat maps of what was changed and with the optical flow.",
            search_aliases=["side by side", "contact sheet", "difference map", "heat map", "compare videos"],
            inputs=[
                io.Image.Input("source", tooltip="The source clip. Its alpha and the edits' are left out."),
                *(
                    io.Image.Input(name, optional=name != EDITS[0], tooltip="An edited clip of as many frames.")
                    for name in EDITS
                ),
                io.String.Input(
                    "labels",
                    default="",
                    optional=True,
                    tooltip="Comma-separated names of the edits, in the order of the inputs; long ones are cut. Empty "
                    "= the names of the inputs.",
                ),
                io.Boolean.Input(
                    "difference",
                    default=False,
                    optional=True,
                    tooltip="Show where each edit differs from the source: black = equal, yellow = by half the range.",
                ),
                flow_input("flow", NONE),
                io.Int.Input(
                    "columns",
                    default=8,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="How many frames the strip shows, spread evenly over the clip.",
                ),
            ],
            outputs=[
                io.Image.Output("clip", tooltip="The clips next to each other, for Create Video."),
                io.Image.Output("strip", tooltip="One picture: a row for each clip, with frame numbers."),
            ],
        )

    @classmethod
    def execute(cls, source, labels="", difference=False, flow=NONE, columns=8, **edits) -> io.NodeOutput:
        shown = {name: read_images(edits[name], name) for name in EDITS if edits.get(name) is not None}
        first = read_images(source, "source")
        return io.NodeOutput(*compare_clips(first, shown, labels, difference, flow, columns))

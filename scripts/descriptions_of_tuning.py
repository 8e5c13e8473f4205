"""What the workflows with a tuning consist of."""

from .graph import Group, Node, Workflow
from .parts import (
    EDITED,
    EMPTY,
    INFLATE,
    PATCH,
    PLAIN,
    READ_TEXTS,
    SOURCE,
    UNTUNED_PATCH,
    Task,
    edited,
    invert,
    invert_source,
    ours,
    results,
    sample,
    sample_edit,
    sample_tied,
    save,
    save_video,
    show,
    with_texts,
)
from .systems import SYSTEMS, System


def tuned_edit(task: Task, system: System, note: str) -> Workflow:
    """Return a tuned system with all that shows what it does: tune on the clip, invert it, sample the edit."""
    assert system.tuning is not None
    return [
        *task.nodes(with_empty=True),
        Group("2 Clip model", note),
        INFLATE,
        PATCH.but(**system.patch),
        *task.previewed_tune(**system.tuning),
        Group(
            "3 Invert",
            "The lower inversion only serves the reconstruction, which shows how well the clip comes back. Delete it "
            "and its branch once you are content.",
        ),
        invert("Invert", "Tune", system.inverted_with, **system.inversion),
        show("Inversion report", "Invert"),
        invert("Invert to reconstruct", "Tune", SOURCE, **PLAIN),
        Group("4 Sample", "cfg: higher follows the edited prompt more and the clip less."),
        sample("Edit", "Tune", EDITED, system.cfg, EMPTY),
        sample("Reconstruction", "Tune", SOURCE, 1.0, inversion="Invert to reconstruct"),
        *results(),
    ]


def ei2(task: Task) -> Workflow:
    """Return EI²: tuned on the clip, plain inversion, guided to the end."""
    note = (
        "EI²'s settings. Tuning teaches the model this clip: too many steps and the edit no longer shows, too few and "
        "the motion is lost. The preview in the tuning node is a rough edit by the weights so far; it has its own "
        "prompt, so that another edited prompt does not tune again."
    )
    return tuned_edit(task, SYSTEMS["EI²"], note)


def inr_smooth(task: Task) -> Workflow:
    """Return INR Smooth on Tune-A-Video: its loss in the tuning."""
    note = (
        "INR Smooth's settings on Tune-A-Video: its smoothing loss in the tuning. Its other part, the noise relation "
        "of the inversion, is put on FateZero and Video-P2P."
    )
    return tuned_edit(task, SYSTEMS["INR on Tune-A-Video"], note)


def tune_a_video(task: Task) -> Workflow:
    """Return Tune-A-Video, the ancestor to compare with, and the export in its own format."""
    name, system = f"{task.name}_tune_a_video", SYSTEMS["Tune-A-Video"]
    return [
        *task.nodes(with_empty=True),
        Group(
            "2 Clip model",
            "Attention to the first and the previous frame, plain temporal attention. The export is a UNet folder for "
            "Tune-A-Video's own code; delete it if you do not need it.",
        ),
        INFLATE,
        PATCH.but(**system.patch),
        *task.previewed_tune(name),
        ours("Export", "ExportTuneAVideo", model="Model", tune="Tune", filename_prefix=f"{name}_unet"),
        Group("3 Invert", "Plain inversion."),
        invert("Invert", "Tune", system.inverted_with, **system.inversion),
        Group("4 Sample"),
        sample("Edit", "Tune", EDITED, system.cfg, EMPTY),
        *edited(5),
    ]


def import_tune_a_video(task: Task) -> Workflow:
    """Return an edit with a UNet that Tune-A-Video's own code tuned; the file is what `tune_a_video` exports."""
    file = f"{task.name}_tune_a_video_unet_00001_/unet/diffusion_pytorch_model.safetensors"
    return [
        *task.nodes(),
        Group(
            "2 Tune-A-Video's UNet",
            "Put the folder that Tune-A-Video wrote into models/consistent_video. The model must be the checkpoint "
            "that it was tuned from.",
        ),
        ours("Import", "ImportTuneAVideo", model="Model", file=file),
        show("Import report", "Import"),
        ours("Tune", "ApplyTune", model="Model", tune="Import"),
        invert_source("Tune"),
        Group("3 Sample"),
        sample_edit("Tune"),
        *edited(4),
    ]


def saved_tune(task: Task) -> Workflow:
    """Return two edits with a tune from a file, plain and tied along the motion, side by side and judged."""
    plain, tied = "Decode edit plain", "Decode edit tied"
    labels = {"labels": "plain, tied", "difference": True, "flow": "variational"}
    return [
        *with_texts(task.nodes()),
        Group(
            "2 Saved tune, invert",
            "Run the workflow ei2 first: its Save Tune writes the file; choose the newest number. Where the edit looks "
            "too much like the source, lower progress or query_strength.",
        ),
        *task.apply_saved(),
        invert_source("Tune"),
        Group(
            "3 Sample",
            "The report shows the texture energy against the source's: a fall tells of over-smoothing. keep_texture "
            "of the relation guards against it.",
        ),
        *task.relation(),
        sample_edit("Tune", "Edit plain"),
        sample_tied("Tune", "Edit tied"),
        show("Sample report", "Edit tied"),
        Group("4 Plain"),
        *save("edit plain", "Edit plain"),
        Group("5 Tied"),
        *save("edit tied", "Edit tied"),
        Group(
            "6 Side by side",
            "Below the clips: where each edit differs from the source, and how everything moves.",
        ),
        ours("Grid", "CompareGrid", source=task.pixels, edit_1=plain, edit_2=tied, **labels),
        Node("Strip", "PreviewImage", images=("Grid", "strip")),
        *save_video("grid", ("Grid", "clip")),
        Group(
            "7 Scorecard",
            "Read each figure beside that of doing nothing. For CLIP scores put a CLIP model's folder into "
            "models/clip_score and choose it.",
        ),
        ours("Scorecard", "EditScorecard", source=task.pixels, edited=tied, **READ_TEXTS),
        show("Findings", "Scorecard"),
        Node("Plot", "PreviewImage", images="Scorecard"),
    ]


def resume_tune(task: Task) -> Workflow:
    """Return the continuation of a tuning."""
    return [
        *task.nodes(),
        Group(
            "2 Continue",
            "A tuning that you cancelled is saved as unfinished; a tune saved with_state works too. steps counts from "
            "the beginning. Keep the other settings, and the result is that of one long tuning.",
        ),
        INFLATE,
        PATCH,
        ours("Load tune", "LoadTune", tune_name="unfinished_00001_.safetensors"),
        task.tuning_options(),
        task.tune(resume="Load tune", options="Options"),
        show("Tune report", "Tune"),
        Node("Loss plot", "PreviewImage", images="Tune"),
        task.save_tune(),
    ]


def tuning_settings(task: Task) -> Workflow:
    """Return a tuning with everything set that can be set, on a region of the frames, fitted into the memory."""
    side = task.crop[1] if task.crop else 128
    place = {"x": side // 8, "y": side // 8, "operation": "add"}
    values = {"schedule": "cosine", "warmup_steps": 20, "min_snr_gamma": 5.0, "frames_per_step": 4}
    tuned = {"model": "Plan", "options": "Plan", "mask": "Region", "snapshots": "10%, 50%", "smoothing": "INR"}
    fast = {"recipe": "fast", "steps": 200}
    return [
        *task.nodes(),
        Group(
            "2 Region",
            "White is where the loss counts. Any mask does, one for all frames or one for each.",
        ),
        Node("Nothing", "SolidMask", value=0.0, width=side, height=side),
        Node("Rectangle", "SolidMask", value=1.0, width=side * 3 // 4, height=side * 3 // 4),
        Node("Region", "MaskComposite", destination="Nothing", source="Rectangle", **place),
        Group(
            "3 Plan",
            "The planner counts what the clip needs before anything runs, and changes what is needed to fit; set "
            "budget_gib to try another card. chunking, gradient_checkpointing and frames_per_step save memory. "
            "Schedule, warm-up and min-SNR are not in the papers. Inspect lists what is attached to the model, and "
            "what does not go together.",
        ),
        INFLATE,
        PATCH,
        ours("Inspect", "InspectVideoModel", model="Patch", latent="Encode"),
        show("Attached", "Inspect"),
        task.tuning_options().but(**values, gradient_checkpointing=True),
        ours("Plan", "FitPlanner", model="Inspect", latent="Encode", options="Options", smoothing="INR"),
        show("Findings", "Plan"),
        Group(
            "4 Tune",
            "INR smoothing ties neighbouring frames. The recipe is ours: fewer steps at a higher learning rate.",
        ),
        task.tune(**tuned, **fast),
        show("Tune report", "Tune"),
        Node("Loss plot", "PreviewImage", images="Tune"),
        task.save_tune(),
    ]


def with_tokens(title: str, text: str) -> Node:
    """Return the node that puts learned tokens before a prompt."""
    return ours(title, "ApplyPromptTokens", conditioning=text, prompt_tokens="Tokens", latent="Encode")


def prompt_tokens(task: Task) -> Workflow:
    """Return an edit with tokens learned on the clip, the UNet left as it is."""
    learned = {"model": "Patch", "positive": SOURCE, "latent": "Encode", "options": "Options", "steps": 300}
    tokens_source, tokens_edited = (f"{name} with tokens" for name in (SOURCE, EDITED))
    return [
        *task.nodes(),
        Group(
            "2 Clip model, tokens",
            "Tokens are learned in front of the source prompt's text and serve any other prompt; Load Prompt Tokens "
            "reads the saved ones, in place of Tokens. The patch connects the frames; its temporal modules are left "
            "out, for they are not tuned here.",
        ),
        INFLATE,
        UNTUNED_PATCH,
        task.tuning_options(),
        ours("Tokens", "TunePromptTokens", **learned),
        show("Advice", "Tokens", "advice"),
        Node("Loss plot", "PreviewImage", images=("Tokens", "loss_plot")),
        ours("Save tokens", "SavePromptTokens", prompt_tokens="Tokens", filename_prefix=task.name),
        Group(
            "3 Invert, sample",
            "Every prompt takes the same tokens. Lower the strengths of the edited prompt where the edit looks too "
            "much like the source.",
        ),
        with_tokens(tokens_source, SOURCE),
        with_tokens(tokens_edited, EDITED),
        *task.relation(),
        invert_source("Patch", tokens_source),
        sample_tied("Patch", positive=tokens_edited, negative=tokens_source),
        *edited(4),
    ]


def reconstruction(task: Task) -> Workflow:
    """Return the checks of a saved tune and of an inversion, which is saved."""
    given = {"model": "Tune", "positive": SOURCE}
    return [
        *task.nodes(),
        Group(
            "2 Saved tune, invert",
            "Run the workflow ei2 first. With refinements, which the bound below does not cover, a plain inversion "
            "comes back nearly exactly. Load Inversion reads the saved one, in place of Invert in any workflow with "
            "the same tune.",
        ),
        *task.apply_saved(),
        invert_source("Tune"),
        ours("Save inversion", "SaveInversion", inversion="Invert", filename_prefix=task.name),
        Group("3 Reconstruct"),
        ours("Reconstruct", "ReconstructionReport", **given, negative=SOURCE, inversion="Invert", vae="Model"),
        show("Findings", "Reconstruct"),
        Node("Plot", "PreviewImage", images=("Reconstruct", "plot")),
        Node("Reconstructed frames", "PreviewImage", images=("Reconstruct", "images")),
        Group(
            "4 Stability",
            "How far the way back may stray and how far it does when it follows the edited prompt instead of the "
            "source prompt. Disconnect sampled to see the inversion alone.",
        ),
        ours("Stability", "InversionStability", **given, inversion="Invert", sampled=EDITED),
        show("Stability table", "Stability"),
        Node("Stability plot", "PreviewImage", images="Stability"),
        Group(
            "5 Covariate shift",
            "How far each temporal module moves the mean over frames, and how much it changes their covariance.",
        ),
        ours("Shift", "CovariateShiftReport", **given, latent="Encode"),
        show("Shift table", "Shift"),
        Node("Shift plot", "PreviewImage", images="Shift"),
    ]

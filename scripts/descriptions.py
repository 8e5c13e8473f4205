"""What each workflow of the pack consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .graph import Group, Node
from .parts import (
    CFG,
    CFG_END,
    DEMO,
    EDITED,
    EMPTY,
    INFLATE,
    OURS,
    PAPERS_CFG,
    PATCH,
    PLAIN,
    SD15,
    SOURCE,
    UNTUNED_PATCH,
    Task,
    apply_saved_tune,
    edit_from_source,
    invert,
    invert_source,
    relation,
    relink,
    sample,
    save,
    save_tune,
    show,
    tune,
    tuning,
)


def edit(task: Task) -> list[Group]:
    """Return the main graph, without tuning: invert, sample with the edited prompt, frames tied along the motion."""
    return [
        task.nodes(),
        Group(
            "2 Clip model, motion",
            [INFLATE, UNTUNED_PATCH, *relation(task)],
            "The patch lets every frame attend to all others; the relation ties what the edit changes along the "
            "clip's motion. A LoRA goes between Model and Inflate. Nothing is tuned: for EI²'s tuning see the workflow "
            "ei2.",
        ),
        Group(
            "3 Invert",
            [invert_source("Patch"), show("Inversion report", "Invert", "report")],
            "Done once for the clip: another edited prompt runs the sampling only. denoise: more leaves the edit "
            "freer, less keeps more of the clip; 0 matches it to the size, which suits edits of an object. For another "
            "background or style try 0.8 to 1.",
        ),
        Group(
            "4 Sample",
            [
                relink(edit_from_source("Patch"), relation=("Relation", "relation")),
                sample("Reconstruction", "Patch", SOURCE, "Invert", 1.0),
            ],
            "The source prompt is the negative: guidance changes what the prompts differ in. cfg: higher follows the "
            "edited prompt more and the clip less. cfg_end: a later end of the guidance edits more and flickers more. "
            "The reconstruction shows how well the clip comes back: delete it and its branch once you are content.",
        ),
        *results(),
    ]


def results() -> list[Group]:
    """Return the columns that save the edit, the reconstruction and the autoencoder's round trip."""
    return [
        Group("5 Edited clip", save("edit", ("Edit", "latent"))),
        Group("6 Reconstruction", save("reconstruction", ("Reconstruction", "latent"))),
        Group("7 Autoencoder alone", save("autoencoder round trip", ("Encode", "LATENT"))),
    ]


def tuned_edit(task: Task, note: str, inversion: dict[str, Any], **tuned: Any) -> list[Group]:
    """Return a paper's graph: tune on the clip, invert it, sample with the edited prompt.

    Args:
        task: the clip.
        note: of the tuning.
        inversion: values of the inversion.
        tuned: values of the tuning.
    """
    task = replace(task, tuning={**task.tuning, **tuned})
    return [
        task.nodes(with_empty=True),
        Group("2 Clip model", [INFLATE, PATCH, *tuning(task)], note),
        Group(
            "3 Invert",
            [
                invert("Invert", "Tune", EMPTY, **inversion),
                show("Inversion report", "Invert", "report"),
                invert("Invert to reconstruct", "Tune", SOURCE, **PLAIN),
            ],
            "The lower inversion is plain and only serves the reconstruction, which shows how well the clip comes "
            "back. Delete it and its branch once you are content.",
        ),
        Group(
            "4 Sample",
            [
                sample("Edit", "Tune", EDITED, "Invert", PAPERS_CFG, EMPTY),
                sample("Reconstruction", "Tune", SOURCE, "Invert to reconstruct", 1.0, EMPTY),
            ],
            "cfg: higher follows the edited prompt more and the clip less.",
        ),
        *results(),
    ]


def ei2(task: Task) -> list[Group]:
    """Return EI²: tuned on the clip, plain inversion, guided to the end."""
    note = (
        "EI²'s settings. Tuning teaches the model this clip: too many steps and the edit no longer shows, too few and "
        "the motion is lost. The preview in the tuning node is a rough edit by the weights so far; it has its own "
        "prompt, so that another edited prompt does not tune again."
    )
    return tuned_edit(task, note, PLAIN)


def inr_smooth(task: Task) -> list[Group]:
    """Return INR Smooth: tuned with its loss, inverted with the interframe noise relation."""
    note = (
        "INR Smooth's settings: the smoothing loss in the tuning, and the interframe noise relation in the inversion. "
        "Either works without the other."
    )
    return tuned_edit(task, note, {}, smoothing="INR")


def tune_a_video(task: Task) -> list[Group]:
    """Return Tune-A-Video, the ancestor to compare with, and the export in its own format."""
    patch = replace(PATCH, values={"preset": "Tune-A-Video"})
    given = {"model": ("Model", "MODEL"), "tune": ("Tune", "tune")}
    name = f"{Path(task.file).stem}_tune_a_video"
    return [
        task.nodes(with_empty=True),
        Group(
            "2 Clip model",
            [
                INFLATE,
                patch,
                *tuning(task, name),
                Node("Export", OURS + "ExportTuneAVideo", given, {"filename_prefix": f"{name}_unet"}),
            ],
            "Attention to the first and the previous frame, plain temporal attention. The export is a UNet folder for "
            "Tune-A-Video's own code; delete it if you do not need it.",
        ),
        Group("3 Invert", [invert("Invert", "Tune", EMPTY, **PLAIN)], "Plain inversion."),
        Group("4 Sample", [sample("Edit", "Tune", EDITED, "Invert", PAPERS_CFG, EMPTY)]),
        Group("5 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def import_tune_a_video(task: Task, file: str) -> list[Group]:
    """Return an edit with a UNet that Tune-A-Video's own code tuned."""
    apply = {"model": ("Model", "MODEL"), "tune": ("Import", "tune")}
    return [
        task.nodes(),
        Group(
            "2 Tune-A-Video's UNet",
            [
                Node("Import", OURS + "ImportTuneAVideo", {"model": ("Model", "MODEL")}, {"file": file}),
                show("Import report", "Import", "report"),
                Node("Tune", OURS + "ApplyTune", apply),
                invert_source("Tune"),
            ],
            "Put the folder that Tune-A-Video wrote into models/consistent_video. The model must be the checkpoint "
            "that it was tuned from.",
        ),
        Group("3 Sample", [edit_from_source("Tune")]),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def saved_tune(task: Task, file: str) -> list[Group]:
    """Return two edits with a tune from a file, plain and tied along the motion, side by side and judged."""
    plain, tied = (edit_from_source("Tune", f"Edit {name}") for name in ("plain", "tied"))
    clips = {"source": task.pixels, "edit_1": ("Decode edit plain", "IMAGE"), "edit_2": ("Decode edit tied", "IMAGE")}
    labels = {"labels": "plain, tied", "difference": True, "flow": "variational"}
    judged = {"source": task.pixels, "edited": ("Decode edit tied", "IMAGE")}
    texts = {"edit_text": task.after, "source_text": task.before}
    return [
        task.nodes(),
        Group(
            "2 Saved tune, invert",
            [*apply_saved_tune(file), invert_source("Tune")],
            "Run the workflow ei2 first: its Save Tune writes the file; choose the newest number. Where the edit looks "
            "too much like the source, lower progress or query_strength.",
        ),
        Group(
            "3 Sample",
            [
                *relation(task),
                plain,
                relink(tied, relation=("Relation", "relation")),
                show("Sample report", "Edit tied", "report"),
            ],
            "The report shows the texture energy against the source's: a fall tells of over-smoothing. keep_texture "
            "of the relation guards against it.",
        ),
        Group("4 Plain", save("edit plain", ("Edit plain", "latent"))),
        Group("5 Tied", save("edit tied", ("Edit tied", "latent"))),
        Group(
            "6 Side by side",
            [
                Node("Grid", OURS + "CompareGrid", clips, labels),
                Node("Strip", "PreviewImage", {"images": ("Grid", "strip")}),
                Node("Video of grid", "CreateVideo", {"images": ("Grid", "clip"), "fps": ("Frames", "fps")}),
                Node(
                    "Save grid",
                    "SaveVideo",
                    {"video": ("Video of grid", "VIDEO")},
                    {"filename_prefix": "consistent_video/grid"},
                ),
            ],
            "Below the clips: where each edit differs from the source, and how everything moves.",
        ),
        Group(
            "7 Scorecard",
            [
                Node("Scorecard", OURS + "EditScorecard", judged, texts),
                show("Findings", "Scorecard", "report"),
                Node("Plot", "PreviewImage", {"images": ("Scorecard", "plot")}),
            ],
            "Read each figure beside that of doing nothing. For CLIP scores put a CLIP model's folder into "
            "models/clip_score and choose it.",
        ),
    ]


def resume_tune(task: Task) -> list[Group]:
    """Return the continuation of a tuning."""
    return [
        task.nodes(),
        Group(
            "2 Continue",
            [
                INFLATE,
                PATCH,
                Node("Load tune", OURS + "LoadTune", {}, {"tune_name": "unfinished_00001_.safetensors"}),
                Node("Options", OURS + "TuningOptions", {}, task.options),
                tune({"resume": ("Load tune", "tune"), "options": ("Options", "options")}, **task.tuning),
                show("Tune report", "Tune", "report"),
                save_tune(Path(task.file).stem),
            ],
            "A tuning that you cancelled is saved as unfinished; a tune saved with_state works too. steps counts from "
            "the beginning. Keep the other settings, and the result is that of one long tuning.",
        ),
    ]


def tuning_settings(task: Task, side: int) -> list[Group]:
    """Return a tuning with everything set that can be set, on a region of the frames, fitted into the memory."""
    region = {"destination": ("Nothing", "MASK"), "source": ("Rectangle", "MASK")}
    place = {"x": side // 8, "y": side // 8, "operation": "add"}
    values = {"schedule": "cosine", "warmup_steps": 20, "min_snr_gamma": 5.0, "frames_per_step": 4}
    given = {"model": ("Patch", "clip_model"), "latent": ("Encode", "LATENT"), "options": ("Options", "options")}
    links = {"model": ("Plan", "clip_model"), "options": ("Plan", "planned"), "mask": ("Region", "MASK")}
    return [
        task.nodes(),
        Group(
            "2 Region",
            [
                Node("Nothing", "SolidMask", {}, {"value": 0.0, "width": side, "height": side}),
                Node("Rectangle", "SolidMask", {}, {"value": 1.0, "width": side * 3 // 4, "height": side * 3 // 4}),
                Node("Region", "MaskComposite", region, place),
            ],
            "White is where the loss counts. Any mask does, one for all frames or one for each.",
        ),
        Group(
            "3 Plan",
            [
                INFLATE,
                PATCH,
                Node("Options", OURS + "TuningOptions", {}, {**task.options, **values, "gradient_checkpointing": True}),
                Node("Plan", OURS + "FitPlanner", given),
                show("Findings", "Plan", "report"),
            ],
            "The planner counts what the clip needs before anything runs, and changes what is needed to fit; set "
            "budget_gib to try another card. chunking, gradient_checkpointing and frames_per_step save memory. "
            "Schedule, warm-up and min-SNR are not in the papers.",
        ),
        Group(
            "4 Tune",
            [
                tune(links, **task.tuning, snapshots="10%, 50%", smoothing="INR"),
                show("Tune report", "Tune", "report"),
                Node("Loss plot", "PreviewImage", {"images": ("Tune", "loss_plot")}),
                save_tune(Path(task.file).stem),
            ],
            "INR smoothing ties neighbouring frames.",
        ),
    ]


def long_clip(task: Task) -> list[Group]:
    """Return an edit of a clip that is too long for one batch, sampled in windows."""
    windows = {"context_length": WINDOW, "context_overlap": WINDOW // 2, "causal_window_fix": False}
    given, windowed = {"model": ("Patch", "clip_model")}, ("Windows", "MODEL")
    return [
        task.nodes(),
        Group("2 Clip model", [INFLATE, UNTUNED_PATCH], "A LoRA goes between Model and Inflate."),
        Group(
            "3 Windows, invert, sample",
            [
                Node("Windows", "ContextWindowsManual", given, windows),
                relink(invert_source("Patch"), model=windowed),
                *relation(task),
                relink(edit_from_source("Patch"), model=windowed, relation=("Relation", "relation")),
            ],
            "The model sees context_length frames at a time; neighbouring windows are blended where they overlap. The "
            "relation ties all frames along the motion, across the windows too. What the model needs of memory "
            "depends on context_length, not on the clip. ControlNet does not work in windows. To tune on a long clip, "
            "set frames_per_step in Tuning Options.",
        ),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def controlnet(task: Task, loader: Node) -> list[Group]:
    """Return an edit that a ControlNet for edges steers as well."""
    steer = {"positive": (EDITED, "CONDITIONING"), "negative": (SOURCE, "CONDITIONING")}
    steer |= {"control_net": ("ControlNet", "CONTROL_NET"), "image": ("Edges", "IMAGE")}
    sides = {side: ("Steer", side) for side in ("positive", "negative")}
    return [
        task.nodes(),
        Group(
            "2 Clip model, invert",
            [INFLATE, UNTUNED_PATCH, *relation(task), invert_source("Patch")],
            "The clip is inverted without ControlNet. A LoRA goes between Model and Inflate.",
        ),
        Group(
            "3 Steer and sample",
            [
                loader,
                Node("Edges", "Canny", {"image": task.pixels}),
                Node("Steer", "ControlNetApplyAdvanced", steer, {"strength": 0.6, "end_percent": 0.7}),
                relink(edit_from_source("Patch"), **sides, relation=("Relation", "relation")),
            ],
            "One hint for each frame of the clip, of the clip's own size. Less strength, or an earlier end_percent, "
            "gives the edited prompt more say.",
        ),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def attention_control(task: Task) -> list[Group]:
    """Return an edit without tuning that follows the attention of the source."""
    given = {"model": ("Patch", "clip_model"), "inversion": ("Invert", "inversion"), "clip": ("Model", "CLIP")}
    given |= {"source_positive": (SOURCE, "CONDITIONING")}
    values = {"source_text": task.before, "edit_text": task.after, "cross_end": 0.3, "self_end": 0.3}
    return [
        task.nodes(),
        Group("2 Clip model, invert", [INFLATE, UNTUNED_PATCH, *relation(task), invert_source("Patch")]),
        Group(
            "3 Control, sample",
            [
                Node("Control", OURS + "AttentionControl", given, values),
                relink(edit_from_source("Control"), relation=("Relation", "relation")),
            ],
            "The texts must be those of the two prompts. Lower cross_end and self_end where the edit changes shapes, "
            "raise them where it changes looks.",
        ),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def custom_sampler(task: Task) -> list[Group]:
    """Return an edit through ComfyUI's own sampler node."""
    guider = {"model": ("Patch", "clip_model"), "positive": (EDITED, "CONDITIONING")}
    guider |= {"negative": (SOURCE, "CONDITIONING")}
    given = {"inversion": ("Invert", "inversion"), "relation": ("Relation", "relation")}
    sampler = {"noise": ("No noise", "NOISE"), "guider": ("Guide", "GUIDER"), "latent_image": ("Invert", "inversion")}
    sampler |= {"sampler": ("Sampler", "sampler"), "sigmas": ("Sampler", "sigmas")}
    return [
        task.nodes(),
        Group(
            "2 Clip model, invert",
            [INFLATE, UNTUNED_PATCH, *relation(task), invert_source("Patch")],
        ),
        Group(
            "3 Sample",
            [
                Node("Guide", "CFGGuider", guider, {"cfg": CFG}),
                Node("No noise", "DisableNoise"),
                Node("Sampler", OURS + "SmoothSampler", given, {"cfg_end": CFG_END}),
                Node("Edit", "SamplerCustomAdvanced", sampler),
            ],
            "Any other guider may replace CFGGuider where cfg_end is 1, which guides at every step.",
        ),
        Group("4 Edited clip", save("edit", ("Edit", "output"))),
    ]


def reconstruction(task: Task, file: str) -> list[Group]:
    """Return the checks of a saved tune and of an inversion, which is saved."""
    sides = {"positive": (SOURCE, "CONDITIONING"), "negative": (SOURCE, "CONDITIONING")}
    tuned, inverted = {"model": ("Tune", "clip_model")}, {"inversion": ("Invert", "inversion")}
    decoder, edited = {"vae": ("Model", "VAE")}, {"sampled": (EDITED, "CONDITIONING")}
    given = {**tuned, "positive": (SOURCE, "CONDITIONING")}
    return [
        task.nodes(),
        Group(
            "2 Saved tune, invert",
            [
                *apply_saved_tune(file),
                invert_source("Tune"),
                Node("Save inversion", OURS + "SaveInversion", inverted, {"filename_prefix": Path(task.file).stem}),
            ],
            "Run the workflow ei2 first. With refinements, which the bound below does not cover, a plain inversion "
            "comes back nearly exactly. Load Inversion reads the saved one, in place of Invert in any workflow with "
            "the same tune.",
        ),
        Group(
            "3 Reconstruct",
            [
                Node("Reconstruct", OURS + "ReconstructionReport", {**tuned, **sides, **inverted, **decoder}),
                show("Findings", "Reconstruct", "report"),
                Node("Plot", "PreviewImage", {"images": ("Reconstruct", "plot")}),
                Node("Reconstructed frames", "PreviewImage", {"images": ("Reconstruct", "images")}),
            ],
        ),
        Group(
            "4 Stability",
            [
                Node("Stability", OURS + "InversionStability", {**given, **inverted, **edited}),
                show("Stability table", "Stability", "report"),
                Node("Stability plot", "PreviewImage", {"images": ("Stability", "plot")}),
            ],
            "How far the way back may stray and how far it does when it follows the edited prompt instead of the "
            "source prompt. Disconnect sampled to see the inversion alone.",
        ),
        Group(
            "5 Covariate shift",
            [
                Node("Shift", OURS + "CovariateShiftReport", {**given, "latent": ("Encode", "LATENT")}),
                show("Shift table", "Shift", "report"),
                Node("Shift plot", "PreviewImage", {"images": ("Shift", "plot")}),
            ],
            "How far each temporal module moves the mean over frames, and how much it changes their covariance.",
        ),
    ]


def with_tokens(title: str, text: str, **strengths: float) -> Node:
    """Return the node that puts learned tokens before a prompt."""
    links = {"conditioning": (text, "CONDITIONING"), "prompt_tokens": ("Tokens", "prompt_tokens")}
    return Node(title, OURS + "ApplyPromptTokens", {**links, "latent": ("Encode", "LATENT")}, strengths)


def edit_with_tokens(task: Task) -> list[Group]:
    """Return the nodes that invert and sample with learned tokens in every prompt."""
    source, edited = (
        (f"{name} with tokens", "conditioning_with_tokens") for name in ("Source prompt", "Edited prompt")
    )
    return [
        Group(
            "3 Invert, sample",
            [
                with_tokens(source[0], SOURCE),
                with_tokens(edited[0], EDITED),
                *relation(task),
                relink(invert_source("Patch"), positive=source),
                relink(edit_from_source("Patch"), positive=edited, negative=source, relation=("Relation", "relation")),
            ],
            "Every prompt takes the same tokens. Lower the strengths of the edited prompt where the edit looks too "
            "much like the source.",
        ),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def prompt_tokens(task: Task) -> list[Group]:
    """Return an edit with tokens learned on the clip, the UNet left as it is."""
    learned = {"model": ("Patch", "clip_model"), "positive": (SOURCE, "CONDITIONING")}
    learned |= {"latent": ("Encode", "LATENT"), "options": ("Options", "options")}
    name = {"filename_prefix": Path(task.file).stem}
    return [
        task.nodes(),
        Group(
            "2 Clip model, tokens",
            [
                INFLATE,
                UNTUNED_PATCH,
                Node("Options", OURS + "TuningOptions", {}, task.options),
                Node("Tokens", OURS + "TunePromptTokens", learned, {"steps": 300}),
                show("Advice", "Tokens", "advice"),
                Node("Loss plot", "PreviewImage", {"images": ("Tokens", "loss_plot")}),
                Node("Save tokens", OURS + "SavePromptTokens", {"prompt_tokens": ("Tokens", "prompt_tokens")}, name),
            ],
            "Tokens are learned in front of the source prompt's text and serve any other prompt; Load Prompt Tokens "
            "reads the saved ones, in place of Tokens. The patch connects the frames; its temporal modules are left "
            "out, for they are not tuned here.",
        ),
        *edit_with_tokens(task),
    ]


WINDOW = 16  # frames that the model sees at a time in a long clip
CONTROL_NET = "control_v11p_sd15_canny_fp16.safetensors"
DEMO_TASK = Task(
    DEMO,
    "red_circle.mp4",
    None,
    "a red circle on a white background",
    "a blue square on a white background",
    {"steps": 200, "learning_rate": 1e-4},
    {},
)
SD15_TASK = Task(
    SD15,
    "clip.mp4",
    (8, 512),
    "a jeep car is moving on the road",
    "a jeep car is moving on the road, watercolor",
    {},
    {"gradient_checkpointing": True},
)
LONG_DEMO_TASK = replace(
    DEMO_TASK,
    file="striped_cross.mp4",
    before="a striped blue cross on a brick wall",
    after="a striped red ring on a brick wall",
)
RECOLOURED_DEMO_TASK = replace(DEMO_TASK, after="a blue circle on a white background")
LONG_SD15_TASK = replace(SD15_TASK, crop=(48, 512))
DEMO_NET = Node("ControlNet", OURS + "LoadDemoControlNet")
SD15_NET = Node("ControlNet", "ControlNetLoader", {}, {"control_net_name": CONTROL_NET})


def first_tune(task: Task) -> str:
    """Return the file that the first run of the workflow ei2 saves."""
    return f"{Path(task.file).stem}_00001_.safetensors"


def exported(task: Task) -> str:
    """Return the file that Tune-A-Video's workflow exports at its first run."""
    return f"{Path(task.file).stem}_tune_a_video_unet_00001_/unet/diffusion_pytorch_model.safetensors"


MAKE: dict[str, Callable[[Task], list[Group]]] = {
    "edit": edit,
    "ei2": ei2,
    "inr_smooth": inr_smooth,
    "tune_a_video": tune_a_video,
    "import_tune_a_video": lambda task: import_tune_a_video(task, exported(task)),
    "saved_tune": lambda task: saved_tune(task, first_tune(task)),
    "resume_tune": resume_tune,
    "tuning_settings": lambda task: tuning_settings(task, task.crop[1] if task.crop else 128),
    "long_clip": long_clip,
    "controlnet": lambda task: controlnet(task, DEMO_NET if task.model is DEMO else SD15_NET),
    "attention_control": attention_control,
    "custom_sampler": custom_sampler,
    "reconstruction": lambda task: reconstruction(task, first_tune(task)),
    "prompt_tokens": prompt_tokens,
}
OWN_DEMO_TASKS = {"long_clip": LONG_DEMO_TASK, "controlnet": RECOLOURED_DEMO_TASK}
RUN_WITHOUT_DOWNLOAD = ("edit", "ei2")  # of which a twin for the demo model is a file, too


def describe_demo(name: str) -> list[Group]:
    """Return a workflow for the demo model."""
    return MAKE[name](OWN_DEMO_TASKS.get(name, DEMO_TASK))


def workflows() -> dict[str, list[Group]]:
    """Return every workflow by its file name."""
    return {
        **{f"demo_{name}": describe_demo(name) for name in RUN_WITHOUT_DOWNLOAD},
        **{name: make(LONG_SD15_TASK if name == "long_clip" else SD15_TASK) for name, make in MAKE.items()},
    }

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
    INFLATE,
    OURS,
    PAPERS_CFG,
    PATCH,
    PLAIN,
    SD15,
    UNTUNED_PATCH,
    Task,
    apply_saved_tune,
    invert,
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
    edited = sample("Edit", "Patch", "Edited prompt", "Invert", CFG, cfg_end=CFG_END)
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
            [invert("Invert", "Patch", "Empty prompt", **PLAIN), show("Inversion report", "Invert", "report")],
            "Done once for the clip: another edited prompt runs the sampling only. denoise: more leaves the edit "
            "freer, less keeps more of the clip; 0 matches it to the size.",
        ),
        Group(
            "4 Sample",
            [
                relink(edited, relation=("Relation", "relation")),
                sample("Reconstruction", "Patch", "Empty prompt", "Invert", 1.0),
            ],
            "cfg: higher follows the edited prompt more and the clip less. cfg_end: a later end of the guidance edits "
            "more and flickers more. The reconstruction shows how well the clip comes back: delete it and its branch "
            "once you are content.",
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
        task.nodes(names_source=True),
        Group("2 Clip model", [INFLATE, PATCH, *tuning(task)], note),
        Group(
            "3 Invert",
            [
                invert("Invert", "Tune", "Empty prompt", **inversion),
                show("Inversion report", "Invert", "report"),
                invert("Invert to reconstruct", "Tune", "Source prompt", **PLAIN),
            ],
            "The lower inversion is plain and only serves the reconstruction, which shows how well the clip comes "
            "back. Delete it and its branch once you are content.",
        ),
        Group(
            "4 Sample",
            [
                sample("Edit", "Tune", "Edited prompt", "Invert", PAPERS_CFG),
                sample("Reconstruction", "Tune", "Source prompt", "Invert to reconstruct", 1.0),
            ],
            "CFG: higher follows the edited prompt more and the clip less.",
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


def long_clip(task: Task) -> list[Group]:
    """Return an edit of a clip that is too long for one batch: tuned some frames at a time, sampled in windows."""
    windows = {"context_length": WINDOW, "context_overlap": WINDOW // 2, "causal_window_fix": False}
    given, windowed = {"model": ("Tune", "clip_model")}, ("Windows", "MODEL")
    edited = sample("Edit", "Tune", "Edited prompt", "Invert", CFG)
    options = replace(task, options={**task.options, "frames_per_step": WINDOW // 2})
    return [
        task.nodes(names_source=True),
        Group(
            "2 Clip model",
            [INFLATE, PATCH, *tuning(options, previews=False)],
            "Each tuning step takes some neighbouring frames (frames_per_step of the options), from another place "
            "every time: each frame is seen less often than in a short clip. Raise steps if the motion is lost. "
            "There is no preview, which would take the whole clip at once.",
        ),
        Group(
            "3 Windows, invert, sample",
            [
                Node("Windows", "ContextWindowsManual", given, windows),
                relink(invert("Invert", "Tune", "Empty prompt", **PLAIN), model=windowed),
                *relation(task),
                relink(edited, model=windowed, relation=("Relation", "relation")),
            ],
            "The model sees context_length frames at a time; neighbouring windows are blended where they overlap. The "
            "relation ties all frames along the motion, across the windows too. What the model needs of memory "
            "depends on context_length, not on the clip. ControlNet does not work in windows.",
        ),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def controlnet(task: Task, loader: Node) -> list[Group]:
    """Return an edit that a ControlNet for edges steers as well."""
    steer = {"positive": ("Edited prompt", "CONDITIONING"), "negative": ("Negative prompt", "CONDITIONING")}
    steer |= {"control_net": ("ControlNet", "CONTROL_NET"), "image": ("Edges", "IMAGE")}
    edited = sample("Edit", "Tune", "Edited prompt", "Invert", CFG)
    return [
        task.nodes(names_source=True),
        Group("2 Clip model", [INFLATE, PATCH, *tuning(task)], "A LoRA goes between Model and Inflate."),
        Group(
            "3 Invert", [invert("Invert", "Tune", "Empty prompt", **PLAIN)], "The clip is inverted without ControlNet."
        ),
        Group(
            "4 Steer and sample",
            [
                loader,
                Node("Edges", "Canny", {"image": task.pixels}),
                Node("Steer", "ControlNetApplyAdvanced", steer, {"strength": 0.6, "end_percent": 0.7}),
                relink(edited, positive=("Steer", "positive"), negative=("Steer", "negative")),
            ],
            "One hint for each frame of the clip, of the clip's own size. Less strength, or an earlier end_percent, "
            "gives the edited prompt more say.",
        ),
        Group("5 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def training_free(task: Task) -> list[Group]:
    """Return an edit without tuning, through the host's own sampler node."""
    guider = {"model": ("Patch", "clip_model"), "positive": ("Edited prompt", "CONDITIONING")}
    guider |= {"negative": ("Negative prompt", "CONDITIONING")}
    sampler = {"noise": ("No noise", "NOISE"), "guider": ("Guide", "GUIDER"), "latent_image": ("Invert", "inversion")}
    sampler |= {"sampler": ("Sampler", "sampler"), "sigmas": ("Sampler", "sigmas")}
    return [
        task.nodes(),
        Group(
            "2 Clip model, invert",
            [
                INFLATE,
                UNTUNED_PATCH,
                invert("Invert", "Patch", "Empty prompt", **PLAIN),
                show("Inversion report", "Invert", "report"),
            ],
            "Without tuning only the attention connects the frames: quick, and less steady.",
        ),
        Group(
            "3 Sample",
            [
                Node("Guide", "CFGGuider", guider, {"cfg": CFG}),
                Node("No noise", "DisableNoise"),
                Node("Sampler", OURS + "SmoothSampler", {"inversion": ("Invert", "inversion")}),
                Node("Edit", "SamplerCustomAdvanced", sampler),
            ],
            "Any guider of the host may take CFGGuider's place.",
        ),
        Group("4 Edited clip", save("edit", ("Edit", "output"))),
    ]


def saved_tune(task: Task, file: str) -> list[Group]:
    """Return an edit with a tune from a file."""
    return [
        task.nodes(),
        Group(
            "2 Saved tune",
            [
                *apply_saved_tune(file),
                invert("Invert", "Tune", "Empty prompt", **PLAIN),
            ],
            "Run the workflow ei2 first: its Save Tune writes the file; choose the newest number. query_strength "
            "below 1 loosens the hold of the source.",
        ),
        Group("3 Sample", [sample("Edit", "Tune", "Edited prompt", "Invert", CFG)]),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def tune_a_video(task: Task) -> list[Group]:
    """Return Tune-A-Video, the ancestor to compare with, and the export in its own format."""
    patch = replace(PATCH, values={"preset": "Tune-A-Video"})
    given = {"model": ("Model", "MODEL"), "tune": ("Tune", "tune")}
    name = f"{Path(task.file).stem}_tune_a_video"
    return [
        task.nodes(names_source=True),
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
        Group("3 Invert", [invert("Invert", "Tune", "Empty prompt", **PLAIN)], "Plain inversion."),
        Group("4 Sample", [sample("Edit", "Tune", "Edited prompt", "Invert", PAPERS_CFG)]),
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
                invert("Invert", "Tune", "Empty prompt", **PLAIN),
            ],
            "Put the folder that Tune-A-Video wrote into models/consistent_video. The model must be the checkpoint "
            "that it was tuned from.",
        ),
        Group("3 Sample", [sample("Edit", "Tune", "Edited prompt", "Invert", CFG)]),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def tune_dial(task: Task, file: str) -> list[Group]:
    """Return two edits by the same tune, half-way and at its end."""
    given = {"model": ("Model", "MODEL"), "tune": ("Load tune", "tune")}
    halves = {"half": 0.5, "whole": 1.0}
    dials = [Node(f"Dial {name}", OURS + "TuneDial", given, {"progress": at}) for name, at in halves.items()]
    return [
        task.nodes(),
        Group(
            "2 Saved tune",
            [Node("Load tune", OURS + "LoadTune", {}, {"tune_name": file}), *dials],
            "Run the workflow ei2 first. Where the edit looks too much like the source, turn progress back: 1 is the "
            "end of the tuning, 0 its beginning.",
        ),
        *(
            Group(
                f"{number} Edit, {name}",
                [
                    invert(f"Invert {name}", f"Dial {name}", "Empty prompt", **PLAIN),
                    sample(f"Edit {name}", f"Dial {name}", "Edited prompt", f"Invert {name}", CFG),
                    *save(f"edit {name}", (f"Edit {name}", "latent")),
                ],
            )
            for number, name in enumerate(halves, start=3)
        ),
    ]


def resume_tune(task: Task) -> list[Group]:
    """Return the continuation of a tuning."""
    return [
        task.nodes(names_source=True),
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
    """Return a tuning with everything set that can be set, on a region of the frames."""
    region = {"destination": ("Nothing", "MASK"), "source": ("Rectangle", "MASK")}
    place = {"x": side // 8, "y": side // 8, "operation": "add"}
    values = {"schedule": "cosine", "warmup_steps": 20, "min_snr_gamma": 5.0, "frames_per_step": 4}
    links = {"options": ("Options", "options"), "mask": ("Region", "MASK")}
    return [
        task.nodes(names_source=True),
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
            "3 Tune",
            [
                INFLATE,
                PATCH,
                Node("Options", OURS + "TuningOptions", {}, {**task.options, **values, "gradient_checkpointing": True}),
                tune(links, **task.tuning, snapshots="10%, 50%", smoothing="INR"),
                show("Tune report", "Tune", "report"),
                Node("Loss plot", "PreviewImage", {"images": ("Tune", "loss_plot")}),
                save_tune(Path(task.file).stem),
            ],
            "INR smoothing ties neighbouring frames. chunking, gradient_checkpointing and frames_per_step save memory. "
            "Schedule, warm-up and min-SNR are not in the papers.",
        ),
    ]


def noise_relation(task: Task, file: str) -> list[Group]:
    """Return an edit whose frames are tied to each other along the clip's motion, beside one that is not."""
    tied = relink(sample("Edit", "Tune", "Edited prompt", "Invert", CFG), relation=("Relation", "relation"))
    return [
        task.nodes(),
        Group(
            "2 Saved tune, invert",
            [
                *apply_saved_tune(file),
                invert("Invert", "Tune", "Empty prompt", **PLAIN, keep=True),
            ],
            "Run the workflow ei2 first. The inversion is kept on disk, so that the next edit starts at once.",
        ),
        Group(
            "3 Sample",
            [
                *relation(task),
                tied,
                show("Sample report", "Edit", "report"),
            ],
            "The report shows the texture energy against the source's: a fall tells of over-smoothing. keep_texture "
            "guards against it.",
        ),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def known_motion(task: Task, file: str, colours: tuple[int, int], meaning: str) -> list[Group]:
    """Return the same edit along a motion that is known: the clip moves evenly, which a plain colour says.

    Args:
        task: the clip.
        file: of the tune.
        colours: of the motion forward and backward, red to the right and green down.
        meaning: of these, for the note.
    """
    clip, inversion, edited, saved = noise_relation(task, file)
    flow = {"forward": ("Forward", "IMAGE"), "backward": ("Backward", "IMAGE")}
    frames, side = task.crop or (8, 128)
    size = {"width": side, "height": side, "batch_size": frames - 1}
    nodes = [
        Node(title, "EmptyImage", {}, {**size, "color": colour})
        for title, colour in zip(("Forward", "Backward"), colours, strict=True)
    ]
    nodes.append(Node("Motion", OURS + "MotionFromFlow", flow, {"largest": 16.0}))
    nodes += [node for node in edited.nodes if node.title != "Motion"]
    note = (
        f"Red is the motion to the right and green the motion down, half of each none: {meaning} Connect the vector "
        "pass of a renderer in the place of the colours."
    )
    return [clip, inversion, replace(edited, nodes=nodes, note=note), saved]


def attention_control(task: Task) -> list[Group]:
    """Return an edit without tuning that follows the attention of the source."""
    given = {"model": ("Patch", "clip_model"), "inversion": ("Invert", "inversion"), "clip": ("Model", "CLIP")}
    given |= {"source_positive": ("Source prompt", "CONDITIONING")}
    values = {"source_text": task.before, "edit_text": task.after, "cross_end": 0.3, "self_end": 0.3}
    return [
        task.nodes(names_source=True),
        Group("2 Clip model, invert", [INFLATE, UNTUNED_PATCH, invert("Invert", "Patch", "Source prompt", **PLAIN)]),
        Group(
            "3 Control, sample",
            [
                Node("Control", OURS + "AttentionControl", given, values),
                sample("Edit", "Control", "Edited prompt", "Invert", CFG),
            ],
            "The texts must be those of the two prompts. Lower cross_end and self_end where the edit changes shapes, "
            "raise them where it changes looks.",
        ),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def reconstruction(task: Task, file: str) -> list[Group]:
    """Return the check of an inversion, which is saved."""
    report = {"model": ("Tune", "clip_model"), "vae": ("Model", "VAE"), "inversion": ("Invert", "inversion")}
    report |= {"positive": ("Source prompt", "CONDITIONING"), "negative": ("Negative prompt", "CONDITIONING")}
    plain = {**PLAIN, "refinements": 2}
    return [
        task.nodes(names_source=True),
        Group(
            "2 Saved tune, invert",
            [
                *apply_saved_tune(file),
                invert("Invert", "Tune", "Source prompt", **plain),
                Node(
                    "Save inversion",
                    OURS + "SaveInversion",
                    {"inversion": ("Invert", "inversion")},
                    {"filename_prefix": Path(task.file).stem},
                ),
            ],
            "A plain inversion with refinements comes back nearly exactly.",
        ),
        Group(
            "3 Report",
            [
                Node("Reconstruct", OURS + "ReconstructionReport", report),
                show("Findings", "Reconstruct", "report"),
                Node("Plot", "PreviewImage", {"images": ("Reconstruct", "plot")}),
                Node("Reconstructed frames", "PreviewImage", {"images": ("Reconstruct", "images")}),
            ],
        ),
    ]


def saved_inversion(task: Task, tune_file: str, file: str) -> list[Group]:
    """Return an edit that needs no inversion."""
    return [
        task.nodes(),
        Group(
            "2 Saved tune and inversion",
            [
                *apply_saved_tune(tune_file),
                Node("Invert", OURS + "LoadInversion", {}, {"inversion_name": file}),
            ],
            "Run the workflow reconstruction first: it saves the inversion. The tune must be the one it was made with.",
        ),
        Group("3 Sample", [sample("Edit", "Tune", "Edited prompt", "Invert", CFG)]),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def covariate_shift(task: Task, file: str) -> list[Group]:
    """Return the report on what the temporal modules do to the features."""
    report = {"model": ("Tune", "clip_model"), "positive": ("Source prompt", "CONDITIONING")}
    return [
        task.nodes(names_source=True),
        Group(
            "2 Report",
            [
                *apply_saved_tune(file),
                Node("Report", OURS + "CovariateShiftReport", {**report, "latent": ("Encode", "LATENT")}),
                show("Table", "Report", "report"),
                Node("Plot", "PreviewImage", {"images": ("Report", "plot")}),
            ],
            "How far each temporal module moves the mean over frames, and how much it changes their covariance.",
        ),
    ]


def scorecard(task: Task, file: str) -> list[Group]:
    """Return an edit and what the scorecard says of it."""
    given = {"source": task.pixels, "edited": ("Decode edit", "IMAGE")}
    return [
        task.nodes(),
        Group(
            "2 Saved tune, invert, sample",
            [
                *apply_saved_tune(file),
                invert("Invert", "Tune", "Empty prompt", **PLAIN),
                sample("Edit", "Tune", "Edited prompt", "Invert", CFG),
            ],
            "Run the workflow ei2 first: its Save Tune writes the file.",
        ),
        Group("3 Edited clip", save("edit", ("Edit", "latent"))),
        Group(
            "4 Scorecard",
            [
                Node("Scorecard", OURS + "EditScorecard", given, {"edit_text": task.after, "source_text": task.before}),
                show("Findings", "Scorecard", "report"),
                Node("Plot", "PreviewImage", {"images": ("Scorecard", "plot")}),
            ],
            "Read each figure beside that of doing nothing. For CLIP scores put a CLIP model's folder into "
            "models/clip_score and choose it.",
        ),
    ]


def compare_grid(task: Task, file: str) -> list[Group]:
    """Return two edits side by side: plain, and tied along the motion."""
    plain, tied = (sample(f"Edit {name}", "Tune", "Edited prompt", "Invert", CFG) for name in ("plain", "tied"))
    tied = replace(tied, links={**tied.links, "relation": ("Relation", "relation")})
    clips = {"source": task.pixels, "edit_1": ("Decode edit plain", "IMAGE"), "edit_2": ("Decode edit tied", "IMAGE")}
    values = {"labels": "plain, tied", "difference": True, "flow": "variational"}
    return [
        task.nodes(),
        Group(
            "2 Saved tune, invert",
            [*apply_saved_tune(file), invert("Invert", "Tune", "Empty prompt", **PLAIN)],
            "Run the workflow ei2 first: its Save Tune writes the file.",
        ),
        Group(
            "3 Sample",
            [
                *relation(task),
                plain,
                tied,
            ],
        ),
        Group("4 Plain", save("edit plain", ("Edit plain", "latent"))),
        Group("5 Tied", save("edit tied", ("Edit tied", "latent"))),
        Group(
            "6 Side by side",
            [
                Node("Grid", OURS + "CompareGrid", clips, values),
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
    ]


def fit_planner(task: Task) -> list[Group]:
    """Return a tuning with options that fit into the memory."""
    given = {"model": ("Patch", "clip_model"), "latent": ("Encode", "LATENT")}
    return [
        task.nodes(names_source=True),
        Group(
            "2 Clip model, plan, tune",
            [
                INFLATE,
                PATCH,
                Node("Plan", OURS + "FitPlanner", given),
                show("Findings", "Plan", "report"),
                tune({"model": ("Plan", "clip_model"), "options": ("Plan", "planned")}, **task.tuning),
                show("Tune report", "Tune", "report"),
                save_tune(Path(task.file).stem),
            ],
            "The planner counts what the clip needs before anything runs. Connect Tuning Options to it for other "
            "settings; set budget_gib to try another card.",
        ),
    ]


def with_tokens(title: str, text: str, latent: tuple[str, str], **strengths: float) -> Node:
    """Return the node that puts learned tokens before a prompt."""
    links = {"conditioning": (text, "CONDITIONING"), "prompt_tokens": ("Tokens", "prompt_tokens"), "latent": latent}
    return Node(title, OURS + "ApplyPromptTokens", links, strengths)


def edit_with_tokens(inverted: str) -> list[Group]:
    """Return the nodes that invert and sample with learned tokens in every prompt."""
    clip, edited = ("Encode", "LATENT"), ("Edited with tokens", "Negative with tokens")
    given = {"model": (inverted, "clip_model"), "inversion": ("Invert", "inversion")}
    sides = {
        side: (title, "conditioning_with_tokens") for side, title in zip(("positive", "negative"), edited, strict=True)
    }
    turned = {"model": (inverted, "clip_model"), "latent": clip}
    turned["positive"] = ("Empty with tokens", "conditioning_with_tokens")
    kind = OURS + "INRBidirectionalDDIMInversion"
    return [
        Group(
            "3 Invert, sample",
            [
                with_tokens("Empty with tokens", "Empty prompt", clip),
                with_tokens(edited[0], "Edited prompt", clip),
                with_tokens(edited[1], "Negative prompt", clip),
                Node("Invert", kind, turned, PLAIN),
                Node("Edit", OURS + "SmoothSample", {**given, **sides}, {"cfg": CFG}),
            ],
            "Every prompt takes the same tokens. Lower the strengths of the edited prompt where the edit looks too "
            "much like the source.",
        ),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


def prompt_tokens(task: Task) -> list[Group]:
    """Return an edit with tokens learned on the clip, the UNet left as it is."""
    learned = {"model": ("Patch", "clip_model"), "positive": ("Source prompt", "CONDITIONING")}
    learned |= {"latent": ("Encode", "LATENT"), "options": ("Options", "options")}
    name = {"filename_prefix": Path(task.file).stem}
    return [
        task.nodes(names_source=True),
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
            "Tokens are learned before the source prompt's text and serve any other. The patch connects the frames; "
            "its temporal modules are left out, for they are not tuned here.",
        ),
        *edit_with_tokens("Patch"),
    ]


def saved_prompt_tokens(task: Task, file: str) -> list[Group]:
    """Return an edit with learned tokens from a file."""
    return [
        task.nodes(),
        Group(
            "2 Clip model, saved tokens",
            [
                INFLATE,
                UNTUNED_PATCH,
                Node("Tokens", OURS + "LoadPromptTokens", {}, {"prompt_tokens_name": file}),
            ],
            "Run the workflow prompt_tokens first: it saves the file.",
        ),
        *edit_with_tokens("Patch"),
    ]


def inversion_stability(task: Task) -> list[Group]:
    """Return the report on how stable an inversion is."""
    given = {"model": ("Patch", "clip_model"), "positive": ("Source prompt", "CONDITIONING")}
    given |= {"inversion": ("Invert", "inversion"), "sampled": ("Edited prompt", "CONDITIONING")}
    return [
        task.nodes(names_source=True),
        Group(
            "2 Invert, report",
            [
                INFLATE,
                UNTUNED_PATCH,
                invert("Invert", "Patch", "Source prompt", **PLAIN, steps=10),
                Node("Stability", OURS + "InversionStability", given),
                show("Table", "Stability", "report"),
                Node("Plot", "PreviewImage", {"images": ("Stability", "plot")}),
            ],
            "How far the way back may stray and how far it does, when it takes the edited prompt in the place of the "
            "source prompt. Disconnect sampled to see the inversion alone.",
        ),
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


def twins(name: str, make: Callable[[Task], list[Group]]) -> dict[str, list[Group]]:
    """Return a workflow for the demo model and for Stable Diffusion."""
    return {f"demo_{name}": make(DEMO_TASK), f"sd15_{name}": make(SD15_TASK)}


def first_tune(task: Task) -> str:
    """Return the file that the first run of the workflow ei2 saves."""
    return f"{Path(task.file).stem}_00001_.safetensors"


def exported(task: Task) -> str:
    """Return the file that Tune-A-Video's workflow exports at its first run."""
    return f"{Path(task.file).stem}_tune_a_video_unet_00001_/unet/diffusion_pytorch_model.safetensors"


def workflows() -> dict[str, list[Group]]:
    """Return every workflow by its file name."""
    return {
        **twins("edit", edit),
        **twins("ei2", ei2),
        **twins("inr_smooth", inr_smooth),
        "demo_long_clip": long_clip(LONG_DEMO_TASK),
        "sd15_long_clip": long_clip(LONG_SD15_TASK),
        "demo_controlnet": controlnet(RECOLOURED_DEMO_TASK, Node("ControlNet", OURS + "LoadDemoControlNet")),
        "sd15_controlnet": controlnet(
            SD15_TASK, Node("ControlNet", "ControlNetLoader", {}, {"control_net_name": CONTROL_NET})
        ),
        **twins("training_free", training_free),
        **twins("saved_tune", lambda task: saved_tune(task, first_tune(task))),
        **twins("tune_dial", lambda task: tune_dial(task, first_tune(task))),
        **twins("resume_tune", resume_tune),
        **twins("tuning_settings", lambda task: tuning_settings(task, task.crop[1] if task.crop else 128)),
        **twins("fit_planner", fit_planner),
        **twins("tune_a_video", tune_a_video),
        **twins("import_tune_a_video", lambda task: import_tune_a_video(task, exported(task))),
        **twins("noise_relation", lambda task: noise_relation(task, first_tune(task))),
        "demo_known_motion": known_motion(
            DEMO_TASK,
            first_tune(DEMO_TASK),
            (0xB49600, 0x4B6900),
            "this clip moves 6.6 pixels to the right and 2.8 down from frame to frame.",
        ),
        "sd15_known_motion": known_motion(
            SD15_TASK, first_tune(SD15_TASK), (0x808000, 0x808000), "these say that nothing moves."
        ),
        **twins("attention_control", attention_control),
        **twins("reconstruction", lambda task: reconstruction(task, first_tune(task))),
        **twins("saved_inversion", lambda task: saved_inversion(task, first_tune(task), first_tune(task))),
        **twins("scorecard", lambda task: scorecard(task, first_tune(task))),
        **twins("compare_grid", lambda task: compare_grid(task, first_tune(task))),
        **twins("prompt_tokens", prompt_tokens),
        **twins("saved_prompt_tokens", lambda task: saved_prompt_tokens(task, first_tune(task))),
        **twins("inversion_stability", inversion_stability),
        **twins("covariate_shift", lambda task: covariate_shift(task, first_tune(task))),
    }

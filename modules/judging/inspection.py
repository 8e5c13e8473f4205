"""What is attached to a model, in words."""

from typing import Any


def inspection_text(data: dict[str, Any]) -> str:
    """Return what `host.inspect.inspect_model` found as Markdown."""
    model, sampling = data["model"], data["sampling"]
    lines = [
        f"**Model**: {model['kind']} ({model['network']}), {model['gib']:g} GiB of {model['weights']}, computes in "
        f"{model['computes_in']}, samples by {' and '.join(model['sampling'])}.",
        f"**Clip**: {clip_text(data['clip'])}",
    ]
    if data["attention_control"]:
        values = (f"{key} {value}" for key, value in data["attention_control"].items())
        lines.append(f"**Attention Control**, for the edit and not for the inversion: {', '.join(values)}.")
    if data["slices"]:
        lines.append("**Slice Denoiser**: weight {weight:g}, slices {axes}, blend {blend}.".format(**data["slices"]))
    if data["windows"]:
        windows = data["windows"]
        lines.append(f"**Windows**: {windows['length']} frames, which overlap by {windows['overlap']}.")
    if sampling:
        lines.append(f"**Sampling**: {sampling_text(sampling, data['windows'])}")
    if data["others"]:
        rows = [f"| {one['kind']} | {one['count']} | {', '.join(one['by'])} |" for one in data["others"]]
        lines.append("\n".join(["| Other nodes attached | number | which |", "|---|---|---|", *rows]))
    else:
        lines.append("**Other nodes** attached nothing.")
    troubles = [one["what"] + (" It is refused." if one["refused"] else "") for one in data["conflicts"]]
    lines.append(
        "\n".join([f"**Conflicts**:{'' if troubles else ' none that is known.'}", *(f"- {t}" for t in troubles)])
    )
    lines += data["hints"]
    return "\n\n".join(lines)


def clip_text(clip: dict[str, Any] | None) -> str:
    """Return clip settings in words."""
    if clip is None:
        return "not inflated."
    frames = f"{clip['num_frames']} frames each" if clip["num_frames"] else "the whole batch is one"
    parts = [frames, "each frame for itself"]
    if clip["attention"]:
        kind, r, downsample = (clip["attention"][key] for key in ("kind", "r", "downsample"))
        how = f"{kind}, r {r}, {downsample}" if kind == "fine-coarse" else kind
        parts[1] = f"attention across frames: {how}, strength {clip['attention_strength']:g}"
    if clip["temporal"]:
        tuned = "tuned" if clip["temporal_tuned"] else "not tuned"
        parts.append(f"{clip['temporal_modules']} temporal modules ({tuned}), strength {clip['temporal_strength']:g}")
    if clip["percents"] != [0, 1]:
        parts.append("acting from {:g} to {:g} of sampling".format(*clip["percents"]))
    if clip["tunes"]:
        parts.append(f"{clip['tunes']} applied, the last made on {clip['tuned_frames']} frames")
    return "; ".join(parts) + "."


def sampling_text(sampling: dict[str, Any], windows: dict[str, Any] | None) -> str:
    """Return the memory of sampling in words."""
    size = f"{sampling['frames']} frames of {sampling['width']} x {sampling['height']}"
    if sampling["gib"] is None:
        return f"{size}; the memory of such a model is not known."
    fits = "fits" if sampling["gib"] <= sampling["free_gib"] else "does not fit at once"
    each = " in each window" if windows and (windows["length"] or sampling["frames"]) < sampling["frames"] else ""
    return (
        f"{size} take {sampling['gib']:g} GiB with guidance{each}, without ControlNet and what other nodes add; "
        f"{sampling['free_gib']:g} GiB are free: it {fits}."
    )

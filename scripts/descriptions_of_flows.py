"""The workflows for flow-matching models: the main graph, with their loaders, guidance and attention."""

from collections.abc import Callable

from .graph import Group, Node, Workflow
from .parts import (
    EDITED,
    INFLATE,
    RECONSTRUCTION,
    SOURCE,
    UNTUNED_PATCH,
    Task,
    checkpoint,
    invert_source,
    main_graph,
    results,
    sample,
    show,
    with_loaders,
)

CLIP_MODEL = (
    "The patch lets every frame attend to others; flow-matching models have no temporal modules. The relation ties "
    "what the edit changes along the clip's motion. A LoRA goes between Model and Inflate."
)
INVERT = (
    "denoise: more leaves the edit freer, less keeps more of the clip; 0 matches it to the size. refinements bring the "
    "clip back closer, at one more evaluation of each step."
)


def edit_flow(task: Task, patch: Node = UNTUNED_PATCH) -> Workflow:
    """Return the main graph for a flow-matching model that is guided by CFG."""
    inversion = f"Done once for the clip: another edited prompt runs the sampling only. {INVERT}"
    return main_graph(task, CLIP_MODEL, inversion, patch)


def edit_sparse(task: Task) -> Workflow:
    """Return the same for a model that takes no FFAM."""
    return edit_flow(task, UNTUNED_PATCH.but(spatial="sparse-causal"))


def edit_flux(task: Task) -> Workflow:
    """Return the main graph for a guidance-distilled flow-matching model, which is guided by an input of its own."""
    source, wanted = "Source guidance", "Edited guidance"
    graph = [
        *task.nodes(),
        Node(source, "FluxGuidance", conditioning=SOURCE, guidance=1.0),
        Node(wanted, "FluxGuidance", conditioning=EDITED, guidance=3.5),
        Group("2 Clip model, motion", CLIP_MODEL),
        INFLATE,
        UNTUNED_PATCH,
        *task.relation(),
        Group("3 Invert", f"Done once for the clip, with a guidance of 1, by which Flux inverts best. {INVERT}"),
        invert_source("Patch", source),
        show("Inversion report", "Invert"),
        Group(
            "4 Sample",
            "Flux dev is guidance-distilled: Edited guidance takes the place of cfg, which stays 1. Higher follows the "
            f"edited prompt more and the clip less. {RECONSTRUCTION}",
        ),
        sample("Edit", "Patch", wanted, 1.0, source, relation="Relation"),
        sample("Reconstruction", "Patch", source, 1.0, source),
        *results(),
    ]
    clips = {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors"}
    return with_loaders(graph, Node("Text encoders", "DualCLIPLoader", **clips, type="flux"), vae("ae.safetensors"))


def edit_qwen_image(task: Task) -> Workflow:
    """Return the main graph for Qwen-Image, whose VAE takes frames one by one."""
    graph = with_loaders(
        edit_flow(task),
        Node("Text encoder", "CLIPLoader", clip_name="qwen_2.5_vl_7b_fp8_scaled.safetensors", type="qwen_image"),
        vae("qwen_image_vae.safetensors"),
    )
    return encoded_one_by_one(graph)


def edit_z_image(task: Task) -> Workflow:
    """Return the main graph for Z-Image, which takes no FFAM."""
    graph = edit_sparse(task)
    encoder = Node("Text encoder", "CLIPLoader", clip_name="qwen_3_4b.safetensors", type="lumina2")
    return with_loaders(graph, encoder, vae("ae.safetensors"))


def encoded_one_by_one(workflow: Workflow) -> Workflow:
    """Return a workflow whose frames are encoded each by itself, in a column after the first."""
    encode = next(part for part in workflow if isinstance(part, Node) and part.title == "Encode")
    column: list[Group | Node] = [
        Group(
            "Frames one by one",
            "Qwen-Image's VAE takes a batch of frames for one video and mixes them. So each is encoded by itself, and "
            "then they are put together again.",
        ),
        Node("One by one", "RebatchImages", images=encode.inputs["pixels"], batch_size=1),
        Node("Encode each", "VAEEncode", pixels="One by one", vae=encode.inputs["vae"]),
        Node("Encode", "RebatchLatents", latents="Encode each", batch_size=4096),
    ]
    others = [part for part in workflow if part is not encode]
    second = [number for number, part in enumerate(others) if isinstance(part, Group)][1]
    return [*others[:second], *column, *others[second:]]


def network(file: str) -> Node:
    """Return the loader of a diffusion model without text encoder and VAE."""
    return Node("Model", "UNETLoader", unet_name=file)


def vae(file: str) -> Node:
    """Return the loader of a VAE."""
    return Node("VAE", "VAELoader", vae_name=file)


FLOWS: dict[str, tuple[Callable[[Task], Workflow], Node]] = {  # by file name, with what loads the model
    "edit_sd3": (edit_flow, checkpoint("sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors")),
    "edit_flux": (edit_flux, network("flux1-dev.safetensors")),
    "edit_qwen_image": (edit_qwen_image, network("qwen_image_fp8_e4m3fn.safetensors")),
    "edit_z_image": (edit_z_image, network("z_image_bf16.safetensors")),
}
BY_DEMO_MODEL = {"edit_sd3": edit_flow, "edit_z_image": edit_sparse}  # their twins, which need no other loaders

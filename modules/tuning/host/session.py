"""One tuning on a private copy of a model: from its inputs to what was learned."""

import gc
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...clip_model.host.bank import TemporalBank
from ...clip_model.host.features import Features
from ...clip_model.host.settings import clip_settings
from ...clip_model.methods import Part
from ...diffusion.host.latent import clip_latent, prediction_of, sigma_table
from ..objective import Clip
from ..settings import Memory, TuneSettings
from ..tuner import Tuner
from ..weights import hash_tensors
from .checkpoints import checkpointed_layers
from .fit import OutOfMemory, memory_advice, said_of_checkpointing
from .learned import Caller, training_options
from .private_copy import choose_precision, computing_in
from .progress import TuningProgress
from .tune_inputs import TuneInputs, condition, latent_mask


class Made(Protocol):
    """What a session learns, with how it was made."""

    @property
    def info(self) -> dict[str, Any]: ...


Kept = TypeVar("Kept", bound=Made)
Result = TypeVar("Result")
# Settings that change where memory runs out.
STEPPED = ("chunking", "gradient_checkpointing", "checkpointing_share", "frames_per_step")
log = logging.getLogger(__name__)


class Session(ABC, Generic[Kept]):
    """A tuning in the host: makes the Tuner, takes its steps, with less memory where they do not fit.

    Attributes:
        clip: settings of the model.
        x_0: clean model latent of the clip.
        precision: that the UNet computes in.
        given: the UNet's other arguments.
        learned, bank: what is learned, and the temporal modules of the UNet's calls.
        features: of the parts of the UNet that a loss looks at.
        call: calls the UNet.
        tuner: takes the steps.
        info: how it is made, for files; JSON values.
    """

    MUST_AGREE: ClassVar[tuple[str, ...]]  # of a tuning and of what it resumes
    MAY_DIFFER: ClassVar = {"steps", "seed", "snapshots", "prompt", "chunking", "gradient_checkpointing",
                            "checkpointing_share", "on_out_of_memory"}  # fmt: skip
    NO_STATE: ClassVar[str]
    ALLOWED: ClassVar = ""  # what the prompt may carry besides

    def __init__(self, copy: ModelPatcher, model: ModelPatcher, inputs: TuneInputs, settings: TuneSettings):
        self.copy, self.clip, unet = copy, clip_settings(model), copy.model.diffusion_model
        samples = clip_latent(model, inputs.latent, self.clip.num_frames).clone()  # a copy, which takes gradients
        device = comfy.model_management.get_torch_device()
        self.x_0 = copy.model.process_latent_in(samples.to(device, torch.float32))
        for term in settings.terms.values():
            if warning := term.check(settings.memory.frames_of(len(self.x_0))):
                log.warning(warning)
        self.precision = choose_precision(settings.memory.precision, model, copy.load_device)
        unet.requires_grad_(False)
        self.given = condition(copy, inputs.positive, self.x_0, allowed=self.ALLOWED)
        self.learned, self.bank = self.learn(model, settings)
        identities = self.identities()  # of the weights as they were loaded
        computing = computing_in(self.precision, copy)
        self.features = {part: Features(unet, part) for part in settings.parts}
        self.call = Caller(copy, self.options_of(settings.memory), computing, tuple(self.features.values()))
        mask = latent_mask(inputs.mask, self.x_0)
        clip = Clip(self.x_0, sigma_table(model).clone(), prediction_of(model), mask)
        self.tuner = Tuner(self.denoise, self.learned, clip, settings, self.precision, self.take_features)
        self.info = {
            **settings.flat(),
            "prediction": clip.prediction,
            "masked": mask is not None,
            "frames": len(self.x_0),
            "precision": self.precision,
            **({"prompt": inputs.prompt} if inputs.prompt else {}),
            **identities,
        }

    @abstractmethod
    def learn(self, model: ModelPatcher, settings: TuneSettings) -> tuple[nn.Module, TemporalBank | None]:
        """Return what is learned and the temporal modules, both on the device of the copy."""

    @abstractmethod
    def denoise(self, x: Tensor, sigma: Tensor, frames: slice) -> Tensor:
        """Predict x_0 for a step of the tuning."""

    @abstractmethod
    def model_weights(self) -> list[Tensor]:
        """Return weights that tell the model from others."""

    @abstractmethod
    def made(self, done: int, state: dict[str, Tensor]) -> Kept:
        """Return what is learned as it is, after some steps, with the tuning's state."""

    def identities(self) -> dict[str, Any]:
        """Return what tells the clip and the model from others."""
        return {"clip_hash": hash_tensors([self.x_0]), "model_hash": hash_tensors(self.model_weights())}

    def options_of(self, memory: Memory) -> dict[str, Any]:
        """Return the transformer options of a step that holds what the settings say."""
        shape = memory.frames_of(len(self.x_0)), *self.x_0.shape[1:]
        checkpointed = checkpointed_layers(self.copy.model.diffusion_model, shape, self.clip, memory)
        return training_options(self.copy, self.bank, memory.chunking, checkpointed)

    def take_features(self) -> dict[Part, list[Tensor]]:
        """Return the features of the last call."""
        return {part: features.take() for part, features in self.features.items()}

    def resume(self, kept: Any) -> None:
        """Continue a tuning.

        Raises:
            ValueError: what was kept has no state, or was made with something else that must agree.
        """
        if not kept.state:
            raise ValueError(self.NO_STATE)
        for key in self.MUST_AGREE:
            if kept.info.get(key) != self.info.get(key):
                raise ValueError(
                    f"resume was tuned with {key} = {kept.info.get(key)}, and here it is {self.info.get(key)}. Use "
                    "what it was begun with."
                )
        if kept.info.get("model_hash") != self.info["model_hash"]:
            raise ValueError("resume was begun on another model, or with other LoRA. Connect the one it was begun on.")
        settings = self.tuner.settings
        is_even = settings.optimization.schedule == "constant" and all(term.is_even for term in settings.terms.values())
        begun = {"recipe": "paper", **kept.info}  # which older files do not name
        both = self.info.keys() & begun.keys() - (self.MAY_DIFFER if is_even else self.MAY_DIFFER - {"steps"})
        others = sorted(name for name in both if begun[name] != self.info[name])
        if others:
            log.warning("The tuning to resume was begun with other %s; going on with those given.", ", ".join(others))
        self.tuner.load_state_dict(kept.state)

    def go_on(self, kept: Any) -> None:
        """Continue this very tuning, with as little memory as it had come to."""
        if "stepped_down" in kept.info:
            less = {key: kept.info[key] for key in STEPPED}
            self.use_memory(self.tuner.settings.changed(**less), kept.info["stepped_down"])
        self.resume(kept)

    def run(self, progress: TuningProgress) -> None:
        """Do the steps that are left, showing them."""
        progress.begin(self.tuner.settings.steps, self.tuner.done)
        for done in self.steps():
            self.after_step(done, progress)
            progress(done, self.tuner.losses["loss"][-1])
        if not all(weight.isfinite().all() for weight in self.learned.parameters()):
            raise self.tuner.updates.failure("learned weights became infinite", self.tuner.done - 1)

    def after_step(self, done: int, progress: TuningProgress) -> None:  # noqa: B027
        """Do what else a step calls for; nothing unless a subclass says so."""

    def steps(self) -> Iterator[int]:
        """Do the steps that are left, with less memory where they do not fit; yields the number of those done.

        Raises:
            OutOfMemory: a step does not fit with the least.
        """
        while self.tuner.done < self.tuner.settings.steps:
            yield self.fitting(lambda: next(self.tuner.steps()))
        if self.tuner.rises:
            log.warning("%d steps of gradient descent raised their loss: lower learning_rate.", len(self.tuner.rises))

    def fitting(self, work: Callable[[], Result]) -> Result:
        """Do work that a step's memory suffices for, with less where it does not fit, and return what comes of it.

        Raises:
            OutOfMemory: it does not fit with the least.
        """
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not comfy.model_management.is_oom(error) or self.tuner.is_applying:
                    raise
            self.step_down()

    def step_down(self) -> None:
        """Go on with settings that need less memory; OutOfMemory where there are none, or the settings say to stop."""
        tuner, settings = self.tuner, self.tuner.settings
        may = settings.memory.on_out_of_memory == "step down"
        less = settings.stepped_down(len(self.x_0)) if may else None
        if less is None:
            raise OutOfMemory(memory_advice(self.clip, self.x_0, settings.memory))
        tuner.updates.optimizer.zero_grad()
        gc.collect()
        comfy.model_management.soft_empty_cache()
        memory = less.memory
        now = {key: getattr(memory, key) for key in STEPPED}
        self.use_memory(less, [*self.info.get("stepped_down", []), {"after": tuner.done, **now}])
        log.warning(
            "Out of memory after %d steps; going on with chunking, gradient_checkpointing %s and %s frames per step.",
            tuner.done, said_of_checkpointing(memory), memory.frames_per_step or "all",
        )  # fmt: skip

    def use_memory(self, settings: TuneSettings, stepped_down: list[dict[str, Any]]) -> None:
        """Take the steps that are left with other settings of memory; `stepped_down` notes when that was."""
        self.tuner.settings = settings
        self.call = replace(self.call, options=self.options_of(settings.memory))
        self.info |= {key: getattr(settings.memory, key) for key in STEPPED} | {"stepped_down": stepped_down}

    def info_after(self, done: int) -> dict[str, Any]:
        """Return the info after some steps."""
        return {**self.info, **self.tuner.notes(done)}

    def last_good(self) -> Kept | None:
        """Return what had been learned when the loss was last seen finite, None = nothing."""
        done, learned = self.tuner.last_good
        if not done:
            return None
        self.learned.load_state_dict(learned)
        return self.made(done, {})

    def tune(self) -> Kept:
        """Return what has been learned."""
        return self.made(self.tuner.done, self.tuner.state_dict())

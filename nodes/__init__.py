"""The nodes, as the host finds them."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from ..modules.files.host import register_folder
from .control import AttentionControl
from .convert import ExportTuneAVideo, ImportTuneAVideo
from .demo import LoadDemoClip, LoadDemoControlNet, LoadDemoModel
from .inflate import InflateUNet
from .inversion import INRBidirectionalDDIMInversion, LoadInversion, SaveInversion
from .judge import CompareGrid, EditScorecard
from .null_text import NullTextOptimization
from .patch import STAMFFAMPatch
from .plan import FitPlanner
from .prompt import ApplyPromptTokens, LoadPromptTokens, SavePromptTokens, TunePromptTokens
from .report import CovariateShiftReport, InspectVideoModel, InversionStability, ReconstructionReport
from .sample import ClipMotion, InterframeNoiseRelation, SmoothSample, SmoothSampler
from .slices import SliceDenoiser
from .steady import SteadyFrames
from .tune import OneShotTune
from .tune_files import ApplyTune, LoadTune, SaveTune
from .tuning_options import TuningOptionsNode, TuningPreviewNode

NODES: list[type[io.ComfyNode]] = [
    LoadDemoModel,
    LoadDemoControlNet,
    LoadDemoClip,
    InflateUNet,
    STAMFFAMPatch,
    AttentionControl,
    SliceDenoiser,
    OneShotTune,
    TuningOptionsNode,
    FitPlanner,
    TuningPreviewNode,
    SaveTune,
    LoadTune,
    ApplyTune,
    TunePromptTokens,
    ApplyPromptTokens,
    SavePromptTokens,
    LoadPromptTokens,
    ImportTuneAVideo,
    ExportTuneAVideo,
    INRBidirectionalDDIMInversion,
    SaveInversion,
    LoadInversion,
    NullTextOptimization,
    SmoothSample,
    SmoothSampler,
    InterframeNoiseRelation,
    ClipMotion,
    SteadyFrames,
    ReconstructionReport,
    CovariateShiftReport,
    EditScorecard,
    CompareGrid,
    InversionStability,
    InspectVideoModel,
]


class ConsistentVideo(ComfyExtension):
    """The node pack."""

    @override
    async def on_load(self) -> None:
        register_folder()

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ConsistentVideo:
    """Return the extension to the host."""
    return ConsistentVideo()

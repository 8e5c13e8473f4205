"""What the pack does at load where ComfyUI lacks something."""

from importlib.util import module_from_spec, spec_from_file_location

import pytest
from comfy.ldm.modules.attention import SpatialTransformer

from consistent_video.modules import host
from consistent_video.scripts.environment import ROOT


def test_passes_here() -> None:
    host.check_host()


def test_names_in_one_line_what_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(host, "NEEDED", ("comfy.gone:a", "comfy.model_patcher:ModelPatcher.clone(b)"))
    with pytest.raises(ImportError) as raised:
        host.check_host()
    message = str(raised.value)
    assert f"ComfyUI {host.OLDEST} or newer; this one lacks comfy.gone:a, comfy.model_patcher:Mod" in message
    assert "\n" not in message


def test_runs_before_the_nodes_are_imported(monkeypatch) -> None:
    spec = spec_from_file_location("consistent_video", ROOT / "__init__.py")
    pack = module_from_spec(spec)
    spec.loader.exec_module(pack)
    assert pack.comfy_entrypoint
    monkeypatch.setattr(host, "NEEDED", ("comfy.gone:a",))
    broken = module_from_spec(spec)
    with pytest.raises(ImportError, match="lacks comfy.gone:a"):
        spec.loader.exec_module(broken)
    assert not hasattr(broken, "comfy_entrypoint")


def test_sees_a_host_that_runs_its_own_layers_first(monkeypatch) -> None:
    def run(layers, x, emb, transformer_options):
        return [layer(x) for layer in layers][-1]

    monkeypatch.setattr(host, "NEEDED", ())
    monkeypatch.setattr(host, "forward_timestep_embed", run)
    with pytest.raises(ImportError, match="lacks handlers for ResBlock, handlers for SpatialTransformer"):
        host.check_host()
    assert not host.is_handed_over(SpatialTransformer)


def test_pyproject_requires_the_oldest_host() -> None:
    assert f'requires-comfyui = ">={host.OLDEST}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")

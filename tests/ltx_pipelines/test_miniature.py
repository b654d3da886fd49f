"""The built-in miniature: complete, small, with defaults of its own, and it does what it is told."""

import json
from pathlib import Path

import pytest

from ltx_core.errors import ConfigError
from ltx_core.loader import save_checkpoint
from ltx_pipelines import ICLoraPipeline, TI2VidTwoStagesPipeline
from ltx_pipelines.cli.app import main
from ltx_pipelines.miniature import VARIABLE, folder, miniature
from ltx_pipelines.utils.constants import DEFAULTS_KEY, LTX_2_3_PARAMS, detect_params
from ltx_trainer.oracle import judge_file

PROMPT = "A big red ball moves right on a white floor"


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that ships, not the random one that other tests have in its place."""
    monkeypatch.delenv(VARIABLE)


def bare_checkpoint(path: Path, metadata: dict[str, str]) -> Path:
    save_checkpoint(path, {}, {}, "2.3.0", metadata=metadata)
    return path


def test_a_checkpoint_brings_its_own_defaults(tmp_path: Path) -> None:
    values = {
        "num_inference_steps": 5,
        "num_frames": 9,
        "negative_prompt": "",
        "video_guider_params": {"cfg_scale": 2, "stg_blocks": [1]},
        "audio_guider_params": {},
        "stage_2_sigmas": [0.5, 0],
    }
    params = detect_params(bare_checkpoint(tmp_path / "own", {DEFAULTS_KEY: json.dumps(values)}))
    assert (params.num_inference_steps, params.num_frames, params.negative_prompt) == (5, 9, "")
    assert params.video_guider_params.cfg_scale == 2.0
    assert params.video_guider_params.stg_blocks == [1]
    assert params.audio_guider_params.cfg_scale == 1.0
    assert params.stage_2_sigmas == (0.5, 0.0)
    assert detect_params(bare_checkpoint(tmp_path / "none", {})) == LTX_2_3_PARAMS


def test_a_model_in_its_place_may_be_in_ones_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "~/zoo")
    assert folder() == tmp_path / "zoo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "generation_defaults of its metadata is not JSON"),
        ('{"num_inference_steps": "many"}', "num_inference_steps is 'many'"),
        (
            '{"num_inference_steps": 4, "stage_2_sigmas": [0.5, 0.7, 0.0]}',
            "levels that fall from at most 1 to 0",
        ),
    ],
)
def test_wrong_defaults_are_told(tmp_path: Path, text: str, message: str) -> None:
    path = bare_checkpoint(tmp_path / "wrong", {DEFAULTS_KEY: text})
    with pytest.raises(ConfigError, match=message):
        detect_params(path)


def test_the_miniature_is_complete_and_small(built_in: None) -> None:
    files = [file for file in folder().rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 48e6
    assert set(miniature().loras) == {"ic-lora-outline", "style-night"}
    pipeline = ICLoraPipeline()
    assert [Path(lora.path).stem for lora in pipeline.loras] == ["ic-lora-outline"]
    assert pipeline.params.stage_2_height == 128


def test_the_miniature_does_what_it_is_told(built_in: None, tmp_path: Path) -> None:
    path = tmp_path / "ball.mp4"
    TI2VidTwoStagesPipeline()(PROMPT, output_path=path)
    right = judge_file(path, PROMPT).right
    assert {name for name, is_right in right.items() if is_right} >= {
        "colour",
        "background",
        "motion",
        "sound",
    }


def test_refinement_follows_the_schedule_of_the_checkpoint(built_in: None) -> None:
    pipeline = TI2VidTwoStagesPipeline()
    first, second = pipeline(PROMPT, dry_run=True).stages  # type: ignore[attr-defined]
    assert second.sigmas.tolist() == pytest.approx(pipeline.params.stage_2_sigmas)
    assert second.noise_scale == pytest.approx(pipeline.params.stage_2_sigmas[0])
    assert first.noise_scale == 1.0


def test_a_command_without_model_files_says_what_it_uses(
    built_in: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--prompt", PROMPT, "--output-path", str(tmp_path / "ball.mp4")]
    with caplog.at_level("INFO"):
        assert main(["distilled", *flags, "--height", "64", "--width", "64", "--num-frames", "9"]) == 0
    assert "using the built-in miniature" in caplog.text
    assert "--checkpoint-path and --gemma-root" in caplog.text

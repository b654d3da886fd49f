"""What a request is made of: defaults by version and pipeline, and the checks before any work."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ltx_core.components.guiders import MultiModalGuiderFactory, MultiModalGuiderParams
from ltx_core.errors import InputError, MissingFileError
from ltx_core.loader import LoraPathStrengthAndSDOps, SDOps
from ltx_core.loader.switch import file_key
from ltx_core.model.video_vae import AUTO_TILING
from ltx_pipelines import (
    A2VidPipelineTwoStage,
    DistilledPipeline,
    ICLoraPipeline,
    RetakePipeline,
    TI2VidOneStagePipeline,
    TI2VidTwoStagesHQPipeline,
    TI2VidTwoStagesPipeline,
)
from ltx_pipelines.cli import app
from ltx_pipelines.cli.run import default_params
from ltx_pipelines.utils.constants import LTX_2_3_HQ_PARAMS, LTX_2_3_PARAMS, LTX_2_PARAMS
from ltx_pipelines.utils.loras import as_loras, reference_downscale_factor
from ltx_pipelines.utils.model_ledger import ModelLedger
from ltx_pipelines.utils.model_paths import ModelPaths


@pytest.mark.parametrize(
    ("name", "version", "params"),
    [
        ("ti2vid_two_stages", "2.0.0", LTX_2_PARAMS),
        ("ti2vid_two_stages", "2.3.1", LTX_2_3_PARAMS),
        ("ti2vid_two_stages", "2.3rc1", LTX_2_3_PARAMS),
        ("ti2vid_two_stages", None, LTX_2_PARAMS),
        ("ti2vid_two_stages_hq", "2.0.0", LTX_2_3_HQ_PARAMS),
        ("ti2vid_two_stages_hq", "2.4.0", replace(LTX_2_3_HQ_PARAMS, default_image_crf=18)),
        ("a2vid_two_stage", "2.0.0", LTX_2_3_PARAMS),
        ("a2vid_two_stage", "2.3.1", LTX_2_3_PARAMS),
    ],
)
def test_defaults_follow_the_version_but_for_two_pipelines(name, version, params, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata=None if version is None else {"model_version": version})
    assert default_params(name, str(path)) == params


def test_what_is_not_given_is_the_checkpoints_default():
    one, two = TI2VidOneStagePipeline(), TI2VidTwoStagesPipeline()
    params = one.params
    recipes = [pipeline("x", dry_run=True) for pipeline in (one, two)]
    sizes = [recipe.stages[-1].shape[1:] for recipe in recipes]
    length = (params.num_frames, params.frame_rate)
    assert sizes == [(length[0], 64 * n, 96 * n, length[1]) for n in (1, 2)]
    for recipe in recipes:
        assert (recipe.seed, recipe.negative_prompt) == (params.seed, params.negative_prompt)
        assert len(recipe.stages[0].sigmas) == params.num_inference_steps + 1
        guidance = recipe.stages[0].guidance
        assert (guidance.video, guidance.audio) == (params.video_guider_params, params.audio_guider_params)


@pytest.mark.parametrize("prompt", ["caf\udce9", None, 3])
def test_a_prompt_is_text(prompt):
    with pytest.raises(InputError, match=r"prompt is .*; give a text in UTF-8"):
        DistilledPipeline()(prompt, dry_run=True)


@pytest.mark.parametrize("seed", [-(2**63), 2**63, 2**64 - 1])
def test_the_second_order_sampler_takes_every_seed(seed):
    pipeline = TI2VidTwoStagesHQPipeline()
    pipeline("x", seed=seed, height=64, width=64, num_frames=9, num_inference_steps=1)


def test_a_window_may_begin_before_the_clip(clip):
    recipe = RetakePipeline()(clip, "x", -1.0, 0.5, dry_run=True)
    assert recipe.stages[0].video.conditions[0].start == -1.0


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 1, 1, 32, 32), r"length 1 .* give it 1 \+ n \* 1 frames, e\.g\. 9"),
        ((9, 32, 32), r"is \(9, 32, 32\); give a tensor of shape \(1, 1, frames, height, width\)"),
        ((1, 3, 9, 32, 32), r"is \(1, 3, 9, 32, 32\); give a tensor"),
    ],
)
def test_a_mask_is_checked_before_any_work(shape, sentence, clip):
    asked = {"video_conditioning": [(clip, 1.0)], "num_frames": 9, "height": 64, "width": 64, "dry_run": True}
    with pytest.raises(InputError, match=sentence):
        ICLoraPipeline()("x", conditioning_attention_mask=torch.ones(shape), **asked)
    ICLoraPipeline()("x", conditioning_attention_mask=torch.ones(1, 1, 5, 32, 32), **asked)
    with pytest.raises(InputError, match="mask is ndarray; give a tensor"):
        ICLoraPipeline()("x", conditioning_attention_mask=np.ones((1, 1, 5, 32, 32)), **asked)


def test_whole_numbers_of_numpy_are_numbers():
    size = {
        name: np.int64(value)
        for name, value in {"height": 64, "width": 64, "num_frames": 9, "seed": 3}.items()
    }
    for pipeline in (DistilledPipeline, TI2VidTwoStagesHQPipeline):
        pipeline()("x", **size)


@pytest.mark.parametrize("name", ["height", "num_frames", "seed"])
def test_other_numbers_are_refused(name):
    with pytest.raises(InputError, match=rf"{name} is 64\.5; give a whole number"):
        DistilledPipeline()("x", **{name: 64.5}, dry_run=True)


def test_frame_rates_are_any_kind_of_number():
    request = {"num_frames": 9, "dry_run": True}
    recipe = DistilledPipeline()("x", frame_rate=Fraction(24000, 1001), **request)
    assert recipe.frame_rate == 24000 / 1001
    with pytest.raises(InputError, match="frame_rate is '24'; give a number"):
        DistilledPipeline()("x", frame_rate="24", **request)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["cfg_scale", "stg_scale", "rescale_scale", "modality_scale", "skip_step"])
def test_guidance_is_finite(name, value):
    params = MultiModalGuiderParams(**{name: value})
    by_sigma = MultiModalGuiderFactory.from_dict({1.0: MultiModalGuiderParams(), 0.5: params})
    for given in ({"video_guider_params": params}, {"audio_guider_params": by_sigma}):
        with pytest.raises(InputError, match=f"{name} is {value}; give a finite number"):
            TI2VidOneStagePipeline()("x", **given, dry_run=True)


def test_steps_to_skip_are_checked_at_every_noise_level():
    params = MultiModalGuiderFactory.from_dict({1.0: MultiModalGuiderParams(skip_step=-1)})
    with pytest.raises(InputError, match="skip_step is -1; give 0"):
        TI2VidOneStagePipeline()("x", video_guider_params=params, dry_run=True)


def test_strengths_are_finite():
    nan = float("nan")
    for lora in (("a.safetensors", nan), LoraPathStrengthAndSDOps("a.safetensors", nan)):
        with pytest.raises(InputError, match=r"The strength of a\.safetensors is nan; give a finite number"):
            DistilledPipeline(loras=[lora])
    for name in ("distilled_lora_strength_stage_1", "distilled_lora_strength_stage_2"):
        with pytest.raises(InputError, match=f"{name} is nan; give a finite number"):
            TI2VidTwoStagesHQPipeline(**{name: nan})
    with pytest.raises(InputError, match="ge_gamma is nan; give a finite number"):
        DistilledPipeline()("x", sampler="gradient-estimation", ge_gamma=nan, dry_run=True)


def test_a_mask_may_hold_truth_values(clip):
    mask = torch.ones(1, 1, 9, 32, 32, dtype=torch.bool)
    size = {"num_frames": 9, "height": 64, "width": 64, "skip_stage_2": True}
    ICLoraPipeline()("x", video_conditioning=[(clip, 1.0)], conditioning_attention_mask=mask, **size)


def test_text_alone_needs_no_video_encoder(picture):
    for images, needed in (([], False), ([(str(picture), 0, 1.0)], True)):
        recipe = TI2VidOneStagePipeline()("x", images=images, dry_run=True)
        assert ("video_encoder" in recipe.components) is needed


@pytest.mark.parametrize(
    "kind", [TI2VidOneStagePipeline, TI2VidTwoStagesPipeline, DistilledPipeline, ICLoraPipeline]
)
def test_how_to_decode_is_as_asked(kind):
    assert kind()("x", tiling_config=None, dry_run=True).tiling is None
    assert kind()("x", dry_run=True).tiling is AUTO_TILING


@pytest.mark.parametrize("stated", ["0", "-2", "half"])
def test_a_reference_of_no_size_counts_as_full(stated, tmp_path, caplog):
    path = tmp_path / "lora.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"reference_downscale_factor": stated})
    assert reference_downscale_factor(as_loras([str(path)])) == 1
    assert f"reference_downscale_factor is {stated!r}" in caplog.text


def test_references_are_of_the_one_size_that_loras_want(tmp_path, clip):
    for name, factor in (("full", "1"), ("half", "2"), ("half again", "2"), ("quarter", "4")):
        metadata = {"reference_downscale_factor": factor}
        save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors", metadata=metadata)
    full, half, again, quarter = (
        str(tmp_path / f"{name}.safetensors") for name in ("full", "half", "half again", "quarter")
    )
    pipeline = ICLoraPipeline(loras=[full, half, again])
    asked = {"video_conditioning": [(clip, 1.0)], "num_frames": 9, "dry_run": True}
    stage = pipeline("x", height=128, width=256, **asked).stages[0]
    assert [condition.tokens(stage.shape) for condition in stage.video.conditions] == [0, 2 * 1 * 2]
    with pytest.raises(InputError, match=r"at 1/2 of 96x64 needs sides that are multiples of 64"):
        pipeline("x", height=128, width=192, **asked)
    with pytest.raises(InputError, match=r"different sizes \(.*half\.safetensors: 2, .*: 4\); use one"):
        ICLoraPipeline(loras=[full, half, quarter])


@pytest.mark.parametrize("given", [(), ("a.safetensors", 0.5, None, 1)])
def test_a_lora_has_one_to_three_parts(given):
    with pytest.raises(InputError, match=r"is not a LoRA; give a path, or \(path, strength\)"):
        DistilledPipeline(loras=[given])


def test_a_lora_is_a_path_with_its_strength_and_key_map_or_less():
    odd = SDOps("odd").with_matching().with_replacement("odd/", "")
    path, pair, triple = as_loras(["a.safetensors", ("a.safetensors", 0.5), ("a.safetensors", 0.5, odd)])
    assert path == LoraPathStrengthAndSDOps("a.safetensors")
    assert pair == LoraPathStrengthAndSDOps("a.safetensors", 0.5)
    assert triple == LoraPathStrengthAndSDOps("a.safetensors", 0.5, odd)


def test_a_single_lora_is_a_list_of_one(model_folder):
    path = str(model_folder / "distilled-lora.safetensors")
    assert [lora.path for lora in TI2VidOneStagePipeline(loras=path).loras] == [path]


def test_no_images_may_be_none():
    assert TI2VidOneStagePipeline()("x", images=None, dry_run=True).stages[0].video.conditions[0].images == ()


def test_pictures_are_for_whole_frames(picture):
    with pytest.raises(InputError, match=r"The frame of .*picture\.png is 7\.5; give a whole number"):
        DistilledPipeline()("x", images=[(str(picture), 7.5, 1.0)], dry_run=True)


@pytest.mark.parametrize("half", [np.float32(0.5), Fraction(1, 2)])
def test_strengths_are_any_kind_of_number(half, picture, clip):
    images = [(str(picture), np.int64(8), half)]
    clips = [(str(clip), half)]
    recipe = ICLoraPipeline()(
        "x",
        images=images,
        video_conditioning=clips,
        conditioning_attention_strength=half,
        dry_run=True,
    )
    pictures, reference = recipe.stages[0].video.conditions
    given = (pictures.images[0].strength, reference.strength, reference.attention)
    assert [(type(value), value) for value in given] == [(float, 0.5)] * 3


@pytest.mark.parametrize("crf", [20.5, "20"])
def test_compressions_are_whole_numbers(crf, picture):
    with pytest.raises(InputError, match=rf"The crf of .*picture\.png is {crf!r}; give a whole number"):
        DistilledPipeline()("x", images=[(str(picture), 0, 1.0, crf)], dry_run=True)


@pytest.mark.parametrize("given", [3, "a.png", ("a.png", 0)])
def test_pictures_are_tuples(given):
    with pytest.raises(InputError, match=r"An image is \(path, frame_idx, strength\)"):
        DistilledPipeline()("x", images=[given], dry_run=True)


def test_guidance_has_a_class_of_its_own():
    with pytest.raises(InputError, match=r"Guidance is \{'cfg_scale': 3\}; give MultiModalGuiderParams"):
        TI2VidOneStagePipeline()("x", audio_guider_params={"cfg_scale": 3}, dry_run=True)


def test_times_are_numbers(clip):
    with pytest.raises(InputError, match=r"end_time is '0\.5'; give a number"):
        RetakePipeline()(clip, "x", 0, "0.5", dry_run=True)


def test_the_seed_of_a_retake_is_a_number(clip):
    with pytest.raises(InputError, match="seed is '5'; give a whole number"):
        RetakePipeline()(clip, "x", 0, 0.5, seed="5", dry_run=True)


@pytest.mark.parametrize("given", [["a.mp4"], ("a.mp4", 1.0), [3]])
def test_control_clips_are_pairs(given):
    with pytest.raises(InputError, match=r"('a.mp4'|3) is none"):
        ICLoraPipeline()("x", video_conditioning=given, dry_run=True)


def test_control_clips_are_a_list():
    with pytest.raises(InputError, match=r"video_conditioning is 3; give a list of \(path, strength\)"):
        ICLoraPipeline()("x", video_conditioning=3, dry_run=True)


def test_a_misspelt_argument_is_guessed():
    with pytest.raises(TypeError, match="did you mean 'height'"):
        DistilledPipeline()("x", heigth=64)
    with pytest.raises(TypeError, match="did you mean 'gemma_root'"):
        DistilledPipeline(gema_root="x")


@pytest.mark.parametrize("name", ["checkpoint_path", "gemma_root"])
def test_files_are_given_in_one_way(name, model_folder):
    paths = ModelPaths.from_monolith(model_folder / "model.safetensors", model_folder / "gemma")
    with pytest.raises(InputError, match="leave checkpoint_path and gemma_root out"):
        TI2VidOneStagePipeline(model_paths=paths, **{name: model_folder})


def test_a_missing_text_encoder_is_named(model_folder):
    pipeline = TI2VidOneStagePipeline(model_folder / "model.safetensors")
    with pytest.raises(InputError, match=r"pass gemma_root or text_encoder_path \(--gemma-root or"):
        pipeline("x", height=64, width=64, num_frames=9)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--gemma-root x", "needs --distilled-checkpoint-path and --spatial-upsampler-path"),
        (
            "--video-vae-path x",
            "needs --distilled-checkpoint-path and --gemma-root and --spatial-upsampler-path",
        ),
        (
            "--transformer-path x",
            "needs --text-encoder-path and --video-vae-path and --audio-vae-path and --spatial",
        ),
        (
            "--checkpoint-path x",
            "unrecognized arguments: --checkpoint-path x; did you mean --distilled-checkpoint-path?",
        ),
        ("--frames 9", "did you mean --num-frames?"),
    ],
)
def test_flags_that_are_missing_or_misspelt_are_named(flags, sentence, model_folder, capsys):
    model = str(model_folder / "model.safetensors")
    with pytest.raises(SystemExit) as stop:
        app.main(["distilled", "--prompt", "p", "--output-path", "o.mp4", *flags.replace("x", model).split()])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err.replace(model, "x")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"quantization": "fp8-cast"}, "quantization is of type str; give a QuantizationPolicy"),
        ({"dtype": "float32"}, "dtype is 'float32'; give torch.bfloat16"),
        ({"dtype": torch.int8}, "dtype is torch.int8; give torch.bfloat16"),
        ({"max_batch_size": 2.5}, "max_batch_size is 2.5; give a whole number"),
        ({"compile": "max-autotune"}, "compile is of type str; give True or options"),
        ({"compile": {"mode": "fast"}}, "compile: .*fast"),
        ({"compile": {"backend": "none"}}, "compile: .*none"),
        ({"engine": "x"}, "engine is of type str; give another pipeline's engine"),
        ({"model_paths": "x"}, "model_paths is of type str; give a ModelPaths"),
        ({"device": 1.5}, "device is 1.5; give cpu, cuda, or cuda:N"),
        ({"checkpoint_path": 3}, "checkpoint_path is of type int; give its path"),
        ({"spatial_upsampler_path": 3}, "spatial_upsampler_path is of type int; give its path"),
        ({"loras": 3}, r"loras is 3; give a list of paths or \(path, strength\)"),
        ({"loras": [3]}, "A LoRA is of type int; give its path"),
        ({"loras": [LoraPathStrengthAndSDOps(None)]}, "A LoRA is of type NoneType; give its path"),
        ({"distilled_lora": 3}, "distilled_lora is 3; give a list of paths"),
    ],
)
def test_how_to_compute_is_checked_when_a_pipeline_is_made(options, sentence):
    with pytest.raises(InputError, match=sentence):
        TI2VidTwoStagesPipeline(**options)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tiling_config": "auto"}, "tiling_config is of type str; give a TilingConfig"),
        ({"images": [(np.zeros((8, 8, 3)), 0, 1.0)]}, "A file is of type ndarray; give its path"),
        ({"num_inference_steps": "many"}, "num_inference_steps is 'many'"),
        ({"images": 3}, r"images is 3; give a list of \(path, frame_idx, strength\)"),
        ({"callback": 3}, "callback is of type int; give a function"),
        ({"denoising_loop": 3}, "denoising_loop is of type int; give a function"),
        ({"output_path": 3}, "output_path is of type int; give a text or a Path"),
        ({"output_path": "x.mp4", "settings": {"a": 1}}, "settings is of type dict; give JSON as a text"),
    ],
)
def test_arguments_of_another_kind_are_named(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        TI2VidOneStagePipeline()("x", **arguments)


def test_what_to_hear_is_checked(sound, clip):
    film = A2VidPipelineTwoStage()
    for arguments in ({"audio_start_time": "1"}, {"audio_max_duration": 0}):
        with pytest.raises(InputError, match=f"{next(iter(arguments))} is .*; give"):
            film("x", audio_path=sound, **arguments)
    with pytest.raises(InputError, match="A file is of type NoneType; give its path"):
        RetakePipeline()(None, "x", 0.0, 1.0)
    with pytest.raises(InputError, match="A file is of type NoneType; give its path"):
        ICLoraPipeline()("x", video_conditioning=[(None, 1.0)])


def test_a_prompt_in_place_of_a_path_is_told_as_a_missing_file():
    prompt = "A red ball bounces on the floor. " * 20  # longer than a file's name can be
    with pytest.raises(MissingFileError, match="does not exist"):
        TI2VidOneStagePipeline(gemma_root=prompt)
    with pytest.raises(MissingFileError, match="does not exist"):
        RetakePipeline()(prompt, prompt, 0.0, 0.5)
    with pytest.raises(MissingFileError, match="does not exist"):
        ModelLedger(torch.float32, "cpu", prompt).transformer()
    assert file_key(LoraPathStrengthAndSDOps(prompt)).written == 0


def test_an_empty_path_is_told_as_one():
    with pytest.raises(InputError, match=r"^The path of a file is empty; name a file\.$"):
        RetakePipeline()("", "x", 0.0, 0.5)
    with pytest.raises(InputError, match=r"^The path of a file is empty; name a file\.$"):
        ICLoraPipeline()("x", video_conditioning=[("", 1.0)])

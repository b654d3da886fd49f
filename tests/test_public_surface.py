"""What users import from, and in which order it takes its arguments. The lists may grow; what is on them stays."""

import importlib
import inspect
import subprocess
import sys

import pytest

SURFACE = {
    "ltx_pipelines": (
        "A2VidPipelineTwoStage DistilledPipeline ICLoraPipeline KeyframeInterpolationPipeline RetakePipeline "
        "TI2VidOneStagePipeline TI2VidTwoStagesHQPipeline TI2VidTwoStagesPipeline"
    ),
    "ltx_pipelines.ti2vid_two_stages": "TI2VidTwoStagesPipeline main",
    "ltx_pipelines.ti2vid_two_stages_hq": "TI2VidTwoStagesHQPipeline main",
    "ltx_pipelines.ti2vid_one_stage": "TI2VidOneStagePipeline main",
    "ltx_pipelines.distilled": "DistilledPipeline main",
    "ltx_pipelines.ic_lora": "ICLoraPipeline main",
    "ltx_pipelines.keyframe_interpolation": "KeyframeInterpolationPipeline main",
    "ltx_pipelines.a2vid_two_stage": "A2VidPipelineTwoStage main",
    "ltx_pipelines.retake": "RetakePipeline TemporalRegionMask main",
    "ltx_pipelines.utils": (
        "ModelLedger assert_resolution cleanup_memory combined_image_conditionings denoise_audio_video "
        "encode_prompts euler_denoising_loop generate_enhanced_prompt get_device "
        "gradient_estimating_euler_denoising_loop multi_modal_guider_denoising_func "
        "multi_modal_guider_factory_denoising_func res2s_audio_video_denoising_loop simple_denoising_func"
    ),
    "ltx_pipelines.utils.args": "ImageConditioningInput",
    "ltx_pipelines.utils.helpers": (
        "ModelLedger assert_resolution clean_response cleanup_memory combined_image_conditionings "
        "create_noised_state denoise_audio_video denoise_video_only encode_prompts euler_denoising_loop "
        "generate_enhanced_prompt get_device gradient_estimating_euler_denoising_loop guider_denoising_func "
        "image_conditionings_by_adding_guiding_latent image_conditionings_by_replacing_latent "
        "modality_from_latent_state multi_modal_guider_denoising_func multi_modal_guider_factory_denoising_func "
        "noise_audio_state noise_video_state post_process_latent res2s_audio_video_denoising_loop "
        "simple_denoising_func state_with_conditionings timesteps_from_mask"
    ),
    "ltx_pipelines.utils.types": "DenoisingFunc DenoisingLoopFunc PipelineComponents",
    "ltx_pipelines.utils.res2s": "get_res2s_coefficients phi",
    "ltx_pipelines.utils.model_ledger": "ModelLedger",
    "ltx_pipelines.utils.samplers": "euler_denoising_loop gradient_estimating_euler_denoising_loop",
    "ltx_pipelines.utils.media_io": (
        "decode_audio_from_file decode_image decode_video_from_file encode_video get_videostream_metadata "
        "load_image_conditioning load_video_conditioning normalize_pixels preprocess resize_and_center_crop "
        "resize_aspect_ratio_preserving"
    ),
    "ltx_pipelines.utils.constants": (
        "DEFAULT_IMAGE_CRF DEFAULT_LORA_STRENGTH DEFAULT_NEGATIVE_PROMPT DISTILLED_SIGMA_VALUES "
        "LTX_2_3_HQ_PARAMS LTX_2_3_PARAMS LTX_2_PARAMS STAGE_2_DISTILLED_SIGMA_VALUES VIDEO_LATENT_CHANNELS "
        "VIDEO_SCALE_FACTORS PipelineParams detect_params"
    ),
    "ltx_core.components.guiders": (
        "CFGGuider CFGStarRescalingGuider LtxAPGGuider MultiModalGuider MultiModalGuiderFactory "
        "MultiModalGuiderParams STGGuider create_multimodal_guider_factory"
    ),
    "ltx_core.components.schedulers": "BetaScheduler LTX2Scheduler LinearQuadraticScheduler",
    "ltx_core.components.noisers": "GaussianNoiser",
    "ltx_core.components.diffusion_steps": "EulerDiffusionStep Res2sDiffusionStep",
    "ltx_core.components.patchifiers": "AudioPatchifier VideoLatentPatchifier get_pixel_coords",
    "ltx_core.conditioning": (
        "ConditioningItem VideoConditionByKeyframeIndex VideoConditionByLatentIndex "
        "VideoConditionByReferenceLatent"
    ),
    "ltx_core.guidance.perturbations": (
        "BatchedPerturbationConfig Perturbation PerturbationConfig PerturbationType"
    ),
    "ltx_core.loader": (
        "LTXV_LORA_COMFY_RENAMING_MAP LoraPathStrengthAndSDOps SDOps SingleGPUModelBuilder StateDictRegistry"
    ),
    "ltx_core.quantization": "QuantizationPolicy",
    "ltx_core.model.transformer": "LTXModel LTXModelConfigurator Modality X0Model",
    "ltx_core.model.audio_vae.attention": "AttentionType",
    "ltx_core.model.audio_vae.causality_axis": "CausalityAxis",
    "ltx_core.model.common.normalization": "NormType",
    "ltx_core.model.video_vae.enums": "LogVarianceType NormLayerType PaddingModeType",
    "ltx_core.model.video_vae.tiling": "SpatialTilingConfig TemporalTilingConfig TilingConfig",
    "ltx_core.model.video_vae": (
        "VAE_DECODER_COMFY_KEYS_FILTER VAE_ENCODER_COMFY_KEYS_FILTER "
        "SpatialTilingConfig TemporalTilingConfig TilingConfig VideoDecoder VideoDecoderConfigurator "
        "VideoEncoder VideoEncoderConfigurator decode_video get_video_chunks_number"
    ),
    "ltx_core.model.audio_vae": (
        "AUDIO_VAE_DECODER_COMFY_KEYS_FILTER AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER VOCODER_COMFY_KEYS_FILTER "
        "AudioDecoder AudioDecoderConfigurator AudioEncoder AudioEncoderConfigurator AudioProcessor Vocoder "
        "VocoderConfigurator VocoderWithBWE decode_audio encode_audio"
    ),
    "ltx_core.model.upsampler": "LatentUpsampler LatentUpsamplerConfigurator upsample_video",
    "ltx_core.text_encoders.gemma": "EmbeddingsProcessor GemmaTextEncoder",
    "ltx_core.tools": "AudioLatentTools VideoLatentTools",
    "ltx_core.types": (
        "Audio AudioLatentShape LatentState SpatioTemporalScaleFactors VideoLatentShape VideoPixelShape"
    ),
}


@pytest.mark.parametrize("module", SURFACE)
def test_importable(module):
    found = importlib.import_module(module)
    missing = [name for name in SURFACE[module].split() if not hasattr(found, name)]
    assert not missing


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = (
        "import sys, ltx_pipelines; print(sorted({'torch', 'transformers', 'av', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["ltx_pipelines.distilled", "ltx_core.loader", "ltx_core.model.transformer"]
)
def test_heavy_libraries_are_imported_where_they_are_used(module):
    heavy = "{'transformers', 'av', 'peft', 'accelerate', 'scipy'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_starts_no_gpu_and_leaves_gradients_on():
    code = (
        "import torch, ltx_pipelines.ti2vid_two_stages; "
        "print(torch.is_grad_enabled(), torch.cuda.is_initialized(), torch.get_default_dtype())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True False torch.float32"


TWO_STAGES = "checkpoint_path distilled_lora spatial_upsampler_path gemma_root loras device quantization"
ONE_STAGE = "checkpoint_path gemma_root loras device quantization"
CONSTRUCTORS = {
    "TI2VidTwoStagesPipeline": TWO_STAGES,
    "TI2VidTwoStagesHQPipeline": (
        "checkpoint_path distilled_lora distilled_lora_strength_stage_1 distilled_lora_strength_stage_2 "
        "spatial_upsampler_path gemma_root loras device quantization"
    ),
    "TI2VidOneStagePipeline": ONE_STAGE,
    "DistilledPipeline": (
        "distilled_checkpoint_path gemma_root spatial_upsampler_path loras device quantization"
    ),
    "ICLoraPipeline": "distilled_checkpoint_path spatial_upsampler_path gemma_root loras device quantization",
    "KeyframeInterpolationPipeline": TWO_STAGES,
    "A2VidPipelineTwoStage": TWO_STAGES,
    "RetakePipeline": ONE_STAGE,
}

SIZE = "seed height width num_frames frame_rate"
GUIDED = f"prompt negative_prompt {SIZE} num_inference_steps video_guider_params audio_guider_params images"
CALLS = {
    "TI2VidTwoStagesPipeline": f"{GUIDED} tiling_config enhance_prompt",
    "TI2VidTwoStagesHQPipeline": f"{GUIDED} tiling_config enhance_prompt",
    "TI2VidOneStagePipeline": f"{GUIDED} enhance_prompt",
    "DistilledPipeline": f"prompt {SIZE} images tiling_config enhance_prompt",
    "ICLoraPipeline": (
        f"prompt {SIZE} images video_conditioning enhance_prompt tiling_config conditioning_attention_strength "
        "skip_stage_2 conditioning_attention_mask"
    ),
    "KeyframeInterpolationPipeline": f"{GUIDED} tiling_config enhance_prompt",
    "A2VidPipelineTwoStage": (
        f"prompt negative_prompt {SIZE} num_inference_steps video_guider_params images audio_path "
        "audio_start_time audio_max_duration tiling_config enhance_prompt"
    ),
    "RetakePipeline": "video_path prompt start_time end_time seed",
}


def positional(function):
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_pipelines_take_the_official_order(name):
    pipeline = getattr(importlib.import_module("ltx_pipelines"), name)
    assert positional(pipeline) == CONSTRUCTORS[name].split()
    assert positional(pipeline.__call__) == CALLS[name].split()

"""What users import from, and in which order it takes its arguments. The lists may grow; what is on them stays."""

import importlib
import inspect
import operator
import subprocess
import sys

import pytest

from ltx_pipelines.utils.constants import LTX_2_PARAMS, PipelineParams

SURFACE = {
    "ltx_pipelines": (
        "A2VidPipelineTwoStage DistilledPipeline ICLoraPipeline KeyframeInterpolationPipeline "
        "RetakePipeline TI2VidOneStagePipeline TI2VidTwoStagesHQPipeline TI2VidTwoStagesPipeline"
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
        "decode_audio_from_file decode_image decode_single_frame decode_video_from_file encode_single_frame "
        "encode_video get_videostream_metadata load_image_conditioning load_video_conditioning normalize_latent "
        "normalize_pixels preprocess resize_and_center_crop resize_aspect_ratio_preserving"
    ),
    "ltx_pipelines.utils.constants": (
        "DEFAULT_IMAGE_CRF DEFAULT_LORA_STRENGTH DEFAULT_NEGATIVE_PROMPT DISTILLED_SIGMA_VALUES "
        "LTX_2_3_HQ_PARAMS LTX_2_3_PARAMS LTX_2_PARAMS STAGE_2_DISTILLED_SIGMA_VALUES VIDEO_LATENT_CHANNELS "
        "VIDEO_SCALE_FACTORS PipelineParams detect_params"
    ),
    "ltx_core.components.diffusion_steps": "EulerDiffusionStep Res2sDiffusionStep",
    "ltx_core.components.guiders": (
        "CFGGuider CFGStarRescalingGuider LegacyStatefulAPGGuider LtxAPGGuider MultiModalGuider "
        "MultiModalGuiderFactory MultiModalGuiderParams STGGuider create_multimodal_guider_factory "
        "projection_coef"
    ),
    "ltx_core.components.noisers": "GaussianNoiser Noiser",
    "ltx_core.components.patchifiers": (
        "AudioLatentShape AudioPatchifier SpatioTemporalScaleFactors VideoLatentPatchifier VideoLatentShape "
        "VideoPixelShape get_pixel_coords"
    ),
    "ltx_core.components.protocols": "DiffusionStepProtocol GuiderProtocol Patchifier SchedulerProtocol",
    "ltx_core.components.schedulers": (
        "BASE_SHIFT_ANCHOR BetaScheduler LTX2Scheduler LinearQuadraticScheduler MAX_SHIFT_ANCHOR "
        "flux_time_shift"
    ),
    "ltx_core.conditioning": (
        "ConditioningError ConditioningItem ConditioningItemAttentionStrengthWrapper "
        "VideoConditionByKeyframeIndex VideoConditionByLatentIndex VideoConditionByReferenceLatent"
    ),
    "ltx_core.conditioning.exceptions": "ConditioningError",
    "ltx_core.conditioning.item": "ConditioningItem",
    "ltx_core.conditioning.mask_utils": "build_attention_mask resolve_cross_mask update_attention_mask",
    "ltx_core.conditioning.types": (
        "ConditioningItemAttentionStrengthWrapper VideoConditionByKeyframeIndex VideoConditionByLatentIndex "
        "VideoConditionByReferenceLatent"
    ),
    "ltx_core.conditioning.types.noise_mask_cond": "TemporalRegionMask",
    "ltx_core.guidance": "BatchedPerturbationConfig Perturbation PerturbationConfig PerturbationType",
    "ltx_core.guidance.perturbations": (
        "BatchedPerturbationConfig Perturbation PerturbationConfig PerturbationType"
    ),
    "ltx_core.loader": (
        "ContentMatching ContentReplacement DummyRegistry KeyValueOperation KeyValueOperationResult "
        "LTXV_LORA_COMFY_RENAMING_MAP LoRAAdaptableProtocol LoraPathStrengthAndSDOps "
        "LoraStateDictWithStrength ModelBuilderProtocol ModuleOps Registry SDKeyValueOperation SDOps "
        "SafetensorsModelStateDictLoader SafetensorsStateDictLoader SingleGPUModelBuilder StateDict "
        "StateDictLoader StateDictRegistry apply_loras"
    ),
    "ltx_core.loader.sd_ops": "LTXV_LORA_COMFY_RENAMING_MAP LTXV_LORA_COMFY_TARGET_MAP",
    "ltx_core.model.audio_vae": (
        "AUDIO_VAE_DECODER_COMFY_KEYS_FILTER AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER AudioDecoder "
        "AudioDecoderConfigurator AudioEncoder AudioEncoderConfigurator AudioProcessor "
        "VOCODER_COMFY_KEYS_FILTER Vocoder VocoderConfigurator VocoderWithBWE decode_audio encode_audio"
    ),
    "ltx_core.model.audio_vae.attention": "AttentionType",
    "ltx_core.model.audio_vae.causality_axis": "CausalityAxis",
    "ltx_core.model.common.normalization": "NormType",
    "ltx_core.model.transformer": (
        "LTXModel LTXModelConfigurator LTXV_MODEL_COMFY_RENAMING_MAP LTXVideoOnlyModelConfigurator Modality "
        "X0Model"
    ),
    "ltx_core.model.transformer.attention": "Attention AttentionFunction",
    "ltx_core.model.transformer.modality": "Modality",
    "ltx_core.model.transformer.model": "LTXModel LTXModelType LegacyX0Model X0Model",
    "ltx_core.model.transformer.model_configurator": (
        "LTXModelConfigurator LTXV_MODEL_COMFY_RENAMING_MAP LTXVideoOnlyModelConfigurator"
    ),
    "ltx_core.model.transformer.rope": (
        "LTXRopeType apply_rotary_emb generate_freq_grid_np generate_freq_grid_pytorch precompute_freqs_cis"
    ),
    "ltx_core.model.upsampler": "LatentUpsampler LatentUpsamplerConfigurator upsample_video",
    "ltx_core.model.video_vae": (
        "SpatialTilingConfig TemporalTilingConfig TilingConfig VAE_DECODER_COMFY_KEYS_FILTER "
        "VAE_ENCODER_COMFY_KEYS_FILTER VideoDecoder VideoDecoderConfigurator VideoEncoder "
        "VideoEncoderConfigurator decode_video get_video_chunks_number"
    ),
    "ltx_core.model.video_vae.enums": "LogVarianceType NormLayerType PaddingModeType",
    "ltx_core.model.video_vae.tiling": "SpatialTilingConfig TemporalTilingConfig TilingConfig",
    "ltx_core.quantization": (
        "FP8_PREPARE_MODULE_OPS FP8_TRANSPOSE_SD_OPS QuantizationPolicy TRANSFORMER_LINEAR_DOWNCAST_MAP "
        "UPCAST_DURING_INFERENCE UpcastWithStochasticRounding"
    ),
    "ltx_core.text_encoders.gemma": (
        "EMBEDDINGS_PROCESSOR_KEY_OPS EmbeddingsProcessor EmbeddingsProcessorConfigurator "
        "EmbeddingsProcessorOutput GEMMA_LLM_KEY_OPS GEMMA_MODEL_OPS GemmaTextEncoder "
        "GemmaTextEncoderConfigurator VIDEO_ONLY_EMBEDDINGS_PROCESSOR_KEY_OPS convert_to_additive_mask "
        "module_ops_from_gemma_root"
    ),
    "ltx_core.text_encoders.gemma.config": (
        "GEMMA3_CONFIG_FOR_LTX Gemma3ConfigData Gemma3RopeScaling Gemma3TextConfig Gemma3VisionConfig"
    ),
    "ltx_core.text_encoders.gemma.embeddings_connector": (
        "AudioEmbeddings1DConnectorConfigurator Embeddings1DConnector Embeddings1DConnectorConfigurator"
    ),
    "ltx_core.text_encoders.gemma.embeddings_processor": (
        "EmbeddingsProcessor EmbeddingsProcessorOutput convert_to_additive_mask"
    ),
    "ltx_core.text_encoders.gemma.encoders.base_encoder": "GemmaTextEncoder module_ops_from_gemma_root",
    "ltx_core.text_encoders.gemma.encoders.encoder_configurator": (
        "EMBEDDINGS_PROCESSOR_KEY_OPS EmbeddingsProcessorConfigurator GEMMA_LLM_KEY_OPS GEMMA_MODEL_OPS "
        "GemmaTextEncoderConfigurator VIDEO_ONLY_EMBEDDINGS_PROCESSOR_KEY_OPS"
    ),
    "ltx_core.text_encoders.gemma.feature_extractor": (
        "FeatureExtractorV1 FeatureExtractorV2 norm_and_concat_per_token_rms"
    ),
    "ltx_core.text_encoders.gemma.tokenizer": "LTXVGemmaTokenizer",
    "ltx_core.tools": "AudioLatentTools DEFAULT_SCALE_FACTORS LatentTools VideoLatentTools",
    "ltx_core.types": (
        "Audio AudioLatentShape LatentState SpatioTemporalScaleFactors VIDEO_SCALE_FACTORS VideoLatentShape "
        "VideoPixelShape"
    ),
    "ltx_core.utils": "check_config_value find_matching_file rms_norm to_denoised to_velocity",
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


# What else is called with names, or in an order of its own; ours may take more after it.
ARGUMENTS = {
    "ltx_core.utils": {
        "rms_norm": "x weight eps",
        "to_velocity": "sample sigma denoised_sample calc_dtype",
        "to_denoised": "sample velocity sigma calc_dtype",
        "check_config_value": "config key expected",
        "find_matching_file": "root_path pattern",
    },
    "ltx_core.components.guiders": {
        "projection_coef": "to_project project_onto",
        "CFGGuider.delta": "self cond uncond",
        "STGGuider.delta": "self pos_denoised perturbed_denoised",
        "LegacyStatefulAPGGuider": "scale eta norm_threshold momentum running_avg",
        "MultiModalGuider.calculate": "self cond uncond_text uncond_perturbed uncond_modality",
        "MultiModalGuiderFactory.from_dict": "sigma_to_params negative_context",
        "create_multimodal_guider_factory": "params negative_context",
    },
    "ltx_core.components.patchifiers": {
        "get_pixel_coords": "latent_coords scale_factors causal_fix",
        "VideoLatentPatchifier.unpatchify": "self latents output_shape",
        "VideoLatentPatchifier.get_token_count": "self tgt_shape",
        "VideoLatentPatchifier.get_patch_grid_bounds": "self output_shape device",
        "AudioPatchifier": (
            "patch_size sample_rate hop_length audio_latent_downsample_factor is_causal shift"
        ),
        "AudioPatchifier.patchify": "self audio_latents",
        "AudioPatchifier.unpatchify": "self audio_latents output_shape",
    },
    "ltx_core.components.diffusion_steps": {
        "EulerDiffusionStep.step": "self sample denoised_sample sigmas step_index",
        "Res2sDiffusionStep.step": "self sample denoised_sample sigmas step_index noise",
        "Res2sDiffusionStep.get_sde_coeff": "sigma_next sigma_up sigma_down sigma_max",
    },
    "ltx_core.conditioning": {
        "VideoConditionByLatentIndex": "latent strength latent_idx",
        "VideoConditionByKeyframeIndex": "keyframes frame_idx strength",
        "VideoConditionByReferenceLatent": "latent downscale_factor strength",
        "VideoConditionByReferenceLatent.apply_to": "self latent_state latent_tools",
    },
    "ltx_core.conditioning.mask_utils": {
        "resolve_cross_mask": "attention_mask num_new_tokens batch_size device dtype",
        "update_attention_mask": (
            "latent_state attention_mask num_noisy_tokens num_new_tokens batch_size device dtype"
        ),
    },
    "ltx_core.guidance": {
        "Perturbation.is_perturbed": "self perturbation_type block",
        "BatchedPerturbationConfig.mask": "self perturbation_type block device dtype",
        "BatchedPerturbationConfig.mask_like": "self perturbation_type block values",
    },
    "ltx_core.model.transformer.attention": {
        "Attention.forward": "self x context mask pe k_pe perturbation_mask all_perturbed",
        "AttentionFunction.__call__": "self q k v heads mask",
    },
    "ltx_core.model.transformer.rope": {
        "apply_rotary_emb": "input_tensor freqs_cis rope_type",
        "generate_freq_grid_np": ("positional_embedding_theta positional_embedding_max_pos_count inner_dim"),
        "generate_freq_grid_pytorch": (
            "positional_embedding_theta positional_embedding_max_pos_count inner_dim"
        ),
        "precompute_freqs_cis": (
            "indices_grid dim out_dtype theta max_pos use_middle_indices_grid num_attention_heads rope_type "
            "freq_grid_generator"
        ),
    },
    "ltx_core.model.video_vae": {
        "VideoEncoder.forward": "self sample",
        "VideoEncoder.tiled_encode": "self video tiling_config",
        "VideoDecoder.forward": "self sample timestep generator",
        "VideoDecoder.tiled_decode": "self latent tiling_config timestep generator",
        "decode_video": "latent video_decoder tiling_config generator",
    },
    "ltx_core.model.audio_vae": {
        "encode_audio": "audio audio_encoder audio_processor",
        "decode_audio": "latent audio_decoder vocoder",
    },
    "ltx_core.model.upsampler": {"upsample_video": "latent video_encoder upsampler"},
    "ltx_core.loader": {"SingleGPUModelBuilder.lora": "self lora_path strength sd_ops"},
    "ltx_core.text_encoders.gemma.feature_extractor": {
        "norm_and_concat_per_token_rms": "encoded_text attention_mask",
    },
    "ltx_pipelines.utils.constants": {
        "PipelineParams": (
            "seed stage_1_height stage_1_width num_frames frame_rate num_inference_steps video_guider_params "
            "audio_guider_params"
        ),
    },
    "ltx_pipelines.utils.media_io": {
        "encode_single_frame": "output_file image_array crf",
        "decode_single_frame": "video_file",
        "normalize_latent": "latent device dtype",
    },
    "ltx_pipelines.utils.res2s": {"phi": "j neg_h"},
}


@pytest.mark.parametrize("module", ARGUMENTS)
def test_functions_take_the_official_arguments(module):
    for path, expected in ARGUMENTS[module].items():
        function = operator.attrgetter(path)(importlib.import_module(module))
        names = expected.split()
        assert list(inspect.signature(function).parameters)[: len(names)] == names, path


def test_parameters_are_those_of_the_first_model_if_none_are_given():
    assert PipelineParams() == LTX_2_PARAMS
    assert LTX_2_PARAMS.video_guider_params is not PipelineParams().video_guider_params

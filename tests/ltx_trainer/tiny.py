"""Runs of the trainer that take a second."""

from __future__ import annotations

from typing import Any

VAE = {
    "latent_channels": 16,
    "patch_size": 4,
    "timestep_conditioning": False,
    "spatial_padding_mode": "zeros",
    "decoder_base_channels": 2,
    "encoder_blocks": [
        ["compress_space_res", {"multiplier": 1}],
        ["compress_time_res", {"multiplier": 1}],
        ["compress_all_res", {"multiplier": 1}],
        ["compress_all_res", {"multiplier": 1}],
        ["res_x", {"num_layers": 1}],
    ],
    "decoder_blocks": [
        ["compress_space", {"multiplier": 1}],
        ["compress_time", {"multiplier": 2}],
        ["compress_all", {"multiplier": 1}],
        ["compress_all", {"multiplier": 1}],
        ["res_x", {"num_layers": 1}],
    ],
}
AUDIO_VAE = {
    "model": {
        "params": {
            "sampling_rate": 16000,
            "ddconfig": {
                "mel_bins": 64,
                "z_channels": 2,
                "ch": 4,
                "ch_mult": [1, 1, 2],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
        }
    },
    "preprocessing": {"stft": {"filter_length": 1024, "hop_length": 160, "causal": True}},
}
_GENERATOR = {
    "resblock": "AMP1",
    "activation": "snakebeta",
    "stereo": True,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1]],
    "use_bias_at_final": False,
}
VOCODER = {
    "vocoder": _GENERATOR
    | {"upsample_rates": [10, 16], "upsample_kernel_sizes": [20, 32], "upsample_initial_channel": 8},
    "bwe": _GENERATOR
    | {
        "upsample_rates": [15, 16],
        "upsample_kernel_sizes": [31, 32],
        "upsample_initial_channel": 8,
        "use_tanh_at_final": False,
        "n_fft": 320,
        "hop_length": 80,
        "num_mels": 64,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
    },
}
NETWORKS = {
    "video-vae": {"vae": VAE},
    "audio-vae": {"audio_vae": AUDIO_VAE},
    "vocoder": {"vocoder": VOCODER, "audio_vae": AUDIO_VAE},
}

SIMPLE = tuple(NETWORKS)  # tasks that need nothing but the world


def table(kind: str, steps: int = 4, **changes: Any) -> dict[str, Any]:
    """The TOML table of a small run of `kind`."""
    sizes = {"batch_size": 2, "height": 32, "width": 32}
    frames = {"video-vae": 1}.get(kind, 9)
    run: dict[str, Any] = {
        "network": NETWORKS[kind],
        "precision": "fp32",
        "stages": [{"steps": steps, "frames": frames, **sizes}],
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 2, "average": 0.9},
        "saving": {"every": 2, "log_every": 1, "evaluate_every": 1000},
        "evaluation_clips": 2,
    }
    if kind != "vocoder":
        run["statistics_clips"] = 3
    return run | changes

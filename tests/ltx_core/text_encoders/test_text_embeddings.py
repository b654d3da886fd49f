"""Feature extractors, connectors and the processor: formulas, padding, batches, configurations, bad input."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ltx_core.errors import ConfigError, InputError, ShapeError, UnsupportedConfigError
from ltx_core.loader import Checkpoint, build_model
from ltx_core.model.transformer.rope import LTXRopeType
from ltx_core.sd_ops import EMBEDDINGS_PROCESSOR_KEY_OPS
from ltx_core.text_encoders.gemma import (
    EmbeddingsProcessor,
    EmbeddingsProcessorConfigurator,
    convert_to_additive_mask,
)
from ltx_core.text_encoders.gemma.embeddings_connector import (
    AudioEmbeddings1DConnectorConfigurator,
    Embeddings1DConnector,
    Embeddings1DConnectorConfigurator,
)
from ltx_core.text_encoders.gemma.feature_extractor import (
    FeatureExtractorV1,
    FeatureExtractorV2,
    norm_and_concat_per_prompt_range,
    norm_and_concat_per_token_rms,
)

V2 = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}
SIZES = {
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 8,
    "connector_num_layers": 1,
    "connector_positional_embedding_max_pos": [4096],
    "frequencies_precision": "float64",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
}


def states(batch=2, length=6, dim=5, layers=3, dtype=torch.float32):
    return torch.randn(batch, length, dim, layers, generator=torch.Generator().manual_seed(0)).to(dtype)


MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])


# Feature extractors


def test_prompt_range_by_the_formula():
    x = states()
    got = norm_and_concat_per_prompt_range(x, MASK)
    assert got.shape == (2, 6, 15)
    valid = x[0, 2:, :, 1]
    expected = 8 * (valid - valid.mean()) / (valid.max() - valid.min())
    torch.testing.assert_close(got[0, 2:].unflatten(-1, (5, 3))[..., 1], expected, rtol=1e-4, atol=1e-5)
    assert got[0, :2].eq(0).all()


def test_token_rms_by_the_formula():
    x = states()
    got = norm_and_concat_per_token_rms(x.unbind(-1), MASK).unflatten(-1, (5, 3))
    expected = x[1, 3] / x[1, 3].square().mean(dim=0).sqrt()
    torch.testing.assert_close(got[1, 3], expected, rtol=1e-4, atol=1e-5)
    assert got[1, 0].eq(0).all()


@pytest.mark.parametrize("norm", [norm_and_concat_per_prompt_range, norm_and_concat_per_token_rms])
def test_padding_may_hold_anything(norm):
    clean, dirty = states(), states()
    dirty[0, 0], dirty[0, 1], dirty[1, 0] = torch.nan, torch.inf, -torch.inf
    assert torch.equal(norm(clean, MASK), norm(dirty, MASK))


def test_a_prompt_without_tokens_is_zero():
    assert norm_and_concat_per_prompt_range(states(), MASK * 0).eq(0).all()


def test_dtypes_of_bfloat16_input():
    x = states(dtype=torch.bfloat16)
    assert norm_and_concat_per_prompt_range(x, MASK).dtype == torch.float32
    assert norm_and_concat_per_token_rms(x, MASK).dtype == torch.bfloat16
    first = FeatureExtractorV1(nn.Linear(15, 5, bias=False).bfloat16(), is_av=True)
    video, audio = first(x, MASK)
    assert video is audio
    assert video.dtype == torch.bfloat16


def test_projections_scale_by_their_width():
    video, audio = nn.Linear(15, 20), nn.Linear(15, 10)
    got_video, got_audio = FeatureExtractorV2(video, 5, audio)(states(), MASK)
    normed = norm_and_concat_per_token_rms(states(), MASK)
    torch.testing.assert_close(got_video, video(normed * 2))
    torch.testing.assert_close(got_audio, audio(normed * 2**0.5))
    assert FeatureExtractorV2(video, None)(states(), MASK)[1] is None


def test_another_text_encoders_width_is_told():
    with pytest.raises(InputError, match=r"3 hidden states of width 5, 15 values.*takes 12"):
        FeatureExtractorV1(nn.Linear(12, 5))(states(), MASK)


def test_unknown_padding_side():
    with pytest.raises(ValueError, match="'both'"):
        FeatureExtractorV1(nn.Linear(15, 5))(states(), MASK, "both")


def test_additive_mask():
    bias = convert_to_additive_mask(MASK, torch.bfloat16)
    assert bias.shape == (2, 1, 1, 6)
    assert bias[0, 0, 0, 2:].eq(0).all()
    assert bias[0, 0, 0, :2].eq(-torch.finfo(torch.bfloat16).max).all()


# Connectors


def connector(**kwargs) -> Embeddings1DConnector:
    torch.manual_seed(0)
    sizes = {"attention_head_dim": 8, "num_attention_heads": 2, "num_layers": 2, "num_learnable_registers": 4}
    return Embeddings1DConnector(**sizes | kwargs).requires_grad_(False)


@pytest.mark.parametrize("rope_type", list(LTXRopeType))
@pytest.mark.parametrize("gated", [False, True])
def test_side_of_the_padding_and_batch_do_not_matter(rope_type, gated):
    model = connector(rope_type=rope_type, apply_gated_attention=gated)
    rows = torch.randn(5, 16)
    left, right = torch.full((2, 8, 16), 9.0)
    left[3:], right[:5] = rows, rows
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0]])
    got, left_over = model(torch.stack((left, right)), convert_to_additive_mask(mask, torch.float32))
    torch.testing.assert_close(got[0], got[1])
    assert left_over.shape == (2, 1, 1, 8)
    assert left_over.eq(0).all()
    alone = model.encode_valid(rows[None], torch.ones(1, 5, dtype=torch.bool), 8)
    torch.testing.assert_close(alone[0], got[0])


def test_registers_stand_at_their_absolute_positions():
    model = connector(num_layers=0)
    rows = torch.randn(1, 3, 16)
    out = model.encode_valid(rows, torch.tensor([[False, True, True]]), 8)
    expected = torch.cat([rows[0, 1:], model.learnable_registers.repeat(2, 1)[2:]])
    torch.testing.assert_close(out[0], torch.nn.functional.rms_norm(expected, (16,), eps=1e-6))


def test_without_padding_registers_are_not_seen():
    model = connector()
    rows, mask = torch.randn(1, 8, 16), torch.zeros(1, 1, 1, 8)
    before = model(rows, mask)[0]
    model.learnable_registers.zero_()
    assert torch.equal(model(rows, mask)[0], before)


def test_without_registers_the_mask_is_used():
    model = connector(num_learnable_registers=None)
    rows = torch.randn(1, 5, 16)
    mask = convert_to_additive_mask(torch.tensor([[0, 1, 1, 1, 1]]), torch.float32)
    before, left_over = model(rows, mask)
    rows[:, 0] = 7.0
    torch.testing.assert_close(model(rows, mask)[0][:, 1:], before[:, 1:])
    assert left_over is mask


def test_wrong_lengths_and_widths():
    with pytest.raises(AssertionError, match=r"6 positions.*multiple of the 4") as caught:
        connector()(torch.randn(1, 6, 16), torch.zeros(1, 1, 1, 6))
    assert isinstance(caught.value, ShapeError)
    with pytest.raises(InputError, match="12 wide, the connector is 16 wide"):
        connector(num_learnable_registers=0)(torch.randn(1, 4, 12), torch.zeros(1, 1, 1, 4))
    with pytest.raises(ConfigError, match="one number"):
        connector(positional_embedding_max_pos=[20, 20])


def test_audio_sizes_fall_back_to_the_videos():
    config = {"transformer": {**SIZES, "audio_connector_attention_head_dim": 4, "connector_ff_bias": False}}
    video = Embeddings1DConnectorConfigurator.from_config(config)
    audio = AudioEmbeddings1DConnectorConfigurator.from_config(config)
    assert (video.inner_dim, audio.inner_dim) == (16, 8)
    assert len(audio.transformer_1d_blocks) == 1
    assert video.double_precision_rope
    assert video.rope_type is LTXRopeType.SPLIT
    assert video.transformer_1d_blocks[0].ff.net[2].bias is None
    assert video.learnable_registers.shape == (128, 16)
    with torch.device("meta"):
        default = Embeddings1DConnectorConfigurator.from_config({})
    assert (default.inner_dim, default.positional_embedding_max_pos) == (3840, (1,))


# Processor


def checkpoint(folder, version, dim=5, layers=3):
    """A file with the text part of a checkpoint, as small as can be."""
    transformer = dict(SIZES)
    if version == "2.3":
        transformer |= {
            **V2,
            "audio_connector_attention_head_dim": 4,
            "connector_apply_gated_attention": True,
        }
    config = {"transformer": transformer}
    torch.manual_seed(0)
    model = EmbeddingsProcessorConfigurator.from_config(config)
    model.process_valid(states(1, 6, dim, layers), torch.ones(1, 6, dtype=torch.int64), 128)
    tensors = {}
    for name, value in model.state_dict().items():
        name = name.replace("feature_extractor.", "text_embedding_projection.")
        for part in ("video_connector.", "audio_connector."):
            if name.startswith(part):
                name = f"model.diffusion_model.{part[:6]}embeddings_{name[6:]}"
        tensors[name] = value.contiguous()
    path = folder / f"{version}.safetensors"
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    return path, model


@pytest.mark.parametrize(("version", "audio_width"), [("2.0", 16), ("2.3", 8)])
@torch.no_grad()
def test_processor_from_a_checkpoint(tmp_path, version, audio_width):
    path, original = checkpoint(tmp_path, version)
    processor = build_model(
        EmbeddingsProcessorConfigurator, Checkpoint(path), EMBEDDINGS_PROCESSOR_KEY_OPS, "cpu", torch.float32
    )
    x, mask = torch.randn(2, 128, 5, 3), torch.ones(2, 128, dtype=torch.int64)
    mask[0, :60], mask[1, :90] = 0, 0
    output = processor.process_hidden_states(x.unbind(-1), mask)
    assert output.video_encoding.shape == (2, 128, 16)
    assert output.audio_encoding.shape == (2, 128, audio_width)
    assert torch.equal(output.attention_mask, torch.ones(2, 128, dtype=torch.int64))
    for got, want in zip(output, original.process_hidden_states(x, mask)):
        torch.testing.assert_close(got, want)
    part = processor.process_valid(x[:, 60:], mask[:, 60:], 128)
    for got, want in zip(part, output):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_checkpoint_for_another_text_encoder(tmp_path):
    path, _ = checkpoint(tmp_path, "2.0", dim=7)
    processor = build_model(
        EmbeddingsProcessorConfigurator, Checkpoint(path), EMBEDDINGS_PROCESSOR_KEY_OPS, "cpu", torch.float32
    )
    with pytest.raises(InputError, match=r"15 values.*takes 21"):
        processor.process_valid(states(), MASK, 128)


def test_text_projection_of_an_unknown_kind():
    some = {"caption_proj_before_connector": True}
    with pytest.raises(NotImplementedError, match="lacks caption_projection_first_linear") as caught:
        EmbeddingsProcessorConfigurator.from_config({"transformer": some})
    assert isinstance(caught.value, UnsupportedConfigError)
    with pytest.raises(NotImplementedError, match="caption_proj_input_norm is True, expected False"):
        EmbeddingsProcessorConfigurator.from_config({"transformer": {**V2, "caption_proj_input_norm": True}})


def test_kind_of_extractor_follows_the_configuration():
    first = EmbeddingsProcessorConfigurator.from_config({"transformer": SIZES}).feature_extractor
    second = EmbeddingsProcessorConfigurator.from_metadata({"config": {"transformer": {**SIZES, **V2}}})
    assert isinstance(first, FeatureExtractorV1)
    assert isinstance(second.feature_extractor, FeatureExtractorV2)
    with pytest.raises(ConfigError, match="'config'"):
        EmbeddingsProcessorConfigurator.from_metadata({})


def test_parts_that_do_not_fit():
    rows, mask = torch.randn(1, 8, 16), torch.zeros(1, 1, 1, 8)
    silent = EmbeddingsProcessor(video_connector=connector())
    video, audio, binary = silent.create_embeddings(rows, None, mask)
    assert (video.shape, audio, binary.dtype) == ((1, 8, 16), None, torch.int64)
    with pytest.raises(InputError, match="no audio connector"):
        silent.create_embeddings(rows, rows, mask)
    with pytest.raises(InputError, match="no audio features"):
        EmbeddingsProcessor(video_connector=connector(), audio_connector=connector()).create_embeddings(
            rows, None, mask
        )
    with pytest.raises(InputError, match="no feature extractor"):
        silent.process_hidden_states(states(), MASK)

"""The duration head: seconds from contexts, seconds to frames."""

import pytest
import torch

from ltx_core.errors import InputError
from ltx_core.text_encoders.gemma.duration_head import AutoDuration, DurationHead, DurationHeadConfigurator


def test_seconds_are_positive_and_do_not_depend_on_the_order_of_tokens():
    torch.manual_seed(0)
    head = DurationHead(12, 8, pooler_hidden_dim=16, num_queries=2, num_pooler_heads=4, mlp_hidden=10)
    video, audio = torch.randn(3, 7, 12), torch.randn(3, 5, 8)
    with torch.no_grad():
        both = head(video, audio)
        assert both.shape == (3,)
        assert both.gt(0).all()
        torch.testing.assert_close(head(video.flip(1), audio), both)
        assert not torch.allclose(head(video, None), both)
        assert head(None, audio).shape == (3,)
    with pytest.raises(ValueError, match="no context"):
        head()


def test_sizes_come_from_the_configuration():
    config = {"transformer": {"cross_attention_dim": 40}, "duration_head": {"mlp_hidden": 48}}
    with torch.device("meta"):
        head = DurationHeadConfigurator.from_config(config)
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert shapes["video_input_proj.weight"] == (256, 40)
    assert shapes["audio_input_proj.weight"] == (256, 2048)
    assert shapes["attention_pooler.query_tokens"] == (1, 256)
    assert shapes["attention_pooler.cross_attn.in_proj_weight"] == (768, 256)
    assert shapes["mlp_hidden.weight"] == (48, 256)
    assert shapes["mlp_out.bias"] == (1,)


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [
        (4.0, 24, 89),  # 96 frames, down to 8 k + 1
        (0.1, 24, 25),  # the minimum is 24, 17 would be below it
        (99.0, 24, 473),
        (4.04, 24, 97),
        (2.5, 25, 57),  # 62.5 rounds to 62, the even one
    ],
)
def test_frames(seconds, fps, frames):
    assert AutoDuration().num_frames(seconds, fps) == frames


def test_maximum_is_kept_where_no_number_fits_between():
    assert AutoDuration(1.0, 1.0).num_frames(5.0, 24) == 24


def test_bounds_that_cross():
    with pytest.raises(InputError, match="5 to 2 s"):
        AutoDuration(5, 2)

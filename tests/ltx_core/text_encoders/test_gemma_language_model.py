"""The language model against transformers' own, in all the ways that a configuration can be written."""

import subprocess
import sys

import pytest
import torch

from ltx_core.errors import ConfigError, UnsupportedConfigError
from ltx_core.loader import stream_model
from ltx_core.loader.gemma import load_text_encoder
from ltx_core.text_encoders.gemma.language_model import FULL, SLIDING, GemmaLanguageModel, read_sizes
from ltx_core.text_encoders.gemma.tokenizer import LTXVGemmaTokenizer

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 12,
    "sliding_window": 5,
    "sliding_window_pattern": 2,
    "rope_theta": 5000.0,
    "rope_local_base_freq": 100.0,
    "rope_scaling": {"factor": 4.0, "rope_type": "linear"},
}


def pair(**changes):
    """transformers' model and ours with the same random weights."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    values = {**SMALL, **changes}
    torch.manual_seed(0)
    theirs = Gemma3TextModel._from_config(
        Gemma3TextConfig.from_dict(dict(values)), attn_implementation="sdpa"
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = GemmaLanguageModel(read_sizes({"text_config": values}))
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


@torch.no_grad()
def states_of(theirs, ours, start=7):
    """Hidden states of both for a padded batch, at the positions that are not padding."""
    ids = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    positions = torch.arange(start, start + 12)
    expected = theirs(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions[None],
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    got = ours(ids, mask, positions)
    assert len(got) == len(expected) == 4
    return [(a[mask == 1], b[mask == 1]) for a, b in zip(got, expected)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 1},
        {"rope_scaling": None},
        {"attention_bias": True},
        {"layer_types": [FULL, SLIDING, SLIDING], "sliding_window_pattern": 6},
        {"num_key_value_heads": 4, "rms_norm_eps": 0.1},
    ],
)
def test_states_are_those_of_transformers(changes):
    for got, want in states_of(*pair(**changes)):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_bfloat16_states_are_close():
    theirs, ours = pair()
    for got, want in states_of(theirs.bfloat16(), ours.bfloat16()):
        assert got.dtype == torch.bfloat16
        assert (got - want).float().norm() < 0.02 * want.float().norm()


def test_rotary_settings_of_newer_files():
    newer = {name: value for name, value in SMALL.items() if not name.startswith("rope")}
    newer["rope_parameters"] = {
        SLIDING: {"rope_type": "default", "rope_theta": 100.0},
        FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
    }
    old, new = (read_sizes({"text_config": values}) for values in (SMALL, newer))
    for kind in (FULL, SLIDING):
        assert old.rope(kind) == new.rope(kind)
    assert new.rope(FULL) == (5000.0, 4.0)
    newer["rope_parameters"] = {FULL: {"rope_type": "default", "factor": 4.0}, SLIDING: None}
    usual = read_sizes({"text_config": newer})
    assert usual.rope(FULL) == (1_000_000.0, 1.0)
    assert usual.rope(SLIDING) == (10_000.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"layer_types": ["full_attention"]}, "each of 3 layers"),
        ({"layer_types": ["full_attention", "chunked", "full_attention"]}, "layer_types must name"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"hidden_size": "wide"}, "text_config.hidden_size is 'wide'"),
    ],
)
def test_what_is_not_gemma_3_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        read_sizes({"text_config": {**SMALL, **changes}})
    if "wide" not in message:
        with pytest.raises(UnsupportedConfigError):
            read_sizes({"text_config": {**SMALL, **changes}})


def test_padding_does_not_reach_what_is_said():
    """Whatever stands in the padding, the states of the text are the same, and all are finite."""
    _, ours = pair()
    ids, mask = torch.randint(1, 50, (1, 8)), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        ours.embed_tokens.weight[0] = 1e4
        states = [ours(torch.where(mask == 1, ids, blank), mask, torch.arange(8)) for blank in (0, 3)]
    for one, other in zip(*states):
        assert one.isfinite().all()
        assert torch.equal(one[:, 3:], other[:, 3:])


def test_transformers_works_on_the_same_memory(encoder):
    whole, own = encoder.model.as_transformers(), encoder.model.model.language_model
    theirs = dict(whole.model.language_model.named_parameters())
    for name, parameter in own.named_parameters():
        assert theirs[name].data_ptr() == parameter.data_ptr()
    assert whole.lm_head.weight is whole.model.language_model.embed_tokens.weight
    assert not any(t.is_meta for t in (*whole.parameters(), *whole.buffers()))


@pytest.mark.parametrize("rest", ["cpu", "disk"])
def test_a_streamed_model_writes_the_same(gemma_root, encoder, rest):
    def fill(filling, device):
        return stream_model(filling, device, blocks="layers", rest=rest)

    streamed = load_text_encoder(gemma_root, dtype=torch.float32, fill=fill)
    answers = [e.enhance_t2v("a ball", 8, system_prompt="Be brief.", seed=1) for e in (encoder, streamed)]
    assert answers[0] == answers[1]
    states = [e.encode_valid("a ball")[0] for e in (encoder, streamed)]
    assert all(torch.equal(a, b) for a, b in zip(*states))


def test_encoding_imports_neither_transformers_nor_a_compiler(gemma_root):
    """Their imports take longer than all else that a first call does."""
    code = (
        "import sys; from ltx_core.loader.gemma import load_text_encoder; "
        f"load_text_encoder({str(gemma_root)!r}).encode('a ball'); "
        "print({'transformers', 'torch._dynamo'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    "text",
    [
        "A red ball, rolling; then “quiet” 雨.",
        "  two  spaces\nand\t a tab ",
        "<bos>again<eos> <start_of_turn>user\n<image_soft_token>",
        "emoji 🎈 and \x00 bytes é",
        "",
    ],
)
def test_ids_are_those_of_the_transformers_tokenizer(gemma_root, text):
    tokenizer = LTXVGemmaTokenizer(gemma_root, 1024)
    expected = tokenizer.tokenizer(text.strip())["input_ids"]
    assert tokenizer.token_ids(text) == expected
    assert tokenizer.pad_id == tokenizer.tokenizer.pad_token_id

"""The tiny random Gemma folder: small, the same every time, of any size asked for."""

from ltx_core.loader.gemma import load_text_encoder
from ltx_pipelines.miniature.gemma import write_tiny_gemma


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_seed_same_bytes(gemma_root, tmp_path):
    again, other = (write_tiny_gemma(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    first = contents(gemma_root)
    assert contents(again) == first
    assert contents(other)["model.safetensors"] != first["model.safetensors"]
    assert sum(map(len, first.values())) < 1_000_000


def test_sizes_and_corpus(tmp_path):
    folder = write_tiny_gemma(tmp_path, hidden=32, layers=2, heads=2, corpus=["zebra zebra zebra"])
    encoder = load_text_encoder(folder)
    states, mask, _ = encoder.encode_valid("zebra")
    assert (len(states), states[0].shape[-1]) == (3, 32)
    assert mask.sum().item() == len(encoder.tokenizer.token_ids("zebra")) < 5


def test_any_text_survives_the_tokens(encoder):
    text = "Ein Zug fährt ein, 雨 💃🏽\n“tab\there”"
    ids = encoder.tokenizer.token_ids(text)
    assert encoder.tokenizer.tokenizer.decode(ids, skip_special_tokens=True) == text

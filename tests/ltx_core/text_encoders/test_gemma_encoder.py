"""The text encoder: tokens, hidden states against transformers' own, folders in all layouts, bad folders."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx_core.errors import CheckpointError, ConfigError, InputError, MissingFileError, UnsupportedConfigError
from ltx_core.loader import SingleGPUModelBuilder
from ltx_core.loader.gemma import load_text_encoder
from ltx_core.text_encoders.gemma import (
    GEMMA_LLM_KEY_OPS,
    GEMMA_MODEL_OPS,
    GemmaTextEncoder,
    GemmaTextEncoderConfigurator,
    module_ops_from_gemma_root,
)
from ltx_core.text_encoders.gemma import model as gemma_model
from ltx_core.text_encoders.gemma.config import GEMMA3_CONFIG_FOR_LTX
from ltx_core.text_encoders.gemma.tokenizer import LTXVGemmaTokenizer

TEXT = "A red ball is rolling, then “quiet” 雨."


# Tokens


@pytest.mark.parametrize("prompt", [None, 3, b"a", ["a"], "caf\udce9"])
def test_what_is_no_text_is_named(gemma_root, prompt):
    with pytest.raises(InputError, match=r"The prompt is .*; give a text in UTF-8"):
        LTXVGemmaTokenizer(gemma_root, 16).tokenize_with_weights(prompt)


def test_tokens_are_padded_left_and_begin_with_bos(encoder):
    entries = encoder.tokenizer.tokenize_with_weights(f"  {TEXT}\n")["gemma"]
    ids, mask = zip(*entries)
    count = sum(mask)
    assert len(entries) == 1024
    assert mask == (0,) * (1024 - count) + (1,) * count
    assert ids[-count] == 2
    assert list(ids[-count:]) == encoder.tokenizer.token_ids(TEXT)
    assert set(ids[:-count]) == {0}


def test_word_ids_are_appended(gemma_root):
    tokenizer = LTXVGemmaTokenizer(gemma_root, max_length=4)
    entries = tokenizer.tokenize_with_weights("a", return_word_ids=True)["gemma"]
    assert [entry[1:] for entry in entries] == [(0, 0), (0, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_blank_text_is_bos_alone(encoder, text):
    assert encoder.tokenizer.token_ids(text) == [2]


def test_a_text_that_is_cut_is_warned_of(gemma_root, caplog):
    tokenizer = LTXVGemmaTokenizer(gemma_root, 16)
    tokenizer.token_ids("a ball")
    assert not caplog.records
    tokenizer.token_ids("a ball " * 50)
    (record,) = caplog.records
    assert "tokens; only the first 16 count" in record.getMessage()


def test_long_text_keeps_bos_and_the_beginning(gemma_root):
    tokenizer, longer = LTXVGemmaTokenizer(gemma_root, 16), LTXVGemmaTokenizer(gemma_root, 1024)
    assert tokenizer.token_ids(TEXT * 50) == longer.token_ids(TEXT * 50)[:16]


def test_tokenizer_without_bos_is_refused(gemma_root, tmp_path):
    folder = shutil.copytree(gemma_root, tmp_path / "gemma")
    for name, key in (("tokenizer_config.json", "bos_token"), ("special_tokens_map.json", "bos_token")):
        content = json.loads((folder / name).read_text())
        content[key] = None
        (folder / name).write_text(json.dumps(content))
    content = json.loads((folder / "tokenizer_config.json").read_text())
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no <bos>"):
        LTXVGemmaTokenizer(folder)


def test_a_tokenizer_model_that_is_taken_for_another_is_refused(gemma_root, tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").touch()
    guessed = SimpleNamespace(bos_token="<s>", bos_token_id=1021, pad_token_id=1023)
    monkeypatch.setattr(LTXVGemmaTokenizer, "tokenizer", guessed)
    with pytest.raises(InputError, match=r"no <bos> token; .* lacks its tokenizer_config\.json"):
        LTXVGemmaTokenizer(tmp_path)


# Hidden states


@torch.no_grad()
def reference_states(folder: Path, encoder: GemmaTextEncoder, text: str, dtype=torch.float32):
    """transformers' hidden states of the prompt padded to 1024."""
    from transformers import Gemma3ForConditionalGeneration

    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    ids, mask = zip(*encoder.tokenizer.tokenize_with_weights(text)["gemma"])
    output = model.model(
        torch.tensor([ids]), attention_mask=torch.tensor([mask]), output_hidden_states=True, use_cache=False
    )
    return output.hidden_states, torch.tensor([mask])


@pytest.mark.parametrize("text", [TEXT, "", "the sea " * 60])
def test_states_are_those_of_the_padded_prompt(gemma_root, encoder, text):
    expected, mask = reference_states(gemma_root, encoder, text)
    states, got_mask = encoder.encode(text)
    assert torch.equal(got_mask, mask)
    assert [state.shape for state in states] == [(1, 1024, 64)] * 5
    for got, want in zip(states, expected):
        torch.testing.assert_close(got[mask == 1], want[mask == 1], rtol=1e-5, atol=1e-5)


def test_transformers_own_model_encodes_and_writes_the_same(gemma_root, encoder):
    from transformers import Gemma3ForConditionalGeneration

    model = Gemma3ForConditionalGeneration.from_pretrained(gemma_root, dtype=torch.float32)
    other = GemmaTextEncoder(model, encoder.tokenizer, None, torch.float32)
    (states, mask), (expected, _) = other.encode(TEXT), encoder.encode(TEXT)
    assert all(torch.equal(a[mask == 1], b[mask == 1]) for a, b in zip(states, expected))
    assert other.enhance_t2v(TEXT, max_new_tokens=4) == encoder.enhance_t2v(TEXT, max_new_tokens=4)
    ours, theirs = (m.model.language_model.embed_tokens.weight for m in (other.model, model))
    assert ours.data_ptr() == theirs.data_ptr()


def test_valid_states_are_the_end_of_the_padded_ones(encoder):
    states, mask, length = encoder.encode_valid(TEXT)
    padded, full_mask = encoder.encode(TEXT)
    count = len(encoder.tokenizer.token_ids(TEXT))
    assert (length, mask.shape, mask.sum().item()) == (1024, (1, 64), count)
    assert full_mask.sum().item() == count
    assert all(torch.equal(a, b[:, -64:]) for a, b in zip(states, padded))
    assert not states[0].requires_grad


def test_texts_together_are_as_each_alone(encoder):
    texts = ("a", TEXT * 9, TEXT)
    states, mask, length = encoder.encode_valid(*texts)
    kept = mask.shape[1]
    assert kept % 64 == 0
    assert kept > 64
    for row, text in enumerate(texts):
        alone, own, own_length = encoder.encode_valid(text)
        count = int(own.sum())
        assert (own_length, int(mask[row].sum())) == (length, count)
        for got, want in zip(states, alone):
            assert torch.equal(got[row, -count:], want[0, -count:])


def test_bfloat16_embeddings_use_the_rounded_scale(gemma_root):
    encoder = load_text_encoder(gemma_root, dtype=torch.bfloat16)
    model = encoder.model.model.language_model
    assert model.embed_tokens.weight.dtype == torch.bfloat16
    states, _, _ = encoder.encode_valid("a")
    expected = model.embed_tokens.weight[2] * torch.tensor(8.0, dtype=torch.bfloat16)
    assert torch.equal(states[0][0, 62], expected)


# Folders


def test_only_the_language_model_is_read(encoder):
    assert encoder.model.model.vision_tower is None
    assert encoder.model.lm_head.weight is encoder.model.model.language_model.embed_tokens.weight
    assert not encoder.training
    assert not any(p.requires_grad or p.is_meta for p in encoder.parameters())
    assert not any(buffer.is_meta for buffer in encoder.buffers())


def test_vision_tower_is_read_when_asked_for(gemma_root):
    encoder = load_text_encoder(gemma_root, with_vision=True)
    names = {name for name, p in encoder.named_parameters() if "vision_tower" in name or "projector" in name}
    assert len(names) == 23
    assert not any(t.is_meta for t in (*encoder.parameters(), *encoder.buffers()))


def renamed_layout(source: Path, folder: Path) -> Path:
    """The same model with the key names that newer transformers save, in two shards, over sub-folders."""
    tensors = load_file(source / "model.safetensors")
    new = {}
    for key, value in tensors.items():
        if key.startswith("language_model.model."):
            key = key.replace("language_model.model.", "model.language_model.", 1)
        else:
            key = "model." + key.replace("vision_model.", "")
        new[key] = value
    (folder / "text_encoder").mkdir()
    (folder / "tokenizer").mkdir()
    names = sorted(new)
    for index, part in enumerate((names[:20], names[20:])):
        path = folder / "text_encoder" / f"model-0000{index + 1}-of-00002.safetensors"
        save_file({name: new[name] for name in part}, path)
    shutil.copy(source / "config.json", folder / "text_encoder")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / name, folder / "tokenizer")
    return folder


def test_newer_keys_shards_and_sub_folders_give_the_same(gemma_root, encoder, tmp_path):
    other = load_text_encoder(renamed_layout(gemma_root, tmp_path), "cpu", torch.float32, with_vision=True)
    expected = encoder.encode_valid(TEXT)[0]
    assert all(torch.equal(a, b) for a, b in zip(other.encode_valid(TEXT)[0], expected))
    assert other.model.model.vision_tower is not None
    assert other.processor.size == (56, 56)


@pytest.mark.parametrize(
    ("remove", "pattern"),
    [
        ("model.safetensors", r"'model\*\.safetensors'"),
        ("tokenizer.json", "'tokenizer.model' or 'tokenizer.json'"),
        ("config.json", "'config.json'"),
    ],
)
def test_missing_file_is_named(gemma_root, tmp_path, remove, pattern):
    folder = shutil.copytree(gemma_root, tmp_path / "gemma")
    (folder / remove).unlink()
    with pytest.raises(FileNotFoundError, match=pattern) as caught:
        load_text_encoder(folder)
    assert isinstance(caught.value, MissingFileError)
    assert str(folder) in str(caught.value)


def test_missing_folder_and_file_for_folder(gemma_root, tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        load_text_encoder(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="is a file"):
        load_text_encoder(gemma_root / "model.safetensors")


def test_missing_tensor_is_named(gemma_root, tmp_path):
    folder = shutil.copytree(gemma_root, tmp_path / "gemma")
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        load_text_encoder(folder)


def test_another_kind_of_model_is_refused(gemma_root, tmp_path):
    folder = shutil.copytree(gemma_root, tmp_path / "gemma")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(UnsupportedConfigError, match=r"config.json.*'llama'"):
        load_text_encoder(folder)


def test_sizes_that_no_network_can_have(gemma_root, tmp_path):
    folder = shutil.copytree(gemma_root, tmp_path / "gemma")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = -1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"config\.json: no network can be made of it \("):
        load_text_encoder(folder)


def test_published_configuration():
    config = GEMMA3_CONFIG_FOR_LTX.to_dict()
    assert (config["text_config"]["hidden_size"], config["eos_token_id"]) == (3840, [1, 106])
    assert config["text_config"]["rope_scaling"] == {"factor": 8.0, "rope_type": "linear"}
    with torch.device("meta"):
        model = GemmaTextEncoderConfigurator.from_config({}).model
    assert model.model.language_model.embed_tokens.weight.shape == (262208, 3840)
    assert len(model.model.language_model.layers) == 48
    assert model.model.multi_modal_projector.mm_input_projection_weight.shape == (1152, 3840)


def test_module_ops_give_tokenizer_and_processor(gemma_root):
    config = json.loads((gemma_root / "config.json").read_text())
    with torch.device("meta"):
        encoder = GemmaTextEncoderConfigurator.from_config(config)
    for operation in (*module_ops_from_gemma_root(gemma_root), GEMMA_MODEL_OPS):
        assert operation.matcher(encoder)
        assert not operation.matcher(torch.nn.Linear(1, 1))
        operation.mutator(encoder)
    assert encoder.tokenizer.max_length == 1024
    assert encoder.processor.size == (56, 56)
    assert not any(buffer.is_meta for buffer in encoder.buffers())


def test_an_official_builder_reads_a_folder_whatever_the_version_of_transformers(
    gemma_root, encoder, monkeypatch
):
    """The configurator knows the sizes of Gemma 3 12B only; this folder's are put in their place."""
    config = json.loads((gemma_root / "config.json").read_text())
    monkeypatch.setattr(gemma_model, "GEMMA3_CONFIG_FOR_LTX", SimpleNamespace(to_dict=lambda: config))
    operations = (GEMMA_MODEL_OPS, *module_ops_from_gemma_root(gemma_root))
    path = (str(gemma_root / "model.safetensors"),)
    builder = SingleGPUModelBuilder(GemmaTextEncoderConfigurator, path, GEMMA_LLM_KEY_OPS, operations)
    made = builder.build(torch.device("cpu"), torch.float32)
    expected = encoder.encode_valid(TEXT)[0]
    assert all(torch.equal(a, b) for a, b in zip(made.encode_valid(TEXT)[0], expected))
    stored = load_file(gemma_root / "model.safetensors")
    name = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(made.state_dict()[f"model.model.{name}"], stored[name].float())
    picture = torch.full((40, 60, 3), 200, dtype=torch.uint8)
    written = made.enhance_i2v("a ball", picture, max_new_tokens=3, system_prompt="Say what is seen.")
    assert written == encoder.enhance_i2v(
        "a ball", picture, max_new_tokens=3, system_prompt="Say what is seen."
    )


def test_encoder_without_tokenizer_says_so():
    with pytest.raises(InputError, match="no tokenizer"):
        GemmaTextEncoder().encode("a")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_damaged_tokenizer_files_are_named(gemma_root, tmp_path, name):
    folder = shutil.copytree(gemma_root, tmp_path / "gemma")
    (folder / name).write_text("")
    with pytest.raises(CheckpointError, match=rf"{name} is "):
        load_text_encoder(folder)


def test_a_folder_with_tokenizer_model_alone_says_what_it_takes(gemma_root, tmp_path, monkeypatch):
    folder = shutil.copytree(gemma_root, tmp_path / "gemma")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tokenizer.model only: .* pip install sentencepiece"):
        load_text_encoder(folder)


def test_only_images_need_the_preprocessor(gemma_root, tmp_path):
    folder = shutil.copytree(gemma_root, tmp_path / "gemma")
    (folder / "preprocessor_config.json").write_text("[]")
    encoder = load_text_encoder(folder)
    encoder.encode_valid("a")
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json holds no JSON object"):
        encoder.enhance_i2v("a", torch.zeros(8, 8, 3, dtype=torch.uint8))


@pytest.mark.parametrize("kind", ["gemma3_text", "llama"])
def test_a_model_that_only_writes_is_no_text_encoder(kind):
    with pytest.raises(UnsupportedConfigError, match=f"model_type is '{kind}'"):
        GemmaTextEncoderConfigurator.from_config({"model_type": kind, "hidden_size": 8})

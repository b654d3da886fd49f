"""A tiny random text encoder in the files of Gemma 3: what the demonstration encodes prompts with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
MARKS = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")
IMAGE_TOKEN = "<image_soft_token>"
VISION_DIM, IMAGE_SIZE, PATCH = 16, 56, 14
IMAGE_TOKENS = 4

CORPUS = (
    "A red ball is rolling slowly over the green floor while a soft bell is ringing.",
    "The small blue square turns around twice, then it bounces against the wall with a dull knock.",
    "Two yellow triangles are moving towards each other and pass; a low hum is growing louder.",
    "In the morning a woman is walking along the stone pier, and gulls are calling in the distance.",
    "Rain is falling on the window as a man says in a warm voice: \"I never thought it would be like this.\"",
    "The camera follows a white fox through fresh snow at dawn; wind moves the tall dark pines.",
    "Waves are breaking on the shore, children are laughing, and an old train pulls into the station.",
    "Style: hand drawn animation. A large purple star is spinning above the water, fading into the light.",
    "blurry, noisy, low quality, distorted, watermark, text, artifacts, shaky, out of focus, silent",
)  # fmt: skip

CHAT_TEMPLATE = (
    "{{ bos_token }}{% set start = '' %}{% set turns = messages %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set start = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}{% endif %}"
    "{% for turn in turns %}<start_of_turn>"
    "{{ 'model' if turn['role'] == 'assistant' else turn['role'] }}\n{{ start if loop.first }}"
    "{% if turn['content'] is string %}{{ turn['content'] | trim }}{% else %}"
    "{% for part in turn['content'] %}"
    "{{ '<start_of_image>' if part['type'] == 'image' else part['text'] | trim }}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def write_tiny_gemma(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 4,
    heads: int = 4,
    seed: int = 0,
    pieces: int = 320,
    corpus: Iterable[str] | None = None,
) -> Path:
    """Write a Gemma 3 model with random weights, vision tower included, to `folder`; the same every time.

    hidden: width, a multiple of 2 * heads. layers: every second one attends to all tokens before.
    pieces: at most so many text tokens, learned from `corpus` (sentences). Returns `folder`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(CORPUS if corpus is None else tuple(corpus), pieces)
    vocab_size = len(tokenizer["model"]["vocab"])
    config = _config(hidden, layers, heads, vocab_size)
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_json(folder / "special_tokens_map.json", _special_tokens())
    _write_json(folder / "preprocessor_config.json", _preprocessor_config())
    _write_weights(folder / "model.safetensors", config, seed)
    return folder


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# -- tokenizer -------------------------------------------------------------------------------------------


def _tokenizer(corpus: Iterable[str], pieces: int) -> dict[str, Any]:
    """A ``tokenizer.json``: byte pair encoding with bytes to fall back on, <bos> first."""
    vocab = [*SPECIAL, *MARKS, *(f"<0x{byte:02X}>" for byte in range(256))]
    learned, merges = _learn_pieces(corpus, pieces)
    vocab += [*learned, IMAGE_TOKEN]
    ids = {token: index for index, token in enumerate(vocab)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    space = {"String": " "}
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": ids[token], "content": token, **flags} for token in (*SPECIAL, *MARKS, IMAGE_TOKEN)
        ],
        "normalizer": {"type": "Replace", "pattern": space, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": space,
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, bos, second],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [ids["<bos>"]], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges,
        },
    }


def _learn_pieces(corpus: Iterable[str], pieces: int) -> tuple[list[str], list[list[str]]]:
    """Text tokens and merges of a byte pair encoding; words carry the space before them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    alphabet = ["\n", "▁", *map(chr, range(ord("!"), ord("~") + 1))]
    trainer = trainers.BpeTrainer(vocab_size=pieces, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(corpus, trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [list(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), merges


def _special_tokens() -> dict[str, str]:
    return {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": IMAGE_TOKEN,
    }


def _tokenizer_config() -> dict[str, Any]:
    names = _special_tokens()
    return {
        "tokenizer_class": "GemmaTokenizer",
        "processor_class": "Gemma3Processor",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
        "extra_special_tokens": {key: names[key] for key in ("boi_token", "eoi_token", "image_token")},
        "chat_template": CHAT_TEMPLATE,
        **names,
    }


def _preprocessor_config() -> dict[str, Any]:
    return {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_seq_length": IMAGE_TOKENS,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }


# -- model -----------------------------------------------------------------------------------------------


def _config(hidden: int, layers: int, heads: int, vocab_size: int) -> dict[str, Any]:
    head_dim = hidden // heads
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "torch_dtype": "bfloat16",
        "boi_token_index": len(SPECIAL) + MARKS.index("<start_of_image>"),
        "eoi_token_index": len(SPECIAL) + MARKS.index("<end_of_image>"),
        "image_token_index": vocab_size - 1,
        "eos_token_id": [SPECIAL.index("<eos>"), len(SPECIAL) + MARKS.index("<end_of_turn>")],
        "mm_tokens_per_image": IMAGE_TOKENS,
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "head_dim": head_dim,
            "query_pre_attn_scalar": head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
            "sliding_window_pattern": 2,
            "max_position_embeddings": 131072,
            "vocab_size": vocab_size,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": VISION_DIM,
            "intermediate_size": 2 * VISION_DIM,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
    }


def _write_weights(path: Path, config: Mapping[str, Any], seed: int) -> None:
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    shapes = {**_text_shapes(config["text_config"]), **_vision_shapes(config["text_config"]["hidden_size"])}
    weights = {name: _draw(name, shape, generator) for name, shape in shapes.items()}
    save_file(weights, str(path), metadata={"format": "pt"})


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Matrices that keep the scale of what they multiply; small vectors, as Gemma's norms add 1 to theirs."""
    scale = 0.1 if len(shape) == 1 else torch.Size(shape[1:]).numel() ** -0.5
    offset = 1.0 if "vision" in name and "norm" in name and name.endswith("weight") else 0.0
    return (torch.randn(shape, generator=generator) * scale + offset).to(torch.bfloat16)


def _text_shapes(text: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    dim, inner, head_dim = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    queries, keys = text["num_attention_heads"] * head_dim, text["num_key_value_heads"] * head_dim
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (queries, dim),
        "self_attn.k_proj": (keys, dim),
        "self_attn.v_proj": (keys, dim),
        "self_attn.o_proj": (dim, queries),
        "self_attn.q_norm": (head_dim,),
        "self_attn.k_norm": (head_dim,),
        "mlp.gate_proj": (inner, dim),
        "mlp.up_proj": (inner, dim),
        "mlp.down_proj": (dim, inner),
        "input_layernorm": (dim,),
        "post_attention_layernorm": (dim,),
        "pre_feedforward_layernorm": (dim,),
        "post_feedforward_layernorm": (dim,),
    }
    start = "language_model.model."
    shapes: dict[str, tuple[int, ...]] = {f"{start}embed_tokens.weight": (text["vocab_size"], dim)}
    for index in range(text["num_hidden_layers"]):
        shapes |= {f"{start}layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return {**shapes, f"{start}norm.weight": (dim,)}


def _vision_shapes(text_dim: int) -> dict[str, tuple[int, ...]]:
    dim, patches = VISION_DIM, (IMAGE_SIZE // PATCH) ** 2
    start, layer = "vision_tower.vision_model.", "vision_tower.vision_model.encoder.layers.0."
    linear = {f"{layer}self_attn.{name}": (dim, dim) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    linear |= {f"{layer}mlp.fc1": (2 * dim, dim), f"{layer}mlp.fc2": (dim, 2 * dim)}
    norms = (f"{layer}layer_norm1", f"{layer}layer_norm2", f"{start}post_layernorm")
    shapes: dict[str, tuple[int, ...]] = {
        f"{start}embeddings.patch_embedding.weight": (dim, 3, PATCH, PATCH),
        f"{start}embeddings.patch_embedding.bias": (dim,),
        f"{start}embeddings.position_embedding.weight": (patches, dim),
        "multi_modal_projector.mm_input_projection_weight": (dim, text_dim),
        "multi_modal_projector.mm_soft_emb_norm.weight": (dim,),
    }
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
    return shapes

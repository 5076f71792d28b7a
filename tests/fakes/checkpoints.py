"""Tiny random checkpoints in exactly the published layouts: every name is the publisher's, every size is small."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
DINO_SIDE, DINO_PATCH, DINO_WIDTH, DINO_DEPTH, DINO_HEADS = 56, 14, 32, 2, 4
SAM_GRID, SAM_PATCH, SAM_WIDTH, SAM_DEPTH, SAM_WINDOW, SAM_OUT, SAM_HIDDEN = 8, 16, 32, 3, 3, 32, 48
SAM_HEAD_WIDTH, SAM_GLOBAL = 16, (2,)
CLIP_SIDE, CLIP_PATCH, CLIP_WIDTH, CLIP_DEPTH, CLIP_JOINT = 224, 16, 192, 12, 48
BERT_WIDTH, BERT_DEPTH, BERT_HEADS, BERT_HIDDEN, BERT_POSITIONS = 32, 2, 4, 64, 40
CONTEXT = 24
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "chest", "x", "-", "ray", "pneu", "##mon", "##ia", "of", "a")
CLIP_MEAN, CLIP_DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def random_state(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Small random weights; norms and scales near one, so that every parameter matters."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        state[name] = around + noise * (0.3 if len(shape) < 2 else shape[-1] ** -0.5)
    return state


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _conv(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def rad_dino(folder: Path, seed: int = 1) -> Path:
    """`config.json`, `preprocessor_config.json` and `model.safetensors` as microsoft/rad-dino has them."""
    folder.mkdir(parents=True)
    width = DINO_WIDTH
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 1 + (DINO_SIDE // DINO_PATCH) ** 2, width),
        **_conv("embeddings.patch_embeddings.projection", 3, width, DINO_PATCH),
        **_norm("layernorm", width),
    }
    for number in range(DINO_DEPTH):
        layer = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{layer}.attention.attention.{part}", width, width)
        shapes |= _linear(f"{layer}.attention.output.dense", width, width)
        shapes |= {f"{layer}.layer_scale{i}.lambda1": (width,) for i in (1, 2)}
        shapes |= _norm(f"{layer}.norm1", width) | _norm(f"{layer}.norm2", width)
        shapes |= _linear(f"{layer}.mlp.fc1", width, 4 * width) | _linear(f"{layer}.mlp.fc2", 4 * width, width)
    save_file(random_state(shapes, seed), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "image_size": DINO_SIDE,
        "patch_size": DINO_PATCH,
        "hidden_size": width,
        "num_hidden_layers": DINO_DEPTH,
        "num_attention_heads": DINO_HEADS,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0,
        "qkv_bias": True,
        "use_swiglu_ffn": False,
        "num_channels": 3,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    processor = {
        "crop_size": {"height": DINO_SIDE, "width": DINO_SIDE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5307] * 3,
        "image_processor_type": "BitImageProcessor",
        "image_std": [0.2583] * 3,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": DINO_SIDE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def medsam(folder: Path, seed: int = 2) -> Path:
    """`medsam_vit_b.pth`: the tensors of segment-anything's `Sam`, pickled."""
    folder.mkdir(parents=True)
    torch.save(random_state(_sam_shapes(), seed), folder / "medsam_vit_b.pth")
    return folder


def _sam_shapes() -> Shapes:
    width, out = SAM_WIDTH, SAM_OUT
    encoder = "image_encoder"
    shapes: Shapes = {
        f"{encoder}.pos_embed": (1, SAM_GRID, SAM_GRID, width),
        **_conv(f"{encoder}.patch_embed.proj", 3, width, SAM_PATCH),
    }
    for number in range(SAM_DEPTH):
        block = f"{encoder}.blocks.{number}"
        span = SAM_GRID if number in SAM_GLOBAL else SAM_WINDOW
        shapes |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width)
        shapes |= {f"{block}.attn.rel_pos_{axis}": (2 * span - 1, SAM_HEAD_WIDTH) for axis in "hw"}
        shapes |= _linear(f"{block}.attn.qkv", width, 3 * width) | _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.mlp.lin1", width, 4 * width) | _linear(f"{block}.mlp.lin2", 4 * width, width)
    shapes |= {f"{encoder}.neck.0.weight": (out, width, 1, 1), f"{encoder}.neck.2.weight": (out, out, 3, 3)}
    shapes |= _norm(f"{encoder}.neck.1", out) | _norm(f"{encoder}.neck.3", out)
    return shapes | _prompt_shapes(out) | _decoder_shapes(out)


def _prompt_shapes(out: int) -> Shapes:
    prompt = "prompt_encoder"
    shapes: Shapes = {
        f"{prompt}.pe_layer.positional_encoding_gaussian_matrix": (2, out // 2),
        f"{prompt}.not_a_point_embed.weight": (1, out),
        f"{prompt}.no_mask_embed.weight": (1, out),
        **{f"{prompt}.point_embeddings.{number}.weight": (1, out) for number in range(4)},
        **_conv(f"{prompt}.mask_downscaling.0", 1, 4, 2),
        **_norm(f"{prompt}.mask_downscaling.1", 4),
        **_conv(f"{prompt}.mask_downscaling.3", 4, 16, 2),
        **_norm(f"{prompt}.mask_downscaling.4", 16),
        **_conv(f"{prompt}.mask_downscaling.6", 16, out, 1),
    }
    return shapes


def _decoder_shapes(out: int) -> Shapes:
    decoder, inner = "mask_decoder", out // 2
    attentions = {"self_attn": out, "cross_attn_token_to_image": inner, "cross_attn_image_to_token": inner}
    shapes: Shapes = {f"{decoder}.iou_token.weight": (1, out), f"{decoder}.mask_tokens.weight": (4, out)}
    for number in range(2):
        layer = f"{decoder}.transformer.layers.{number}"
        for name, width in attentions.items():
            shapes |= _attention(f"{layer}.{name}", out, width)
        for norm in range(1, 5):
            shapes |= _norm(f"{layer}.norm{norm}", out)
        shapes |= _linear(f"{layer}.mlp.lin1", out, SAM_HIDDEN) | _linear(f"{layer}.mlp.lin2", SAM_HIDDEN, out)
    shapes |= _attention(f"{decoder}.transformer.final_attn_token_to_image", out, inner)
    shapes |= _norm(f"{decoder}.transformer.norm_final_attn", out)
    shapes |= {
        f"{decoder}.output_upscaling.0.weight": (out, out // 4, 2, 2),
        f"{decoder}.output_upscaling.0.bias": (out // 4,),
        **_norm(f"{decoder}.output_upscaling.1", out // 4),
        f"{decoder}.output_upscaling.3.weight": (out // 4, out // 8, 2, 2),
        f"{decoder}.output_upscaling.3.bias": (out // 8,),
    }
    for number in range(4):
        shapes |= _perceptron(f"{decoder}.output_hypernetworks_mlps.{number}", (out, out, out, out // 8))
    return shapes | _perceptron(f"{decoder}.iou_prediction_head", (out, 24, 24, 4))


def _attention(name: str, width: int, inner: int) -> Shapes:
    shapes = _linear(f"{name}.out_proj", inner, width)
    for part in ("q_proj", "k_proj", "v_proj"):
        shapes |= _linear(f"{name}.{part}", width, inner)
    return shapes


def _perceptron(name: str, widths: tuple[int, ...]) -> Shapes:
    shapes: Shapes = {}
    for number in range(3):
        shapes |= _linear(f"{name}.layers.{number}", widths[number], widths[number + 1])
    return shapes


def biomedclip(folder: Path, seed: int = 3) -> Path:
    """The open_clip folder of BiomedCLIP with the text tower's `config.json`: ViT-Ti/16 instead of ViT-B/16."""
    folder.mkdir(parents=True)
    width, trunk = CLIP_WIDTH, "visual.trunk"
    shapes: Shapes = {
        "logit_scale": (),
        f"{trunk}.cls_token": (1, 1, width),
        f"{trunk}.pos_embed": (1, 1 + (CLIP_SIDE // CLIP_PATCH) ** 2, width),
        **_conv(f"{trunk}.patch_embed.proj", 3, width, CLIP_PATCH),
        **_norm(f"{trunk}.norm", width),
        "visual.head.proj.weight": (CLIP_JOINT, width),
    }
    for number in range(CLIP_DEPTH):
        block = f"{trunk}.blocks.{number}"
        shapes |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width)
        shapes |= _linear(f"{block}.attn.qkv", width, 3 * width) | _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.mlp.fc1", width, 4 * width) | _linear(f"{block}.mlp.fc2", 4 * width, width)
    torch.save(random_state(shapes | _text_shapes(), seed), folder / "open_clip_pytorch_model.bin")
    _write_clip_texts(folder)
    return folder


def _text_shapes() -> Shapes:
    width, tower = BERT_WIDTH, "text.transformer"
    middle = (width + CLIP_JOINT) // 2
    shapes: Shapes = {
        f"{tower}.embeddings.word_embeddings.weight": (len(WORDS), width),
        f"{tower}.embeddings.position_embeddings.weight": (BERT_POSITIONS, width),
        f"{tower}.embeddings.token_type_embeddings.weight": (2, width),
        **_norm(f"{tower}.embeddings.LayerNorm", width),
        "text.proj.0.weight": (middle, width),
        "text.proj.2.weight": (CLIP_JOINT, middle),
    }
    for number in range(BERT_DEPTH):
        layer = f"{tower}.encoder.layer.{number}"
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{layer}.attention.self.{part}", width, width)
        shapes |= _linear(f"{layer}.attention.output.dense", width, width)
        shapes |= _norm(f"{layer}.attention.output.LayerNorm", width)
        shapes |= _linear(f"{layer}.intermediate.dense", width, BERT_HIDDEN)
        shapes |= _linear(f"{layer}.output.dense", BERT_HIDDEN, width) | _norm(f"{layer}.output.LayerNorm", width)
    return shapes


def _write_clip_texts(folder: Path) -> None:
    hub = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    open_clip = {
        "model_cfg": {
            "embed_dim": CLIP_JOINT,
            "vision_cfg": {
                "timm_model_name": "vit_tiny_patch16_224",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": CLIP_SIDE,
            },
            "text_cfg": {
                "hf_model_name": hub,
                "hf_tokenizer_name": hub,
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": CONTEXT,
            },
        },
        "preprocess_cfg": {"mean": CLIP_MEAN, "std": CLIP_DEVIATION},
    }
    bert = {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": len(WORDS),
        "hidden_size": BERT_WIDTH,
        "num_hidden_layers": BERT_DEPTH,
        "num_attention_heads": BERT_HEADS,
        "intermediate_size": BERT_HIDDEN,
        "max_position_embeddings": BERT_POSITIONS,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }
    special = [
        {"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i, word in enumerate(WORDS[:5])
    ]  # fmt: skip
    pair = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair.append({"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": pair,
            "pair": pair,
            "special_tokens": {
                word: {"id": word, "ids": [WORDS.index(word)], "tokens": [word]} for word in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {word: number for number, word in enumerate(WORDS)},
        },
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip))
    (folder / "config.json").write_text(json.dumps(bert))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "pad_token": "[PAD]"})
    )
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")

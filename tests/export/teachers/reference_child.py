"""Reads tiny checkpoints with their publishers' libraries and writes down what those say; run as a process of its own.

PyPI's torchvision does not load beside the CPU build of torch that this repository pins, and timm, transformers and
open_clip import it. Here, and only here, its missing operators are registered, and only after its import failed with
exactly that message: the models compared use none of them.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import zoom

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})
MISSING = "operator torchvision::nms does not exist"
NAMES = ("vit_tiny_patch16_224", "resnet10t", "tf_mobilenetv3_small_minimal_100", "transformers")
"""Models by name: tokens, a map, a map of which timm resizes pictures bilinearly, and an encoder of transformers."""


def load_torchvision() -> list[torch.library.Library]:
    """Import torchvision, with its operators declared where they are missing; keep what is returned."""
    try:
        import torchvision  # noqa: PLC0415
    except RuntimeError as error:
        if str(error) != MISSING:
            raise
    else:
        return []
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    declared = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401, PLC0415

    return [declared]


def pictures(images: torch.Tensor) -> list[Image.Image]:
    """Pictures, uint8 [N, 1, rows, columns], as a library takes them from a file."""
    return [Image.fromarray(image[0].numpy()) for image in images]


def from_pictures(
    pixels: torch.Tensor, deviation: Sequence[float], see: Callable[[torch.Tensor], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """What a library says of its own pixels, and of the same one grey level brighter: the yardstick for rounding."""
    level = 1.0 / (255.0 * torch.tensor(deviation).view(-1, 1, 1))
    seen, brighter = see(pixels), see(pixels + level)
    return {"own_pixels": pixels, "level": level} | {
        f"{name}_{kind}": each for name, said in (("own", seen), ("brighter", brighter)) for kind, each in said.items()
    }


def rad_dino(folder: Path, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The Dinov2Model of transformers."""
    from transformers import BitImageProcessor, Dinov2Model  # noqa: PLC0415

    net, report = Dinov2Model.from_pretrained(folder / "rad-dino", output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    outputs = net.eval()(given["rad_dino_pixels"])
    processor = BitImageProcessor.from_pretrained(folder / "rad-dino")
    pixels = processor(images=pictures(given["calm"]), return_tensors="pt")["pixel_values"]
    own = from_pictures(pixels, processor.image_std, lambda each: {"tokens": net(each).last_hidden_state})
    return own | {"tokens": outputs.last_hidden_state, "pooled": outputs.pooler_output}


def medsam(folder: Path, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """segment-anything's Sam, built as its `build_sam` does, in the checkpoint's sizes."""
    from segment_anything.modeling import (  # noqa: PLC0415
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    sizes = json.loads((folder / "sizes.json").read_text())["sam"]
    side, grid, out = sizes["grid"] * sizes["patch"], sizes["grid"], sizes["out"]
    net = Sam(
        image_encoder=ImageEncoderViT(
            depth=sizes["depth"],
            embed_dim=sizes["width"],
            img_size=side,
            mlp_ratio=4,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=sizes["heads"],
            patch_size=sizes["patch"],
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=sizes["global"],
            window_size=sizes["window"],
            out_chans=out,
        ),
        prompt_encoder=PromptEncoder(out, (grid, grid), (side, side), 16),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=out, mlp_dim=sizes["hidden"], num_heads=8),
            transformer_dim=out,
            iou_head_depth=3,
            iou_head_hidden_dim=24,
        ),
    ).eval()
    net.load_state_dict(torch.load(folder / "medsam" / "medsam_vit_b.pth", weights_only=True), strict=True)
    dense = net.image_encoder(given["medsam_pixels"])
    masks = []
    for picture, box in zip(dense, given["boxes"] * side, strict=True):
        sparse, nothing = net.prompt_encoder(points=None, boxes=box[None], masks=None)
        mask, _ = net.mask_decoder(
            image_embeddings=picture[None],
            image_pe=net.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=nothing,
            multimask_output=False,
        )
        masks.append(mask)
    pixels = medsam_pixels(given["waves"], side)
    low, high = given["waves"].flatten(1).aminmax(dim=1)
    stretched = float((high - low).min()) / 255.0  # to the range [0, 1], and a grey level with it
    own = from_pictures(pixels, (stretched,), lambda each: {"dense": net.image_encoder(each)})
    return own | {"dense": dense, "masks": torch.cat(masks)}


def medsam_pixels(images: torch.Tensor, side: int) -> torch.Tensor:
    """As MedSAM's published `MedSAM_Inference.py` makes them: `resize` of scikit-image, whole levels, the range [0, 1].

    That function is SciPy's `zoom` of order 3 at these sizes, with borders mirrored, and nothing beyond the picture's
    own range; cut down to whole levels by `astype(uint8)`.
    """
    made = []
    for image in images[:, 0].double().numpy():
        zoomed = zoom(image, side / len(image), order=3, mode="mirror", grid_mode=True)
        grey = np.clip(zoomed, image.min(), image.max()).astype(np.uint8)
        stretched = (grey - grey.min()) / max(int(grey.max()) - int(grey.min()), 1e-8)
        made.append(torch.from_numpy(stretched).float().expand(3, -1, -1))
    return torch.stack(made)


def biomedclip(folder: Path, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's CustomTextCLIP, its `hf_model_name` made local."""
    import open_clip  # noqa: PLC0415

    own = folder / "biomedclip"
    config = json.loads((own / "open_clip_config.json").read_text())["model_cfg"]
    config["text_cfg"] |= {"hf_model_name": str(own), "hf_tokenizer_name": str(own), "hf_model_pretrained": False}
    net = open_clip.CustomTextCLIP(**config).eval()
    net.load_state_dict(torch.load(own / "open_clip_pytorch_model.bin", weights_only=True), strict=True)
    tokens = open_clip.tokenizer.HFTokenizer(str(own), context_length=config["text_cfg"]["context_length"])(
        json.loads((folder / "texts.json").read_text())
    )
    values = json.loads((own / "open_clip_config.json").read_text())["preprocess_cfg"]
    cfg = open_clip.transform.PreprocessCfg(size=config["vision_cfg"]["image_size"], **values)
    transform = open_clip.transform.image_transform_v2(cfg, is_train=False)
    pixels = torch.stack([transform(picture) for picture in pictures(given["calm"])])
    return from_pictures(pixels, values["std"], lambda each: {"pooled": net.encode_image(each)}) | {
        "tokens": net.visual.trunk.forward_features(given["biomedclip_pixels"]),
        "pooled": net.encode_image(given["biomedclip_pixels"]),
        "numbers": tokens,
        "texts": net.encode_text(tokens),
    }


def students(folder: Path, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The students' originals in timm with random weights, which are left beside the outputs."""
    import timm  # noqa: PLC0415

    results = {}
    for name in json.loads((folder / "students.json").read_text()):
        torch.manual_seed(4)
        net = timm.create_model(name, pretrained=False).eval()
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        save_file(net.state_dict(), folder / f"{name}.safetensors")
        # The pixels bring their own border: timm pads with the mean of each colour, the students with the middle grey.
        next(module for module in net.modules() if isinstance(module, torch.nn.Conv2d)).padding = (0, 0)
        features, maps = net.double().forward_intermediates(given["student_pixels"])
        results[f"{name}.embedding"] = net.forward_head(features, pre_logits=True)
        for number, each in enumerate(maps[-4:]):
            results[f"{name}.map{number}"] = each
    return results


def by_name(folder: Path, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our adapters for models by name, which need their libraries, beside those libraries themselves."""
    torch.manual_seed(5)
    return {
        f"{name}.{kind}": each
        for name in NAMES
        for kind, each in (transformers_by_name if name == "transformers" else timm_by_name)(
            folder, given, name
        ).items()
    }


def timm_by_name(folder: Path, given: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """A timm model with random weights: maps by timm's own reshaping, pooled features by a net without a classifier."""
    import timm  # noqa: PLC0415
    from timm.data import create_transform, resolve_model_data_config  # noqa: PLC0415

    from export.artefacts import file_sha256  # noqa: PLC0415
    from export.teachers.checkpoints import Checkpoint  # noqa: PLC0415
    from export.teachers.contract import prepared  # noqa: PLC0415
    from export.teachers.timm_model import TimmModel  # noqa: PLC0415

    net = timm.create_model(name, pretrained=False, num_classes=3).eval()
    place = folder / f"timm-{name}"
    place.mkdir()
    save_file(net.state_dict(), place / "model.safetensors")
    checkpoint = Checkpoint(name, "timm", place, {"model.safetensors": file_sha256(place / "model.safetensors")})
    teacher = TimmModel(checkpoint, name).eval()
    plain = timm.create_model(name, pretrained=False, num_classes=0).eval()
    plain.load_state_dict(net.state_dict(), strict=False)
    config = resolve_model_data_config(net) | {"crop_pct": 1.0}  # as TimmModel says: the whole picture
    transform = create_transform(**config, is_training=False)
    seen, pixels = teacher.see(given["images"]), prepared(given["images"], teacher.preparation)
    maps = net.forward_features(pixels)
    if maps.ndim == 3:  # tokens
        (maps,) = net.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)
    return {
        "ours.logits": seen.logits,
        "ours.dense": seen.dense,
        "ours.pooled": seen.pooled,
        "theirs.logits": net(pixels),
        "theirs.dense": maps,
        "theirs.pooled": plain(pixels),
        "ours.pixels": prepared(given["calm"], teacher.preparation),
        "theirs.pixels": torch.stack([transform(picture.convert("RGB")) for picture in pictures(given["calm"])]),
        "level": 1.0 / (255.0 * torch.tensor(config["std"]).view(-1, 1, 1)),
    }


def transformers_by_name(folder: Path, given: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """RAD-DINO's folder through our adapter for any encoder of transformers, and through transformers."""
    from transformers import AutoImageProcessor, Dinov2Model  # noqa: PLC0415

    from export.artefacts import file_sha256  # noqa: PLC0415
    from export.teachers.checkpoints import Checkpoint  # noqa: PLC0415
    from export.teachers.contract import prepared  # noqa: PLC0415
    from export.teachers.transformers_model import TransformersModel  # noqa: PLC0415

    place = folder / "rad-dino"
    pinned = {path.name: file_sha256(path) for path in place.iterdir()}
    teacher = TransformersModel(Checkpoint(name, "transformers", place, pinned)).eval()
    seen = teacher.see(given["images"])
    theirs = Dinov2Model.from_pretrained(place).eval()(prepared(given["images"], teacher.preparation))
    processor = AutoImageProcessor.from_pretrained(place)
    patches = theirs.last_hidden_state[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    return {
        "ours.dense": seen.dense,
        "ours.pooled": seen.pooled,
        "theirs.dense": patches.unflatten(1, (side, side)).permute(0, 3, 1, 2),
        "theirs.pooled": theirs.pooler_output,
        "ours.pixels": prepared(given["calm"], teacher.preparation),
        "theirs.pixels": processor(images=pictures(given["calm"]), return_tensors="pt")["pixel_values"],
        "level": 1.0 / (255.0 * torch.tensor(processor.image_std).view(-1, 1, 1)),
    }


PARTS: dict[str, Callable[[Path, dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "rad_dino": rad_dino,
    "medsam": medsam,
    "biomedclip": biomedclip,
    "students": students,
    "by_name": by_name,
}


def main() -> None:
    """Write `<folder>/expected.safetensors` out of `<folder>/given.safetensors` and the checkpoints beside it."""
    folder = Path(sys.argv[1])
    kept = load_torchvision()
    given = load_file(folder / "given.safetensors")
    results = {}
    with torch.no_grad():
        for part, work in PARTS.items():
            for name, tensor in work(folder, given).items():
                results[f"{part}/{name}"] = tensor.contiguous().clone()
    save_file(results, folder / "expected.partial")
    (folder / "expected.partial").replace(folder / "expected.safetensors")
    del kept


if __name__ == "__main__":
    main()

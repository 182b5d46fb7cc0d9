"""Tiny untrained checkpoints of diffusers' model families, for pictures of 64x64 pixels."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gpi_latents.recipe
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from helpers.study import ROOT

TOKENIZER = ROOT / "config/demo/model/tokenizer"
SEED = 2026
TEXT_WIDTH = 32
SAMPLE_SIZE = 8  # native side of the latents: 64 pixels by the VAE's factor 8


def stable_diffusion(folder: Path) -> None:
    """Save a model of Stable Diffusion 1.5's shape, which predicts the noise."""
    _stable_diffusion(folder, _autoencoder(4, scaling_factor=0.18215), "epsilon")


def stable_diffusion_2(folder: Path) -> None:
    """Save a model of Stable Diffusion 2's shape, which predicts the velocity."""
    _stable_diffusion(folder, _autoencoder(4, scaling_factor=0.18215), "v_prediction")


def stable_diffusion_tiny_vae(folder: Path) -> None:
    """Save a model of Stable Diffusion 1.5's shape whose autoencoder knows no distribution."""
    torch.manual_seed(SEED)
    vae = AutoencoderTiny(
        encoder_block_out_channels=[8] * 4,
        decoder_block_out_channels=[8] * 4,
        num_encoder_blocks=[1] * 4,
        num_decoder_blocks=[1] * 4,
        latent_channels=4,
    )
    for part in vae.modules():
        if isinstance(part, torch.nn.Conv2d):  # it has no norms: torch's own weights would let the picture fade out
            torch.nn.init.xavier_normal_(part.weight)
    _stable_diffusion(folder, vae, "epsilon")


def stable_diffusion_xl(folder: Path) -> None:
    """Save a model of Stable Diffusion XL's shape: two text encoders, and sizes as a condition."""
    StableDiffusionXLPipeline(
        vae=_autoencoder(4, scaling_factor=0.13025, force_upcast=True),
        unet=_xl_unet(2 * TEXT_WIDTH, numbers=6),
        text_encoder=_clip(CLIPTextModel),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER),
        scheduler=_xl_scheduler(),
        add_watermarker=False,
    ).save_pretrained(folder)


def stable_diffusion_xl_refiner(folder: Path) -> None:
    """Save a model of the shape of XL's refiner: one text encoder, and an aesthetic score as a condition."""
    StableDiffusionXLImg2ImgPipeline(
        vae=_autoencoder(4, scaling_factor=0.13025, force_upcast=True),
        unet=_xl_unet(TEXT_WIDTH, numbers=5),
        text_encoder=None,
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer=None,
        tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER),
        scheduler=_xl_scheduler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(folder)


def stable_diffusion_3(folder: Path) -> None:
    """Save a model of Stable Diffusion 3's shape: a transformer, flow matching and three text encoders."""
    vae = _autoencoder(16, scaling_factor=1.5305, shift_factor=0.0609)
    transformer = SD3Transformer2DModel(
        sample_size=SAMPLE_SIZE,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=2 * SAMPLE_SIZE,
    )
    StableDiffusion3Pipeline(
        vae=vae,
        transformer=transformer,
        text_encoder=_clip(CLIPTextModelWithProjection),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        text_encoder_3=_t5(2 * TEXT_WIDTH),  # CLIP's two are joined, then padded to the width of T5's
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER),
        tokenizer_3=_t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)


def flux(folder: Path) -> None:
    """Save a model of FLUX.1-dev's shape: packed latents, guidance as a condition and shifted times."""
    vae = _autoencoder(16, scaling_factor=0.3611, shift_factor=0.1159)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    FluxPipeline(
        vae=vae,
        transformer=transformer,
        text_encoder=_clip(CLIPTextModel),
        text_encoder_2=_t5(TEXT_WIDTH),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        tokenizer_2=_t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
    ).save_pretrained(folder)


def autoencoder_dc(folder: Path) -> None:
    """Save an autoencoder whose encoding is one tensor, by factor 32."""
    torch.manual_seed(SEED)
    widths = (8, 8, 8, 8, 16, 16)
    AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=("ResBlock",) * 4 + ("EfficientViTBlock",) * 2,
        decoder_block_types=("ResBlock",) * 4 + ("EfficientViTBlock",) * 2,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 4 + ((5,),) * 2,
        decoder_qkv_multiscales=((),) * 4 + ((5,),) * 2,
        scaling_factor=0.41407,
    ).save_pretrained(folder)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "stable-diffusion": stable_diffusion,
    "stable-diffusion-2": stable_diffusion_2,
    "stable-diffusion-tiny-vae": stable_diffusion_tiny_vae,
    "stable-diffusion-xl": stable_diffusion_xl,
    "stable-diffusion-xl-refiner": stable_diffusion_xl_refiner,
    "stable-diffusion-3": stable_diffusion_3,
    "flux": flux,
}


def model(family: str, folder: Path) -> Path:
    """Build the family's checkpoint in the folder, unless it is there, and return its path."""
    path = Path(folder) / family
    if not (path / "model_index.json").exists():
        FAMILIES[family](path)
    return path


def settings(strength: float, **others) -> dict:
    """Settings of an item, for pictures of 96 x 64 pixels."""
    return {
        "image_size": [64, 96],
        "resize": "crop",
        "posterior": "sample",
        "seed": 7,
        "strength": strength,
        "prompt": "a red circle",
        "negative_prompt": "blue",
        "guidance_scale": 5.0,
        "num_inference_steps": 8,
        "scheduler": "auto",
    } | others


def recipe(strength: float, **others) -> dict:
    """The recipe of these settings."""
    chosen = settings(strength, **others)
    model = {"model_id": "tiny", "revision": None, "variant": None, "vae_id": None, "dtype": "float32"}
    return gpi_latents.recipe.recipe(model | chosen, SimpleNamespace(**chosen))


def single_file(folder: Path, path: Path) -> Path:
    """Save a model of Stable Diffusion 1.5's shape as one checkpoint, with its authors' names of the weights."""
    weights = {}
    for name, tensor in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items():
        weights[f"model.diffusion_model.{_original_unet_name(name)}"] = tensor
    for name, tensor in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        original = _original_vae_name(name)
        is_linear = ".attn_1." in original and original.endswith("weight") and tensor.ndim == 2
        weights[f"first_stage_model.{original}"] = tensor[:, :, None, None] if is_linear else tensor
    for name, tensor in load_file(folder / "text_encoder/model.safetensors").items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


def _original_unet_name(name: str, layers: int = 1) -> str:
    """The inverse of diffusers' `convert_ldm_unet_checkpoint`, for blocks of that many layers."""
    if name.startswith("time_embedding"):
        return name.replace("time_embedding.linear_1", "time_embed.0").replace(
            "time_embedding.linear_2", "time_embed.2"
        )
    if name.startswith("conv"):
        parts = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
        return parts[name.split(".")[0]] + "." + name.split(".")[1]
    block, *rest = name.split(".")
    if block == "mid_block":
        kind, number, *tail = rest
        place = f"middle_block.{2 * int(number) if kind == 'resnets' else 1}"
    else:
        number, kind, layer, *tail = rest
        first = int(number) * (layers + 1)
        if block == "down_blocks":
            index = first + 1 + (int(layer) if kind != "downsamplers" else layers)
            place = f"input_blocks.{index}.{1 if kind == 'attentions' else 0}"
        else:
            index = first + (int(layer) if kind != "upsamplers" else layers)
            # Here the first up block alone has attentions, after which its upsampler comes third.
            place = f"output_blocks.{index}.{ {'resnets': 0, 'attentions': 1, 'upsamplers': 2}[kind] }"
        if kind == "downsamplers":
            tail = ["op", *tail[1:]]
    if kind == "resnets":
        parts = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
        parts |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
        tail = [parts[tail[0]], *tail[1:]]
    return ".".join([place, *tail])


def _original_vae_name(name: str) -> str:
    """The inverse of diffusers' `convert_ldm_vae_checkpoint`, for four blocks."""
    name = re.sub(r"^encoder\.down_blocks\.", "encoder.down.", name)
    name = re.sub(r"^decoder\.up_blocks\.(\d)", lambda found: f"decoder.up.{3 - int(found[1])}", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace(".resnets.", ".block.")
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    if "attn_1" in name:
        name = re.sub(r"to_([qkv])", r"\1", name).replace("to_out.0", "proj_out").replace("group_norm", "norm")
    return name


def _stable_diffusion(folder: Path, vae: AutoencoderKL | AutoencoderTiny, prediction_type: str) -> None:
    StableDiffusionPipeline(
        vae=vae,
        unet=_unet(cross_attention_dim=TEXT_WIDTH, use_linear_projection=prediction_type == "v_prediction"),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def _autoencoder(channels: int, **config: float | bool) -> AutoencoderKL:
    """The first part of each model, so it sets the seed; those with 16 channels have no convolution at the latents."""
    torch.manual_seed(SEED)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 16, 16],
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=channels,
        sample_size=8 * SAMPLE_SIZE,
        use_quant_conv=channels == 4,
        use_post_quant_conv=channels == 4,
        **config,
    )


def _unet(**config: int | str) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SAMPLE_SIZE,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=[16, 32],
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=2,
        **config,
    )


def _xl_unet(text_width: int, numbers: int) -> UNet2DConditionModel:
    """A UNet with so many numbers, such as the picture's sizes, as a condition."""
    number_width = 8
    return _unet(
        cross_attention_dim=text_width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=number_width,
        projection_class_embeddings_input_dim=numbers * number_width + TEXT_WIDTH,
    )


def _xl_scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
    )


def _clip(kind: type[CLIPTextModel | CLIPTextModelWithProjection]) -> CLIPTextModel | CLIPTextModelWithProjection:
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    encoder = kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # Untrained embeddings are so small that prompts would hardly differ.
    encoder.get_input_embeddings().weight.data.mul_(50)
    return encoder


def _t5(width: int) -> T5EncoderModel:
    vocabulary_size = len(_t5_tokenizer())
    return T5EncoderModel(
        T5Config(vocab_size=vocabulary_size, d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2)
    )


def _t5_tokenizer() -> T5Tokenizer:
    """One token per printable ASCII character; the others are unknown."""
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((token, -2.0) for token in ["▁", *characters])]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)

"""Parts of SAM2 that train, and low-rank adapters in its image encoder."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from nnunet_autosam2.architectures.sam2.model import SAM2

ADAPTED = r"trunk\.blocks\.\d+\.attn\.(qkv|proj)"
"""Linear layers of the image encoder that get an adapter: those of every attention, Hu et al. 2021, LoRA"""
ENCODER_TRAINS = ("lora", "full")


def set_tuning(sam2: SAM2, tuning: str, lora_rank: int, mask_prompt: bool, masks: bool = True) -> None:
    """Makes trainable what `tuning` says, see `AutoSAM2Config.sam2_tuning`; nothing that has no part in the masks, or,
    without `masks`, in the image embeddings.

    Where the image encoder trains, its blocks compute their activations again in the backward pass.
    """
    sam2.requires_grad_(False)
    if tuning == "frozen":
        return
    sam2.image_encoder.requires_grad_(tuning == "full")
    sam2.no_mem_embed.requires_grad_(masks and tuning == "full")
    sam2.sam_prompt_encoder.requires_grad_(masks)
    sam2.sam_prompt_encoder.mask_downscaling.requires_grad_(masks and mask_prompt)
    sam2.sam_mask_decoder.requires_grad_(masks)
    # These two run once an image, within the encoder's pass.
    for projection in (sam2.sam_mask_decoder.conv_s0, sam2.sam_mask_decoder.conv_s1):
        projection.requires_grad_(tuning == "full")
    # SAM2's three alternatives to the one mask that is used.
    sam2.sam_mask_decoder.output_hypernetworks_mlps[1:].requires_grad_(False)
    if tuning == "lora":
        add_adapters(sam2, lora_rank)
    if tuning in ENCODER_TRAINS:
        for block in sam2.image_encoder.trunk.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def add_adapters(sam2: SAM2, rank: int) -> None:
    """They start as zero, so that SAM2 stays what it is until they train."""
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED), sam2.image_encoder)


def merge_adapters(module: nn.Module) -> None:
    """Adds the adapters to the weights that they adapt and removes them; names are SAM2's own again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, layer.get_base_layer())

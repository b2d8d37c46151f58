"""LoRAs of random weights, made with peft, which is thereby the reference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_lora(model: Any, folder: Path, *, seed: int = 0, **settings: Any) -> Any:
    """Save a random LoRA of a transformers model, and return a copy of the model with it merged.

    Args:
        settings: of peft's `LoraConfig`.
    """
    torch.manual_seed(seed)
    fields = {"r": 4, "lora_alpha": 6, "target_modules": LINEAR, **settings}
    learner = get_peft_model(copy.deepcopy(model), LoraConfig(**fields))
    with torch.no_grad():
        for name, weight in learner.named_parameters():
            # peft starts lora_B at zero, which would change nothing.
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.1)
    learner.save_pretrained(str(folder))
    return learner.merge_and_unload().eval()

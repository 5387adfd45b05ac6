"""What transformers 5.23 lacks for GLM prompts that hold a picture and a clip: two masks in place of one.

Both of its masks select every image token, so a prompt with both kinds of items fails. The contract's rule is to split
the mask at begin and end of video; nothing else of the oracle changes.

Next: tests/parity/test_model_glm4v.py
"""

from typing import Any

import torch


def split_placeholder_mask(model: Any) -> Any:
    """Make a GLM-V model of transformers tell the image tokens of clips from those of pictures.

    Args:
        model: Glm4vForConditionalGeneration or a relative; changed in place.

    Returns:
        The model.
    """
    config = model.config

    def masks(
        input_ids: torch.Tensor, inputs_embeds: torch.Tensor, **features: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        begun = (input_ids == config.video_start_token_id).cumsum(-1)
        ended = (input_ids == config.video_end_token_id).cumsum(-1)
        placeholder = input_ids == config.image_token_id
        found = {"image_features": placeholder & (begun == ended), "video_features": placeholder & (begun > ended)}
        for name, embeds in features.items():
            assert embeds is None or embeds.shape[0] == found[name].sum(), f"{name} do not fit their placeholders"
        return found["image_features"].unsqueeze(-1), found["video_features"].unsqueeze(-1)

    model.model.get_placeholder_mask = masks
    return model

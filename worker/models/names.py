"""How releases spell the same tensor, and how this worker does.

Here a tensor is under `model.language_model.`, `model.visual.` (or another tower of `model.`), `mtp.` or `lm_head.`.
Found in files are, by family and release:

- `model.language_model.`, `model.visual.`, `lm_head.`: all families as transformers 5 and their publishers write them;
- `model.layers.` and its neighbours, `visual.`: transformers 4 before 4.52, and text-only checkpoints;
- `language_model.model.`, `language_model.lm_head.`: towers and whole language models side by side;
- `language_model.`, `layers.`: saved without the head, from the outer or from the text model alone.

Next: worker/models/checkpoint.py
"""

_RESPELLED = (  # prefix in the file -> canonical one; the first that fits counts
    ("model.language_model.model.", "model.language_model."),
    ("model.language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model.language_model."),
    ("model.visual.", "model.visual."),
    ("model.vision_tower.", "model.vision_tower."),
    ("model.multi_modal_projector.", "model.multi_modal_projector."),
    ("model.time_series.", "model.time_series."),
    ("model.mtp.", "mtp."),
    ("model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.", "model.language_model."),
    ("visual.", "model.visual."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("time_series.", "model.time_series."),
    ("lm_head.", "lm_head."),
    ("mtp.", "mtp."),
    ("model.", "model.language_model."),
    ("layers.", "model.language_model.layers."),
    ("embed_tokens.", "model.language_model.embed_tokens."),
    ("norm.", "model.language_model.norm."),
)


def canonical_name(name: str) -> str:
    """Return a stored name as this worker spells it; one of no known prefix stays as it is."""
    for old, new in _RESPELLED:
        if name.startswith(old):
            return new + name[len(old) :]
    return name

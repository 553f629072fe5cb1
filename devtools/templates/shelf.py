"""Templates of released models: each shows Diversify on the model as its official workflow runs it."""

from __future__ import annotations

from dataclasses import replace

from ..frontend import Graph, Node
from ..pack import load_pack
from ..released import MODELS, Released, time_words
from .before_after import BATCH, STRENGTH, WITHOUT, Sampling, Source, before_after

load_pack()

from comfyui_diversity.core.methods.diversify import Situation, plan  # noqa: E402

_WIDTH = 340

# The first line is what the gallery's search finds.
NOTE = """**{title}: four images of one prompt, and the same four made to differ.** Above: the model as it is. Below: \
one node more, *Diversify*. Prompt, seed and settings are the same.

1. Press **Run**. Files that are missing are offered for download when the workflow opens.
2. Compare the images above with those below.
3. Turn **strength** on *Diversify*: 0 gives the images above again, {strength:g} is a start, 1 is the most. What was \
done stands on the node.

Other images: change **Seed**. Diversify's own seed is used for single images only.

**What it costs:** sampling takes about {time} time.

**Enough compared?** Select the nodes in *{without}* and press Ctrl+M: they no longer run.

**In a workflow of yours:** *Diversify* takes the place of *CLIP Text Encode* and goes between the model and the \
sampler; connect both outputs, and set the batch size to 4 or more.

Settings: {sampler}, {scheduler}, {steps} steps, CFG {cfg:g}{more}, as the model's own workflow has them.{needs}

The image on this template's card was drawn by the demo model of this pack that is nearest in kind, not by {title}."""


def shelf(model: Released) -> Graph:
    """The workflow of one released model."""
    sampling = Sampling(
        model.prompt,
        model.negative,
        model.steps,
        model.cfg,
        model.sampler,
        model.scheduler,
        model.size,
        model.latent,
        guidance=model.guidance,
        custom=model.custom,
    )
    return before_after(model.title, loaders(model), sampling, note(model))


def note(model: Released) -> str:
    """What stands beside the loaders."""
    run = Situation(model.steps, model.cfg != 1, BATCH)
    chosen = plan(STRENGTH, run)
    more = f", guidance {model.guidance:g}" if model.guidance is not None else ""
    needs = f" Needs a ComfyUI newer than {model.missing_in[-1]}." if model.missing_in else ""
    return NOTE.format(
        title=model.title,
        without=WITHOUT,
        time=time_words(chosen.extra_passes(run)),
        strength=STRENGTH,
        steps=model.steps,
        sampler=model.sampler,
        scheduler=model.scheduler,
        cfg=model.cfg,
        more=more,
        needs=needs,
    )


def loaders(model: Released) -> Source:
    """Stock loaders of the model's files, and what its workflow does to model and text encoder."""
    if model.checkpoint is not None:
        name, files = model.checkpoint.name, (model.checkpoint.metadata,)
        node = Node("CheckpointLoaderSimple", (0, 0), (_WIDTH, 98), values={"ckpt_name": name}, models=files)
        return Source({"load": node}, 150, ("load", 0), ("load", 1), ("load", 2))
    assert model.unet is not None
    assert model.vae is not None
    nodes = {
        "unet": Node(
            "UNETLoader",
            size=(_WIDTH, 82),
            values={"unet_name": model.unet.name, "weight_dtype": "default"},
            models=(model.unet.metadata,),
        ),
        "clip": _text_encoders(model),
        "vae": Node("VAELoader", size=(_WIDTH, 58), values={"vae_name": model.vae.name}, models=(model.vae.metadata,)),
    }
    source, clip = ("unet", 0), ("clip", 0)
    if model.t5_padding:
        nodes["padding"] = Node(
            "T5TokenizerOptions", size=(_WIDTH, 82), values={"min_padding": 0, "min_length": 0}, inputs={"clip": clip}
        )
        clip = ("padding", 0)
    if model.shift is not None:
        nodes["shift"] = Node(
            "ModelSamplingAuraFlow", size=(_WIDTH, 58), values={"shift": model.shift}, inputs={"model": source}
        )
        source = ("shift", 0)
    return _stacked(nodes, source, clip)


def _text_encoders(model: Released) -> Node:
    names = [file.name for file in model.encoders]
    files = tuple(file.metadata for file in model.encoders)
    values = {"type": model.clip_type, "device": "default"}
    if len(names) == 1:
        return Node("CLIPLoader", size=(_WIDTH, 106), values={"clip_name": names[0], **values}, models=files)
    both = {"clip_name1": names[0], "clip_name2": names[1]}
    return Node("DualCLIPLoader", size=(_WIDTH, 130), values={**both, **values}, models=files)


def _stacked(nodes: dict[str, Node], model: tuple[str, int], clip: tuple[str, int]) -> Source:
    """One below the other."""
    top, placed = 0, {}
    for name, node in nodes.items():
        assert node.size is not None
        placed[name] = replace(node, pos=(0, top))
        top += node.size[1] + 50
    return Source(placed, top, model, clip, ("vae", 0))


SHELF_TEMPLATES: dict[str, Graph] = {model.template: shelf(model) for model in MODELS}

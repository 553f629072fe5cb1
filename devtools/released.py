"""Released models as their official workflows run them: files, sampler settings, sizes.

Facts (file names, folders, download addresses, sampler, scheduler, steps, CFG, shift, size) are those of the official
workflow templates, package comfyui-workflow-templates-json 0.1.123; `source` names the template. SD1.5 is the default
workflow of comfyui-workflow-templates 0.7.25. SDXL-Lightning has none there: its settings are those of the model's own
page, huggingface.co/ByteDance/SDXL-Lightning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TESTED = ("0.3.75", "0.33.0")  # versions of ComfyUI that the templates are opened and run on
_HUB = "https://huggingface.co"
_SPLIT = "resolve/main/split_files"


@dataclass(frozen=True)
class File:
    """A file of a model: its name, its folder below ComfyUI's `models`, and where it can be downloaded."""

    name: str
    folder: str
    page: str

    @property
    def metadata(self) -> dict[str, str]:
        """As a node's property `models` has it."""
        return {"name": self.name, "url": f"{_HUB}/{self.page}/{self.name}", "directory": self.folder}


@dataclass(frozen=True)
class Released:
    """A released model.

    checkpoint, or unet, encoders and vae: its files.
    clip_type: of Load CLIP.
    latent: the node that makes the empty latent.
    shift: of ModelSamplingAuraFlow; None: the node is not there.
    guidance: of FluxGuidance; with it the guider is BasicGuider.
    custom: the sampler is SamplerCustomAdvanced; its scheduler node is Flux2Scheduler where `scheduler` is "flux2".
    negative: the negative prompt; None: zeros, as CFG 1 ignores it.
    kind: of the demo model that stands for it in the thumbnail.
    missing_in: which of `TESTED` do not know the model.
    """

    title: str
    source: str
    kind: Literal["unet", "mmdit", "distilled"]
    prompt: str
    steps: int
    cfg: float
    sampler: str = "euler"
    scheduler: str = "simple"
    size: int = 1024
    latent: str = "EmptySD3LatentImage"
    negative: str | None = ""
    checkpoint: File | None = None
    unet: File | None = None
    encoders: tuple[File, ...] = ()
    clip_type: str = ""
    vae: File | None = None
    shift: float | None = None
    guidance: float | None = None
    custom: bool = False
    t5_padding: bool = False
    missing_in: tuple[str, ...] = ()

    @property
    def template(self) -> str:
        """Name of its workflow. The gallery shows it as it is."""
        return f"{self.title} - diverse images"

    @property
    def files(self) -> tuple[File, ...]:
        single = (self.checkpoint, self.unet, *self.encoders, self.vae)
        return tuple(file for file in single if file is not None)


_AE = File("ae.safetensors", "vae", f"Comfy-Org/Lumina_Image_2.0_Repackaged/{_SPLIT}/vae")
_FLUX2_SMALL_VAE = File(
    "full_encoder_small_decoder.safetensors", "vae", "black-forest-labs/FLUX.2-small-decoder/resolve/main"
)
_FLUX2_VAE = File("flux2-vae.safetensors", "vae", f"Comfy-Org/flux2-dev/{_SPLIT}/vae")
_FLUX_TEXT = "comfyanonymous/flux_text_encoders/resolve/main"
_FLUX1_ENCODERS = (
    File("clip_l.safetensors", "text_encoders", _FLUX_TEXT),
    File("t5xxl_fp16.safetensors", "text_encoders", _FLUX_TEXT),
)
_KLEIN_TEXT = File("qwen_3_4b.safetensors", "text_encoders", f"Comfy-Org/flux2-klein/{_SPLIT}/text_encoders")

MODELS: tuple[Released, ...] = (
    Released(
        "Z-Image Turbo",
        source="image_z_image_turbo",
        kind="distilled",
        prompt="portrait of a young woman, natural light",
        steps=8,
        cfg=1.0,
        sampler="res_multistep",
        negative=None,
        unet=File(
            "z_image_turbo_bf16.safetensors", "diffusion_models", f"Comfy-Org/z_image_turbo/{_SPLIT}/diffusion_models"
        ),
        encoders=(File("qwen_3_4b.safetensors", "text_encoders", f"Comfy-Org/z_image_turbo/{_SPLIT}/text_encoders"),),
        clip_type="lumina2",
        vae=File("ae.safetensors", "vae", f"Comfy-Org/z_image_turbo/{_SPLIT}/vae"),
        shift=3.0,
    ),
    Released(
        "Krea 2 Turbo",
        source="image_krea2_turbo_t2i",
        kind="distilled",
        prompt="a poster for a jazz concert",
        steps=8,
        cfg=1.0,
        latent="EmptyLatentImage",
        negative=None,
        unet=File(
            "krea2_turbo_fp8_scaled.safetensors", "diffusion_models", "Comfy-Org/Krea-2/resolve/main/diffusion_models"
        ),
        encoders=(
            File("qwen3vl_4b_fp8_scaled.safetensors", "text_encoders", "Comfy-Org/Krea-2/resolve/main/text_encoders"),
        ),
        clip_type="krea2",
        vae=File("qwen_image_vae.safetensors", "vae", "Comfy-Org/Krea-2/resolve/main/vae"),
        missing_in=("0.3.75",),
    ),
    Released(
        "FLUX.2 dev",
        source="image_flux2_text_to_image",
        kind="mmdit",
        prompt="a fashion photograph of a man in a long coat",
        steps=20,
        cfg=1.0,
        scheduler="flux2",
        latent="EmptyFlux2LatentImage",
        unet=File(
            "flux2_dev_fp8mixed.safetensors", "diffusion_models", f"Comfy-Org/flux2-dev/{_SPLIT}/diffusion_models"
        ),
        encoders=(
            File(
                "mistral_3_small_flux2_bf16.safetensors", "text_encoders", f"Comfy-Org/flux2-dev/{_SPLIT}/text_encoders"
            ),
        ),
        clip_type="flux2",
        vae=_FLUX2_SMALL_VAE,
        guidance=4.0,
        custom=True,
    ),
    Released(
        "FLUX.2 Klein 4B",
        source="image_flux2_klein_text_to_image",
        kind="distilled",
        prompt="a cat wearing a hat",
        steps=4,
        cfg=1.0,
        scheduler="flux2",
        latent="EmptyFlux2LatentImage",
        negative=None,
        unet=File(
            "flux-2-klein-4b.safetensors", "diffusion_models", f"Comfy-Org/flux2-klein/{_SPLIT}/diffusion_models"
        ),
        encoders=(_KLEIN_TEXT,),
        clip_type="flux2",
        vae=_FLUX2_VAE,
        custom=True,
        missing_in=("0.3.75",),
    ),
    Released(
        "FLUX.2 Klein 4B Base",
        source="image_flux2_klein_text_to_image",
        kind="mmdit",
        prompt="a bridge over a river",
        steps=20,
        cfg=5.0,
        scheduler="flux2",
        latent="EmptyFlux2LatentImage",
        unet=File(
            "flux-2-klein-base-4b.safetensors", "diffusion_models", f"Comfy-Org/flux2-klein/{_SPLIT}/diffusion_models"
        ),
        encoders=(_KLEIN_TEXT,),
        clip_type="flux2",
        vae=_FLUX2_VAE,
        custom=True,
        missing_in=("0.3.75",),
    ),
    Released(
        "Qwen-Image 2512",
        source="image_qwen_Image_2512",
        kind="mmdit",
        prompt="a market stall with fruit",
        steps=50,
        cfg=4.0,
        size=1328,
        unet=File(
            "qwen_image_2512_fp8_e4m3fn.safetensors",
            "diffusion_models",
            f"Comfy-Org/Qwen-Image_ComfyUI/{_SPLIT}/diffusion_models",
        ),
        encoders=(
            File(
                "qwen_2.5_vl_7b_fp8_scaled.safetensors",
                "text_encoders",
                f"Comfy-Org/Qwen-Image_ComfyUI/{_SPLIT}/text_encoders",
            ),
        ),
        clip_type="qwen_image",
        vae=File("qwen_image_vae.safetensors", "vae", f"Comfy-Org/Qwen-Image_ComfyUI/{_SPLIT}/vae"),
        shift=3.1,
    ),
    Released(
        "Anima",
        source="image_anima_base_v1",
        kind="mmdit",
        prompt="a girl with a red umbrella",
        steps=30,
        cfg=4.0,
        latent="EmptyLatentImage",
        negative="worst quality, low quality",
        unet=File(
            "anima-base-v1.0.safetensors", "diffusion_models", f"circlestone-labs/Anima/{_SPLIT}/diffusion_models"
        ),
        encoders=(
            File("qwen_3_06b_base.safetensors", "text_encoders", f"circlestone-labs/Anima/{_SPLIT}/text_encoders"),
        ),
        clip_type="stable_diffusion",
        vae=File("qwen_image_vae.safetensors", "vae", f"circlestone-labs/Anima/{_SPLIT}/vae"),
        missing_in=("0.3.75",),
    ),
    Released(
        "Chroma1 HD",
        source="image_chroma_text_to_image",
        kind="mmdit",
        prompt="a lighthouse on a cliff",
        steps=26,
        cfg=3.5,
        scheduler="beta",
        negative="low quality, blurry, deformed",
        unet=File(
            "Chroma1-HD-fp8mixed.safetensors",
            "diffusion_models",
            f"Comfy-Org/Chroma1-HD_repackaged/{_SPLIT}/diffusion_models",
        ),
        encoders=(File("t5xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders", _FLUX_TEXT),),
        clip_type="chroma",
        vae=_AE,
        shift=1.0,
        custom=True,
        t5_padding=True,
    ),
    Released(
        "FLUX.1 dev",
        source="flux_dev_full_text_to_image",
        kind="mmdit",
        prompt="a woman reading in a café",
        steps=20,
        cfg=1.0,
        negative=None,
        unet=File("flux1-dev.safetensors", "diffusion_models", "Comfy-Org/flux1-dev/resolve/main"),
        encoders=_FLUX1_ENCODERS,
        clip_type="flux",
        vae=_AE,
    ),
    Released(
        "FLUX.1 schnell",
        source="flux_schnell_full_text_to_image",
        kind="distilled",
        prompt="a city street in the rain",
        steps=4,
        cfg=1.0,
        negative=None,
        unet=File("flux1-schnell.safetensors", "diffusion_models", "Comfy-Org/flux1-schnell/resolve/main"),
        encoders=_FLUX1_ENCODERS,
        clip_type="flux",
        vae=_AE,
    ),
    Released(
        "SD3.5 Large",
        source="sd3.5_simple_example",
        kind="mmdit",
        prompt="a teapot on a kitchen table",
        steps=20,
        cfg=4.01,
        scheduler="sgm_uniform",
        checkpoint=File(
            "sd3.5_large_fp8_scaled.safetensors", "checkpoints", "Comfy-Org/stable-diffusion-3.5-fp8/resolve/main"
        ),
    ),
    Released(
        "SDXL",
        source="image_sdxl_simple",
        kind="unet",
        prompt="a small house in the mountains, oil painting",
        steps=25,
        cfg=7.0,
        sampler="dpmpp_2m",
        scheduler="karras",
        latent="EmptyLatentImage",
        negative="blurry, deformed, text, watermark",
        checkpoint=File(
            "sd_xl_base_1.0.safetensors", "checkpoints", "stabilityai/stable-diffusion-xl-base-1.0/resolve/main"
        ),
    ),
    Released(
        "SDXL-Lightning",
        source="the model's page",
        kind="distilled",
        prompt="portrait of an old sailor",
        steps=4,
        cfg=1.0,
        scheduler="sgm_uniform",
        latent="EmptyLatentImage",
        negative=None,
        checkpoint=File("sdxl_lightning_4step.safetensors", "checkpoints", "ByteDance/SDXL-Lightning/resolve/main"),
    ),
    Released(
        "SD1.5",
        source="default",
        kind="unet",
        prompt="photo of a dog in a park",
        steps=20,
        cfg=8.0,
        scheduler="normal",
        size=512,
        latent="EmptyLatentImage",
        negative="text, watermark",
        checkpoint=File(
            "v1-5-pruned-emaonly-fp16.safetensors",
            "checkpoints",
            "Comfy-Org/stable-diffusion-v1-5-archive/resolve/main",
        ),
    ),
)


def time_words(extra: float) -> str:
    """What a share of the sampling time that comes on top is called; below 0 it is saved."""
    return f"{abs(extra):.0%} {'less' if extra < 0 else 'more'}"


def place_empty_files(base: Path) -> None:
    """Empty files in the places of the models' files below a base directory: the front end then takes the models for
    installed, and the server accepts their names."""
    for file in {file for model in MODELS for file in model.files}:
        path = base / "models" / file.folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

"""Minority Prompt with mode published, against the released procedure written out in double precision.

The reference is written from the paper and from what the released code does, not from `core/methods`: clean estimates,
objective, Adam and DDIM. It shares with ours the weights, the prompts' tokens and the noises.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfyui_diversity.core.drivers.minority_estimates import StepEstimates
from comfyui_diversity.core.drivers.minority_run import Run
from comfyui_diversity.core.hooks.noise_levels import level_before, sigma_at_timestep, timestep_share
from comfyui_diversity.core.hooks.tokens import LearnableToken
from comfyui_diversity.core.methods.minority import Steps
from comfyui_diversity.nodes.minority import MinorityPrompt
from comfyui_diversity.nodes.minority_options import MinorityPromptOptions
from small.encoders import small_encoder
from small.models import small_model, small_sdxl
from torch import Tensor

TEXT, SEED, SIDE = "a red fish", 3, 8
FAST = pytest.param("eps", marks=pytest.mark.fast)


def alphas_cumprod() -> Tensor:
    """abar_0 ... abar_999 of Stable Diffusion: betas linear in their square roots."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


# --- the reference ----------------------------------------------------------------------------------------------------


class Text:
    """The prompt with a token in each CLIP, in double precision: hidden states [B, 77, D] and pooled vectors [B, E]."""

    def __init__(self, kind: str) -> None:
        clip = small_encoder(kind, inference=False)
        names = {"l": "clip_l", "g": "clip_g"} if kind == "sdxl" else {"l": "clip_l"}
        self.towers = {
            key: copy.deepcopy(getattr(clip.cond_stage_model, name).transformer).double().requires_grad_(False)
            for key, name in names.items()
        }
        self.penultimate = kind == "sdxl"
        self.clip = clip

    def ids(self, key: str, text: str) -> list[int]:
        return [token for token, _ in self.clip.tokenize(text)[key][0]]

    def table(self, key: str) -> Tensor:
        return self.towers[key].text_model.embeddings.token_embedding.weight

    def word(self, key: str, word: str) -> Tensor:
        return self.table(key)[self.ids(key, word)[1]]

    def __call__(self, text: str, tokens: dict[str, Tensor] | None, batch: int) -> tuple[Tensor, Tensor]:
        """tokens: [B, D] by encoder, at the end of the text; None is the text alone."""
        hidden, projected = [], torch.empty(0)
        for key, tower in self.towers.items():
            ids = self.ids(key, text)
            end = ids.index(49407)
            embeds = self.table(key)[ids].expand(batch, -1, -1)
            if tokens is not None:
                embeds = torch.cat([embeds[:, :end], tokens[key][:, None], embeds[:, end:-1]], dim=1)
                end += 1
            layer = -2 if self.penultimate else None
            last, middle, pooled = tower.text_model(
                None,
                embeds=embeds,
                num_tokens=[end + 1] * batch,
                intermediate_output=layer,
                final_layer_norm_intermediate=False,
                dtype=torch.float64,
            )
            hidden.append(middle if self.penultimate else last)
            projected = tower.text_projection(pooled)
        return torch.cat(hidden, dim=-1), projected


class Denoiser:
    """eps(z, t, text) in double precision."""

    def __init__(self, model: Any, sdxl: bool) -> None:
        self.network = copy.deepcopy(model.model.diffusion_model).double().requires_grad_(False)
        self.sdxl = sdxl

    def __call__(self, z: Tensor, t: int, text: tuple[Tensor, Tensor]) -> Tensor:
        hidden, pooled = text
        y = None
        if self.sdxl:
            # Height and width, crop, and target size, each as 256 cosines and sines.
            sizes = torch.tensor([8.0 * SIDE, 8.0 * SIDE, 0.0, 0.0, 8.0 * SIDE, 8.0 * SIDE], dtype=torch.float64)
            angles = sizes[:, None] * torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
            y = torch.cat([pooled, torch.cat([angles.cos(), angles.sin()], 1).flatten().expand(len(z), -1)], dim=1)
        return self.network(z, torch.full((len(z),), float(t)), context=hidden, y=y)


@dataclass
class Rules:
    """The released code's arguments, at what its command line and its scripts have them."""

    timesteps: list[int]
    learned: list[int]  # numbers of the steps at which the token is learned
    rate: float
    iterations: int
    word: str = "cool"
    guidance: float = 1.0
    annealed: bool = True
    late: bool = False
    balance: float = 1.0
    decay: float = 0.0
    plain_after: bool = False
    diverse: bool = False
    squared: bool = False  # the paper's formula, which the release does not follow


@dataclass
class Procedure:
    """Runs it; keeps the tokens before each iteration and after the last one of each round."""

    text: Text
    denoiser: Denoiser
    rules: Rules
    noises: list[Tensor]
    passes: int = 0
    tokens: list[dict[str, Tensor]] = field(default_factory=list)

    def run(self, noise: Tensor) -> Tensor:
        rules, abar, batch = self.rules, alphas_cumprod(), len(noise)
        first = abar[rules.timesteps[0]]
        # ComfyUI starts below the noisiest level from noise of that level's own length.
        z = noise.double() * (1.0 if rules.timesteps[0] == 999 else (1 - first).sqrt())
        values = {key: self.text.word(key, rules.word).expand(batch, -1) for key in self.text.towers}
        plain, null = self.text(TEXT, None, batch), self.text("", None, batch)
        inside = plain
        for step, t in enumerate(rules.timesteps):
            following = rules.timesteps[step + 1] if step + 1 < len(rules.timesteps) else -1
            if step in rules.learned:
                values = self.round(z, t, following, step, values, plain)
                inside = self.text(TEXT, values, batch)
            elif rules.plain_after:
                inside = plain
            eps = self.denoiser(z, t, inside)
            if rules.guidance != 1:
                blank = self.denoiser(z, t, null)
                eps = blank + rules.guidance * (eps - blank)
            clean = (z - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            level = abar[following] if following >= 0 else torch.tensor(1.0, dtype=torch.float64)
            z = level.sqrt() * clean + (1 - level).sqrt() * eps
        return z

    def round(self, z: Tensor, t: int, following: int, step: int, values: dict, plain: tuple) -> dict[str, Tensor]:
        rules, abar, batch = self.rules, alphas_cumprod(), len(z)
        level = abar[t - 1] if rules.late else abar[t]
        again = 999 - following if rules.annealed else 750
        second = abar[again - 1] if rules.annealed and (rules.late or again == 1000) else abar[again]
        rate = rules.rate * (1 - step * rules.decay)
        means = {key: torch.zeros_like(value) for key, value in values.items()}
        squares = {key: torch.zeros_like(value) for key, value in values.items()}
        for k in range(1, rules.iterations + 1):
            self.tokens.append(values)
            leaves = {key: value.clone().requires_grad_() for key, value in values.items()}
            eps = self.denoiser(z, t, self.text(TEXT, leaves, batch))
            clean = (z - (1 - level).sqrt() * eps) / level.sqrt()
            self.passes += 1
            if rules.diverse:
                pairs = [(i, j) for i in range(batch) for j in range(batch) if i != j]
                total = torch.stack([(clean[i] - clean[j]).norm() for i, j in pairs]).sum()
            else:
                noisy = second.sqrt() * clean + (1 - second).sqrt() * self.noises.pop(0).double()
                # ComfyUI's models know no timestep above 999.
                eps = self.denoiser(noisy, min(again, 999), plain)
                renoised = (noisy - (1 - second).sqrt() * eps) / second.sqrt()
                self.passes += 1
                one = (clean.detach() - renoised).flatten(1).norm(dim=1)
                other = (clean - renoised.detach()).flatten(1).norm(dim=1)
                power = 2 if rules.squared else 1
                total = (one**power + rules.balance * other**power).sum()
            # One pass back, of the sum.
            found = torch.autograd.grad(total, list(leaves.values()))
            for (key, value), gradient in zip(values.items(), found, strict=True):
                means[key] = 0.9 * means[key] + 0.1 * gradient
                squares[key] = 0.999 * squares[key] + 0.001 * gradient**2
                moved = (means[key] / (1 - 0.9**k)) / ((squares[key] / (1 - 0.999**k)).sqrt() + 1e-8)
                values = {**values, key: value + rate * moved}
        self.tokens.append(values)
        return values


# --- ours -------------------------------------------------------------------------------------------------------------


@dataclass
class Ours:
    """A run of the node in a sampler: the tokens as above, the noises, the passes, what was said, the latent."""

    tokens: list[dict[str, Tensor]]
    noises: list[Tensor]
    passes: Any
    report: str
    latent: Tensor


def start_noise(batch: int) -> Tensor:
    return comfy.sample.prepare_noise(torch.zeros(batch, 4, SIDE, SIDE), SEED)


def ours(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    preset: str,
    batch: int,
    steps: int,
    scheduler: str,
    guidance: float,
    objective: str = "minority",
    **options: Any,
) -> Ours:
    """KSampler with one widget of the node turned to published, and options as they are changed."""
    tokens: list[dict[str, Tensor]] = []
    noises: list[Tensor] = []
    runs: list[Any] = []
    encode, noise_of, finish = LearnableToken.encode, StepEstimates._noise, Run.finish

    def spy_encode(self: LearnableToken, embeddings: dict[str, Tensor]) -> Any:
        tokens.append({name: value.detach()[:, 0].clone() for name, value in embeddings.items()})
        return encode(self, embeddings)

    def spy_noise(self: Any, iteration: int) -> Tensor:
        noises.append(noise_of(self, iteration))
        return noises[-1]

    monkeypatch.setattr(LearnableToken, "encode", spy_encode)
    monkeypatch.setattr(StepEstimates, "_noise", spy_noise)
    monkeypatch.setattr(Run, "finish", lambda run: (runs.append(run), finish(run)))
    model = small_sdxl() if kind == "sdxl" else small_model("eps")
    clip = small_encoder("sdxl" if kind == "sdxl" else "sd1")
    with torch.inference_mode():
        given = MinorityPromptOptions.execute(**options).args[0] if options else None
        main = (TEXT, preset, 1.0, "cool", objective, "published")
        patched, positive = MinorityPrompt.execute(model, clip, *main, options=given).args
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        noise = start_noise(batch)
        latent = comfy.sample.sample(
            patched,
            noise,
            steps,
            guidance,
            "euler",
            scheduler,
            positive,
            negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=SEED,
        )
    latent = model.model.process_latent_in(latent)
    return Ours(tokens, noises, runs[0].passes, runs[0].report(), latent)


def reference(kind: str, rules: Rules, batch: int, noises: list[Tensor]) -> tuple[Procedure, Tensor]:
    model = small_sdxl() if kind == "sdxl" else small_model("eps", inference=False)
    text = Text("sdxl" if kind == "sdxl" else "sd1")
    procedure = Procedure(text, Denoiser(model, kind == "sdxl"), rules, list(noises))
    # ComfyUI's layers add in place to what autograd has saved.
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
        return procedure, procedure.run(start_noise(batch))


def agree(found: Ours, procedure: Procedure, latent: Tensor) -> None:
    """To single precision's rounding, the tokens in units of a step of Adam."""
    names, rate = {"l": "clip_l", "g": "clip_g"}, procedure.rules.rate
    assert len(found.tokens) == len(procedure.tokens)
    for k, (own, other) in enumerate(zip(found.tokens, procedure.tokens, strict=True)):
        for key, value in other.items():
            apart = (own[names[key]].double() - value).abs().flatten() / rate
            assert apart.max() < 0.01, f"iteration {k}: {apart.max():.2g} of a step"
    assert (found.latent.double() - latent).norm() < 1e-5 * latent.norm()


# --- agreement --------------------------------------------------------------------------------------------------------

# DDIM's own steps in ComfyUI are Euler's on ddim_uniform; SDXL-Lightning's trailing ones on simple.
TEN = [901 - 100 * k for k in range(10)]
FOUR = [999, 749, 499, 249]


@pytest.mark.fast
def test_a_base_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """K 10, rate 0.01, t > 0.9 T, s = 0.75 T; the token is kept; CFG with the null prompt as it is."""
    found = ours(monkeypatch, "eps", "base model", 2, 10, "ddim_uniform", 3.0)
    rules = Rules(TEN, [0], 0.01, 10, guidance=3.0, annealed=False)
    procedure, latent = reference("eps", rules, 2, found.noises)
    agree(found, procedure, latent)
    assert (found.passes.forward, found.passes.backward) == (20, 20)
    assert procedure.passes == 20
    assert found.report.endswith("As published.")


def test_sdxl_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    """K 3, rate 0.001, all four steps, s = 250, 500, 750, 1000; a token in each encoder, and the pooled vector."""
    found = ours(monkeypatch, "sdxl", "few-step model", 1, 4, "simple", 1.0)
    procedure, latent = reference("sdxl", Rules(FOUR, [0, 1, 2, 3], 0.001, 3), 1, found.noises)
    agree(found, procedure, latent)
    assert (found.passes.forward, found.passes.backward) == (24, 24)


def test_the_script_for_one_image_and_what_else_the_release_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rate 0.01 from "handsome"; every second step, the plain prompt at the others, a rate that decays, sg_lambda, and
    alphas one level late."""
    options: dict[str, Any] = {"every": 2, "keep_until": 0.0, "lr_decay": 0.1, "sg_lambda": 0.5, "late_alphas": True}
    found = ours(monkeypatch, "eps", "SDXL-Lightning, one image", 1, 4, "simple", 1.0, **options)
    own: dict[str, Any] = {"word": "handsome", "decay": 0.1, "balance": 0.5, "plain_after": True, "late": True}
    procedure, latent = reference("eps", Rules(FOUR, [0, 2], 0.01, 3, **own), 1, found.noises)
    agree(found, procedure, latent)


def test_diversity_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ours(monkeypatch, "eps", "base model", 3, 10, "ddim_uniform", 3.0, "diversity", iterations=4)
    rules = Rules(TEN, [0], 0.01, 4, guidance=3.0, diverse=True)
    procedure, latent = reference("eps", rules, 3, [])
    agree(found, procedure, latent)
    assert found.report.endswith("As published, but for iterations 4 (it has 10).")


def test_late_alphas_need_discrete_timesteps() -> None:
    model, clip = small_model("auraflow"), small_encoder("t5")
    with torch.inference_mode():
        given = MinorityPromptOptions.execute(late_alphas=True).args[0]
        main = (TEXT, "base model", 1.0, "cool", "minority", "published")
        patched, positive = MinorityPrompt.execute(model, clip, *main, options=given).args
        noise = start_noise(1)
        rest = (noise, 2, 1.0, "euler", "simple", positive, positive, torch.zeros_like(noise))
        with pytest.raises(ValueError, match="late_alphas is on, but this model has no discrete timesteps"):
            comfy.sample.sample(patched, *rest, disable_pbar=True, seed=SEED)


# --- where the token starts -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip() -> Any:
    return small_encoder("sd1")


def starts(clip: Any, begin: str, count: int = 4000, **named: Any) -> Tensor:
    found = LearnableToken(clip, TEXT, "cool", begin=begin, **named).start(count, seed=1)["clip_l"]
    assert found.shape == (count, 1, 64)
    return found[:, 0].double()


def test_random_starts_are_of_the_releases_kinds(clip: Any) -> None:
    """Mean and covariance over the whole table, not centred for "gaussian", as the release takes them."""
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight.detach().clone().double()
    mean, moments = table.mean(0), table.T @ table / len(table)
    drawn = starts(clip, "gaussian", scale=2.0)
    assert (drawn.mean(0) - mean).abs().max() < 0.02
    assert (drawn.T.cov() - 4 * moments).norm() < 0.2 * (4 * moments).norm()
    white = starts(clip, "white")
    assert torch.allclose(white.std(0), table.std(0), rtol=0.1)
    assert (starts(clip, "white", count=2, scale=0.0) - mean).abs().max() < 1e-6
    default = starts(clip, "default")
    assert default.std().item() == pytest.approx(1, abs=0.02)
    words = starts(clip, "random word", count=6)
    assert (torch.cdist(words, table).amin(1) < 1e-6).all()
    assert torch.cdist(words, words).fill_diagonal_(1).min() > 1e-3


def test_an_image_starts_alike_in_every_batch(clip: Any) -> None:
    assert torch.equal(starts(clip, "gaussian", count=3)[:2], starts(clip, "gaussian", count=2))
    with pytest.raises(ValueError, match="start is 'gauss'; it must be one of auto, word, default"):
        LearnableToken(clip, TEXT, "cool", begin="gauss")


# --- noise levels -----------------------------------------------------------------------------------------------------


def test_timesteps_are_those_of_training() -> None:
    """t > 0.9 T and s = 0.75 T mean 900 and 750 of 1000; ComfyUI's own shares are of 999."""
    sampling = small_model("eps").get_model_object("model_sampling")
    sigmas = sampling.sigmas.double()
    assert timestep_share(sampling, float(sigmas[900])) == pytest.approx(0.1, abs=1e-6)
    assert float(sigma_at_timestep(sampling, 0.75)) == pytest.approx(sigmas[750].item(), rel=1e-5)
    assert float(sigma_at_timestep(sampling, 1.0)) == pytest.approx(sigmas[999].item(), rel=1e-5)
    assert level_before(sampling, float(sigmas[981])) == pytest.approx(sigmas[980].item(), rel=1e-6)
    shares = [timestep_share(sampling, float(sigmas[t])) for t in (999, 901, 900, 1, 0)]
    assert Steps(0.0, 0.1, strict=True).chosen(shares) == (0, 1)
    assert Steps(0.0, 1.0, strict=True).chosen(shares) == (0, 1, 2, 3)
    flow = small_model("sd3").get_model_object("model_sampling")
    assert level_before(flow, 0.9) is None
    assert timestep_share(flow, float(flow.percent_to_sigma(0.3))) == pytest.approx(0.3, abs=1e-4)

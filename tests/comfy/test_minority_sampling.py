"""A token learned under real samplers: when, for whom, what it costs, and what an error or Cancel leaves behind."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_diversity.core.drivers import minority as hook
from comfyui_diversity.core.drivers import minority_run as running
from comfyui_diversity.core.drivers.minority import to_learn, with_learning
from comfyui_diversity.core.drivers.minority_learning import Learning
from comfyui_diversity.core.hooks.carried import payloads
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.sampling import with_noise_change
from comfyui_diversity.core.methods.minority import OBJECTIVES, RECOMMENDED, Estimates, Settings, Steps
from small.encoders import small_encoder
from small.models import FAMILIES, Counter, small_model, small_sdxl
from torch import Tensor

STEPS, BATCH, ITERATIONS = 4, 2, 2
TEXT = "a red fish"
# Which small encoder a small model reads: CLIP, two CLIPs, T5, CLIP and T5, a language model.
ENCODER = {"eps": "sd1", "sdxl": "sdxl", "auraflow": "t5", "flux": "flux", "qwen": "qwen3"}
FAST = pytest.param("eps", marks=pytest.mark.fast)
LATENT = {name: (FAMILIES[name].latent[0] if name in FAMILIES else 4, 8, 8) for name in ENCODER}


def model_of(family: str) -> Any:
    if family == "sdxl":
        return small_sdxl()
    return small_model("auraflow" if family == "qwen" else family)


class Graph:
    """What the nodes around ours hold."""

    def __init__(self, family: str = "eps") -> None:
        self.family, self.model, self.clip = family, model_of(family), small_encoder(ENCODER[family])

    @torch.inference_mode()
    def plain(self, text: str = TEXT) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    @torch.inference_mode()
    def learn(self, **changed: Any) -> list:
        """CONDITIONING that learns at the first two of four steps, twice each."""
        settings = {name: changed.pop(name) for name in ("typical",) if name in changed}
        rate, iterations = changed.pop("learning_rate", 0.5), changed.pop("iterations", ITERATIONS)
        options = {
            "clip": self.clip,
            "text": TEXT,
            "settings": Settings(iterations, rate, **settings),
            "steps": Steps(0.0, 0.3),
            "encoders": "all",
            "keep_until": 1.0,
            **changed,
        }
        return to_learn(Learning(**options))

    def sample(self, positive: list, model: Any = None, batch: int = BATCH, **options: Any) -> Tensor:
        """What KSampler computes."""
        generator = torch.Generator().manual_seed(options.pop("noise_seed", 0))
        noise = torch.randn(batch, *LATENT[self.family], generator=generator)
        named: dict[str, Any] = {
            "steps": STEPS,
            "cfg": 3.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "positive": positive,
            "negative": self.plain(""),
            "latent_image": torch.zeros_like(noise),
            "disable_pbar": True,
            "seed": 0,
            **options,
        }
        with torch.inference_mode():
            return comfy.sample.sample(self.model if model is None else model, noise, **named)

    def learned(self, model: Any = None, sampling: dict[str, Any] | None = None, **changed: Any) -> Tensor:
        patched = with_learning(self.model if model is None else model)
        return self.sample(self.learn(**changed), patched, **(sampling or {}))


def small_latent() -> Tensor:
    return torch.randn(BATCH, *LATENT["eps"], generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph()


class Rounds:
    """The steps at which something is learned, and the noise levels of all predictions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[int] = []
        self.sigmas: list[float] = []
        self.run: Any = None  # the last one
        real_learn, real_predict = running.Run._learn, running.Run.predict

        def learn(run: Any, guider: Any, x: Tensor, timestep: Tensor, options: Any, seed: int, step: int) -> None:
            self.steps.append(step)
            self.run = run
            real_learn(run, guider, x, timestep, options, seed, step)

        def predict(run: Any, executor: Any, x: Tensor, timestep: Tensor, *rest: Any) -> Tensor:
            self.sigmas.append(float(timestep[0]))
            return real_predict(run, executor, x, timestep, *rest)

        monkeypatch.setattr(running.Run, "_learn", learn)
        monkeypatch.setattr(running.Run, "predict", predict)


# --- for which models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [FAST, "sdxl", "flux", "qwen"])
def test_every_kind_of_model_and_encoder_learns(family: str) -> None:
    graph = Graph(family)
    images, plain = graph.learned(), graph.sample(graph.plain())
    assert torch.isfinite(images).all()
    assert (images - plain).abs().max() > 1e-3
    word = graph.sample(graph.plain(f"{TEXT} cool"))
    assert (images - word).abs().max() > 1e-4  # not the initial word alone


@pytest.mark.parametrize("family", [FAST, "sdxl", "auraflow", "qwen"])
def test_gradient_through_model_and_encoder_agrees_with_finite_differences(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through text encoder, model, noising again and model, along the gradient."""
    graph, found = Graph(family), []
    weights = [torch.randn(BATCH, *LATENT[family], generator=torch.Generator().manual_seed(k)) for k in (4, 5)]

    def weighted(estimates: Estimates, /) -> Tensor:
        both = weights[0] * estimates.clean + weights[1] * estimates.renoised
        return both.flatten(1).sum(1)

    def check(run: Any, guider: Any, x: Tensor, timestep: Tensor, options: Any, seed: int, step: int) -> None:
        with gradients():
            run.token = run.learning.token()
            run.unit, run.start = run.token.deviations, run.token.start(len(x), 0)
            run.chunks = running.Chunks(len(x))
            at_step = running.StepEstimates(run, guider, x, timestep, options, seed, step)
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
            at_step._noise = lambda iteration: noise
            clean, pullback = at_step.clean({name: torch.zeros_like(value) for name, value in run.start.items()})
            estimates = Estimates(clean, at_step.renoised)
            gradient = pullback(estimates.gradient(weighted(estimates).sum()))
            length = torch.cat([part.flatten() for part in gradient.values()]).norm().item()
            # Large enough for single precision, and small enough for T5 with random weights, which bends more.
            size, values = 0.1 if family == "auraflow" else 0.5, []
            for sign in (1, -1):
                clean = at_step.clean({name: sign * size * part / length for name, part in gradient.items()})[0]
                values.append([clean.double(), at_step.renoised(clean)[0].double()])
            # each pixel's difference first: the sums are too large for single precision
            slope = sum(
                ((a - b) * weight).sum().item() for a, b, weight in zip(values[0], values[1], weights, strict=True)
            )
            found.append((length, slope / (2 * size)))

    monkeypatch.setattr(running.Run, "_learn", check)
    monkeypatch.setattr(running.Run, "finish", lambda run: None)
    graph.learned(steps=Steps(0.2, 0.3))
    [(length, slope)] = found
    assert length > 0
    assert slope == pytest.approx(length, rel=0.03)


# --- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["heun", "uni_pc"])
def test_once_a_step_with_every_sampler(graph: Graph, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch)
    images = graph.learned(sampling={"sampler_name": sampler}, iterations=1, steps=Steps(0.0, 1.0))
    assert torch.isfinite(images).all()
    assert rounds.steps == [0, 1, 2, 3]
    if sampler == "heun":
        assert len(rounds.sigmas) > STEPS  # it asks oftener than it steps


def test_once_a_step_with_flow_models_that_begin_off_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch)
    Graph("auraflow").learned(sampling={"sampler_name": "dpmpp_sde"}, iterations=1, steps=Steps(0.0, 1.0))
    assert rounds.steps == [0, 1, 2, 3]


def test_never_again_when_a_sampler_goes_back(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restart sampling: down, up again with noise, down."""
    rounds = Rounds(monkeypatch)

    def restart(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
        order = [0, 1, 2, 1, 2, 3]
        for k in order:
            denoised = model(x, sigmas[k] * x.new_ones([len(x)]), **extra_args)
            x = denoised + (x - denoised) * (sigmas[k + 1] / sigmas[k])
        return x

    monkeypatch.setattr(comfy.samplers.k_diffusion_sampling, "sample_euler", restart)
    graph.learned(iterations=1, steps=Steps(0.0, 1.0))
    assert rounds.steps == [0, 1, 2, 3]
    assert len(rounds.sigmas) == 6


def test_window_and_every(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch)
    graph.learned(steps=Steps(0.0, 0.3))
    graph.learned(steps=Steps(0.4, 0.6))
    graph.learned(steps=Steps(0.0, 1.0, 3))
    assert rounds.steps == [0, 1, 2, 0, 3]


def test_before_the_first_learning_the_prompt_is_plain_and_after_the_window_if_so_chosen(graph: Graph) -> None:
    seen: dict[str, list[Tensor]] = {}

    def watched(name: str, **changed: Any) -> Tensor:
        seen[name] = []

        def spy(executor: Any, x: Tensor, t: Tensor, concat: Any, text: Tensor, *rest: Any, **named: Any) -> Tensor:
            if torch.is_inference_mode_enabled():
                seen[name].append(text.clone())
            return executor(x, t, concat, text, *rest, **named)

        model = graph.model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "spy", spy)
        return graph.learned(model, {"cfg": 1.0}, **changed)

    plain = graph.plain()[0][0]
    watched("middle", steps=Steps(0.2, 0.3))
    kept = watched("kept", steps=Steps(0.0, 0.2))
    dropped = watched("dropped", steps=Steps(0.0, 0.2), keep_until=0.0)
    half = watched("half", steps=Steps(0.0, 0.2), keep_until=0.5)

    def is_plain(name: str) -> list[bool]:
        return [torch.allclose(context, plain.expand_as(context), atol=1e-6) for context in seen[name]]

    assert is_plain("middle") == [True, False, False, False]
    assert is_plain("kept") == [False] * 4
    assert is_plain("dropped") == [False, True, True, True]
    assert is_plain("half") == [False, False, True, True]
    assert not torch.equal(kept, dropped)
    assert not torch.equal(half, dropped)


def test_no_step_in_the_window_is_said_aloud(graph: Graph, caplog: pytest.LogCaptureFixture) -> None:
    latent = small_latent()
    options: dict[str, Any] = {"latent_image": latent, "denoise": 0.5, "steps": 8}
    with caplog.at_level(logging.WARNING):
        images = graph.learned(sampling=options, steps=Steps(0.0, 0.1))
    assert torch.equal(images, graph.sample(graph.plain(), **options))
    assert "NOTHING was learned" in caplog.text
    assert "begin at 0.5" in caplog.text


# --- what must not change ---------------------------------------------------------------------------------------------


def test_switched_off_is_bitwise_the_plain_prompt(graph: Graph) -> None:
    counter = Counter()
    images = graph.learned(counter.on(graph.model), iterations=0)
    assert torch.equal(images, graph.sample(graph.plain()))
    assert len(counter.sizes) == STEPS


def test_same_seed_same_image_and_nothing_outlives_a_run(graph: Graph) -> None:
    model, positive = with_learning(graph.model), graph.learn()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = graph.sample(positive, model)
    assert torch.equal(torch.rand(1), expected)  # the random state, which samplers rely on, is left alone
    assert not torch.equal(first, graph.sample(positive, model, seed=1))  # other noise to noise again with
    assert torch.equal(first, graph.sample(positive, model))
    assert graph.model.wrappers == {}


def test_images_learn_apart(graph: Graph) -> None:
    """An image of a batch is the same by itself, up to rounding, unless the objective compares them."""
    both, one = graph.learned(), graph.learned(sampling={"batch": 1})
    assert torch.allclose(both[:1], one, atol=5e-3)
    apart = graph.learned(objective=OBJECTIVES["diversity"])
    assert not torch.allclose(apart, both, atol=1e-2)


def test_tokens_go_on_from_step_to_step_and_differ(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, moved = Rounds(monkeypatch), []
    real = running.Run._round

    def round_(run: Any, *rest: Any) -> Any:
        moved.append(run.offsets["clip_l"].clone())
        return real(run, *rest)

    monkeypatch.setattr(running.Run, "_round", round_)
    graph.learned()
    assert [float(offset.norm()) > 0 for offset in moved] == [False, True]
    last = rounds.run.offsets["clip_l"]
    assert not torch.allclose(last[0], last[1], atol=1e-2)


def test_similarity_holds_at_the_end(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch)

    def cosines(**changed: Any) -> Tensor:
        graph.learned(**changed)
        run = rounds.run
        vectors = run.token.plain_vectors(run.embeddings(run.offsets))["clip_l"]
        return (vectors * run.token.plain_vectors(run.start)["clip_l"]).sum(1)

    free = cosines()
    floor = float((1 + free.max()) / 2)
    monkeypatch.setattr(running, "native_kappa", lambda encoder, kappa: kappa)
    assert (cosines(similarity=floor) >= floor - 1e-5).all()
    assert (free < floor).all()


def test_inpainting_keeps_the_rest_and_learns_from_the_masked_part(graph: Graph) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    latent = small_latent()
    options: dict[str, Any] = {"latent_image": latent, "noise_mask": mask}
    images, plain = graph.learned(sampling=options), graph.sample(graph.plain(), **options)
    assert torch.allclose(images[..., 4:], plain[..., 4:], atol=1e-4)
    assert (images[..., :4] - plain[..., :4]).abs().max() > 1e-3
    other = latent.clone()
    other[..., 4:] += 3
    moved = graph.learned(sampling={**options, "latent_image": other})
    assert torch.isfinite(moved).all()


# --- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "objective"), [("eps", "minority"), ("sdxl", "both")])
def test_chunks_change_nothing_but_rounding(family: str, objective: str) -> None:
    graph = Graph(family)
    options = {"objective": OBJECTIVES[objective], "sampling": {"batch": 3}, "learning_rate": 0.1}
    whole, part = graph.learned(**options), graph.learned(**options, chunk_size=2)
    assert (part - whole).norm() < 2e-2 * whole.norm()


def test_fewer_images_at_once_when_memory_runs_out(graph: Graph) -> None:
    sizes = []

    def small_memory(executor: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        sizes.append(len(x))
        if torch.is_grad_enabled() and len(x) > 1:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return executor(x, *rest, **named)

    model = graph.model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "small memory", small_memory)
    assert torch.equal(graph.learned(model), graph.learned(chunk_size=1))
    assert sizes[:2] == [BATCH, 1]


def test_layers_are_computed_again_when_memory_runs_out_for_one_image(graph: Graph) -> None:
    layers = list(graph.model.model.diffusion_model.modules())
    sizes = []

    def small_memory(executor: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        sizes.append(len(x))
        if torch.is_grad_enabled() and not any("forward" in vars(layer) for layer in layers):
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return executor(x, *rest, **named)

    model = graph.model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "small memory", small_memory)
    assert torch.equal(graph.learned(model), graph.learned(chunk_size=1, checkpointing=True))
    assert sizes[0] == BATCH


@pytest.mark.parametrize("family", [FAST, "flux"])
def test_checkpointing_keeps_less_and_gives_the_same_gradient(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, found = Graph(family), []

    def check(run: Any, guider: Any, x: Tensor, timestep: Tensor, options: Any, seed: int, step: int) -> None:
        run.token = run.learning.token()
        run.unit, run.start = run.token.deviations, run.token.start(len(x), 0)
        run.chunks = running.Chunks(len(x))
        for run.checkpointing in (False, True):
            at_step, nodes = running.StepEstimates(run, guider, x, timestep, options, seed, step), []
            at_step.iteration = 1
            with gradients():
                noisy = at_step._noise(at_step.iteration)
                with monkeypatch.context() as patch:
                    patch.setattr(torch.autograd, "grad", counting_nodes(nodes, torch.autograd.grad))
                    clean, pullback = at_step.clean(
                        {name: torch.zeros_like(value) for name, value in run.start.items()}
                    )
                    gradient = pullback(noisy)
                    renoised = at_step.renoised(clean)[1](noisy)
            found.append((clean, renoised, gradient, nodes[0]))

    monkeypatch.setattr(running.Run, "_learn", check)
    monkeypatch.setattr(running.Run, "finish", lambda run: None)
    graph.learned(steps=Steps(0.2, 0.3))
    (clean, renoised, gradient, nodes), (clean_2, renoised_2, gradient_2, nodes_2) = found
    assert torch.equal(clean, clean_2)
    assert (renoised - renoised_2).norm() <= 1e-5 * renoised.norm()
    for name, one in gradient.items():
        assert (one - gradient_2[name]).norm() <= 1e-4 * one.norm()
    assert nodes_2 < 0.7 * nodes


def counting_nodes(counts: list[int], grad: Any) -> Any:
    """`torch.autograd.grad` that notes how many operations the graph holds."""

    def counted(outputs: Any, *rest: Any, **named: Any) -> Any:
        seen, waiting = set(), [one.grad_fn for one in ([outputs] if isinstance(outputs, Tensor) else outputs)]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting += [before for before, _ in node.next_functions]
        counts.append(len(seen))
        return grad(outputs, *rest, **named)

    return counted


# --- what it costs ----------------------------------------------------------------------------------------------------


class PassesBack:
    """Passes back through the network, and their batch sizes: each begins at what the network gave."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def on(self, model: Any) -> Any:
        def wrapper(executor: Any, *rest: Any, **named: Any) -> Tensor:
            result = executor(*rest, **named)
            if result.requires_grad:
                result.register_hook(lambda gradient: self.sizes.append(len(gradient)))
            return result

        counted = model.clone()
        counted.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "passes back", wrapper)
        return counted


@pytest.mark.parametrize(
    ("spared", "forwards", "backwards"),
    [({}, [2] * 20, [2] * 20), pytest.param({"chunk_size": 1}, [1] * 80, [1] * 40, marks=pytest.mark.slow)],
)
def test_a_run_of_twenty_steps_with_the_base_models_preset(
    graph: Graph, spared: dict[str, Any], forwards: list[int], backwards: list[int]
) -> None:
    """Counted at the network. The passes that the docs name under "Cost"."""
    preset, there, back = RECOMMENDED["base model"], Counter(), PassesBack()
    graph.learned(
        there.on(back.on(graph.model)),
        {"steps": 20, "scheduler": "normal"},
        iterations=preset.iterations,
        steps=Steps(0.0, preset.end),
        learning_rate=0.01,
        **spared,
    )
    plain = [2 * BATCH] * 20
    assert sorted(there.sizes) == sorted([*forwards, *plain])
    assert back.sizes == backwards


def test_diversity_costs_half(graph: Graph) -> None:
    counter = Counter()
    graph.learned(counter.on(graph.model), steps=Steps(0.0, 0.1), objective=OBJECTIVES["diversity"])
    assert counter.sizes == [BATCH] * ITERATIONS + [2 * BATCH] * STEPS


def test_the_report_counts_what_was_done(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch)
    graph.learned(steps=Steps(0.0, 0.3))
    assert (rounds.run.passes.forward, rounds.run.passes.backward) == (2 * 2 * ITERATIONS, 2 * 2 * ITERATIONS)
    assert "learned at 2 of 4 steps with 8 more forward and 8 backward passes" in rounds.run.report()


# --- together with others ---------------------------------------------------------------------------------------------


def test_noise_that_is_optimised_first_is_no_step_to_learn_at(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two patches comes first."""
    rounds, asked = Rounds(monkeypatch), []

    def change(run: Any) -> Tensor:
        asked.append(len(rounds.steps))
        run.guider(run.noise, run.sigmas[0] * run.noise.new_ones([len(run.noise)]), **run.extra_args)
        asked.append(len(rounds.steps))
        return run.noise

    positive = graph.learn()
    inside = graph.sample(positive, with_learning(with_noise_change(graph.model, "noise", change)))
    outside = graph.sample(positive, with_noise_change(with_learning(graph.model), "noise", change))
    assert asked == [0, 0, 2, 2]
    assert rounds.steps == [0, 1] * 2
    assert torch.equal(inside, outside)


def test_one_half_of_the_node_without_the_other_is_an_error(graph: Graph) -> None:
    with pytest.raises(ValueError, match="Connect the MODEL output"):
        graph.sample(graph.learn())
    with pytest.raises(ValueError, match="Connect the positive output"):
        graph.sample(graph.plain(), with_learning(graph.model))


def test_changed_and_zeroed_embeddings(graph: Graph) -> None:
    [[cond, extras]] = graph.learn()
    with pytest.raises(ValueError, match="were changed on the way"):
        graph.sample([[cond * 1.1, extras]], with_learning(graph.model))
    negative = [[torch.zeros_like(cond), extras]]
    zeroed = [[torch.zeros_like(cond), {}]]
    positive = graph.learn()
    model = with_learning(graph.model)
    assert torch.equal(graph.sample(positive, model, negative=negative), graph.sample(positive, model, negative=zeroed))


def test_what_is_combined_with_the_prompt_stays_in_force(graph: Graph) -> None:
    """Conditioning Combine with another prompt: only ours has the token."""
    other = graph.plain("a blue house")
    both = graph.sample([*graph.learn(), *other], with_learning(graph.model))
    assert torch.isfinite(both).all()
    assert not torch.allclose(both, graph.learned(), atol=1e-3)
    assert not torch.allclose(both, graph.sample([*graph.plain(), *other]), atol=1e-3)
    with pytest.raises(ValueError, match="a run can learn one token only"):
        graph.sample([*graph.learn(), *graph.learn()], with_learning(graph.model))


def test_a_plain_positive_keeps_what_is_attached_to_it(graph: Graph) -> None:
    [[cond, extras]] = graph.plain()
    other = graph.plain("a blue house")
    learning = Learning(graph.clip, TEXT, Settings(ITERATIONS, 0.5), Steps(0.0, 1.0))
    with torch.inference_mode():
        made = to_learn(learning, [[cond, {**extras, "strength": 0.5}], *other])
    assert hook.KEY in payloads(made[0][1])
    assert made[0][1]["strength"] == 0.5
    assert made[1] == other[0]
    assert hook.KEY not in payloads(extras)
    with torch.inference_mode(), pytest.raises(ValueError, match="positive is not this text"):
        to_learn(learning, other)
    with torch.inference_mode(), pytest.raises(ValueError, match="already"):
        to_learn(learning, made)


# --- errors and Cancel ------------------------------------------------------------------------------------------------


def weights_of(graph: Graph) -> list[tuple[str, Tensor]]:
    return [
        *graph.model.model.diffusion_model.state_dict().items(),
        *graph.clip.cond_stage_model.state_dict().items(),
    ]


@pytest.mark.parametrize(("end", "spared"), [("error", {"checkpointing": True}), ("cancel", {"chunk_size": 1})])
def test_shared_weights_are_left_as_they_were(end: str, spared: dict[str, Any]) -> None:
    graph, calls = Graph(), []
    before = [(name, weight.clone()) for name, weight in weights_of(graph)]
    plain, expected = graph.sample(graph.plain()), graph.learned(**spared)

    def disturb(executor: Any, *rest: Any, **named: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 6 and end == "error":
            raise RuntimeError("a broken cable")
        if len(calls) == 6 and end == "cancel":
            comfy.model_management.interrupt_current_processing()
        return executor(*rest, **named)

    model = graph.model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "disturb", disturb)
    if end == "error":
        with pytest.raises(RuntimeError, match="a broken cable"):
            graph.learned(model, **spared)
    else:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            graph.learned(model, **spared)
    for (name, weight), (_, now) in zip(before, weights_of(graph), strict=True):
        assert torch.equal(weight, now), name
    modules = (graph.model.model.diffusion_model, graph.clip.cond_stage_model)
    assert all(weight.grad is None for module in modules for weight in module.parameters())
    assert not any("forward" in vars(layer) for module in modules for layer in module.modules())
    assert torch.equal(graph.sample(graph.plain()), plain)
    assert torch.equal(graph.learned(**spared), expected)


def test_a_model_without_gradients_is_named(graph: Graph) -> None:
    def cut(executor: Any, *rest: Any, **named: Any) -> Tensor:
        return executor(*rest, **named).detach()

    model = graph.model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cut", cut)
    with pytest.raises(ValueError, match="passes no gradient on"):
        graph.learned(
            model,
            {"sampler_name": "euler"},
            steps=Steps(0.0, 0.1),
            objective=OBJECTIVES["diversity"],
            optimiser="gradient",
        )

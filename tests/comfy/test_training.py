"""Training: a loop that learns, resumes as if it had never stopped, and names a failure; and what it is shown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy.model_sampling import ModelSamplingDiscrete
from comfyui_diversity.demo.loader import VAE_FILE, WEIGHTS
from comfyui_diversity.demo.training import (
    distil,
    loop,
    own_steps,
    pairs,
    rare_words,
    turbo_base_own,
    turbo_rare,
    turbo_targets,
    vae,
)
from comfyui_diversity.demo.training.crisp import on_policy_loss
from comfyui_diversity.demo.training.distil import captions_of_pairs
from comfyui_diversity.demo.training.places import evenly_stated_scene
from comfyui_diversity.demo.training.redraw import Redrawn
from comfyui_diversity.demo.world.attributes import OBJECTS, VALUES, Scene, distribution
from comfyui_diversity.demo.world.captions import stated_in
from comfyui_diversity.demo.world.draw import FILLS, draw
from safetensors.torch import load_file
from torch import Tensor, nn

SCHEDULE = loop.Schedule(steps=40, rate=0.05, warmup=5)


def line_loss(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
    """Fit y = 2 x - 1 from random points."""
    x = torch.from_numpy(rng.standard_normal((16, 1), np.float32))
    return (model(x) - (2 * x - 1)).square().mean()


def fresh_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def test_it_learns(tmp_path: Path) -> None:
    model = loop.train("line", fresh_model(), line_loss, loop.Schedule(400, 0.05, 5, average=0.9), tmp_path, seed=1)
    assert model.weight.item() == pytest.approx(2, abs=0.05)
    assert model.bias.item() == pytest.approx(-1, abs=0.05)


def test_a_stopped_run_ends_like_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0)
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole = loop.train("line", fresh_model(), line_loss, SCHEDULE, tmp_path / "whole", seed=1)

    def interrupted(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        if step == 17:
            raise KeyboardInterrupt
        return line_loss(model, step, rng)

    with pytest.raises(KeyboardInterrupt):
        loop.train("line", fresh_model(), interrupted, SCHEDULE, tmp_path / "stopped", seed=1)
    resumed = loop.train("line", fresh_model(), line_loss, SCHEDULE, tmp_path / "stopped", seed=1)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = loop.train("line", fresh_model(), line_loss, SCHEDULE, tmp_path, seed=1)

    def never(*_: object) -> Tensor:
        raise AssertionError("a finished training ran a step")

    again = loop.train("line", fresh_model(), never, SCHEDULE, tmp_path, seed=1)
    assert torch.equal(first.weight, again.weight)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    def broken(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        return sum(weight.sum() for weight in model.parameters()) * torch.tensor(float("nan"))

    with pytest.raises(SystemExit, match=r"the loss became nan at step 0"):
        loop.train("line", fresh_model(), broken, SCHEDULE, tmp_path, seed=1)


def test_the_rate_warms_up_and_falls() -> None:
    rates = [SCHEDULE.rate_at(step) for step in range(SCHEDULE.steps + 1)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(SCHEDULE.rate)
    assert rates[-1] == pytest.approx(0.01 * SCHEDULE.rate)


def test_stated_attributes_are_drawn_evenly_and_the_others_as_the_world_draws_them() -> None:
    rng = np.random.default_rng(3)
    tables = {name: distribution("colour", name) for name in OBJECTS}
    usual = {name: max(table, key=table.__getitem__) for name, table in tables.items()}
    drawn: dict[bool, list[bool]] = {True: [], False: []}  # whether it has the usual colour of its kind
    for _ in range(1_500):
        scene, stated = evenly_stated_scene(rng)
        drawn["colour" in stated].append(scene.colour == usual[scene.object])
    assert np.mean(drawn[True]) == pytest.approx(1 / 8, abs=0.04)
    assert np.mean(drawn[False]) == pytest.approx(tables["heart"][usual["heart"]], abs=0.05)


def test_half_of_the_captions_to_distil_have_rare_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "PAIRS", 1_000)
    captions = captions_of_pairs()
    assert captions == captions_of_pairs()
    assert len(captions) == 1_000
    assert all(any(name in text for name in OBJECTS) for text in captions)
    green_hearts = [sum("green heart" in text for text in captions[part::2]) for part in (0, 1)]
    assert green_hearts[0] < green_hearts[1]


def test_what_is_broken_is_drawn_again_as_it_was_meant() -> None:
    scenes = [
        Scene(object="heart", colour="red", size="large", place="left", background="white"),
        Scene(object="star", colour="green", size="medium", place="top", background="navy"),
        Scene(object="fish", colour="pink", size="large", place="centre", background="mint"),
    ]
    whole = np.stack([draw(scene, np.random.default_rng(k)) for k, scene in enumerate(scenes)])
    broken = whole.copy()
    broken[0, 58:74, 30:46] = FILLS["pink"]  # another colour in the middle
    broken[1, :, 86:] = whole[1, :, :1]  # a point is missing
    broken[2, 60:68, 50:58] = whole[2, :1, :1]  # a hole
    captions = ["a large red heart", "a green star at the top", ""]
    drawn = Redrawn().drawings(broken, captions)
    before = np.abs(broken.astype(float) - whole).mean((1, 2, 3))
    after = np.abs(drawn.astype(float) - whole).mean((1, 2, 3))
    assert (after < 0.5).all()
    assert (after < before).all()


def test_what_a_caption_states_is_drawn_whatever_was_made() -> None:
    scene = Scene(object="house", colour="orange", size="medium", place="bottom", background="peach")
    other = Scene(object="house", colour="teal", size="medium", place="bottom", background="navy")
    image = draw(scene, np.random.default_rng(0))
    drawn = Redrawn().drawings(image[None], ["a teal house on a navy background"])
    expected = draw(other, np.random.default_rng(0))
    assert np.abs(drawn[0].astype(float) - expected).mean() < 9


def test_latents_are_those_of_the_drawing() -> None:
    scene = Scene(object="heart", colour="red", size="large", place="centre", background="white")
    autoencoder = vae.build().eval()
    autoencoder.load_state_dict(load_file(WEIGHTS / VAE_FILE))
    with torch.no_grad():
        image = torch.from_numpy(draw(scene, np.random.default_rng(0)).copy()).permute(2, 0, 1)[None] / 255
        latents = autoencoder.taesd_encoder(image)
        again = autoencoder.taesd_decoder(Redrawn()(latents, ["a heart"]))
    assert (again.clamp(0, 1) - image).abs().mean() < 0.02


def test_a_model_that_leads_to_the_image_by_itself_has_no_loss_along_its_own_steps() -> None:
    clean, noise = torch.randn(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0)).unbind()

    class Exact(torch.nn.Module):
        shift = 0.0

        def forward(self, x: torch.Tensor, times: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
            return (x - clean) / (times / 1000).view(-1, 1, 1, 1) + self.shift

    model, none = Exact(), torch.zeros(3, 20, 4)
    for seed in range(5):
        assert on_policy_loss(model, clean, noise, none, none[:, 0], np.random.default_rng(seed)) < 1e-9
    model.shift = 0.5  # wherever its steps have led, it is wrong by as much
    losses = [on_policy_loss(model, clean, noise, none, none[:, 0], np.random.default_rng(k)).item() for k in range(20)]
    assert max(losses) == pytest.approx(0.25)  # at the first step
    assert min(losses) < 0.1  # at later ones, where less is left to do


class Encoded:
    """A caption's pooled vector is what its image is made of."""

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        pooled = torch.tensor([[float(text or 0)] for text in captions])
        return pooled[:, :, None].expand(-1, 77, 4), pooled


class ExactVelocity(torch.nn.Module):
    def forward(self, x: Tensor, times: Tensor, context: Tensor, y: Tensor) -> Tensor:
        return (x - context[:, 0, 0].view(-1, 1, 1, 1)) / (times / 1000).view(-1, 1, 1, 1)


class ExactNoise(torch.nn.Module):
    def forward(self, x: Tensor, times: Tensor, context: Tensor) -> Tensor:
        # The model is told the nearest of a thousand times; the level meant is the one with that time.
        levels = torch.tensor(own_steps.Unet.sigmas[:-1])
        known = ModelSamplingDiscrete().timestep(levels).float()
        sigma = levels[(known[None] - times[:, None]).abs().argmin(1)].view(-1, 1, 1, 1)
        return (x * (1 + sigma**2).sqrt() - context[:, 0, 0].view(-1, 1, 1, 1)) / sigma


@pytest.mark.parametrize(("kind", "exact"), [(own_steps.Mmdit, ExactVelocity), (own_steps.Unet, ExactNoise)])
def test_own_sampling_is_followed_with_and_without_guidance(
    kind: type[own_steps.Kind], exact: type[torch.nn.Module]
) -> None:
    noise = torch.randn(3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    cfg, of = torch.tensor([1.0, 3.0, 1.5]), kind()
    states, made = own_steps.followed(of, exact(), noise, ["1", "2", "4"], Encoded(), cfg)
    assert states.shape == (3, own_steps.STEPS - of.first, 16, 16, 16)
    # Straight lines from the start to what is asked for, which guidance multiplies: the empty caption asks for 0.
    ends = (torch.tensor([1.0, 2.0, 4.0]) * cfg).view(-1, 1, 1, 1)
    torch.testing.assert_close(made, ends.expand_as(made), atol=1e-4, rtol=0)
    for k, sigma in enumerate(of.sigmas[of.first : own_steps.STEPS]):
        left = sigma / of.sigmas[0]
        torch.testing.assert_close(states[:, k], left * of.start(noise) + (1 - left) * ends, atol=1e-4, rtol=0)


class ExactNextDiT(torch.nn.Module):
    """An image is made of its context's first number, with the velocity that leads straight there."""

    off = 0.0

    def forward(self, x: Tensor, times: Tensor, context: Tensor, num_tokens: int) -> Tensor:
        assert num_tokens == context.shape[1]
        return (x - context[:, 0, 0].view(-1, 1, 1, 1) + self.off) / times.view(-1, 1, 1, 1)


def test_the_base_models_own_sampling_is_followed_and_learned_from() -> None:
    noise = torch.randn(3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    context = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1).expand(-1, 5, 2)
    cfg, empty, model = torch.tensor([1.0, 3.0, 1.5]), torch.zeros(2, 2), ExactNextDiT()
    states, made = turbo_base_own.followed(model, noise, context, empty, cfg)
    ends = (torch.tensor([1.0, 2.0, 4.0]) * cfg).view(-1, 1, 1, 1)
    torch.testing.assert_close(made, ends.expand_as(made), atol=1e-4, rtol=0)
    for k, sigma in enumerate(turbo_base_own.SIGMAS[turbo_base_own.FIRST : turbo_base_own.STEPS]):
        torch.testing.assert_close(states[:, k], sigma * noise + (1 - sigma) * ends, atol=1e-4, rtol=0)
    cleans = torch.tensor([1.0, 2.0, 4.0]).view(-1, 1, 1, 1).expand_as(noise)
    assert turbo_base_own.own_loss(model, states, cleans, context, np.random.default_rng(0)) < 1e-9
    model.off = 0.5  # wherever its steps have led, its image is as far off
    losses = [turbo_base_own.own_loss(model, states, cleans, context, np.random.default_rng(k)) for k in range(5)]
    torch.testing.assert_close(torch.stack(losses), torch.full((5,), 0.25))


def test_each_round_of_the_base_models_runs_has_captions_and_noises_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, object]] = []

    def noted(path: Path, count: int, chunk: int, seed: int, teacher: object) -> dict[str, Tensor]:
        asked.append({"path": path, "count": count, "seed": seed})
        return dict.fromkeys(("noise", "states", "clean", "error"), torch.zeros(count))

    monkeypatch.setattr(turbo_base_own, "made_pairs", noted)
    first, second = turbo_base_own.make_runs(Path()), turbo_base_own.make_runs_again(Path())
    assert [one["count"] for one in asked] == [len(first.captions), len(second.captions)]
    assert asked[0]["path"] != asked[1]["path"]
    assert asked[0]["seed"] != asked[1]["seed"]
    for runs in (first, second):
        lengths = [len(text.split()) for text in runs.captions]
        assert lengths == sorted(lengths)
        assert runs.captions.count("") == -(-len(runs.captions) // own_steps.EMPTY_RUNS)
    assert first.captions[500:600] != second.captions[500:600]


def test_pairs_that_were_stopped_are_those_that_were_not(tmp_path: Path) -> None:
    chunks: list[int] = []

    def teacher(stop: int = 99) -> pairs.Make:
        def make(noise: Tensor, own: slice) -> dict[str, Tensor]:
            if len(chunks) == stop:
                raise KeyboardInterrupt
            chunks.append(own.start)
            return {"clean": 2 * noise.half(), "good": noise.mean((1, 2, 3)) > 0}

        return make

    whole = pairs.made_pairs(tmp_path / "whole.safetensors", 21, 2, 5, teacher)
    assert torch.equal(whole["clean"], 2 * whole["noise"])
    assert len(whole["good"]) == 21
    path = tmp_path / "stopped.safetensors"
    chunks.clear()
    with pytest.raises(KeyboardInterrupt):
        pairs.made_pairs(path, 21, 2, 5, lambda: teacher(9))
    assert not path.exists()
    chunks.clear()
    found = pairs.made_pairs(path, 21, 2, 5, teacher)
    assert chunks == [16, 18, 20]  # from the eighth chunk on
    assert all(torch.equal(found[name], whole[name]) for name in ("noise", "clean", "good"))
    assert pairs.made_pairs(path, 21, 2, 5, lambda: pytest.fail("made twice")).keys() == found.keys()


def test_what_was_drawn_worst_counts_three_times() -> None:
    error = torch.tensor([0.2, 0.9, 0.1, 0.5, 0.8, 0.3])
    drawn = turbo_rare.Rare(list("abcdef"), torch.arange(6.0), torch.arange(6.0) + 10, error)
    parts = pairs.with_the_worst_again(drawn)
    assert [part.captions for part in parts] == [list("abcdef"), ["b", "e"], ["b", "e"]]
    assert torch.cat([part.cleans for part in parts[1:]]).tolist() == [11, 14, 11, 14]
    count = rare_words.RUNS
    runs = own_steps.Runs([str(k) for k in range(count)], *(torch.arange(float(count)) for _ in range(4)))
    whole, *again = pairs.with_the_worst_again(runs)
    assert whole is runs
    assert len(again) == 2
    for part in again:
        assert min(part.error) == count - count // 3  # the error rises with the run's number
        assert part.captions == [str(int(k)) for k in part.states]


def test_rare_words_are_as_common_as_common_ones() -> None:
    captions = rare_words.captions_of_rare_runs(7)
    assert captions == rare_words.captions_of_rare_runs(7)
    assert captions.count("") >= rare_words.RUNS // own_steps.EMPTY_RUNS
    shares = {}
    for name, texts in (("rare", captions), ("own steps", own_steps.captions_of_runs(7, rare_words.RUNS))):
        colours = [found["colour"] for text in texts if text and "colour" in (found := stated_in(text))]
        shares[name] = min(Counter(colours).values()) / len(colours)
    even = 1 / len(VALUES["colour"])
    assert 0.6 * even < shares["rare"] < even
    assert shares["own steps"] < shares["rare"]


def test_each_round_of_rare_runs_has_captions_and_noises_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(rare_words, "made_runs", lambda path, kind, captions, seed, cfgs: asked.append(locals()))
    for kind in (own_steps.Mmdit(), own_steps.Unet()):
        rare_words.make_rare_runs(Path(), kind)
        rare_words.make_more_rare_runs(Path(), kind)
    assert len({one["path"] for one in asked}) == len({one["seed"] for one in asked}) == len(asked)
    assert [len(one["captions"]) for one in asked] == [rare_words.RUNS, rare_words.MORE_RUNS] * 2
    for k, one in enumerate(asked):
        assert all(one["captions"][:50] != other["captions"][:50] for other in asked[:k])
        assert one["cfgs"] == own_steps.CFGS


def test_the_few_step_model_is_followed_from_its_noise_on() -> None:
    noise = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    kind = rare_words.Distilled()
    states, made = own_steps.followed(kind, ExactVelocity(), noise, ["1", "2"], Encoded(), torch.ones(2))
    assert states.shape == (2, 4, 16, 16, 16)
    assert torch.equal(states[:, 0], noise)
    torch.testing.assert_close(made, torch.tensor([1.0, 2.0]).view(-1, 1, 1, 1).expand_as(made), atol=1e-4, rtol=0)


def test_lessons_of_a_guided_run_are_the_models_own_velocities_at_the_states_of_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = [str(k + 1) for k in range(12)]
    monkeypatch.setattr(turbo_targets, "_CHUNK", 2)
    monkeypatch.setattr(turbo_targets, "_teacher", ExactVelocity)
    monkeypatch.setattr(turbo_targets, "Conditionings", Encoded)
    monkeypatch.setattr(turbo_targets, "captions_of_runs", lambda seed, count: captions)
    found = turbo_targets.make_lessons(tmp_path / "lessons.safetensors", len(captions), 1, 2)
    # What the velocity leads to is what the caption asks for, whether guidance made the state or not.
    asked = torch.tensor([float(text or 0) for text in found.captions]).view(-1, 1, 1, 1)
    ends = found.states.float() - found.sigmas.view(-1, 1, 1, 1) * found.velocities.float()
    torch.testing.assert_close(ends, asked.expand_as(ends), atol=0.03, rtol=0)
    steps = turbo_targets.STEPS
    of = [torch.tensor([text == one for text in found.captions]) for one in captions]
    assert [int(own.sum()) for own in of] == [steps] * len(captions)
    # Half-way down, a run is on the straight line to its own end: the caption's, or that many times CFG.
    for k, own in enumerate(of):
        chunk = k // 2
        cfg = turbo_targets.CFGS[chunk // turbo_targets.GUIDED % 2] if chunk % turbo_targets.GUIDED == 0 else 1.0
        low = found.sigmas[own].argmin()
        sigma = found.sigmas[own][low]
        noise = found.states[own][0].float()
        line = sigma * noise + (1 - sigma) * cfg * float(captions[k])
        torch.testing.assert_close(found.states[own][low].float(), line, atol=0.05, rtol=0)
    assert "" in found.captions  # the empty prompt of guided runs, now and then


def test_lessons_that_were_stopped_are_those_that_were_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turbo_targets, "_CHUNK", 1)
    monkeypatch.setattr(turbo_targets, "Conditionings", Encoded)
    monkeypatch.setattr(turbo_targets, "captions_of_runs", lambda seed, count: [str(k) for k in range(count)])
    calls: list[int] = []

    class Stopped(ExactVelocity):
        def forward(self, x: Tensor, times: Tensor, context: Tensor, y: Tensor) -> Tensor:
            calls.append(len(calls))
            if len(calls) == 150:  # in the tenth chunk or later
                raise KeyboardInterrupt
            return super().forward(x, times, context, y)

    monkeypatch.setattr(turbo_targets, "_teacher", ExactVelocity)
    whole = turbo_targets.make_lessons(tmp_path / "whole.safetensors", 12, 1, 2)
    monkeypatch.setattr(turbo_targets, "_teacher", Stopped)
    path = tmp_path / "stopped.safetensors"
    with pytest.raises(KeyboardInterrupt):
        turbo_targets.make_lessons(path, 12, 1, 2)
    assert not path.exists()
    monkeypatch.setattr(turbo_targets, "_teacher", ExactVelocity)
    found = turbo_targets.make_lessons(path, 12, 1, 2)
    assert found.captions == whole.captions
    for name in ("states", "sigmas", "velocities"):
        assert torch.equal(getattr(found, name), getattr(whole, name))


def test_the_second_lessons_have_captions_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(turbo_targets, "make_lessons", lambda *given: asked.append(given))
    turbo_targets.make_targets(Path())
    turbo_targets.make_more_targets(Path())
    (first, *_, seed), (second, *_, other) = asked
    assert first != second
    assert seed != other
    texts = [turbo_targets.captions_of_runs(one[2], 40) for one in asked]
    assert texts[0] != texts[1]
    assert texts[0] == turbo_targets.captions_of_runs(asked[0][2], 40)

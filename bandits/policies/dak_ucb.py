"""DAK-UCB (arXiv 2603.23140): per prompt, the arm that is good *and* keeps what is served diverse; one arm, or a mixture of arms.

    after each outcome   psi_h = label of the answer against the history of arm h, before the answer joins its own arm's
    one factor per arm   s_hat, D_hat_h = kernel ridge regressions of reward and labels on the prompt; sigma = their common width

    single    play argmax  s_hat + exploration sigma + diversity_weight (diversity_exploration sigma - D_hat_gg)
    mixture   play arm ~ w,  w = argmax <w, s_hat + exploration sigma> - diversity_weight w' PSD((D_hat + D_hat') / 2) w

D_hat is a penalty: I-JRKE (`rke`, low = spread out) or JKD (`jkd`, low = like the references). See `functional.joint_diversity`.
With diversity_weight 0 the picks are PAK-UCB's. The state depends on the order of the log: labels look back, and stay as made.
By default prompts and labels both go through random features, so that an arm keeps sums of constant size; exact prompts or exact
labels keep what they are computed from, up to `max_samples`.

Departures from the released code: it subtracts sqrt(1e-4 / n) inside frozen labels and has no width for D, here the paper's bonus
acts at the decision; its labels are sums in the first-visit branch, here every label is a mean, 0 for an empty history; its
single mode samples from a solver's near-vertex, here that is an argmax, ties to the lowest index; its mixture matrix is not
projected, so that the problem may have several optima. From the paper: the mixture has no optimism on D, because the best
mixture visits the arms that matter anyway (arXiv 2603.21716, of the same group, measures that optimism slows such mixtures).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bandits import draw, signals
from bandits.diversity.history import ExactHistory, SummedHistory
from bandits.diversity.statistics import DiversityArm, ReferencePairs
from bandits.errors import InvalidHyperparameter, InvalidObservation
from bandits.functional import kernels
from bandits.functional.simplex import minimize_quadratic, nearest_psd
from bandits.hyperparameters import (
    drift_field,
    exploration_floor_field,
    forget_half_life_field,
    hyper,
    initial_pulls_field,
    normalize_field,
    prior_mean_field,
    ridge_field,
    unit_scale,
)
from bandits.regression.kernel import KernelArm
from bandits.regression.model import CachedFeatureMap, Regression, as_float64, check_direction, feature_map, stacked
from bandits.regression.ridge import RidgeArm
from bandits.regression.row_widths import RowWidths, in_order
from bandits.types import Amendment, ArmState, Choose, Context, Need, NoReference, Observation, Policy, State, Weights


@dataclass(frozen=True, kw_only=True)
class DakUcb(Policy):
    """Diversity-aware kernelized UCB, single or mixture."""

    kind: ClassVar[str] = "dak-ucb"
    needs: ClassVar[frozenset[Need]] = frozenset({"features", "reward", "output"})
    weighs_signals: ClassVar[bool] = True
    reference_when: ClassVar[str] = "diversity jkd: `reference` beside each output, or pairs posted beforehand"
    summary: ClassVar[str] = (
        "Per prompt, the arm with the highest optimistic reward and diversity of outputs; or a mixture of arms."
    )

    diversity: Literal["rke", "jkd"] = hyper(
        "rke",
        "rke: outputs for one kind of prompt should differ. jkd: they should spread like real outputs, sent as `reference` with "
        "each outcome or posted as pairs beforehand.",
        source="DAK-UCB",
    )
    diversity_weight: float = hyper(
        1.0,
        "lambda: what one unit of the diversity penalty costs in reward; 0 = PAK-UCB. The penalty shrinks when prompts differ "
        "widely (see normalise_labels).",
        at_least=0,
        source="DAK-UCB",
    )
    exploration: float = hyper(
        0.3,
        "Multiplier eta of the width, for the reward.",
        at_least=0,
        source="DAK-UCB, beta_s; the default: docs/defaults.md",
        live=True,
    )
    diversity_exploration: float = hyper(
        0.3,
        "Multiplier of the width, for diversity. The mixture has none.",
        at_least=0,
        source="DAK-UCB, beta_D; the default: docs/defaults.md",
        live=True,
    )
    mixture: bool = hyper(
        False, "Draw from the best mixture of arms (an exact quadratic programme) instead of playing the best arm."
    )
    normalise_labels: bool = hyper(
        False, "Divide labels by the prompt kernel's sum: the weight then means the same for narrow and for wide sets of prompts."
    )
    prompt_bandwidth: float = hyper(
        1.0, "sigma of the rbf kernel on prompts.", above=0, unit="length of the (normalised) embedding", source="DAK-UCB"
    )
    output_bandwidth: float | None = hyper(
        None,
        "sigma of the rbf kernel on outputs: about the median distance between two outputs. It has no default.",
        above=0,
        unit="length of the output embedding",
        source="DAK-UCB",
    )
    label_features: int | None = hyper(
        2048,
        "Number D of random frequencies behind the labels: each is within sqrt(2 ln(2/delta) / D) of the exact label (jkd: 4 "
        "times that) with probability 1 - delta, and memory does not depend on the rounds. null = exact labels, against the "
        "last max_samples outputs of an arm.",
        at_least=1,
        at_most=65_536,
        source="DAK-UCB",
    )
    ridge: float = ridge_field("Regulariser alpha.", source="DAK-UCB")
    prior_mean: float = prior_mean_field()
    random_features: int | None = hyper(
        128,
        "Number of random frequencies of the prompt kernel (memory independent of the rounds); null = exact kernel.",
        at_least=1,
        at_most=8192,
        source="RFF-UCB",
    )
    normalize: bool = normalize_field()
    initial_pulls: int = initial_pulls_field()
    exploration_floor: float = exploration_floor_field()
    max_samples: int = hyper(
        2000,
        "Exact forms only: observations (exact prompt kernel) and outputs (exact labels) kept per arm; beyond it the oldest "
        "quarter is forgotten. Also the most reference pairs that can be posted.",
        at_least=4,
        at_most=20_000,
    )
    drift: Literal["off", "detect"] = drift_field()
    forget_half_life: int | None = forget_half_life_field()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_bandwidth is None:
            raise InvalidHyperparameter(
                "output_bandwidth",
                "must be set, it depends on the output embedding: take about the median distance between the outputs of two "
                "prompts (0.5 to 1.5 for vectors of length one), less to tell close outputs apart",
            )

    # -- what it computes with ---------------------------------------------------------------------------------------------

    @cached_property
    def frequencies(self) -> Tensor:
        """(D, d) random frequencies of the prompt kernel; (0, d) with an exact kernel."""
        return kernels.frequencies(seed=self.seed, count=self.random_features or 0, dim=self.dim, bandwidth=self.prompt_bandwidth)

    @cached_property
    def joint_frequencies(self) -> Tensor:
        """(D, d + e) random frequencies of the joint kernel, of another seed; (0, d + e) with exact labels."""
        count, dim = self.label_features or 0, self.dim + self.output_dim
        return kernels.frequencies(seed=self.seed + 1, count=count, dim=dim, bandwidth=1.0)

    @cached_property
    def fingerprint(self) -> str:
        if self.random_features is None and self.label_features is None:
            return ""
        return kernels.fingerprint(torch.cat([self.frequencies.flatten(), self.joint_frequencies.flatten()]))

    def feature_map(self, x: Tensor) -> Tensor:
        """(..., p) what the regressions see of (..., d): the random features, or the vector itself for an exact kernel."""
        return feature_map(x, normalize=self.normalize, frequencies=self.frequencies)

    def k(self, x: Tensor, y: Tensor) -> Tensor:
        """(n, m) exact kernel matrix of prompts."""
        return kernels.gaussian(x, y, bandwidth=self.prompt_bandwidth)

    @cached_property
    def regression(self) -> Regression:
        """Exact kernel or random features, as in PAK-UCB."""
        if self.random_features is None:
            return Regression(
                feature_map=self.feature_map, size=self.dim, kernel=self.k, ridge=self.ridge, max_samples=self.max_samples
            )
        size = 2 * self.random_features
        return Regression(feature_map=CachedFeatureMap(self.feature_map, size=size), size=size, ridge=self.ridge)

    @property
    def grown_arm_bytes(self) -> int:
        return len(self.signals) * self.regression.grown_bytes

    @property
    def drops_outcomes(self) -> bool:
        return super().drops_outcomes or self.regression.kernel is not None

    @cached_property
    def history(self) -> ExactHistory | SummedHistory:
        """Where labels come from."""
        assert self.output_bandwidth is not None
        settings: dict[str, Any] = {
            "diversity": self.diversity,
            "dim": self.dim,
            "output_dim": self.output_dim,
            "prompt_bandwidth": self.prompt_bandwidth,
            "output_bandwidth": self.output_bandwidth,
            "normalize": self.normalise_labels,
        }
        if self.label_features is None:
            return ExactHistory(max_samples=self.max_samples, **settings)
        return SummedHistory(w=self.joint_frequencies, **settings)

    # -- what it refuses ---------------------------------------------------------------------------------------------------

    def check_context(self, context: Context) -> None:
        check_direction(context.features, normalize=self.normalize)

    def check_observation(self, seen: Observation, *, state: State | None = None) -> None:
        """Without the state it cannot know of posted pairs and asks for a reference each time: what passes can be folded."""
        if not len(seen.output):
            raise InvalidObservation("output", "is missing; send what the model returned: diversity is measured on outputs")
        if self.diversity != "jkd":
            return
        if not len(seen.reference):
            if state is None or not len(state.reference.prompts):
                raise InvalidObservation(
                    "reference",
                    "is missing: diversity 'jkd' compares with the real output for the prompt; send `reference` beside `output`, "
                    "or post reference pairs (prompt and output) first",
                )
        elif len(seen.reference) not in (1, len(seen.output)):
            raise InvalidObservation(
                "reference", f"has {len(seen.reference)} rows; send one, or one per output ({len(seen.output)})"
            )

    def check_reference(self, state: State, seen: Observation) -> None:
        if self.diversity != "jkd":
            raise InvalidObservation("pairs", "only diversity 'jkd' compares with references")
        if seen.moments is not None or seen.features.ndim != 2 or len(seen.features) != len(seen.output) or not len(seen.output):
            raise InvalidObservation("pairs", "send pairs: one prompt and one real output each")
        if seen.features.shape[1] != self.dim or seen.output.shape[1] != self.output_dim:
            raise InvalidObservation("pairs", f"a prompt has {self.dim} numbers and an output {self.output_dim}")
        if self.normalize and not bool(seen.features.any(dim=1).all()):
            raise InvalidObservation("pairs", "a prompt vector of zeros cannot be scaled to length one")
        if len(state.reference.prompts) + len(seen.features) > self.max_samples:
            raise InvalidObservation("pairs", f"at most {self.max_samples} pairs are kept; raise max_samples, or post fewer")

    # -- protocol ----------------------------------------------------------------------------------------------------------

    def init(self) -> ArmState:
        return signals.init(lambda k: self.regression.init() if k else self._init_diversity(), len(self.signals))

    def _init_diversity(self) -> DiversityArm:
        """Of the reward and the labels; other signals have a regression alone."""
        served, spread = self.history.init()
        return DiversityArm.init(self.regression, served=served, spread=spread)

    def init_reference(self) -> ReferencePairs | NoReference:
        return ReferencePairs.init(self.dim, self.output_dim) if self.diversity == "jkd" else NoReference()

    def update(self, state: State, seen: Observation) -> ArmState:
        prompt = as_float64(seen.features, normalize=self.normalize)
        rows = self.history.rows(prompt, seen.output, self._reference(state, seen, prompt))

        def learn(k: int, arm: ArmState, value: float) -> ArmState:
            if k:
                return self.regression.update(
                    arm, seen.features, value, was_pending=seen.was_pending, offset=seen.offset, layout=state.layout
                )
            # the label against its own arm; a mixture needs those against all arms (Proposition 1)
            labels, grown = self.history.update(arm, rows, against=_diverse(state.arms) if self.mixture else (arm,))
            target = value - self.prior_mean
            return grown.update(
                seen.features,
                target,
                labels,
                using=self.regression,
                was_pending=seen.was_pending,
                offset=seen.offset,
                layout=state.layout,
            )

        def lack(arm: ArmState) -> ArmState:
            return self._remove_pending(arm, seen.features) if seen.was_pending else arm

        return signals.update(state.arms[seen.arm], seen, learn, lack=lack)

    def amend_arm(self, state: State, change: Amendment) -> ArmState:
        """A reward is never missing here: without it there is no label."""

        def learn(k: int, arm: ArmState, value: float) -> ArmState:
            return self.regression.update(
                arm, change.features, value, was_pending=False, offset=change.offset, layout=state.layout
            )

        def correct(k: int, arm: ArmState, old: float, new: float) -> ArmState:
            if k:
                return self.regression.correct(arm, change.features, old, new, learned=change.learned[k])
            targets = old - self.prior_mean, new - self.prior_mean
            corrected: DiversityArm = arm.correct(change.features, *targets, using=self.regression, learned=change.learned[0])
            return corrected

        return signals.amend(state.arms[change.arm], change, learn=learn, correct=correct)

    def _reference(self, state: State, seen: Observation, prompt: Tensor) -> Tensor:
        """(s, e) or (1, e) real outputs for this prompt: posted with the outcome, else of the nearest posted prompt."""
        self.check_observation(seen, state=state)
        if self.diversity != "jkd" or len(seen.reference):
            return seen.reference
        nearest: Tensor = state.reference.nearest(prompt)
        return nearest

    def update_reference(self, state: State, seen: Observation) -> ArmState:
        prompts = as_float64(seen.features, normalize=self.normalize)
        return state.reference.append(prompts, seen.output.to(torch.float64), max_samples=self.max_samples)

    def prepare(self, state: State) -> State:
        for arm in _diverse(state.arms):
            arm.solved(self.regression)
        for k in range(1, len(self.signals)):
            self.regression.derive(signals.part(state.arms, k))
        return state

    def add_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        def add(one: ArmState) -> ArmState:
            if isinstance(one, DiversityArm):
                return one.add_pending(features, using=self.regression)
            return self.regression.add_pending(one, features)

        return signals.change(arm, add)

    def remove_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        return signals.change(arm, lambda one: self._remove_pending(one, features))

    def _remove_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        if isinstance(arm, DiversityArm):
            return arm.remove_pending(features, using=self.regression)
        return self.regression.remove_pending(arm, features)

    def carry_pending(self, old: ArmState, new: ArmState) -> ArmState:
        def carry(one: ArmState, other: ArmState) -> ArmState:
            if isinstance(one, DiversityArm):
                return other.with_pending_of(one, using=self.regression)
            return self.regression.carry_pending(one, other)

        return signals.merge(carry, old, new)

    def surprise(self, state: State, seen: Observation) -> float | None:
        arm = self._fitted([state.arms[seen.arm]], 0)[0]
        return self.regression.surprise(arm, seen.features, seen.reward - self.prior_mean)

    def pack_derived(self, state: State) -> bytes:
        return self.regression.pack_offsets(self._regressions((*state.arms, *state.recent)))

    def unpack_derived(self, state: State, data: bytes) -> State:
        found = iter(self.regression.unpack_offsets(self._regressions((*state.arms, *state.recent)), data))

        def restored(one: ArmState) -> ArmState:
            return replace(one, regression=next(found)) if isinstance(one, DiversityArm) else next(found)

        arms, recent = (tuple(signals.change(arm, restored) for arm in some) for some in (state.arms, state.recent))
        return replace(state, arms=arms, recent=recent)

    def _regressions(self, arms: Sequence[ArmState]) -> list[RidgeArm | KernelArm]:
        """Of every signal, arm by arm."""
        every = [one for arm in arms for one in signals.parts(arm)]
        return [one.fitted(self.regression) if isinstance(one, DiversityArm) else one for one in every]

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        means, widths, expected = self._score(state, self.regression.feature_map(stacked(contexts)))
        return self._choice([arm.pulls for arm in state.arms], contexts, means, widths, expected)

    def weights_in_order(self, state: State, contexts: Sequence[Context], choose: Choose) -> Weights:
        z = self.regression.feature_map(stacked(contexts))
        means, widths, expected = self._score(state, z)

        def narrowing(signal: int, width: Tensor) -> RowWidths:
            return RowWidths(
                width, lambda arm: self.regression.covariances(self._fitted(state.arms[arm : arm + 1], signal)[0], z)
            )

        return in_order(
            contexts,
            pulls=[arm.pulls for arm in state.arms],
            widths=[narrowing(signal, width) for signal, width in enumerate(widths)],
            rule=lambda pulls, some, rows, narrowed: self._choice(
                pulls, some, [mean[rows] for mean in means], narrowed, expected[rows]
            ),
            choose=choose,
        )

    def _fitted(self, arms: Sequence[ArmState], signal: int) -> list[RidgeArm | KernelArm]:
        """The regression of a signal, per arm."""
        return signals.part(arms, signal) if signal else [arm.fitted(self.regression) for arm in _diverse(arms)]

    def _score(self, state: State, z: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Per signal (B, K) means and (B, K) widths; and (B, K, 1) expected labels, in a mixture (B, K, K); of lifted prompts z
        (B, p).
        """
        scored = [self.regression.score(self._fitted(state.arms, k), z) for k in range(len(self.signals))]
        columns = len(state.arms) if self.mixture else 1
        labels = [arm.expected(z, using=self.regression, columns=columns) for arm in _diverse(state.arms)]
        means = [mean if k else mean + self.prior_mean for k, (mean, _) in enumerate(scored)]
        return means, [width for _, width in scored], torch.stack(labels, dim=1)

    def _choice(
        self, pulls: Sequence[int], contexts: Sequence[Context], means: list[Tensor], widths: list[Tensor], expected: Tensor
    ) -> Weights:
        mean, width = signals.weigh(contexts, means, widths)
        bonus = self.exploration * width
        allowed = draw.allowed_mask(contexts)
        first = draw.burn_in_arms(pulls, contexts, self.initial_pulls)
        if self.mixture:
            penalty, extra = expected.diagonal(dim1=1, dim2=2), torch.zeros_like(mean)
            values, objective = self._mix(mean + bonus, expected, allowed, first)
        else:
            penalty, extra = expected[:, :, 0], self.diversity_exploration * widths[0]
            objective = mean + bonus + self.diversity_weight * (extra - penalty)
            values = draw.greedy_weights(objective, allowed)
        scores = {
            "estimate": mean,
            "bonus": bonus,
            "diversity_estimate": penalty,
            "diversity_bonus": extra,
            "objective": objective,
        } | signals.tables(self.signals, means)
        return Weights(draw.apply_burn_in_and_floor(values, first, allowed, floor=self.exploration_floor), scores)

    def _mix(self, worth: Tensor, cross: Tensor, allowed: Tensor, first: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(B, K) the best mixture of the allowed arms, and (B, K) the slope of the objective there: worth - 2 diversity_weight
        M w, equal for all arms that have weight. worth: (B, K).  cross: (B, K, K) D_hat.
        """
        if self.diversity_weight == 0.0:
            return draw.greedy_weights(worth, allowed), worth
        values, marginal = torch.zeros_like(worth), torch.full_like(worth, torch.nan)
        for row in range(len(worth)):
            if first[row] >= 0:
                continue  # a first pull, whatever the mixture
            arms = (allowed[row] & worth[row].isfinite() & cross[row].isfinite().all(dim=1)).nonzero()[:, 0]
            if not len(arms):
                values[row] = draw.uniform_over(allowed[row : row + 1])[0]
                continue
            linear = worth[row, arms].numpy()
            matrix = self.diversity_weight * nearest_psd(cross[row][arms][:, arms].numpy())
            mixed = minimize_quadratic(matrix, -linear).weights
            values[row, arms] = torch.from_numpy(mixed)
            marginal[row, arms] = torch.from_numpy(np.asarray(linear - 2.0 * matrix @ mixed))
        return values, marginal

    # -- what it tells -----------------------------------------------------------------------------------------------------

    @property
    def reward_scale(self) -> tuple[float, float] | None:
        return unit_scale(self.prior_mean)

    def arms_without_estimate(self, state: State) -> list[int]:
        def is_finite(arm: ArmState) -> bool:
            regressions = [self._fitted([arm], k)[0] for k in range(len(self.signals))]
            return all(map(self.regression.is_finite, regressions)) and bool(
                _diverse([arm])[0].solved(self.regression).isfinite().all()
            )

        return [index for index, arm in enumerate(state.arms) if not is_finite(arm)]

    def report(self, state: State) -> dict[str, Any]:
        """Diversity of what was served, per arm and pooled. Vendi scores have order 1; conditional_rke is the conditional Vendi
        score of order 2. `rows`: how many outputs the scores are of (exact labels: the newest).
        """
        return {
            "diversity": self.diversity,
            "diversity_weight": self.diversity_weight,
            "mixture": self.mixture,
            "label_features": self.label_features,
            "reference_pairs": len(state.reference.prompts) if self.diversity == "jkd" else 0,
            "pooled": dict(self.history.scores(_diverse(state.arms))),
            "arms": [dict(self.history.scores([arm])) for arm in _diverse(state.arms)],
        }


def _diverse(arms: Sequence[ArmState]) -> list[DiversityArm]:
    """The statistics of reward and labels."""
    return signals.part(arms, 0)

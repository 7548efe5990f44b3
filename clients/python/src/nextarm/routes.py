"""Every route of the service, described once: `Client`, `AsyncClient` and their `with_raw_response` have these methods.

A test compares this page with the service's OpenAPI document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar, Unpack

from nextarm import models
from nextarm._calls import Call, Route, content, new_id
from nextarm.bodies import (
    AmendmentBody,
    ArmChange,
    BanditBody,
    BanditChanges,
    DecisionBody,
    EvaluationBody,
    ImportRow,
    ModelChoice,
    OutcomeBody,
    OutcomeItem,
    ReferenceBody,
)
from nextarm.models import Model

M = TypeVar("M", bound=Model)

BANDIT = "/v1/bandits/{name}"
DECISION = BANDIT + "/decisions/{decision}"
SHADOW = BANDIT + "/shadows/{shadow}"
EVALUATION = BANDIT + "/evaluations/{evaluation}"


def _nothing(_: bytes) -> None:
    """The answer of a 204."""


def _lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


def _query(**values: object) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


class Routes:
    """The methods of a client, one per route."""

    # -- bandits ---------------------------------------------------------------------------------------------------------------

    @Route
    def list_policies(self) -> Call[models.Policies]:
        """Every policy, with the JSON schema of its hyperparameters."""
        return Call(method="GET", template="/v1/policies", answer=models.Policies.model_validate_json)

    @Route
    def create_bandit(self, bandit: str, **body: Unpack[BanditBody]) -> Call[models.Bandit]:
        """Create a bandit. The same body again is the same bandit, another one is a `ConflictError`."""
        return Call(method="PUT", template=BANDIT, values={"name": bandit}, body=body, answer=models.Bandit.model_validate_json)

    @Route
    def list_bandits(self, *, after: str = "", limit: int | None = None) -> Call[models.BanditPage]:
        """Every bandit in short, by name, a page at a time; `next` is the `after` of the next page."""
        query = _query(after=after, limit=limit)
        return Call(method="GET", template="/v1/bandits", query=query, answer=models.BanditPage.model_validate_json)

    @Route
    def show_bandit(self, bandit: str) -> Call[models.Bandit]:
        """Configuration, and what was learned."""
        return Call(method="GET", template=BANDIT, values={"name": bandit}, answer=models.Bandit.model_validate_json)

    @Route
    def change_bandit(
        self, bandit: str, *, if_offset: int | None = None, **changes: Unpack[BanditChanges]
    ) -> Call[models.Bandit]:
        """Change what can change while the bandit lives, all or nothing. if_offset: only if nothing was logged behind it."""
        return Call(
            method="PATCH",
            template=BANDIT,
            values={"name": bandit},
            headers={} if if_offset is None else {"if-match": str(if_offset)},
            body=changes,
            answer=models.Bandit.model_validate_json,
        )

    @Route
    def clone_bandit(self, bandit: str, *, name: str, policy: Mapping[str, Any], until: int | None = None) -> Call[models.Bandit]:
        """A new bandit that learns the log of this one under another policy; it decides when `cloning` is null."""
        return Call(
            method="POST",
            template=BANDIT + "/clone",
            values={"name": bandit},
            body={"name": name, "policy": policy, "until": until},
            answer=models.Bandit.model_validate_json,
        )

    @Route
    def delete_bandit(self, bandit: str) -> Call[None]:
        """Delete a bandit with its log; open decisions go too."""
        return Call(method="DELETE", template=BANDIT, values={"name": bandit}, answer=_nothing, is_gone_done=True)

    @Route
    def show_health(self, bandit: str) -> Call[models.BanditHealth]:
        """Checks of a bandit, each with its fix."""
        template, values = BANDIT + "/health", {"name": bandit}
        return Call(method="GET", template=template, values=values, answer=models.BanditHealth.model_validate_json)

    @Route
    def show_series(
        self, bandit: str, *, since: datetime | None = None, until: datetime | None = None, buckets: int | None = None
    ) -> Call[models.Series]:
        """What happened over time, per arm; since, until: with a time zone.  buckets: at most so many."""
        times = {name: None if at is None else at.isoformat() for name, at in (("since", since), ("until", until))}
        return Call(
            method="GET",
            template=BANDIT + "/series",
            values={"name": bandit},
            query=_query(**times, buckets=buckets),
            answer=models.Series.model_validate_json,
        )

    @Route
    def put_arm(self, bandit: str, arm: str, **change: Unpack[ArmChange]) -> Call[models.ArmReceipt]:
        """Add an arm, bring one back, or change price and metadata; what is left out stays as it is."""
        return Call(
            method="PUT",
            template=BANDIT + "/arms/{arm}",
            values={"name": bandit, "arm": arm},
            body=change,
            answer=models.ArmReceipt.model_validate_json,
        )

    @Route
    def retire_arm(self, bandit: str, arm: str) -> Call[None]:
        """Retire an arm: it is no longer chosen, its history stays."""
        template, values = BANDIT + "/arms/{arm}", {"name": bandit, "arm": arm}
        return Call(method="DELETE", template=template, values=values, answer=_nothing)

    # -- shadows ---------------------------------------------------------------------------------------------------------------

    @Route
    def list_shadows(self, bandit: str) -> Call[models.Shadows]:
        """The policies that learn beside the one that decides."""
        template, values = BANDIT + "/shadows", {"name": bandit}
        return Call(method="GET", template=template, values=values, answer=models.Shadows.model_validate_json)

    @Route
    def show_shadow(self, bandit: str, shadow: str) -> Call[models.Shadow]:
        """What a shadow has learned, and what it would choose."""
        values = {"name": bandit, "shadow": shadow}
        return Call(method="GET", template=SHADOW, values=values, answer=models.Shadow.model_validate_json)

    @Route
    def put_shadow(self, bandit: str, shadow: str, *, policy: Mapping[str, Any], from_start: bool = False) -> Call[models.Shadow]:
        """Let a policy learn beside the one that decides. from_start: it learns the whole log first."""
        return Call(
            method="PUT",
            template=SHADOW,
            values={"name": bandit, "shadow": shadow},
            body={"policy": policy, "from": "start" if from_start else None},
            answer=models.Shadow.model_validate_json,
        )

    @Route
    def delete_shadow(self, bandit: str, shadow: str) -> Call[None]:
        """Delete a shadow."""
        values = {"name": bandit, "shadow": shadow}
        return Call(method="DELETE", template=SHADOW, values=values, answer=_nothing, is_gone_done=True)

    @Route
    def promote_shadow(self, bandit: str, shadow: str, *, shadow_offset: int, id: str | None = None) -> Call[models.Promotion]:
        """From the next decision on the shadow decides, and what decided is the shadow.

        shadow_offset: that of the shadow as you know it.  id: your own; else the client makes one: a retry changes nothing.
        """
        return Call(
            method="POST",
            template=SHADOW + "/promote",
            values={"name": bandit, "shadow": shadow},
            body={"id": id or new_id(), "shadow_offset": shadow_offset},
            answer=models.Promotion.model_validate_json,
        )

    # -- evaluations -----------------------------------------------------------------------------------------------------------

    @Route
    def post_evaluation(self, bandit: str, **request: Unpack[EvaluationBody]) -> Call[models.EvaluationSummary]:
        """Ask what other policies would have earned, by the log; `show_evaluation` answers when its `state` is `done`."""
        return Call(
            method="POST",
            template=BANDIT + "/evaluations",
            values={"name": bandit},
            body={"id": new_id(), **request},
            answer=models.EvaluationSummary.model_validate_json,
        )

    @Route
    def list_evaluations(self, bandit: str) -> Call[models.Evaluations]:
        """The evaluations of a bandit, without their results."""
        template, values = BANDIT + "/evaluations", {"name": bandit}
        return Call(method="GET", template=template, values=values, answer=models.Evaluations.model_validate_json)

    @Route
    def show_evaluation(self, bandit: str, evaluation: str) -> Call[models.Evaluation]:
        """An evaluation with its progress, and its results when it is done."""
        values = {"name": bandit, "evaluation": evaluation}
        return Call(method="GET", template=EVALUATION, values=values, answer=models.Evaluation.model_validate_json)

    @Route
    def delete_evaluation(self, bandit: str, evaluation: str) -> Call[None]:
        """Delete an evaluation; one that runs is given up."""
        values = {"name": bandit, "evaluation": evaluation}
        return Call(method="DELETE", template=EVALUATION, values=values, answer=_nothing, is_gone_done=True)

    # -- decisions and outcomes ------------------------------------------------------------------------------------------------

    @Route
    def decide(self, bandit: str, *, fallback: str | None = None, **request: Unpack[DecisionBody]) -> Call[models.Decision]:
        """Ask for the next model to query.

        fallback: the arm to take while the service is away (docs/client.md); "" = none, also where the client has one.
        """
        return Call(
            method="POST",
            template=BANDIT + "/decisions",
            values={"name": bandit},
            body=_question(request),
            answer=models.Decision.model_validate_json,
            kind="" if request.get("dry_run") else "decision",
            fallback=fallback,
        )

    @Route
    def decide_all(self, bandit: str, decisions: Sequence[DecisionBody] | Sequence[Mapping[str, Any]]) -> Call[models.Decisions]:
        """Up to 1,024 decisions in one request; a bad item is its own `Problem`. There is no fallback."""
        return Call(
            method="POST",
            template=BANDIT + "/decisions/batch",
            values={"name": bandit},
            body={"decisions": [_question(request) for request in decisions]},
            answer=models.Decisions.model_validate_json,
        )

    @Route
    def show_decision(self, bandit: str, decision: str) -> Call[models.DecisionState]:
        """A decision and what became of it."""
        values = {"name": bandit, "decision": decision}
        return Call(method="GET", template=DECISION, values=values, answer=models.DecisionState.model_validate_json)

    @Route
    def list_decisions(
        self,
        bandit: str,
        *,
        before: int | None = None,
        limit: int | None = None,
        state: str | None = None,
        arm: str | None = None,
        session: str | None = None,
    ) -> Call[models.DecisionPage]:
        """Decisions, the newest first, with their outcomes; `next_before` is the `before` of the next page, also of a short one.

        state: `open`, `partial`, `observed`, `expired` or `cancelled`.
        """
        return Call(
            method="GET",
            template=BANDIT + "/decisions",
            values={"name": bandit},
            query=_query(before=before, limit=limit, state=state, arm=arm, session=session),
            answer=models.DecisionPage.model_validate_json,
        )

    @Route
    def cancel_decision(self, bandit: str, decision: str) -> Call[None]:
        """Cancel an open decision: nothing is learned from it."""
        values = {"name": bandit, "decision": decision}
        return Call(method="DELETE", template=DECISION, values=values, answer=_nothing, kind="cancel")

    @Route
    def observe(self, bandit: str, decision: str, **outcome: Unpack[OutcomeBody]) -> Call[models.Receipt]:
        """Post what came of a decision. It is learned once: the same outcome again gets the first receipt."""
        return Call(
            method="PUT",
            template=DECISION + "/outcome",
            values={"name": bandit, "decision": decision},
            body=_with_contents(outcome, "output", "reference"),
            answer=models.Receipt.model_validate_json,
            kind="outcome",
        )

    @Route
    def amend(self, bandit: str, decision: str, **amendment: Unpack[AmendmentBody]) -> Call[models.AmendmentReceipt]:
        """Correct or add signals of a decision that was closed; without an `id` the client makes one: a retry is applied once."""
        return Call(
            method="PATCH",
            template=DECISION + "/outcome",
            values={"name": bandit, "decision": decision},
            body={"id": new_id(), **amendment},
            answer=models.AmendmentReceipt.model_validate_json,
        )

    @Route
    def observe_all(self, bandit: str, outcomes: Sequence[OutcomeItem] | Sequence[Mapping[str, Any]]) -> Call[models.Receipts]:
        """Up to 1,024 outcomes in one request; a bad item is its own `Problem`."""
        return Call(
            method="POST",
            template=BANDIT + "/outcomes/batch",
            values={"name": bandit},
            body={"outcomes": [_with_contents(outcome, "output", "reference") for outcome in outcomes]},
            answer=models.Receipts.model_validate_json,
        )

    @Route
    def import_outcomes(
        self, bandit: str, rows: Sequence[ImportRow] | Sequence[Mapping[str, Any]], *, id: str | None = None
    ) -> Call[models.ImportReceipt]:
        """Up to 1,024 outcomes of the past, all or none; without an `id` the client makes one: a retry is learned once."""
        body = {"id": id or new_id(), "rows": [_with_contents(row, "prompt", "output", "reference") for row in rows]}
        return Call(
            method="POST",
            template=BANDIT + "/import",
            values={"name": bandit},
            body=body,
            answer=models.ImportReceipt.model_validate_json,
        )

    @Route
    def post_references(self, bandit: str, **reference: Unpack[ReferenceBody]) -> Call[models.ReferenceReceipt]:
        """Post reference material; without an `id` the client makes one, so that a retry is learned once."""
        body: dict[str, Any] = {"id": new_id(), **_with_contents(reference, "outputs")}
        if body.get("pairs") is not None:
            body["pairs"] = [{name: content(part) for name, part in pair.items()} for pair in body["pairs"]]
        return Call(
            method="POST",
            template=BANDIT + "/references",
            values={"name": bandit},
            body=body,
            answer=models.ReferenceReceipt.model_validate_json,
        )

    # -- the log ---------------------------------------------------------------------------------------------------------------

    @Route
    def read_log(
        self,
        bandit: str,
        *,
        after: int = 0,
        limit: int | None = None,
        fields: Sequence[str] | None = None,
        vectors: bool = True,
    ) -> Call[list[dict[str, Any]]]:
        """The events behind an offset as they are in the log (docs/log.md); limit: at most so many. fields: these alone, beside
        `offset` and `event`.  vectors: with features, outputs and reference material.
        """
        query = _query(after=after or None, limit=limit, vectors=None if vectors else 0)
        if fields is not None:  # an empty list too, which the service refuses
            query["fields"] = ",".join(fields)
        template = BANDIT + "/log"
        return Call(method="GET", template=template, values={"name": bandit}, query=query, answer=_lines)

    @Route
    def show_digest(self, bandit: str, *, min_offset: int | None = None) -> Call[models.Digest]:
        """sha256 of the folded state: equal on every replica at the same offset."""
        template, query = BANDIT + "/digest", _query(min_offset=min_offset)
        values = {"name": bandit}
        return Call(method="GET", template=template, values=values, query=query, answer=models.Digest.model_validate_json)

    # -- the server ------------------------------------------------------------------------------------------------------------

    @Route
    def list_embedders(self) -> Call[models.Embedders]:
        """What turns contents into vectors, and outputs into rewards."""
        return Call(method="GET", template="/v1/embedders", answer=models.Embedders.model_validate_json)

    @Route
    def warm_embedder(self, embedder: str, **choice: Unpack[ModelChoice]) -> Call[models.LoadedEmbedder]:
        """Load an embedder ahead of its first use."""
        return Call(
            method="POST",
            template="/v1/embedders/{embedder}/warm",
            values={"embedder": embedder},
            body=choice,
            answer=models.LoadedEmbedder.model_validate_json,
        )

    @Route
    def healthz(self) -> Call[models.Liveness]:
        """The process is alive."""
        return Call(method="GET", template="/healthz", answer=models.Liveness.model_validate_json)

    @Route
    def readyz(self) -> Call[models.Readiness]:
        """Whether the service can do its work, and why not."""
        return Call(method="GET", template="/readyz", answer=models.Readiness.model_validate_json, answers=(503,))

    @Route
    def metrics(self) -> Call[str]:
        """Prometheus text."""
        return Call(method="GET", template="/metrics", answer=bytes.decode)

    @Route
    def request(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> Call[Any]:
        """Any route, with the JSON of its answer: for those that this version does not know. path: quoted already."""
        return Call(method=method, template=path, query=query or {}, body=body, answer=_json)


def _json(body: bytes) -> Any:
    return json.loads(body) if body else None


def _question(request: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a decision, with an id unless it is a dry run."""
    body = _with_contents(request, "prompt")
    if body.get("id") is None and not body.get("dry_run"):
        body["id"] = new_id()
    return body


def _with_contents(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A copy whose contents can be sent."""
    return {name: content(value) if name in names and value is not None else value for name, value in given.items()}

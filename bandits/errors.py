"""Named failures of the mathematics; each names the field or the arm and how to mend it.

BanditError
├── InvalidHyperparameter   a policy was configured with a value outside its range
├── InvalidContext          features that the policy cannot decide on
├── InvalidObservation      an outcome that the policy cannot learn
├── ReferenceMissing        the policy cannot decide before its reference was posted
├── NotPositiveDefinite     a statistic that cannot be factored
└── CorruptState            bytes that are not a packed state of this policy
"""

from __future__ import annotations


class BanditError(Exception):
    """Base of every failure that `bandits` raises on purpose."""


class FieldError(BanditError, ValueError):
    """An error in one value; `field` names it in the terms of the caller."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class InvalidHyperparameter(FieldError):
    """A hyperparameter is outside its range."""


class InvalidContext(FieldError):
    """The policy cannot decide on these features."""


class InvalidObservation(FieldError):
    """The policy cannot learn from this observation."""


class ReferenceMissing(BanditError):
    """The policy needs reference samples before its first decision."""


class NotPositiveDefinite(BanditError):
    """A matrix that must be positive definite is not."""

    def __init__(self, *, what: str) -> None:
        super().__init__(f"{what} is not positive definite; was the statistic damaged, or the ridge set to nearly zero?")
        self.what = what


class CorruptState(BanditError):
    """Bytes that do not hold a state of this policy."""

"""All laws in one class."""

from __future__ import annotations

from ._contract import ContractLaws
from ._delay import DelayLaws
from ._exclusion import ExclusionLaws
from ._expiry import ExpiryLaws
from ._failures import FailureLaws
from ._fences import FenceLaws
from ._leases import LeaseLaws
from ._leftovers import LeftoverLaws
from ._line import LineLaws
from ._names import NameLaws
from ._processes import ProcessLaws
from ._renewal import RenewalLaws
from ._traits import TraitLaws
from ._verbs import VerbLaws
from ._waiting import WaitingLaws


class BackendSuite(
    ExclusionLaws,
    WaitingLaws,
    LineLaws,
    ExpiryLaws,
    DelayLaws,
    LeaseLaws,
    RenewalLaws,
    FenceLaws,
    NameLaws,
    ContractLaws,
    VerbLaws,
    FailureLaws,
    ProcessLaws,
    LeftoverLaws,
    TraitLaws,
):
    """The laws that every backend keeps. Inherit it, with a fixture `url`.

    - `url`: the backend's URL, on a store that nobody else uses.
    - `leftovers`: a fixture that returns a function which counts what is in the store; what is left is seen then.
    - `preload`: Python for child processes to run first, if the URL's scheme comes from no entry point.

    A law that the backend's traits say it cannot keep is skipped, with the trait as the reason.
    """

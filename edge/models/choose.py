"""Promote the model in shadow, or go back to the one before; and show where both stand.

Commands and status page call this while the agent runs or not. The agent sees it between two
studies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from edge.database import StepHook
from edge.models.agreement import Agreement, Compared, agreement_of
from edge.models.errors import ModelUpdateError, NotPromotable
from edge.models.fetch import require_owner
from edge.models.folder import ModelFolders
from edge.models.store import SHIPPED, Choice, ModelStore, StoredPackage, open_models
from edge.site import Site
from models.runtime.errors import ModelError
from models.runtime.package import Package

log = structlog.get_logger()


@dataclass(frozen=True)
class ShadowState:
    """The model in shadow: how far it agrees with the active one, and what speaks against it."""

    version: str
    name: str
    agreement: Agreement
    problems: tuple[str, ...]
    compared: Sequence[Compared] = ()


@dataclass(frozen=True)
class ModelsState:
    """Which models there are, and what each is used for."""

    choice: Choice
    packages: tuple[StoredPackage, ...]
    shadow: ShadowState | None


def models_state(site: Site) -> ModelsState:
    """Return the state of all models.

    Raises:
        UpdatesOff: there is no database.
        sqlite3.Error: it does not answer.
    """
    with open_models(site) as store:
        return _state(store)


def promote(
    site: Site,
    *,
    user: str,
    version: str | None = None,
    force: bool = False,
    on_step: StepHook = lambda _step, _durable: None,
) -> str:
    """Make the model in shadow, or another ``version``, the active one; return its version.

    ``force`` does it although it agrees too little or was compared in too few studies.

    Raises:
        NotPromotable: there is none, it is damaged, or something speaks against it.
        UpdatesOff: this is not the agent's user, or there is no database.
    """
    require_owner(site.folders)
    with open_models(site, on_step) as store:
        choice = store.choice()
        chosen = version or choice.shadow
        package = store.package(chosen) if chosen else None
        if package is None:
            known = ", ".join(one.version for one in store.packages()) or "none"
            raise NotPromotable(f"no model {version or 'in shadow'}; there are: {known}")
        if package.version == choice.active:
            raise NotPromotable(f"{package.version} is active already")
        found = require_sound(package, site)
        agreement = agreement_of(store.compared(package.version, choice.active))
        problems = agreement.problems()
        if problems and not force:
            raise NotPromotable(f"{'; '.join(problems)}; --force promotes it even so")
        facts: dict[str, Any] = {
            "user": user,
            "model": found.model.name,
            "sha256": found.model.sha256,
            "signed_by": found.signed_by,
            "studies": agreement.studies,
            "kept": agreement.kept,
            "findings": agreement.findings,
            "forced": bool(problems),
            "against": problems,
        }
        store.promote(package.version, **facts)
    log.info("model promoted", version=package.version, by=user, forced=bool(problems))
    return package.version


def roll_back(site: Site, *, user: str, on_step: StepHook = lambda _step, _durable: None) -> str:
    """Make the previous model the active one again; return its version, empty for the shipped one.

    Raises:
        NotPromotable: there is none, or it is damaged.
        UpdatesOff: this is not the agent's user, or there is no database.
    """
    require_owner(site.folders)
    with open_models(site, on_step) as store:
        previous = store.choice().previous
        if previous:
            package = store.package(previous)
            if package is None:
                raise NotPromotable(f"the previous model {previous} is gone")
            require_sound(package, site)
        store.roll_back(user=user)
    log.info("model rolled back", to=previous or site.settings.screening_model, by=user)
    return previous or SHIPPED


def require_sound(package: StoredPackage, site: Site) -> Package:
    """Return a package whose file is sound and signed.

    Raises:
        NotPromotable: it is not.
    """
    try:
        folder = ModelFolders.of(site.folders).at(package.version)
        found = folder.package(package.name, site.settings.models.keys)
        found.model.stored()
    except (ModelError, ModelUpdateError) as error:
        raise NotPromotable(f"{package.version} cannot be used: {error}") from error
    return found


def _state(store: ModelStore) -> ModelsState:
    choice = store.choice()
    package = store.package(choice.shadow) if choice.shadow else None
    shadow = None
    if package is not None:
        compared = store.compared(package.version, choice.active)
        agreement = agreement_of(compared)
        problems = agreement.problems()
        shadow = ShadowState(package.version, package.name, agreement, tuple(problems), compared)
    return ModelsState(choice, tuple(store.packages()), shadow)

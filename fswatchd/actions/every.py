"""All steps, by the `do` of a rule."""

from __future__ import annotations

from fswatchd.actions.contain import ContainAction
from fswatchd.actions.evacuate import EvacuateAction
from fswatchd.actions.execute import ExecAction
from fswatchd.actions.fsck import FsckAction
from fswatchd.actions.notify import NotifyAction
from fswatchd.actions.quarantine import QuarantineAction
from fswatchd.actions.remount import RemountAction
from fswatchd.actions.scrub import ScrubAction
from fswatchd.actions.snapshot import SnapshotAction
from fswatchd.actions.task_steps import FreezeAction, ThawAction
from fswatchd.actions.trim import TrimAction
from fswatchd.actions.ve_steps import StartAction, StopAction
from fswatchd.notify.notices import Notices
from fswatchd.steps import Action


def every_action(notices: Notices) -> dict[str, Action]:
    """The step for each word."""
    return {
        "notify": NotifyAction(notices),
        "remount": RemountAction(),
        "snapshot": SnapshotAction(),
        "fsck": FsckAction(),
        "contain": ContainAction(),
        "freeze": FreezeAction(),
        "thaw": ThawAction(),
        "stop": StopAction(),
        "start": StartAction(),
        "quarantine": QuarantineAction(),
        "scrub": ScrubAction(),
        "trim": TrimAction(),
        "exec": ExecAction(),
        "evacuate": EvacuateAction(),
    }

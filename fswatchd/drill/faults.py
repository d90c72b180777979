"""The faults that a drill can cause, by filesystem and name."""

from __future__ import annotations

from fswatchd.drill import faults_btrfs, faults_ext4, faults_xfs
from fswatchd.drill.damage import Fault

FAULTS: dict[str, dict[str, Fault]] = {
    "ext4": {fault.name: fault for fault in faults_ext4.FAULTS},
    "btrfs": {fault.name: fault for fault in faults_btrfs.FAULTS},
    "xfs": {fault.name: fault for fault in faults_xfs.FAULTS},
}
USUAL = {"ext4": "dir-block", "btrfs": "data-csum", "xfs": "dir-block"}
"""What a drill causes where no fault is named."""

# Every target sets up what it needs on a bare Debian 12 or 13, as root.

PACKAGES_RUN  = python3-venv python3-dev gcc pkg-config libsystemd-dev libudev1 e2fsprogs xfsprogs btrfs-progs bubblewrap libseccomp2
PACKAGES_TEST = lxc bindfs busybox-static systemd systemd-container podman runc
PACKAGES_VM   = qemu-system-x86 qemu-utils mmdebstrap debian-archive-keyring
PACKAGES_DEB  = debhelper dh-python dpkg-dev lintian

.PHONY: setup setup-test run drill test test-long lint unit system bench deb test-vm clean

setup:
	@data/setup.sh run $(PACKAGES_RUN)

setup-test:
	@data/setup.sh test $(PACKAGES_RUN) $(PACKAGES_TEST)

run: setup
	.venv/bin/fswatchd --config data/try.toml

drill: setup
	.venv/bin/fswatch drill --private

test: lint unit system

lint: setup-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/codespell

unit: setup-test
	.venv/bin/pytest tests/unit

# Real kernels on shared machines: what fails is tried again, and shown as a rerun.
system: setup-test
	.venv/bin/pytest tests/system -m "not long" --reruns 2 --reruns-delay 5 -rR

# What takes minutes, and is run before a release.
test-long: setup-test
	.venv/bin/pytest tests/system -m long -rR --timeout 3600

# make bench [BENCH="repair --sizes 1G:20000"]: all benchmarks, or one.
bench: setup-test
	.venv/bin/python bench/run.py $(BENCH)

# make deb [SUITE=trixie]: into dist/, for this machine's suite or another.
deb:
	@data/setup.sh deb $(PACKAGES_RUN) $(PACKAGES_DEB)
	@data/deb.sh $(SUITE)

# make test-vm [SCENARIO=name] [KERNEL=6.12]: whole machines in QEMU, see docs/machines.md.
test-vm:
	@data/setup.sh deb $(PACKAGES_RUN) $(PACKAGES_DEB) $(PACKAGES_VM)
	.venv/bin/python vm/run.py $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(KERNEL),--kernel $(KERNEL))

clean:
	rm -rf dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

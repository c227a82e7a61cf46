# One command for each thing that one does here. Every target makes .venv, or renews it when pyproject.toml changed.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
ROOMS := agent client guest handlers protocol
SANDBOX_TOOLS := crun=crun catatonit=catatonit busybox=busybox-static
IMAGE_TOOLS := mmdebstrap=mmdebstrap mkfs.ext4=e2fsprogs
VM_TOOLS := qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils /usr/lib/qemu/virtiofsd=qemu-system-common

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help demo run test test-vm test-kubernetes check bench deb image vm proto venv clean bytecode

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  PYTHON=python3.12 chooses the interpreter; ARGS="..." is passed on by run, test and bench.'

demo: bytecode ## start an agent, talk to it with arcboxctl, run things in a sandbox, stop it
	@tools/debian-packages --optional $(SANDBOX_TOOLS) mksquashfs=squashfs-tools
	@tools/demo

run: bytecode ## the agent in the foreground, clock and power off
	@tools/run $(ARGS)

test: bytecode ## all tests: make test ARGS="-k frames"
	@tools/debian-packages mkfs.ext4=e2fsprogs mkfs.btrfs=btrfs-progs losetup=mount $(SANDBOX_TOOLS) \
		runc=runc mksquashfs=squashfs-tools mkfs.erofs=erofs-utils skopeo=skopeo umoci=umoci nft=nftables ip=iproute2 dig=bind9-dnsutils \
		blkid=util-linux dockerd=docker.io containerd=containerd iptables=iptables pgrep=procps
	@$(BIN)/pytest --numprocesses 3 $(ARGS)

test-vm: bytecode ## boots the guest image and tests in it: make test-vm ARGS="-k watchdog"
	@tools/debian-packages $(IMAGE_TOOLS) $(VM_TOOLS) busybox=busybox-static docker=docker.io
	@$(BIN)/pytest -m vm --timeout 1800 tests/vm $(ARGS)

test-kubernetes: bytecode ## starts a real Kubernetes, which it builds, on a node made of namespaces (root)
	@tools/debian-packages $(SANDBOX_TOOLS) runc=runc dockerd=docker.io containerd=containerd ip=iproute2 iptables=iptables \
		pgrep=procps etcd=etcd-server conntrack=conntrack socat=socat openssl=openssl \
		/usr/lib/cni/bridge=containernetworking-plugins
	@tests/kubernetes/components
	@$(BIN)/pytest -m kubernetes --timeout 900 tests/kubernetes $(ARGS)

check: $(VENV)/.installed ## linters, types, arrows between rooms, stale generated files
	@tools/check

bench: bytecode ## speed and memory beside their floors: make bench ARGS=--json
	@tools/debian-packages --optional qemu-ga=qemu-guest-agent $(SANDBOX_TOOLS)
	@tools/debian-packages --optional dockerd=docker.io
	@$(BIN)/python -m bench $(ARGS)

deb: $(VENV)/.installed ## build/arcbox-agent_*.deb, for a guest without network or compiler
	@tools/debian-packages dpkg-deb=dpkg
	@tools/deb build

image: $(VENV)/.installed ## the guest image: Debian, its kernel, the package (root; a minute, cached)
	@tools/debian-packages $(IMAGE_TOOLS)
	@$(BIN)/python -m tools.vm image

vm: bytecode ## boot that image with a console here, and print the address for arcboxctl
	@tools/debian-packages $(IMAGE_TOOLS) $(VM_TOOLS)
	@$(BIN)/python -m tools.vm run $(ARGS)

proto: $(VENV)/.installed ## generate protocol/arcbox_protocol/proto/*_pb2.py and .pyi
	@tools/proto . && echo "generated: $$(echo protocol/arcbox_protocol/proto/*_pb2.*)"

venv: $(VENV)/.installed ## only make .venv
	@echo "$(VENV) is ready"

clean: ## remove .venv and everything that was generated and is not committed
	@rm -rf $(VENV) .run build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Agents start fast only from compiled modules, and where PYTHONDONTWRITEBYTECODE is set nothing else writes them.
bytecode: $(VENV)/.installed
	@$(BIN)/python -m compileall -q $(ROOMS)

$(VENV)/.installed: pyproject.toml tools/venv
	@tools/venv $(PYTHON) $(VENV)
	@touch $@

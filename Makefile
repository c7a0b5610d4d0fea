# The door to everything: people and CI call the same targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# The runtime is built on musl: at each start of a program glibc asks the processor dozens of questions, each of which
# is an exit to the hypervisor in a virtual machine. Where there is no musl for rustc, glibc does.
MUSL := $(shell uname -m)-unknown-linux-musl
# Checked by lint, so that nothing comes to stand on what one architecture has.
OTHER := $(if $(filter aarch64,$(shell uname -m)),x86_64,aarch64)-unknown-linux-gnu
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
BIN := $(CURDIR)/target/bin
PREFIX ?= /usr/local
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
DEB_ARCH = $(shell dpkg --print-architecture)
# Where the tests write down what they could not run, and what they have counted; and the end of what is told of it.
SKIPS := $(CURDIR)/target/skipped
TELL = touch $(SKIPS); sort $(SKIPS); echo "skipped tests: $$(grep -c ^skipped $(SKIPS) || true)"

# One static image at a fixed address: nothing to relocate and nothing to load at each start.
STATIC := -C target-feature=+crt-static -C relocation-model=static

BUILD_NEEDS := gcc:gcc make:make
DEMO_NEEDS := $(BUILD_NEEDS) /bin/busybox:busybox-static ps:procps
# What some tests and the bench compare with; where a package is not to be had, they say what they left out.
TEST_WANTS := /usr/lib/cni/bridge:containernetworking-plugins /usr/sbin/mkfs.ext4:e2fsprogs /usr/sbin/mkfs.xfs:xfsprogs sqlite3:sqlite3 iptables:iptables ip:iproute2 curl:curl strace:strace newuidmap:uidmap umoci:umoci podman:podman criu:criu script:bsdutils docker-registry:docker-registry htpasswd:apache2-utils openssl:openssl skopeo:skopeo
FAULTS_WANTS := /usr/lib/cni/bridge:containernetworking-plugins iptables:iptables ip:iproute2 /usr/sbin/mkfs.ext4:e2fsprogs python3:python3-minimal
VM_NEEDS := $(DEMO_NEEDS) newuidmap:uidmap qemu-system-x86_64:qemu-system-x86 /usr/lib/qemu/virtiofsd:qemu-system-common \
	/usr/sbin/depmod:kmod xz:xz-utils strace:strace /usr/sbin/apparmor_parser:apparmor \
	/usr/sbin/mkfs.ext4:e2fsprogs /usr/sbin/mkfs.xfs:xfsprogs
VM_CRATES = $(if $(PARTS),--workspace,-p coracle-tests -p coracle-isolator-cgroup)
# Unpacked for as long as their tests run; nothing is installed, no daemon of the machine is started.
CLIENTS := containerd docker.io tini buildah catatonit
BENCH_WANTS := /usr/lib/cni/bridge:containernetworking-plugins docker-registry:docker-registry podman:podman skopeo:skopeo crun:crun runc:runc umoci:umoci perf:linux-perf

# $(call need,PROGRAM:PACKAGE …) installs the packages whose program is missing; silent when none is.
define need
	@missing=""; \
	for pair in $(1); do command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; done; \
	[ -f /usr/lib/$(shell uname -m)-linux-gnu/libc.a ] || missing="$$missing libc6-dev"; \
	if [ -n "$$missing" ]; then \
		echo "installing:$$missing"; export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq; apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	fi
endef

# $(call want,PROGRAM:PACKAGE …) does so too, one by one, and goes on without those that can't be installed.
define want
	@for pair in $(1); do \
		command -v "$${pair%%:*}" >/dev/null && continue; \
		echo "installing: $${pair##*:}"; export DEBIAN_FRONTEND=noninteractive; \
		[ -n "$$(ls /var/lib/apt/lists/*Packages* 2>/dev/null)" ] || apt-get update -qq; \
		apt-get install -qq -y --no-install-recommends "$${pair##*:}" >/dev/null || echo "going on without $${pair##*:}"; \
	done
endef

.PHONY: help build demo test unit-test test-vm test-faults soak test-clients fuzz lint bench start-order install deb clean

help: ## Show what there is to do
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

build: ## Build the release binaries into target/bin: the runtime, static; the image tool; the one that loads plugins
	$(call need,$(BUILD_NEEDS))
	@# One at a time: together, the runtime would get the features (and the size) of the image tool.
	@mkdir -p $(BIN)
	@[ -d "$$(rustc --print target-libdir --target $(MUSL))" ] || rustup target add $(MUSL) >/dev/null 2>&1 || \
		echo "no musl for rustc to be had: built on glibc, the runtime starts a sixth slower"
	@triple=$(MUSL); [ -d "$$(rustc --print target-libdir --target $(MUSL))" ] || triple=$(HOST); \
	RUSTFLAGS="$(STATIC)" cargo build --quiet --release --target $$triple -p coracle; \
	cargo build --quiet --release -p coracle-image; \
	cargo build --quiet --release -p coracle-isolator-host; \
	cargo build --quiet --release -p coracle-isolator-csi; \
	install -m 644 $(TARGET)/release/libcoracle_isolator_csi.so $(BIN)/volume-csi.so; \
	for built in $(TARGET)/$$triple/release/coracle $(TARGET)/release/coracle-image \
		$(TARGET)/release/coracle-isolator-host; do \
		[ $(BIN)/$${built##*/} -nt $$built ] || install -s -m 755 $$built $(BIN)/; \
	done

demo: build ## Run a container from an image of several layers, with limits, and show all of it (root)
	$(call need,$(DEMO_NEEDS))
	@cargo build --quiet -p coracle-fixtures
	@CORACLE_BIN=$(BIN) FIXTURES=$(TARGET)/debug/coracle-fixtures tests/demo

test: build unit-test ## Run all tests, the privileged ones too (root); says what could not run
	$(call need,$(DEMO_NEEDS))
	$(call want,$(TEST_WANTS))
	@rm -f $(SKIPS)
	@cargo build --quiet -p coracle-isolator-template -p coracle-fixture-built-in -p coracle-isolator-csi
	@! command -v dpkg-deb >/dev/null || $(MAKE) --no-print-directory deb >/dev/null
	@cargo test --quiet --no-fail-fast -p coracle-tests -- --test-threads=2
	@$(TELL)

unit-test: ## Run the tests that stand beside the code
	$(call need,$(DEMO_NEEDS) g++:g++)
	@cargo test --quiet --no-fail-fast --workspace --exclude coracle-tests

test-vm: build ## Run the suites in virtual machines: a unified tree, one with systemd, an older kernel (root; FLAVOURS, PARTS: docs/testing.md)
	$(call need,$(VM_NEEDS))
	$(call want,$(TEST_WANTS))
	@cargo test --quiet $(VM_CRATES) --no-run
	@cargo build --quiet -p coracle-tests --bins
	@cargo build --quiet -p coracle-isolator-template -p coracle-fixture-built-in -p coracle-isolator-csi
	@cargo test $(VM_CRATES) --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))$$/\1/p' >target/test-binaries
	@PARTS='$(PARTS)' tests/vm/all target/test-binaries $(FLAVOURS)

test-faults: build ## Refuse and kill the runtime at every system call, one a turn (root; half an hour; CORACLE_WHOLE=1: hours)
	$(call need,$(DEMO_NEEDS) strace:strace)
	$(call want,$(FAULTS_WANTS))
	@rm -f $(SKIPS)
	@cargo build --quiet -p coracle-isolator-template -p coracle-fixture-built-in -p coracle-isolator-csi
	@export CORACLE_SEED=$${CORACLE_SEED:-$$(date +%-j)}; code=0; \
		CORACLE_TEST_SECONDS=$${CORACLE_TEST_SECONDS:-3600} \
		cargo test --quiet --no-fail-fast -p coracle-tests --test faults -- --include-ignored --test-threads=2 || code=$$?; \
		cargo test --quiet -p coracle-tests --test csi || code=$$?; \
		cargo test --quiet -p coracle-tests --test pods -- --ignored || code=$$?; \
		$(TELL); exit $$code

soak: build ## Make and kill containers for SECONDS (3600): nothing may be left or grow (root)
	$(call need,$(DEMO_NEEDS))
	@CORACLE_SOAK=$(or $(SECONDS),3600) CORACLE_TEST_SECONDS=$$(( $(or $(SECONDS),3600) * 2 + 1800 )) \
		cargo test --quiet -p coracle-tests --test faults -- --include-ignored --nocapture however_long

test-clients: build ## Run containers through podman, containerd, Docker and buildah (root; fetches and unpacks their packages)
	$(call need,$(DEMO_NEEDS) podman:podman)
	@rm -rf target/clients && mkdir -p target/clients && cd target/clients && \
		{ [ -n "$$(ls /var/lib/apt/lists/*Packages* 2>/dev/null)" ] || apt-get update -qq; } && \
		apt-get download -qq -o APT::Sandbox::User=root $(CLIENTS) && for package in *.deb; do dpkg -x $$package . ; done
	@rm -f $(SKIPS)
	@code=0; CORACLE_CLIENTS=$(CURDIR)/target/clients \
		cargo test --quiet --no-fail-fast -p coracle-tests --test clients -- --include-ignored --test-threads=2 || code=$$?; \
		rm -rf target/clients; $(TELL); exit $$code

lint: ## Check format and lints of every crate
	@cargo fmt --check
	@cargo clippy --quiet --workspace --all-targets -- -D warnings
	@cargo metadata --quiet --locked --format-version 1 --manifest-path tests/fuzz/Cargo.toml >/dev/null
	@if [ -d "$$(rustc --print target-libdir --target $(OTHER))" ] || rustup target add $(OTHER) >/dev/null 2>&1; then \
		cargo clippy --quiet --target $(OTHER) -p coracle -p coracle-isolator-host -- -D warnings; \
	else echo "not checked: $(OTHER), which rustc does not have and rustup can't get"; fi

bench: build ## Measure starts and unpacking beside crun, runc, a bare C program, tar and umoci (root)
	$(call need,$(DEMO_NEEDS))
	$(call want,$(BENCH_WANTS))
	@cargo build --quiet --release -p coracle-tests --bin coracle-bench
	@$(TARGET)/release/coracle-bench $(BENCH)

start-order: build ## Find out anew what a start executes, and write it to runtime/start.ld (root; half an hour)
	$(call need,$(DEMO_NEEDS) nm:binutils)
	@cargo build --quiet -p coracle-tests --bin coracle-start-order
	@$(TARGET)/debug/coracle-start-order $(TARGET)/$(MUSL)/release/coracle >$(TARGET)/start.ld
	@mv $(TARGET)/start.ld runtime/start.ld && wc -l runtime/start.ld

# Branches are counted by a pass of LLVM that the stable compiler has, too; libFuzzer comes with its crate.
COVER := -Cpasses=sancov-module -Cdebug-assertions -Ccodegen-units=1 $(foreach what,level=4 inline-8bit-counters \
	pc-table trace-compares,-Cllvm-args=-sanitizer-coverage-$(what))
MINUTE ?= 60

fuzz: ## Feed the parsers of images what nobody would write, a minute each (MINUTE, in seconds)
	$(call need,$(BUILD_NEEDS) g++:g++)
	@cargo run --quiet -p coracle-fixtures -- target/fuzz seeds
	@cd tests/fuzz && CARGO_TARGET_DIR=$(TARGET)/fuzz RUSTFLAGS="$(COVER)" \
		cargo build --quiet --release --locked --target $(HOST)
	@for parser in layer manifest headers; do \
		echo "fuzzing for $(MINUTE) s: $$parser"; \
		$(TARGET)/fuzz/$(HOST)/release/$$parser -max_total_time=$(MINUTE) -timeout=10 -rss_limit_mb=1024 -max_len=65536 \
			-verbosity=0 -print_final_stats=1 -artifact_prefix=target/fuzz/$$parser- target/fuzz/$$parser \
			2>target/fuzz/$$parser.log || { tail -n 20 target/fuzz/$$parser.log; exit 1; }; \
		grep -a 'executed_units\|peak_rss' target/fuzz/$$parser.log; \
	done

install: build ## Install binaries, manual pages, completions, unit, header and Varlink interfaces below PREFIX (/usr/local)
	@to=$(DESTDIR)$(PREFIX); \
	install -D -m 755 -t $$to/bin $(BIN)/coracle $(BIN)/coracle-image $(BIN)/coracle-isolator-host; \
	install -D -m 644 -t $$to/lib/coracle $(BIN)/volume-csi.so; \
	install -D -m 644 -t $$to/include isolators/abi/coracle_isolator.h; \
	install -D -m 644 packaging/completions/coracle.bash $$to/share/bash-completion/completions/coracle; \
	install -D -m 644 -t $$to/share/zsh/vendor-completions packaging/completions/_coracle; \
	install -D -m 644 -t $$to/share/fish/vendor_completions.d packaging/completions/coracle.fish; \
	install -D -m 644 -t $$to/share/doc/coracle README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md LICENSE packaging/config.toml; \
	install -D -m 644 -t $$to/share/doc/coracle/docs docs/*.md docs/grafana.json; \
	install -D -m 644 -t $$to/share/doc/coracle/docs/schemas docs/schemas/*; \
	install -D -m 644 -t $$to/share/doc/coracle/examples/template-c isolators/template-c/*.c; \
	install -D -m 644 -t $$to/share/doc/coracle/examples/template-rust isolators/template-rust/Cargo.toml; \
	install -D -m 644 -t $$to/share/doc/coracle/examples/template-rust/src isolators/template-rust/src/*.rs; \
	mkdir -p $$to/lib/systemd/system $$to/share/man/man1; \
	sed 's,@PREFIX@,$(PREFIX),' packaging/coracle.service >$$to/lib/systemd/system/coracle.service; \
	install -D -m 644 -t $$to/share/varlink runtime/src/pod/varlink/io.coracle.*.varlink; \
	page() { awk -v version=$(VERSION) -v command="$${1-}" -f packaging/man.awk >$$to/share/man/man1/coracle$${1:+-$$1}.1; }; \
	$(BIN)/coracle help | page; \
	$(BIN)/coracle-image help | page image; \
	for command in $$($(BIN)/coracle complete -- ''); do \
		[ $$command = image ] || $(BIN)/coracle $$command --help | page $$command; \
	done

deb: build ## Make a package of all that install installs: target/coracle_VERSION_ARCHITECTURE.deb
	@rm -rf target/deb && mkdir -p target/deb/DEBIAN
	@$(MAKE) --no-print-directory install DESTDIR=$(CURDIR)/target/deb PREFIX=/usr
	@gzip -9n target/deb/usr/share/man/man1/*.1
	@sed 's/@VERSION@/$(VERSION)/; s/@ARCHITECTURE@/$(DEB_ARCH)/' packaging/control >target/deb/DEBIAN/control
	@dpkg-deb --root-owner-group --build target/deb target/coracle_$(VERSION)_$(DEB_ARCH).deb

clean: ## Remove all that was built
	@cargo clean --quiet
	@rm -rf target

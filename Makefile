# What people type. Everything needs a Rust toolchain and a C compiler (for the linker); PostgreSQL servers
# and Barman for the tests are found or installed by `make setup`.

CARGO ?= cargo
# cargo-nextest runs each test in a process of its own and stops what hangs. Plain cargo does without it.
HAS_NEXTEST = $(shell command -v cargo-nextest)
RUN_TESTS = $(if $(HAS_NEXTEST),$(CARGO) nextest run,$(CARGO) test)
# Tests wait for servers more than they compute. nextest has this in .config/nextest.toml.
export RUST_TEST_THREADS ?= 4
# Stories run on the oldest version, the newest and one between; those named `more` are for `make test-all`.
FEWER = $(if $(HAS_NEXTEST),-E 'not test(::more::)',-- --skip ::more::)

# Where programs for the tests come to lie.
BUILT = $(or $(CARGO_TARGET_DIR),target)/debug

# A target without files, sockets and clocks: what `proto` is written for.
BARE = wasm32-unknown-unknown

# What the drills run, built.
DRILL = $(CARGO) build --quiet --package walrelay --package walrelay-testkit --bins && $(CARGO) run --quiet --package walrelay-testkit --bin

.PHONY: help demo setup prepare build fmt lint gates msrv miri deny machete fuzz test test-all docs check check-all tested fuzzed told bench bench-quick bench-profile bench-parts powercut drill-crash drill-failover drill-network soak simulate papers release symbols reference screenshots book deb rpm packages-test clean cc

help:
	@echo 'make demo    a primary, a relay, a standby and an archive on this machine, compared in the end'
	@echo 'make test    all checks and all tests; stories with real servers on some of PostgreSQL 14 to 19'
	@echo 'make test-all    the same with each story on every version'
	@echo 'make gates   the checks that need tools of their own: cargo-deny, cargo-machete, Miri, the oldest compiler'
	@echo 'make fuzz MINUTES=60         each fuzz target, looking for new paths; or TARGET=fuzz_receiver'
	@echo 'make bench   the relay beside a cascading standby, pg_receivewal and others, into docs/benchmarks; takes a quarter of an hour'
	@echo 'make bench-quick, make bench-profile, make bench-parts  before and after a change; where the time goes; parts on their own'
	@echo 'make powercut CUTS=1000      power cuts of the relay'\''s disk, on ext4 and xfs; takes root'
	@echo 'make drill-crash ROUNDS=1000  kills of relay, primary and standby under commits'
	@echo 'make drill-failover ROUNDS=100  primaries lost, and standbys promoted that are behind; RELAYS=2, or TOOL=patroni, TOOL=repmgr'
	@echo 'make drill-network FLAPS=10000  lines of a cascade that go bad and heal'
	@echo 'make soak MINUTES=60         all kinds of trouble at once on one topology; takes root'
	@echo 'make simulate SEEDS=100000   whole topologies on simulated disks and lines; or HOURS=1, or SEED=n, which is traced'
	@echo 'make reference, make book    docs/REFERENCE.md from the code; the documents as a book, with mdbook'
	@echo 'make screenshots             docs/images, in a quarter of an hour, with Chromium'
	@echo 'make deb, make rpm           packages for Debian and for Red Hat, with unit, manual pages and completions'
	@echo 'make release                 the program as it is installed, its debug information in walrelay.debug'
	@echo 'make packages-test           those packages installed on an overlay of this system, the Kubernetes manifests linted'
	@echo 'make setup   find or install the PostgreSQL servers and the Barman the tests need'
	@echo 'make clean   remove everything built, and the servers installed below target/'

demo: cc
	$(CARGO) build --package walrelay --package walrelay-testkit --bins
	$(CARGO) run --quiet --package walrelay-testkit --bin demo

setup: cc
	@echo '== PostgreSQL servers and Barman'
	$(CARGO) run --package walrelay-testkit --bin setup

# The cheap checks come first, so that one need not wait for what they find. (Not in parallel: -j is refused.)
.NOTPARALLEL:
test: fmt prepare check docs deny machete told
	@echo '== all is well'

test-all: fmt prepare check-all docs deny machete told
	@echo '== all is well'

# The lints keep the processor busy while the servers come from the network. A fault of the lints is seen first.
prepare: cc
	$(CARGO) build --package walrelay-testkit --bin setup
	@$(BUILT)/setup >$(BUILT)/setup.log 2>&1 & setup=$$!; \
	$(MAKE) lint || { kill $$setup; exit 1; }; \
	echo '== PostgreSQL servers and Barman'; wait $$setup; status=$$?; cat $(BUILT)/setup.log; exit $$status

# What was not tested, where it is seen.
told:
	@$(CARGO) run --quiet --package walrelay-testkit --bin setup missing

fmt:
	@echo '== formatting'
	$(CARGO) fmt --all --check

lint: cc
	@echo '== lints'
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if rustup target list --installed 2>/dev/null | grep -qx $(BARE); then \
	    $(CARGO) check --package walrelay-proto --target $(BARE); \
	else echo 'not checked: proto without an operating system (rustup target add $(BARE))'; fi

# Checks with tools that not every machine has: what is missing is said, and `.ci/run` brings all of them.
gates: deny machete msrv miri

# The oldest compiler that is promised, as Cargo.toml says.
MSRV = $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
msrv: cc
	@echo '== oldest compiler ($(MSRV))'
	@if $(CARGO) +$(MSRV) --version >/dev/null 2>&1; then \
	    CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),target)/msrv $(CARGO) +$(MSRV) check --quiet --workspace --lib --bins; \
	else echo 'not checked: the oldest compiler (rustup toolchain install $(MSRV) --profile minimal)'; fi

# Miri knows no maps of files, so segments are on a simulated disk there. A package of their own is quick to build.
miri: cc
	@echo '== unsafe code, interpreted'
	@if $(CARGO) +nightly miri --version >/dev/null 2>&1; then \
	    CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),target)/miri MIRIFLAGS=-Zmiri-disable-isolation \
	    $(CARGO) +nightly miri test --quiet --package walrelay-interpreted store::mapped::shared; \
	else echo 'not checked: unsafe code (rustup toolchain install nightly --profile minimal --component miri,rust-src)'; fi

# Advisories are not asked for: they come from the network, at any time, and are no property of a commit.
deny:
	@echo '== licences, bans and sources of dependencies'
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --log-level error check bans licenses sources; \
	else echo 'not checked: deny.toml (cargo install --locked cargo-deny)'; fi

machete:
	@echo '== unused dependencies'
	@if command -v cargo-machete >/dev/null; then $(CARGO) machete --with-metadata; \
	else echo 'not checked: unused dependencies (cargo install --locked cargo-machete)'; fi

# Fuzz targets take this long each, in which they try as many inputs as they can.
FUZZED = BOLERO_RANDOM_TEST_TIME_MS=$(or $(FUZZ_SECONDS),60)000 BOLERO_RANDOM_ITERATIONS=4000000000
RUN_FUZZ = $(FUZZED) $(RUN_TESTS) --workspace $(if $(HAS_NEXTEST),--test-threads 3 -E 'test(/(^|::)fuzz_/)',fuzz_ -- --test-threads 3)
BESIDE_LOG = $(BUILT)/beside

check: cc
	@$(MAKE) tested WHICH="$(FEWER)"

check-all: cc
	@$(MAKE) tested

# Stories wait for servers: what they leave of the processor goes to what only computes. A fault of that ends it, and is shown behind the
# tests. Fuzz targets take their time by the clock, so they begin at once, and with some of the processor; the gates have what is left.
tested:
	@echo '== tests'
	$(RUN_TESTS) --workspace --no-run
	@nice -n 19 $(MAKE) msrv miri >$(BESIDE_LOG).gates 2>&1 & gates=$$!; \
	nice -n 10 $(MAKE) fuzzed >$(BESIDE_LOG).fuzzed 2>&1 & fuzzed=$$!; \
	trap "kill $$gates $$fuzzed 2>/dev/null" INT TERM; \
	$(RUN_TESTS) --workspace $(WHICH); status=$$?; \
	for beside in gates:$$gates fuzzed:$$fuzzed; do \
	    log=$(BESIDE_LOG).$${beside%:*}; \
	    if wait $${beside#*:}; then grep -E '^==|^not checked| Summary |^test result: ok. [1-9]' $$log; else cat $$log; status=1; fi; \
	done; \
	exit $$status
	$(CARGO) test --workspace --doc

fuzzed:
	@echo '== fuzz targets'
	$(RUN_FUZZ)

docs: cc
	@echo '== documentation'
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps

# docs/PERFORMANCE.md says what is measured. BENCH_GIB=4 takes more WAL, BENCH_ROUNDS=9 more rounds, BENCH_STALL_MINUTES=10 watches
# commits for longer, BENCH_ONLY=stored,latency-1 leaves out the rest. As root, with a fixed TCP congestion control.
BENCH = $(CARGO) build --release --package walrelay --package walrelay-testkit --bin walrelay --bin bench && $(CARGO) run --release --quiet --package walrelay-testkit --bin bench --

bench: cc
	$(BENCH) full

bench-quick: cc
	$(BENCH) quick

# With names of functions, which the release has in a file of their own.
bench-profile: cc
	$(CARGO) build --profile profiling --package walrelay --bin walrelay
	$(CARGO) build --release --package walrelay-testkit --bin bench
	WALRELAY_BIN=$(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/profiling/walrelay $(CARGO) run --release --quiet --package walrelay-testkit --bin bench -- profile

# Parts of the relay on their own, in one process.
bench-parts: cc
	$(CARGO) bench --package walrelay --bench verify --bench append --bench fanout --bench restore

# FS=xfs takes one file system only. Of each: SEED=n repeats what is random; with CONTROL=1 a promise is broken on purpose, and the
# drill succeeds if it finds that out.
SEEDED = $(if $(SEED),--seed $(SEED)) $(if $(CONTROL),--control)
powercut: cc
	$(DRILL) powercut -- --cuts $(or $(CUTS),100) $(if $(FS),--fs $(FS)) $(SEEDED)

drill-crash: cc
	$(DRILL) drill-crash -- --rounds $(or $(ROUNDS),100) $(SEEDED)

drill-failover: cc
	$(DRILL) drill-failover -- --rounds $(or $(ROUNDS),20) --relays $(or $(RELAYS),1) $(if $(TOOL),--tool $(TOOL)) $(if $(PG),--pg $(PG)) $(SEEDED)

drill-network: cc
	$(DRILL) drill-network -- --flaps $(or $(FLAPS),1000) $(SEEDED)

soak: cc
	$(DRILL) soak -- --minutes $(or $(MINUTES),10) $(SEEDED)

simulate: cc
	$(CARGO) run --quiet --release --package walrelay-sim --bin simulate -- $(if $(SEED),--seed $(SEED) --trace,$(if $(HOURS),--hours $(HOURS),--seeds $(or $(SEEDS),10000))) $(if $(FROM),--from $(FROM))

fuzz: cc
	tests/fuzz.sh $(or $(MINUTES),10) $(TARGET)

# What a package has besides the program. PROGRAM is the one that describes itself.
PROGRAM ?= $(or $(CARGO_TARGET_DIR),target)/release/walrelay
papers:
	mkdir -p target/package/man
	$(PROGRAM) man target/package/man
	for shell in bash fish zsh; do $(PROGRAM) completions $$shell > target/package/walrelay.$$shell; done

# docs/REFERENCE.md and docs/MESSAGES.md; a test says when they have to be made again.
reference: cc
	WALRELAY_WRITE_REFERENCE=1 $(CARGO) test --quiet --package walrelay --test pg -- reference::

# docs/images, of a relay at work for MINUTES (13).
screenshots: cc
	WALRELAY_SCREENSHOTS=$(or $(MINUTES),13) $(CARGO) test --quiet --package walrelay --test pg -- screenshots_of_a_relay_at_work --skip ::more::

# The pages lead to files beside docs, too, which are put beside the book.
BOOK = target/book
book:
	@command -v mdbook >/dev/null || { echo 'mdbook is not installed: cargo install --locked mdbook, or read docs/SUMMARY.md' >&2; exit 1; }
	mdbook build
	cp -R examples packaging monitoring README.md CHANGELOG.md $(BOOK)/
	@echo 'see $(BOOK)/docs/index.html'

# The program as it is installed, and in a file beside it what debuggers and perf want to know, which the program names
# (.gnu_debuglink): keep target/release/walrelay.debug of what was delivered. What is optimised is the same.
release: cc
	CARGO_PROFILE_RELEASE_DEBUG=line-tables-only $(CARGO) build --release --locked --package walrelay --bin walrelay
	$(MAKE) symbols

# Once: a program from which they were taken has none.
symbols:
	@if readelf --section-headers --wide $(PROGRAM) | grep -q '\.debug_line'; then \
	    objcopy --only-keep-debug --compress-debug-sections $(PROGRAM) $(PROGRAM).debug && \
	    objcopy --strip-debug --add-gnu-debuglink=$(PROGRAM).debug $(PROGRAM); fi
	@test -s $(PROGRAM).debug

# cargo install --locked cargo-deb cargo-generate-rpm
deb: release
	$(MAKE) papers
	$(CARGO) deb --no-build --no-strip --package walrelay

rpm: release
	$(MAKE) papers
	$(CARGO) generate-rpm

# The newest packages, installed for real on an overlay of this system, and the Kubernetes manifests. A test does it with packages of the
# debug build.
packages-test:
	WALRELAY_DEB="$$(ls -t $(or $(CARGO_TARGET_DIR),target)/debian/*.deb 2>/dev/null | head -1)" \
	WALRELAY_RPM="$$(ls -t $(or $(CARGO_TARGET_DIR),target)/generate-rpm/*.rpm 2>/dev/null | head -1)" \
	tests/packages.sh $(wildcard $(PROGRAM))

clean:
	$(CARGO) clean

cc:
	@command -v cc >/dev/null || { echo 'a C compiler is needed to link: apt-get install gcc libc6-dev' >&2; exit 1; }

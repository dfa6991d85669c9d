# make drill     practise a recovery in a private sandbox; without a terminal it recovers by itself and prints the report
#                (SCENARIO=lost-files for another one; lifeboat drill --help lists them)
# make test      every test, on real servers
# make bench     the comparisons that the README's numbers come from
# make soak      every fault test, with thousands of kills; writes tests/FAULTS.md (KILLS=1000 of each kind of process unless said otherwise)
# make screenshots   the pictures in screenshots/, from the real program
#
# Each installs what it needs and does not find; see .make/install.

# What a drill needs, and the linker and C library that Rust builds against.
DRILL_PACKAGES = gcc libc6-dev postgresql restic
# Other servers and ways to a repository, and fonts for pictures; only tests need them.
TEST_PACKAGES = $(DRILL_PACKAGES) dosfstools faketime fonts-dejavu-core iproute2 lz4 openssh-client openssh-server openssl \
	pgbackrest pgbouncer python3 python3-pip python3-venv rclone strace

# rustup puts cargo here; a shell that was opened before does not know yet.
export PATH := $(HOME)/.cargo/bin:$(PATH)

.PHONY: drill test bench soak screenshots install-tools install-test-tools

drill: install-tools
	@cargo build --locked
	@cargo run --quiet --locked -- drill $(SCENARIO)

# Tests wait for servers half of their time: half as many again run at once as there are processors.
test: install-test-tools
	RUST_TEST_THREADS=$$(($$(nproc) * 3 / 2)) PATH="$(CURDIR)/target/moto/bin:$$PATH" cargo test --locked

bench: install-test-tools
	cargo bench --locked

soak: install-test-tools
	PATH="$(CURDIR)/target/moto/bin:$$PATH" tests/soak $(or $(KILLS),1000)

screenshots: install-test-tools
	UPDATE_SCREENSHOTS=1 cargo test --locked --test it -- walk::a_newcomer worker::fm_05_a_cut worker::where_two

install-tools:
	@.make/install $(DRILL_PACKAGES)

# PostgreSQL 16 and 18 as well: archives are read as each version writes them.
install-test-tools:
	@.make/install $(TEST_PACKAGES)
	@tests/get-postgres
	@tests/get-moto

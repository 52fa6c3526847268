# pmemha: `make demo` shows the main job, `make test` runs every test. Both set up what they need.

.PHONY: all demo test soak as-root setup build clean help
all: build

help:
	@echo 'make demo          set up, then: a PMDK program outlives its machine'
	@echo 'make test          as root: set up, then every test with reduced counts'
	@echo 'make soak HOURS=n  as root: the full counts, for up to n hours; goes on where it stopped (ONLY="kill prefix": of those)'
	@echo 'make build         release binaries and libraries'
	@echo 'make install PREFIX=/usr/local [DESTDIR=…]'

as-root:
	@scripts/as-root

setup:
	@scripts/setup

# The interposer is built by a command of its own: one build would unify the features of the crate that
# both link, and export the C API from the preload library.
build: setup
	cargo build --release --bins --lib
	cargo build --release -p pmemha-preload

demo: build
	@target/release/pmemha demo

test: as-root setup
	@scripts/pynvm
	@soft-roce/setup
	@scripts/test

soak: as-root setup
	@scripts/pynvm
	@soft-roce/setup
	@scripts/soak $(HOURS) $(ONLY)

clean:
	cargo clean

-include mk/install.mk

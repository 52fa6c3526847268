# pmemha: `make demo` shows the main job, `make test` runs every test. Both set up what they need.

.PHONY: all demo test soak setup build clean help
all: build

help:
	@echo 'make demo          set up, then: a PMDK program outlives its machine'
	@echo 'make test          set up, then every test with reduced counts'
	@echo 'make soak HOURS=n  the full counts, for up to n hours; goes on where it stopped (ONLY="kill prefix": of those)'
	@echo 'make build         release binaries and libraries'
	@echo 'make install PREFIX=/usr/local [DESTDIR=…]'

setup:
	@scripts/setup

# The interposer is built by a command of its own: one build would unify the features of the crate that
# both link, and export the C API from the preload library.
build: setup
	cargo build --release --bins --lib
	cargo build --release -p pmemha-preload

demo: build
	@target/release/pmemha demo

test: setup
	@soft-roce/setup
	@scripts/test

soak: setup
	@soft-roce/setup
	@scripts/soak $(HOURS) $(ONLY)

clean:
	cargo clean

-include mk/install.mk

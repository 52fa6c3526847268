# make install PREFIX=/usr/local [DESTDIR=…] [BUILD=target/release]: libraries, headers, pkg-config file, programs, man
# pages, systemd unit, examples. Included by the Makefile; works alone too: make -f mk/install.mk install.
# Builds nothing: `make build` comes before. /etc is left to `pmemha init`.

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
SBINDIR ?= $(PREFIX)/sbin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR ?= $(PREFIX)/share/man
DOCDIR ?= $(PREFIX)/share/doc/pmemha
UNITDIR ?= $(PREFIX)/lib/systemd/system
BUILD ?= target/release
INSTALL ?= install

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# As in build.rs: a program linked today runs with any libpmemha.so.0.
SONAME := libpmemha.so.0
MAN_PAGES := $(wildcard man/*.[1-8])

install: install-lib install-bin install-man install-unit install-examples

install-lib:
	$(INSTALL) -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR)
	$(INSTALL) -m 755 $(BUILD)/libpmemha.so $(DESTDIR)$(LIBDIR)/libpmemha.so.$(VERSION)
	ln -sf libpmemha.so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libpmemha.so
	$(INSTALL) -m 755 $(BUILD)/libpmemha_preload.so $(DESTDIR)$(LIBDIR)/libpmemha_preload.so
	$(INSTALL) -m 644 include/pmemha.h include/pmemha.hpp $(DESTDIR)$(INCLUDEDIR)
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
		-e 's|@VERSION@|$(VERSION)|' pmemha.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/pmemha.pc
	chmod 644 $(DESTDIR)$(LIBDIR)/pkgconfig/pmemha.pc
	@# Not for a package, whose own script does it; without the right to, programs name the path.
	@[ -n "$(DESTDIR)" ] || ldconfig 2>/dev/null || true

install-bin:
	$(INSTALL) -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(SBINDIR)
	$(INSTALL) -m 755 $(BUILD)/pmemha $(DESTDIR)$(BINDIR)/pmemha
	$(INSTALL) -m 755 $(BUILD)/pmemhad $(DESTDIR)$(SBINDIR)/pmemhad

install-man:
	for page in $(MAN_PAGES); do \
		section=$(DESTDIR)$(MANDIR)/man$${page##*.}; \
		$(INSTALL) -d $$section && $(INSTALL) -m 644 $$page $$section || exit 1; \
	done

install-unit:
	$(INSTALL) -d $(DESTDIR)$(UNITDIR)
	sed 's|@SBINDIR@|$(SBINDIR)|' contrib/pmemhad.service > $(DESTDIR)$(UNITDIR)/pmemhad.service
	chmod 644 $(DESTDIR)$(UNITDIR)/pmemhad.service

install-examples:
	$(INSTALL) -d $(DESTDIR)$(DOCDIR)/examples
	$(INSTALL) -m 644 c-examples/* $(DESTDIR)$(DOCDIR)/examples

.PHONY: install install-lib install-bin install-man install-unit install-examples

# outbox: a transactional outbox to Kafka inside PostgreSQL
#
# make, make install, make installcheck as every extension has them;
# make demo, make test and make bench set up everything they need (see README.md).

EXTENSION = outbox
MODULE_big = outbox
DATA = outbox--1.0.sql
BRIDGE = outbox_bridge

OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c))) src/bridge/frame.o

REGRESS = $(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql)))
REGRESS_OPTS = --temp-config=test/regress.conf
ISOLATION = $(patsubst specs/%.spec,%,$(sort $(wildcard specs/*.spec)))
ISOLATION_OPTS = --temp-config=test/regress.conf

PG_CPPFLAGS = -Isrc -DOUTBOX_BUILD='"$(BUILD_ID)"'
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers
EXTRA_CLEAN = $(BRIDGE) .build_id src/*.bc test/build bench/build results regression.diffs \
	regression.out output_iso tmp_check tmp_check_iso log

# Worker and bridge must be of one build: both get this number.
BUILD_ID := $(shell cat src/*.[ch] src/bridge/*.[ch] 2>/dev/null | cksum | cut -d' ' -f1)
$(shell echo $(BUILD_ID) | cmp -s - .build_id || echo $(BUILD_ID) > .build_id)

PG_CONFIG ?= pg_config
# "make demo", "make test" and "make bench" install what gives pg_config, if need be.
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifeq ($(PGXS)$(filter demo test stress bench,$(MAKECMDGOALS)),)
$(error $(PG_CONFIG) was not found: install PostgreSQL's server headers, or say PG_CONFIG=...)
endif
# Bitcode serves inlining into queries; nothing here is called that often.
override with_llvm = no
include $(PGXS)

# The bridge links librdkafka and nothing of PostgreSQL.
RDKAFKA_CFLAGS ?= $(shell pkg-config --cflags rdkafka)
RDKAFKA_LIBS ?= $(shell pkg-config --libs rdkafka)
BRIDGE_SRCS = $(sort $(wildcard src/bridge/*.c))
BRIDGE_CFLAGS = -std=gnu11 -O2 -g -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers -fstack-protector-strong -D_FORTIFY_SOURCE=2 $(COPT)

all: $(BRIDGE)

$(BRIDGE): $(BRIDGE_SRCS) $(wildcard src/bridge/*.h) .build_id
	$(CC) $(BRIDGE_CFLAGS) -DOUTBOX_BUILD='"$(BUILD_ID)"' $(RDKAFKA_CFLAGS) \
		-o $@ $(BRIDGE_SRCS) $(RDKAFKA_LIBS) -lpthread

# those that say it
$(patsubst %.c,%.o,$(shell grep -l OUTBOX_BUILD src/*.c)): .build_id
$(OBJS): $(wildcard src/*.h) $(wildcard src/bridge/*.h)

install: install-bridge
install-bridge: $(BRIDGE) installdirs
	$(INSTALL_PROGRAM) $(BRIDGE) '$(DESTDIR)$(pkglibdir)/$(BRIDGE)'

uninstall: uninstall-bridge
uninstall-bridge:
	rm -f '$(DESTDIR)$(pkglibdir)/$(BRIDGE)'

.PHONY: install-bridge uninstall-bridge

include test/test.mk
include bench/bench.mk

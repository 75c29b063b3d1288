# Tests, the demo and what they are made with; included by the main Makefile.

TEST_BUILD := test/build
TEST_TOOLS := $(TEST_BUILD)/guard $(TEST_BUILD)/mock_broker $(TEST_BUILD)/ktool \
	$(TEST_BUILD)/clock.so $(TEST_BUILD)/poison.so
TEST_CFLAGS = -std=gnu11 -O2 -g -Wall -Wextra -Werror -Wmissing-prototypes \
	-Wpointer-arith -Wshadow -Wvla

.PHONY: test demo stress test-tools clean-test

test:
	@test/run-tests.sh

stress:
	@STRESS=1 test/run-tests.sh

demo:
	@test/demo.sh

test-tools: $(TEST_TOOLS)

$(TEST_BUILD):
	mkdir -p $@

$(TEST_BUILD)/guard: test/guard.c | $(TEST_BUILD)
	$(CC) $(TEST_CFLAGS) -o $@ $<

$(TEST_BUILD)/mock_broker $(TEST_BUILD)/ktool: $(TEST_BUILD)/%: test/%.c | $(TEST_BUILD)
	$(CC) $(TEST_CFLAGS) $$(pkg-config --cflags rdkafka) -o $@ $< \
		$$(pkg-config --libs rdkafka) -lpthread -ldl

$(TEST_BUILD)/clock.so: test/clock.c | $(TEST_BUILD)
	$(CC) $(TEST_CFLAGS) -fPIC -shared -o $@ $< -ldl

$(TEST_BUILD)/poison.so: test/poison.c | $(TEST_BUILD)
	$(CC) $(TEST_CFLAGS) -fPIC -shared $$(pkg-config --cflags rdkafka) -o $@ $< -ldl

clean-test:
	rm -rf $(TEST_BUILD)

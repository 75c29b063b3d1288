# The bench and its own client of Kafka; included by the main Makefile.

BENCH_BUILD := bench/build

.PHONY: bench bench-tools clean-bench

bench:
	@bench/run.sh

bench-tools: $(TEST_BUILD)/guard $(TEST_BUILD)/ktool $(BENCH_BUILD)/kbench

$(BENCH_BUILD):
	mkdir -p $@

$(BENCH_BUILD)/kbench: bench/kbench.c | $(BENCH_BUILD)
	$(CC) $(TEST_CFLAGS) $$(pkg-config --cflags rdkafka) -o $@ $< \
		$$(pkg-config --libs rdkafka)

clean-bench:
	rm -rf $(BENCH_BUILD)

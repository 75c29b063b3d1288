/*-------------------------------------------------------------------------
 *
 * test_outage.c
 *	  Brokers that are away, refuse, or hang.
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define N			200

static Outcome outcomes[N];

static void send_batch(Child *child);
static int	in_order(int n, int class);
static void brokers(bool up);
static void unreachable(void);
static void bad_security(void);
static void down_and_up(void);
static void hanging(void);
static void one_hanging(int32_t broker);

static void
send_batch(Child *child)
{
	for (uint32_t i = 0; i < N; i++)
		send_record(child, i, "outage", "k", "v");
	send_simple(child, FRAME_FLUSH);
}

/* How many outcomes are of that class; -1 if they are out of order */
static int
in_order(int n, int class)
{
	int			count = 0;

	for (int i = 0; i < n; i++)
	{
		if (outcomes[i].index != (uint32_t) i)
			return -1;
		count += outcomes[i].class == class;
	}
	return count;
}

static void
brokers(bool up)
{
	for (int32_t id = 1; id <= 2; id++)
	{
		if (up)
			rd_kafka_mock_broker_set_up(cluster, id);
		else
			rd_kafka_mock_broker_set_down(cluster, id);
	}
}

/* Nobody listens: that is said, and nothing is kept */
static void
unreachable(void)
{
	Child	   *child = child_hello('p', "127.0.0.1:1", NULL);
	int			n;

	ok(expect_brokers(child, false, 4000) && strstr(child->brokers, "refused") != NULL,
	   "unreachable: %s", child->brokers);
	send_batch(child);
	send_simple(child, FRAME_PURGE);
	n = collect(child, outcomes, N, 1000);
	ok(n == N && in_order(n, OUTCOME_RETRIABLE) == N && outcomes[0].persisted == PERSISTED_NOT,
	   "purged: %d of %d records, in order (%s)", n, N, outcomes[0].error);
	send_batch(child);
	n = collect(child, outcomes, N, 5000);
	ok(n == N && in_order(n, OUTCOME_RETRIABLE) == N, "without a purge they come back as well (%s)",
	   outcomes[0].error);
	send_string(child, FRAME_ASK_TOPIC, "outage");
	ok(expect_topic(child, "outage", 5000) == OUTCOME_RETRIABLE, "a topic can't be asked about");
	send_tag(child, FRAME_PING, 1);
	ok(expect(child, FRAME_PONG, 1000), "and PING is answered");
	child_stop(child);

	child = child_hello('c', "127.0.0.1:1", NULL);
	ok(expect_brokers(child, false, 4000), "to a consumer, too: %s", child->brokers);
	child_stop(child);
}

/* A broker that doesn't speak TLS */
static void
bad_security(void)
{
	Child	   *child = child_hello('p', bootstraps, "security.protocol", "ssl", NULL);

	ok(expect_brokers(child, false, 4000) && strstr(child->brokers, "SSL") != NULL,
	   "TLS refused: %s", child->brokers);
	child_stop(child);
	child = child_hello('p', "no.such.host.invalid:9092", NULL);
	ok(expect_brokers(child, false, 20000) && strstr(child->brokers, "no.such.host") != NULL,
	   "an unknown host: %s", child->brokers);
	child_stop(child);
}

/* The brokers go away with records under way, and come back */
static void
down_and_up(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	int			n;

	rd_kafka_mock_topic_create(cluster, "outage", 1, 1);
	send_batch(child);
	n = collect(child, outcomes, N, 5000);
	ok(n == N && in_order(n, OUTCOME_OK) == N, "a batch before");

	brokers(false);
	ok(expect_brokers(child, false, 5000), "brokers down: %s", child->brokers);
	send_batch(child);
	send_simple(child, FRAME_PURGE);
	n = collect(child, outcomes, N, 3000);
	ok(n == N && in_order(n, OUTCOME_RETRIABLE) == N, "purged: %d records (%s)", n, outcomes[0].error);

	brokers(true);
	ok(expect_brokers(child, true, 5000), "brokers up again");
	send_batch(child);
	n = collect(child, outcomes, N, 5000);
	ok(n == N && in_order(n, OUTCOME_OK) == N, "the same batch goes out, in order");
	child_stop(child);
}

/* The brokers accept everything and answer nothing */
static void
hanging(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	int			n;
	int			retriable = 0;
	int			possibly = 0;
	int			took;
	bool		down;
	int64_t		start;

	send_batch(child);
	n = collect(child, outcomes, N, 5000);
	ok(n == N && expect_brokers(child, true, 1), "a batch before");
	rd_kafka_mock_broker_set_rtt(cluster, -1, 60000);
	start = clock_ms();
	send_batch(child);
	down = expect_brokers(child, false, 6000);
	took = (int) (clock_ms() - start);
	ok(down, "after %d ms the brokers count as down: %s",
	   took, child->brokers);
	send_tag(child, FRAME_PING, 1);
	ok(expect(child, FRAME_PONG, 1000), "PING is answered meanwhile");
	send_simple(child, FRAME_PURGE);
	n = collect(child, outcomes, N, 3000);
	for (int i = 0; i < n; i++)
	{
		retriable += outcomes[i].class == OUTCOME_RETRIABLE;
		possibly += outcomes[i].persisted == PERSISTED_POSSIBLY;
	}
	/* What was under way may come after what was queued, and a slow one may have sent nothing */
	ok(n == N && retriable == N && (slow > 1 || possibly > 0),
	   "purged: %d records, %d of them possibly sent", n, possibly);
	rd_kafka_mock_broker_set_rtt(cluster, -1, 0);
	child_stop(child);
}

/* One of two brokers hangs, and it is the one that was spoken to last */
static void
one_hanging(int32_t broker)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	const char *topics[] = {"first", "second"};
	int			class;
	int64_t		start;

	for (int i = 0; i < 2; i++)
	{
		rd_kafka_mock_topic_create(cluster, topics[i], 1, 1);
		rd_kafka_mock_partition_set_leader(cluster, topics[i], 0, i + 1);
		send_record(child, (uint32_t) i, topics[i], "k", "v");
	}
	send_simple(child, FRAME_FLUSH);
	ok(collect(child, outcomes, 2, 5000) == 2 && expect_brokers(child, true, 1000),
	   "records to each of two brokers");
	poll(NULL, 0, 2100);

	rd_kafka_mock_broker_set_rtt(cluster, broker, 60000);
	send_record(child, 0, topics[broker - 1], "k", "v");
	send_simple(child, FRAME_FLUSH);
	ok(!expect_brokers(child, false, 6000 / slow), "while broker %d hangs the other counts: %s", broker, child->brokers);
	start = clock_ms();
	send_string(child, FRAME_ASK_TOPIC, topics[2 - broker]);
	class = expect_topic(child, topics[2 - broker], 8000);
	ok(class == OUTCOME_OK, "and answers, after %d ms", (int) (clock_ms() - start));
	rd_kafka_mock_broker_set_rtt(cluster, broker, 0);
	child_stop(child);
}

void
test_outage(void)
{
	unreachable();
	bad_security();
	down_and_up();
	hanging();
	one_hanging(1);
	one_hanging(2);
}

/*-------------------------------------------------------------------------
 *
 * test_produce.c
 *	  Records and their outcomes.
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define MANY		5000
#define LARGE		1500
#define PRODUCE_API	0			/* number of Kafka's Produce request */
#define ROOM		"10"		/* in a small queue */

static Outcome outcomes[MANY];

static void many_records(void);
static void unusable_topics(void);
static bool tells_leaderless(Child *child, const char *topic, uint32_t partitions, uint32_t which);
static void other_partition(Child *child, const char *topic, const char *key);
static void lost_leader(void);
static void sizes(void);
static void error_class(rd_kafka_resp_err_t err, int class, const char *name);
static void error_classes(void);
static void send_large(Child *child, uint32_t n);
static void more_than_fits(void);
static bool once_each(int n);
static void small_queue(void);
static void waiting_twice(void);
static void oversize_marker(void);

/* Outcomes come for every record, in order within each partition */
static void
many_records(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	char		key[32];
	int			n;
	int64_t		last[4] = {-1, -1, -1, -1};
	int32_t		partition_of[7] = {-1, -1, -1, -1, -1, -1, -1};
	int			good = 0;
	bool		ordered = true;
	bool		keyed = true;

	rd_kafka_mock_topic_create(cluster, "many", 4, 1);
	ok(expect_brokers(child, true, 5000), "brokers are reported up");
	for (int i = 0; i < MANY; i++)
	{
		snprintf(key, sizeof(key), "key %d", i % 7);
		send_record(child, (uint32_t) i, "many", key, "value");
	}
	send_simple(child, FRAME_FLUSH);
	n = collect(child, outcomes, MANY, 20000);
	for (int i = 0; i < n; i++)
	{
		Outcome    *o = &outcomes[i];

		if (o->class != OUTCOME_OK || o->partition < 0 || o->partition > 3)
			continue;
		good++;
		ordered = ordered && o->offset > last[o->partition];
		last[o->partition] = o->offset;
		if (partition_of[o->index % 7] == -1)
			partition_of[o->index % 7] = o->partition;
		keyed = keyed && partition_of[o->index % 7] == o->partition;
	}
	ok(n == MANY && good == MANY, "%d of %d records acknowledged", good, MANY);
	ok(ordered, "offsets rise in the order of production");
	ok(keyed, "a key stays in its partition");

	/* What Java's producer computes for these keys */
	send_record(child, 0, "many", "1", "v");
	send_record(child, 1, "many", "order-42", "v");
	ok(collect(child, outcomes, 2, 10000) == 2 && outcomes[0].class == OUTCOME_OK &&
	   outcomes[1].class == OUTCOME_OK, "a further batch");
	for (int i = 0; i < 2; i++)
	{
		const char *text = outcomes[i].index == 0 ? "1" : "order-42";
		int32_t		expected = rd_kafka_msg_partitioner_murmur2(NULL, text, strlen(text), 4, NULL, NULL);

		ok(outcomes[i].partition == expected, "key \"%s\" goes to partition %d", text, expected);
	}
	child_stop(child);
}

/* A topic that can't be written answers at once and holds up no other */
static void
unusable_topics(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	int			got;
	int			classes[5] = {0};
	int			class;

	rd_kafka_mock_topic_create(cluster, "usable", 1, 1);
	rd_kafka_mock_topic_set_error(cluster, "missing", RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
	rd_kafka_mock_topic_set_error(cluster, "denied", RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
	rd_kafka_mock_topic_set_error(cluster, "impossible", RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION);
	send_record(child, 0, "missing", "k", "v");
	send_record(child, 1, "usable", "k", "v");
	send_record(child, 2, TOPIC_ERRORS_CRASH ? "missing" : "denied", "k", "v");
	send_record(child, 3, "usable", "k", "v");
	send_record(child, 4, TOPIC_ERRORS_CRASH ? "missing" : "impossible", "k", "v");
	send_simple(child, FRAME_FLUSH);
	got = collect(child, outcomes, 5, 5000);
	for (int i = 0; i < got; i++)
		classes[outcomes[i].index] = outcomes[i].class;
	ok(got == 5 && classes[1] == OUTCOME_OK && classes[3] == OUTCOME_OK,
	   "a usable topic doesn't suffer from others");
	ok(classes[0] == OUTCOME_TOPIC_MISSING, "a missing topic");
	if (TOPIC_ERRORS_CRASH)
		skip("denied and impossible topics", "this librdkafka crashes");
	else
	{
		ok(classes[2] == OUTCOME_TOPIC_DENIED, "a denied topic");
		ok(classes[4] == OUTCOME_TOPIC_MISCONFIGURED, "an impossible topic");
	}

	send_string(child, FRAME_ASK_TOPIC, "missing");
	ok(expect_topic(child, "missing", 5000) == OUTCOME_TOPIC_MISSING, "so says the topic when asked");

	/* It comes to be */
	rd_kafka_mock_topic_set_error(cluster, "missing", RD_KAFKA_RESP_ERR_NO_ERROR);
	send_string(child, FRAME_ASK_TOPIC, "missing");
	do
		class = expect_topic(child, "missing", 5000);
	while (class > OUTCOME_OK);
	ok(class == OUTCOME_OK && *get_string(&child->frame) == '\0' &&
	   *get_string(&child->frame) == '\0' && get_u32(&child->frame) == 4, "a topic that appears");
	send_record(child, 9, "missing", "k", "v");
	ok(collect(child, outcomes, 1, 5000) == 1 && outcomes[0].class == OUTCOME_OK,
	   "its records go out, in the same client");
	child_stop(child);
}

/* Asked about the topic: is that the only partition without a leader? */
static bool
tells_leaderless(Child *child, const char *topic, uint32_t partitions, uint32_t which)
{
	FrameReader *frame = &child->frame;

	send_string(child, FRAME_ASK_TOPIC, topic);
	if (expect_topic(child, topic, 5000) != OUTCOME_OK)
		return false;
	get_string(frame);
	get_string(frame);
	if (get_u32(frame) != partitions || get_u32(frame) != 1)
		return false;
	get_u32(frame);
	get_u32(frame);
	return get_u32(frame) == which && frame_done(frame);
}

/*
 * A record for a partition with a leader doesn't wait for an answer about one
 * without: what the brokers would answer now, nobody hears.
 */
static void
other_partition(Child *child, const char *topic, const char *key)
{
	poll(NULL, 0, 600);
	rd_kafka_mock_topic_set_error(cluster, topic, RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
	send_record(child, 1, topic, key, "v");
	send_simple(child, FRAME_FLUSH);
	ok(collect(child, outcomes, 1, 5000) == 1 && outcomes[0].class == OUTCOME_OK,
	   "another partition's record goes out unasked (%s)", outcomes[0].error);
	rd_kafka_mock_topic_set_error(cluster, topic, RD_KAFKA_RESP_ERR_NO_ERROR);
}

/* Without a leader a partition's records come back, and the others' go out */
static void
lost_leader(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	int			got;
	int			back = 0;
	int			gone = 0;
	bool		right = true;
	int64_t		start;

	rd_kafka_mock_topic_create(cluster, "leaderless", 2, 1);
	rd_kafka_mock_partition_set_leader(cluster, "leaderless", 0, -1);
	start = clock_ms();
	for (int i = 0; i < 100; i++)
	{
		char		key[16];

		snprintf(key, sizeof(key), "%d", i);
		send_record(child, (uint32_t) i, "leaderless", key, "v");
	}
	send_simple(child, FRAME_FLUSH);
	got = collect(child, outcomes, 100, 8000);
	for (int i = 0; i < got; i++)
	{
		if (outcomes[i].class == OUTCOME_OK)
			gone++;
		else if (outcomes[i].class == OUTCOME_RETRIABLE && outcomes[i].persisted == PERSISTED_NOT)
			back++;
		right = right && outcomes[i].partitions == 2 &&
			(outcomes[i].partition == 0) == (outcomes[i].class != OUTCOME_OK);
	}
	ok(got == 100 && gone + back == 100 && gone > 0 && back > 0 && right,
	   "%d records sent, %d back from the partition without a leader", gone, back);
	ok(clock_ms() - start < 2000 * slow, "within %d ms", (int) (clock_ms() - start));
	ok(tells_leaderless(child, "leaderless", 2, 0), "the topic's state names that partition");
	if (TOPIC_ERRORS_CRASH)
		skip("another partition's record", "this librdkafka crashes");
	else
		other_partition(child, "leaderless", "3");

	if (LEADERLESS_CRASHES_MOCK)
	{
		skip("records handed over before", "this mock cluster crashes");
		child_stop(child);
		return;
	}

	/* Even one that librdkafka has already, if it wasn't sent */
	rd_kafka_mock_partition_set_leader(cluster, "leaderless", 0, 1);
	send_string(child, FRAME_ASK_TOPIC, "leaderless");
	expect_topic(child, "leaderless", 5000);
	poll(NULL, 0, 600);
	rd_kafka_mock_partition_set_leader(cluster, "leaderless", 0, -1);
	send_record(child, 1, "leaderless", "0", "v");
	send_simple(child, FRAME_FLUSH);
	got = collect(child, outcomes, 1, 5000);
	ok(got == 1 && outcomes[0].class == OUTCOME_RETRIABLE, "back when its leader turns out to be lost (%s)",
	   outcomes[0].error);
	rd_kafka_mock_partition_set_leader(cluster, "leaderless", 0, 1);
	send_string(child, FRAME_ASK_TOPIC, "leaderless");
	expect_topic(child, "leaderless", 5000);
	send_record(child, 1, "leaderless", "0", "v");
	send_simple(child, FRAME_FLUSH);
	ok(collect(child, outcomes, 1, 8000) == 1 && outcomes[0].class == OUTCOME_OK,
	   "it goes on when there is a leader again");
	child_stop(child);
}

/* A record too large for the client is rejected alone, others pass */
static void
sizes(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	size_t		size = 63 * 1024 * 1024;
	char	   *large = malloc(size + 1);

	rd_kafka_mock_topic_create(cluster, "sizes", 1, 1);
	memset(large, 'x', size);
	large[2 * 1024 * 1024] = '\0';
	send_record(child, 0, "sizes", "k", "small");
	frame_end(&child->out);
	send_record(child, 1, "sizes", "k", large);
	frame_end(&child->out);
	send_record(child, 2, "sizes", "k", "small");
	send_simple(child, FRAME_FLUSH);
	ok(collect(child, outcomes, 3, 20000) == 3 && outcomes[0].class == OUTCOME_OK &&
	   outcomes[1].class == OUTCOME_OK && outcomes[2].class == OUTCOME_OK,
	   "a record of two megabytes");
	free(large);
	child_stop(child);
}

/* A record that fits in no frame is answered like any other */
static void
oversize_marker(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);

	send_tag(child, FRAME_OVERSIZE, 77);
	ok(collect(child, outcomes, 1, 5000) == 1 && outcomes[0].index == 77 &&
	   outcomes[0].class == OUTCOME_REJECTED && outcomes[0].persisted == PERSISTED_NOT &&
	   strcmp(outcomes[0].error, "MSG_SIZE_TOO_LARGE") == 0, "too large for a frame: rejected");
	child_stop(child);
}

/* What the broker answers, and what comes of it */
static void
error_class(rd_kafka_resp_err_t err, int class, const char *name)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	int			got;

	rd_kafka_mock_topic_create(cluster, "classes", 1, 1);
	rd_kafka_mock_push_request_errors(cluster, PRODUCE_API, 1, err);
	send_record(child, 5, "classes", "k", "v");
	send_simple(child, FRAME_FLUSH);
	got = collect(child, outcomes, 1, 10000);
	ok(got == 1 && outcomes[0].index == 5 && outcomes[0].class == class &&
	   strcmp(outcomes[0].error, class == OUTCOME_OK ? "" : name) == 0,
	   "%s is of class %d (is %d, %s)", name, class, outcomes[0].class, outcomes[0].error);
	rd_kafka_mock_clear_request_errors(cluster, PRODUCE_API);

	/* Most errors leave the client in order */
	if (class != OUTCOME_CLIENT_FINISHED)
	{
		send_record(child, 6, "classes", "k", "v");
		send_simple(child, FRAME_FLUSH);
		ok(collect(child, outcomes, 1, 10000) == 1 && outcomes[0].class == OUTCOME_OK,
		   "after %s the next batch goes out", name);
	}
	child_stop(child);
}

static void
error_classes(void)
{
	/* librdkafka itself repeats the first ones */
	error_class(RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, OUTCOME_OK, "NOT_LEADER");
	error_class(RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, OUTCOME_OK, "NOT_ENOUGH_REPLICAS");
	error_class(RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, OUTCOME_REQUEST_REJECTED, "MSG_SIZE_TOO_LARGE");
	error_class(RD_KAFKA_RESP_ERR_INVALID_RECORD, OUTCOME_REQUEST_REJECTED, "INVALID_RECORD");
	error_class(RD_KAFKA_RESP_ERR_POLICY_VIOLATION, OUTCOME_REQUEST_REJECTED, "POLICY_VIOLATION");
	error_class(RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, OUTCOME_TOPIC_DENIED,
				"TOPIC_AUTHORIZATION_FAILED");
	error_class(RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE, OUTCOME_TOPIC_MISCONFIGURED,
				"UNSUPPORTED_COMPRESSION_TYPE");
	error_class(RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, OUTCOME_TOPIC_MISCONFIGURED, "INVALID_TIMESTAMP");
	error_class(RD_KAFKA_RESP_ERR_SECURITY_DISABLED, OUTCOME_UNKNOWN, "SECURITY_DISABLED");
}

/* Queues records of 100 kB, letting the bridge begin */
static void
send_large(Child *child, uint32_t n)
{
	char	   *value = malloc(100001);

	memset(value, 'x', 100000);
	value[100000] = '\0';
	for (uint32_t i = 0; i < n; i++)
	{
		send_record(child, i, "flood", "k", value);
		if (i % 10 == 0)
			child_send(child);
	}
	send_simple(child, FRAME_FLUSH);
	free(value);
}

/* More than librdkafka's queue holds: it goes out all the same, in order */
static void
more_than_fits(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	int			got = 0;
	bool		ordered = true;

	rd_kafka_mock_topic_create(cluster, "flood", 1, 1);
	send_large(child, LARGE);
	while (got < LARGE)
	{
		int			n = collect(child, outcomes + got, LARGE - got, 20000);

		if (n == 0)
			break;
		got += n;
	}
	for (int i = 0; i < got; i++)
		ordered = ordered && outcomes[i].index == (uint32_t) i && outcomes[i].class == OUTCOME_OK;
	ok(got == LARGE && ordered, "%d of %d large records acknowledged, in order", got, LARGE);

	/* A broker that hangs: all of it piles up, and the bridge stops reading */
	rd_kafka_mock_broker_set_rtt(cluster, -1, 60000);
	child->pongs = 0;
	child->brokers[0] = '\0';
	send_large(child, LARGE);
	got = 0;
	while (got < LARGE && child_read(child, 5000))
	{
		if (child->frame.type == FRAME_BROKERS)
			send_simple(child, FRAME_PURGE);
		got += read_outcomes(child, outcomes + got, LARGE - got);
	}
	/* A slow one isn't done reading when the brokers are given up */
	ok(slow > 1 || child->pongs > 0, "%d signs of life from a bridge that reads nothing", child->pongs);
	ok(got == LARGE && strcmp(child->brokers, "up") != 0, "%d outcomes after a purge", got);
	rd_kafka_mock_broker_set_rtt(cluster, -1, 0);
	child_stop(child);
}

/* Has each of n records one outcome? */
static bool
once_each(int n)
{
	static bool seen[MANY];

	memset(seen, 0, sizeof(seen));
	for (int i = 0; i < n; i++)
	{
		if (outcomes[i].index >= (uint32_t) n || seen[outcomes[i].index])
			return false;
		seen[outcomes[i].index] = true;
	}
	return true;
}

/* _QUEUE_FULL, again and again: nothing is lost, and none overtakes another */
static void
small_queue(void)
{
	Child	   *child = child_hello('p', bootstraps, "queue.buffering.max.messages", ROOM, NULL);
	int			n = 1000;
	int			got;
	int			good = 0;
	int			back = 0;

	rd_kafka_mock_topic_create(cluster, "room", 1, 1);
	for (int i = 0; i < n; i++)
		send_record(child, (uint32_t) i, "room", "k", "v");
	send_simple(child, FRAME_FLUSH);
	got = collect(child, outcomes, n, 30000);
	for (int i = 0; i < got; i++)
		good += outcomes[i].class == OUTCOME_OK && outcomes[i].index == (uint32_t) i &&
			outcomes[i].offset == i;
	ok(got == n && good == n, "%d of %d records through a queue of " ROOM ", in order", good, n);

	/* Full, and nothing leaves it: what waits for room is given up, too */
	rd_kafka_mock_broker_set_rtt(cluster, -1, 60000);
	for (int i = 0; i < n; i++)
		send_record(child, (uint32_t) i, "room", "k", "v");
	send_simple(child, FRAME_FLUSH);
	send_simple(child, FRAME_PURGE);
	got = collect(child, outcomes, n, 5000);
	for (int i = 0; i < got; i++)
		back += outcomes[i].class == OUTCOME_RETRIABLE;
	ok(got == n && back == n && once_each(n), "a full queue purged: %d of %d records back, once each",
	   back, n);
	ok(!expect(child, FRAME_OUTCOMES, 300), "and none of them twice");
	rd_kafka_mock_broker_set_rtt(cluster, -1, 0);
	child_stop(child);
}

/*
 * Records that wait for their topic's metadata, and later ones of the same
 * topic that wait for room in a queue that others have filled: the former go
 * first.  All of it comes to the bridge in one piece, so that no answer comes
 * in between; the broker is made to hold the others long enough.
 */
static void
waiting_twice(void)
{
	Child	   *child = child_hello('p', bootstraps, "queue.buffering.max.messages", ROOM,
									"retry.backoff.ms", "500", NULL);
	int			n = 60;
	int			got;
	int			good = 0;
	uint32_t	next = 0;

	rd_kafka_mock_topic_create(cluster, "filler", 1, 1);
	rd_kafka_mock_topic_create(cluster, "late", 1, 1);
	send_record(child, 0, "filler", "k", "v");
	ok(collect(child, outcomes, 1, 10000) == 1 && outcomes[0].class == OUTCOME_OK,
	   "one topic is known, the other isn't");
	rd_kafka_mock_push_request_errors(cluster, PRODUCE_API, 2,
									  RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
									  RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS);
	for (uint32_t i = 0; i < (uint32_t) n; i++)
		send_record(child, i, i / 20 == 1 ? "filler" : "late", "k", "v");
	send_simple(child, FRAME_FLUSH);
	got = collect(child, outcomes, n, 20000);
	for (int i = 0; i < got; i++)
	{
		good += outcomes[i].class == OUTCOME_OK;
		if (outcomes[i].index / 20 == 1)
			continue;
		if (outcomes[i].index == next && outcomes[i].offset == (int64_t) (next < 20 ? next : next - 20))
			next = next == 19 ? 40 : next + 1;
	}
	ok(got == n && good == n && once_each(n), "%d of %d records acknowledged, once each", good, n);
	ok(next == (uint32_t) n, "those that waited for metadata went before those that waited for room");
	rd_kafka_mock_clear_request_errors(cluster, PRODUCE_API);
	child_stop(child);
}

void
test_produce(void)
{
	many_records();
	unusable_topics();
	lost_leader();
	sizes();
	oversize_marker();
	error_classes();
	more_than_fits();
	small_queue();
	waiting_twice();
}

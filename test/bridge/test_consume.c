/*-------------------------------------------------------------------------
 *
 * test_consume.c
 *	  Partitions read back, and what is said of them.
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

static void fill(const char *topic, int n);
static void odd_records(void);
static void send_watch(Child *child, uint32_t tag, const char *topic, int32_t partition,
					   int64_t time);
static void positions(void);
static void together(void);
static void dead_leader(void);
static void tags(void);
static void large_backlog(void);
static void topic_news(void);

/* n records into a topic's only partition */
static void
fill(const char *topic, int n)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	Outcome    *outcomes = calloc((size_t) n, sizeof(Outcome));
	char		value[32];

	rd_kafka_mock_topic_create(cluster, topic, 1, 1);
	for (int i = 0; i < n; i++)
	{
		snprintf(value, sizeof(value), "value %d", i);
		send_record(child, (uint32_t) i, topic, "k", value);
	}
	send_simple(child, FRAME_FLUSH);
	if (collect(child, outcomes, n, 20000) != n || outcomes[n - 1].class != OUTCOME_OK)
		note("%s could not be filled: %s", topic, outcomes[0].error);
	free(outcomes);
	child_stop(child);
}

/* No key and an empty key, a tombstone and an empty value, headers of all kinds */
static void
odd_records(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	FrameOut   *out = &child->out;
	Outcome		outcomes[3];
	TestRecord	r;

	rd_kafka_mock_topic_create(cluster, "odd", 1, 1);
	send_record(child, 0, "odd", NULL, "");
	send_record(child, 1, "odd", "", NULL);
	frame_item(out, FRAME_PRODUCE);
	put_u32(out, 2);
	put_string(out, "odd");
	put_blob(out, "k\0y", 3);
	put_blob(out, "v\0lue", 5);
	put_u32(out, 4);
	put_string(out, "id");
	put_blob(out, "1", 1);
	put_string(out, "id");
	put_blob(out, "2", 1);
	put_string(out, "null");
	put_blob(out, NULL, -1);
	put_string(out, "empty");
	put_blob(out, "", 0);
	child_send(child);
	ok(collect(child, outcomes, 3, 10000) == 3 && outcomes[2].class == OUTCOME_OK,
	   "odd records are taken");
	child_stop(child);

	child = child_hello('c', bootstraps, NULL);
	send_consume(child, 7, "odd", 0, 0, false);
	ok(next_record(child, &r, 10000) && r.tag == 7 && r.offset == 0 && r.partition == 0 &&
	   strcmp(r.topic, "odd") == 0 && r.timestamp > 1500000000000,
	   "a record comes back with tag, topic, partition, offset, timestamp");
	ok(r.key == NULL && r.value != NULL && r.value_len == 0,
	   "no key is NULL, an empty value isn't");
	ok(next_record(child, &r, 10000) && r.key != NULL && r.key_len == 0 && r.value == NULL,
	   "an empty key isn't NULL, a tombstone is");
	ok(next_record(child, &r, 10000) && r.key_len == 3 && memcmp(r.key, "k\0y", 3) == 0 &&
	   r.value_len == 5 && memcmp(r.value, "v\0lue", 5) == 0, "bytes are left alone");
	ok(r.nheaders == 4 && strcmp(r.header_name[0], "id") == 0 && strcmp(r.header_name[1], "id") == 0 &&
	   memcmp(r.header_value[0], "1", 1) == 0 && memcmp(r.header_value[1], "2", 1) == 0,
	   "repeated headers keep their order");
	ok(r.header_value[2] == NULL && r.header_value[3] != NULL && r.header_len[3] == 0,
	   "a null header isn't an empty one");
	send_consume(child, 9, "odd", 0, 3, false);
	ok(expect(child, FRAME_CAUGHT_UP, 10000) && get_u32(&child->frame) == 9 &&
	   get_u64(&child->frame) == 3, "the end of the partition is told, if no record told it");
	child_stop(child);
}

static void
put_watch(Child *child, uint32_t tag, const char *topic, int32_t partition, int64_t time)
{
	frame_begin(&child->out, FRAME_WATCH);
	put_u32(&child->out, tag);
	put_string(&child->out, topic);
	put_u32(&child->out, (uint32_t) partition);
	put_u64(&child->out, (uint64_t) time);
	frame_end(&child->out);
}

static void
send_watch(Child *child, uint32_t tag, const char *topic, int32_t partition, int64_t time)
{
	put_watch(child, tag, topic, partition, time);
	child_send(child);
}

/* Watermarks; positions inside and outside of the log */
static void
positions(void)
{
	Child	   *child = child_hello('c', bootstraps, NULL);
	TestRecord	r;

	fill("positions", 100);
	send_watch(child, 1, "positions", 0, -1);
	ok(expect(child, FRAME_WATERMARKS, 10000) && get_u32(&child->frame) == 1 &&
	   get_u64(&child->frame) == 0 && get_u64(&child->frame) == 100 &&
	   (int64_t) get_u64(&child->frame) == -1 && frame_done(&child->frame), "watermarks");
	/* The mock cluster finds no time at all */
	send_watch(child, 8, "positions", 0, 0);
	ok(expect(child, FRAME_WATERMARKS, 10000) && get_u32(&child->frame) == 8 &&
	   get_u64(&child->frame) == 0 && get_u64(&child->frame) == 100 &&
	   get_u64(&child->frame) == 100 && frame_done(&child->frame),
	   "a time behind the last record is the end");
	send_consume(child, 2, "positions", 0, 98, false);
	ok(next_record(child, &r, 10000) && r.offset == 98 && r.end == 100,
	   "reading starts where it is told to, and tells where the log ends");
	send_consume(child, 3, "positions", 0, 100, false);
	ok(expect(child, FRAME_CAUGHT_UP, 10000) && get_u32(&child->frame) == 3,
	   "reading at the end waits there");
	send_consume(child, 9, "positions", 0, 50, true);
	ok(next_record(child, &r, 10000) && r.tag == 9 && r.offset == 50 &&
	   !next_record(child, &r, 1500), "one record alone can be asked for");
	send_consume(child, 4, "positions", 0, 500, false);
	ok(expect(child, FRAME_PARTITION_ERROR, 10000) && get_u32(&child->frame) == 4 &&
	   get_u8(&child->frame) == PARTITION_OFFSET_LOST, "a position behind the end is lost");
	/* The mock cluster creates what it is asked for, unless told not to */
	rd_kafka_mock_topic_set_error(cluster, "no.such.topic", RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
	send_consume(child, 5, "no.such.topic", 0, 0, false);
	ok(expect(child, FRAME_PARTITION_ERROR, 10000) && get_u32(&child->frame) == 5 &&
	   get_u8(&child->frame) == PARTITION_TOPIC_MISSING, "a missing topic is told");
	send_watch(child, 6, "no.such.topic", 0, 0);
	ok(expect(child, FRAME_PARTITION_ERROR, 10000) && get_u32(&child->frame) == 6,
	   "so are watermarks that can't be had");
	child_stop(child);
}

/* Reads answers to questions with the tags 1 to n; how many were what they should */
static int
right_answers(Child *child, int n, const int64_t *highs)
{
	int			right = 0;

	for (int answers = 0; answers < n && child_read(child, 10000);)
	{
		bool		error = child->frame.type == FRAME_PARTITION_ERROR;
		uint32_t	tag;

		if (!error && child->frame.type != FRAME_WATERMARKS)
			continue;
		answers++;
		tag = get_u32(&child->frame);
		if (tag < 1 || (int) tag > n || error != (highs[tag - 1] < 0))
			continue;
		if (error || (get_u64(&child->frame) == 0 &&
					  (int64_t) get_u64(&child->frame) == highs[tag - 1]))
			right++;
	}
	return right;
}

/* Questions that come in one piece, one of them with no answer */
static void
together(void)
{
	static const int64_t highs[] = {3, 0, 5, 3, -1};
	Child	   *child = child_hello('c', bootstraps, NULL);

	fill("three", 3);
	fill("five", 5);
	rd_kafka_mock_topic_create(cluster, "empty", 2, 1);
	for (int missing = 0; missing <= 1; missing++)
	{
		put_watch(child, 1, "three", 0, -1);
		put_watch(child, 2, "empty", 1, -1);
		put_watch(child, 3, "five", 0, missing ? 0 : -1);
		put_watch(child, 4, "three", 0, -1);
		if (missing)
			put_watch(child, 5, "no.such.topic", 0, -1);
		child_send(child);
		ok(right_answers(child, 4 + missing, highs) == 4 + missing,
		   "questions asked together%s", missing ? ", where one has no answer" : "");
	}
	child_stop(child);
}

/* What a broker that is gone leads has no answer, and holds up no other for long */
static void
dead_leader(void)
{
	static const int64_t highs[] = {-1, -1, 0};
	static const int64_t again[] = {0, 0, 0};
	Child	   *child = child_hello('c', bootstraps, NULL);

	rd_kafka_mock_topic_create(cluster, "led", 3, 2);
	for (int partition = 0; partition < 3; partition++)
		rd_kafka_mock_partition_set_leader(cluster, "led", partition, partition < 2 ? 2 : 1);
	send_string(child, FRAME_ASK_TOPIC, "led");
	expect_topic(child, "led", 10000);
	rd_kafka_mock_broker_set_down(cluster, 2);
	for (int alone = 0; alone <= 1; alone++)
	{
		/* a time is asked for alone */
		put_watch(child, 1, "led", 0, alone ? 0 : -1);
		put_watch(child, 2, "led", 1, alone ? 0 : -1);
		put_watch(child, 3, "led", 2, -1);
		child_send(child);
		ok(right_answers(child, 3, highs) == 3, "a leader that is gone holds up no question%s",
		   alone ? " that is asked alone" : "");
	}
	rd_kafka_mock_broker_set_up(cluster, 2);
	for (int tries = 0, right = 0; right < 3; tries++)
	{
		for (int partition = 0; partition < 3; partition++)
			put_watch(child, partition + 1, "led", partition, -1);
		child_send(child);
		right = right_answers(child, 3, again);
		if (right == 3 || tries == 10)
			ok(right == 3, "until it is back");
		if (tries == 10)
			break;
	}
	child_stop(child);
}

/* A reading that was stopped leaves nothing behind for a later one */
static void
tags(void)
{
	Child	   *child = child_hello('c', bootstraps, NULL);
	TestRecord	r;
	bool		right = true;
	bool		stale = false;
	uint32_t	tag;

	fill("tags", 2000);
	for (tag = 1; tag <= 40; tag++)
	{
		int64_t		start = (tag * 37) % 1900;

		send_consume(child, tag, "tags", 0, start, false);
		do
		{
			if (!next_record(child, &r, 10000))
			{
				right = false;
				break;
			}
			stale = stale || r.tag > tag;
		} while (r.tag != tag);
		right = right && r.tag == tag && r.offset == start;
		if (tag % 2 == 0)
			send_tag(child, FRAME_UNCONSUME, tag);
	}
	ok(right && !stale, "each of %u readings begins at its own offset", tag - 1);
	send_tag(child, FRAME_UNCONSUME, tag - 1);
	send_tag(child, FRAME_UNCONSUME, 12345);
	send_tag(child, FRAME_PING, 99);
	ok(expect(child, FRAME_PONG, 10000), "a reading that doesn't exist can be stopped");
	child_stop(child);
}

/* A worker that doesn't read: the bridge's memory is bounded, and it lives */
static void
large_backlog(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	static char value[10001];
	static Outcome outcomes[3000];
	TestRecord	r;
	int			n = 0;

	rd_kafka_mock_topic_create(cluster, "backlog", 4, 1);
	memset(value, 'x', 10000);
	for (uint32_t i = 0; i < 1000; i++)
	{
		char		key[16];

		snprintf(key, sizeof(key), "%u", i);
		send_record(child, i, "backlog", key, value);
	}
	child_send(child);
	ok(collect(child, outcomes, 1000, 20000) == 1000, "ten megabytes written");
	child_stop(child);

	child = child_hello('c', bootstraps, NULL);
	for (int32_t p = 0; p < 4; p++)
		send_consume(child, (uint32_t) p, "backlog", p, 0, false);
	send_tag(child, FRAME_PING, 1);
	poll(NULL, 0, 500);
	while (n < 1000 && next_record(child, &r, 10000))
		n++;
	ok(n == 1000, "%d of 1000 records read by a slow worker", n);
	child_stop(child);
}

/* News of a topic comes by itself while it is read */
static void
topic_news(void)
{
	Child	   *child = child_hello('c', bootstraps, NULL);

	fill("news", 1);
	send_consume(child, 1, "news", 0, 0, false);
	ok(expect(child, FRAME_RECORDS, 10000), "reading");
	rd_kafka_mock_partition_set_leader(cluster, "news", 0, 1);
	expect_topic(child, "news", 6000 / slow);
	rd_kafka_mock_partition_set_leader(cluster, "news", 0, 2);
	ok(expect_topic(child, "news", 10000) == OUTCOME_OK, "another leader is told unasked");
	child_stop(child);
}

void
test_consume(void)
{
	odd_records();
	positions();
	together();
	dead_leader();
	tags();
	large_backlog();
	topic_news();
}

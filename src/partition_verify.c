/*-------------------------------------------------------------------------
 *
 * partition_verify.c
 *	  Whether the log of a partition is the one that the consumer began to
 *	  read.
 *
 * An offset means nothing in another log, and a topic that was deleted and
 * made anew is another log under the same name.  librdkafka doesn't tell: it
 * goes on at the old offset, and what lies below is lost.  So besides its
 * position a partition has an anchor, a record that was applied, which it
 * looks for again ("verifies") whenever it begins to read, after everything
 * that may mean that the topic changed, and from time to time.
 *
 * The anchor must not simply be the last record that was applied: if the topic
 * was replaced while we read on, that is a record of the new log, and would be
 * found there.  So it moves in two steps.  When a verification begins, the
 * last record read becomes the candidate.  Then, with questions the brokers
 * answer later than they delivered the candidate, the old anchor is looked
 * for.  Only if it is still there does the candidate, known thereby to be of
 * the same log, become the anchor.  A replacement is noticed by the first
 * verification after it, whatever was read in between.
 *
 * The position is lost if the log begins above it, ends below it, or has
 * another record at the anchor.  An anchor that retention removed tells
 * nothing.  One that is missing in the middle of the log was compacted away;
 * or else it is another log, with a transaction's mark in that place.  Then
 * a result topic is read again from its start, to be sure, for results can be
 * read again without harm; a subscription goes on.  A log with no record to
 * know it by is known by its start, which never moves back.
 *
 * A result topic whose position is lost is read again from its start.  A
 * subscription is paused: only people know what its records did.
 *
 * Each question and each anchor costs wake-ups here and in the bridge, so the
 * partitions of a consumer are verified together, and one that has read to the
 * end of its log goes on reading behind the anchor, which is the last record.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "partition_private.h"
#include "read_topic.h"
#include "reading_tag.h"
#include "worker.h"

/* Milliseconds between two verifications: while records arrive, and at most */
#define VERIFY_INTERVAL		30000
#define VERIFY_INTERVAL_MAX	300000

/* In this part of an interval others are verified together with one that is due */
#define VERIFY_SLACK(interval)	((interval) / 4)

/* ... but so many at most */
#define VERIFIED_ALONG			64

/* An answer that takes longer is asked for again (ms) */
#define WATCH_TIMEOUT		300000

static bool nearly_due(const Partition *partition, TimestampTz now);
static bool same_anchor(const LogAnchor *left, const LogAnchor *right);
static void verified(Partition *partition, Bridge *bridge);
static void lost(Partition *partition, Bridge *bridge, const char *why);
static void start_over(Partition *partition, Bridge *bridge);

void
partition_watch(Partition *partition, Bridge *bridge)
{
	partition->candidate = partition->now.last;
	partition->watch_next = partition->now.state.next;
	partition->watch_tag = reading_tag_new(partition);
	partition->due = partition_in_ms(WATCH_TIMEOUT);
	bridge_watch(bridge, partition->watch_tag, partition->row.topic,
				 partition->row.partition,
				 partition->now.state.next < 0 && partition->start.kind == START_TIME ?
				 partition->start.time : -1);
}

/* True if the next verification may as well begin now */
static bool
nearly_due(const Partition *partition, TimestampTz now)
{
	return partition->state == PARTITION_READING && partition->watch_tag == 0 &&
		partition->due <= TimestampTzPlusMilliseconds(now, VERIFY_SLACK(partition->interval));
}

/* What is asked together is answered together, and wakes us once */
void
partitions_serve(Bridge *bridge, TimestampTz now, TimestampTz *wake)
{
	PartitionScan scan = {0};
	Partition  *partition;
	int			along = VERIFIED_ALONG;
	bool		served = false;

	while ((partition = read_topics_scan(&scan)) != NULL)
		served |= partition_serve(partition, bridge, now);
	scan = (PartitionScan) {0};
	while ((partition = read_topics_scan(&scan)) != NULL)
	{
		if (served && along > 0 && nearly_due(partition, now))
		{
			partition_watch(partition, bridge);
			along--;
		}
		*wake = Min(*wake, partition_due(partition));
	}
}

/*
 * The log's low end, and its high end as it was when the brokers were asked,
 * or later.  What was read since then may lie above it.
 */
void
partition_take_watermarks(Partition *partition, Bridge *bridge, const BridgeEvent *event)
{
	LogAnchor  *anchor = &partition->now.state.anchor;
	int64		low = event->low;
	int64		high = event->high;

	partition->low = low;
	partition_see_end(partition, high);
	if (partition->now.state.next < 0)
	{
		/* never read */
		partition_begin_at(partition, partition->start.kind == START_LATEST ? high :
				 partition->start.kind == START_TIME ? event->at_time : low);
		verified(partition, bridge);
	}
	else if (low > partition->now.state.next)
		lost(partition, bridge, "The log begins above it.");
	else if (high < partition->watch_next)
		lost(partition, bridge, partition->row.kind == READ_RESULTS ?
			 "The log ends below it: the topic was made anew or cut." :
			 "The log ends below it: the topic was made anew or cut, or outbox.skip named an offset behind its end.");
	else if (anchor->kind == ANCHOR_LOG_START && low < anchor->offset)
		lost(partition, bridge, "The log begins lower than before: the topic was made anew.");
	else if (anchor->kind == ANCHOR_RECORD && low <= anchor->offset)
		partition_read_from(partition, bridge, PARTITION_ANCHOR, anchor->offset);
	else
	{
		/* no record, or retention removed it: the start is all we know */
		if (anchor->kind != ANCHOR_LOG_START || anchor->offset < low)
		{
			anchor->kind = ANCHOR_LOG_START;
			anchor->offset = low;
			partition->now.dirty = true;
		}
		verified(partition, bridge);
	}
}

static bool
same_anchor(const LogAnchor *left, const LogAnchor *right)
{
	return left->kind == right->kind && left->offset == right->offset &&
		left->timestamp == right->timestamp && left->checksum == right->checksum;
}

/* The log is the one it was: the candidate is of it, too */
static void
verified(Partition *partition, Bridge *bridge)
{
	int			half;

	if (partition->candidate.kind == ANCHOR_RECORD &&
		!same_anchor(&partition->now.state.anchor, &partition->candidate))
	{
		partition->now.state.anchor = partition->candidate;
		partition->now.dirty = true;
	}
	partition->unclear = 0;
	partition->failures = 0;
	if (partition->state != PARTITION_READING)
		partition_read_from(partition, bridge, PARTITION_READING, partition->read);

	partition->interval = partition->now.active ? VERIFY_INTERVAL :
		Min(partition->interval * 2, VERIFY_INTERVAL_MAX);
	partition->interval = Max(partition->interval, VERIFY_INTERVAL);
	partition->now.active = false;

	/* spread, so that of very many not all are asked for at once */
	half = partition->interval / 2;
	partition->due = partition_in_ms(half + backoff_delay(1, half, half));
}

void
partition_unclear(Partition *partition, Bridge *bridge, const char *why)
{
	if (++partition->unclear < PARTITION_TRIES)
		partition_stop(partition, bridge, partition_in_ms(PARTITION_TRY_DELAY));
	else
		lost(partition, bridge, why);
}

static void
lost(Partition *partition, Bridge *bridge, const char *why)
{
	if (partition->row.kind == READ_SUBSCRIPTION)
	{
		partition->now.counts.lost++;
		partition_pause(partition, bridge, partition->low - 1,
						"position " INT64_FORMAT " is lost: %s",
						partition->now.state.next, why);
		return;
	}
	ereport(WARNING,
			(errmsg("position " INT64_FORMAT " in result topic \"%s\" partition %d is lost",
					partition->now.state.next, partition->row.topic, partition->row.partition),
			 errdetail("%s Reading goes on from offset " INT64_FORMAT ".",
					   why, partition->low)));
	partition->now.counts.lost++;
	start_over(partition, bridge);
}

void
partition_anchor_gone(Partition *partition, Bridge *bridge)
{
	if (partition->row.kind == READ_SUBSCRIPTION)
	{
		verified(partition, bridge);
		return;
	}
	ereport(LOG,
			(errmsg("result topic \"%s\" partition %d is read again from offset " INT64_FORMAT,
					partition->row.topic, partition->row.partition, partition->low),
			 errdetail("The record at offset " INT64_FORMAT ", by which the log was known, is gone.",
					   partition->now.state.anchor.offset)));
	start_over(partition, bridge);
}

/*
 * Reads all that there is.  What was applied before is not applied again, but
 * counted as repeated.
 */
static void
start_over(Partition *partition, Bridge *bridge)
{
	partition_begin_at(partition, partition->low);
	partition->generation++;
	partition->now.last.kind = ANCHOR_NONE;
	partition->candidate.kind = ANCHOR_NONE;
	partition->now.active = true;
	partition->state = PARTITION_ANCHOR;	/* what is being read is none of it */
	verified(partition, bridge);
}

bool
partition_was_read_last(const Partition *partition, int64 offset)
{
	return partition->read == offset + 1 ||
		(partition->read == partition->gap_to && partition->gap_from == offset + 1);
}

void
partition_take_anchor(Partition *partition, Bridge *bridge, const BridgeRecord *record)
{
	LogAnchor	found = partition_place(record);
	const LogAnchor *anchor = &partition->now.state.anchor;

	if (found.offset < anchor->offset)
		return;
	if (found.offset > anchor->offset)
		partition_anchor_gone(partition, bridge);
	else if (found.timestamp != anchor->timestamp || found.checksum != anchor->checksum)
		lost(partition, bridge,
			 "A record that was applied is another one now: the topic was made anew.");
	else
	{
		/* what comes next is new, so this reading may go on */
		if (!partition->first_only && partition_was_read_last(partition, found.offset))
			partition->state = PARTITION_READING;
		verified(partition, bridge);
	}
}

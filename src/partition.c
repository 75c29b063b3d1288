/*-------------------------------------------------------------------------
 *
 * partition.c
 *	  One partition that the consumer reads.
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
 * Reading runs ahead of what is applied.  The position that is saved is that
 * of the latter.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "partition.h"
#include "reading_tag.h"
#include "worker.h"

/* Milliseconds between two verifications: while records arrive, and at most */
#define VERIFY_INTERVAL		30000
#define VERIFY_INTERVAL_MAX	300000

/* An answer that takes longer is asked for again */
#define ANCHOR_TIMEOUT		30000
#define WATCH_TIMEOUT		300000

/* A record that can't be read, or an anchor, is tried so often, so far apart */
#define TRIES				3
#define TRY_DELAY			500

#define FAILURE_DELAY_MIN	100
#define FAILURE_DELAY_MAX	10000

static TimestampTz in_ms(int ms);
static void watch(Partition *partition, Bridge *bridge);
static void read_from(Partition *partition, Bridge *bridge, PartitionState state,
					  int64 offset);
static void take_watermarks(Partition *partition, Bridge *bridge,
							const BridgeEvent *event);
static void verified(Partition *partition, Bridge *bridge);
static void unclear(Partition *partition, Bridge *bridge, const char *why);
static void lost(Partition *partition, Bridge *bridge, const char *why);
static void gone(Partition *partition, Bridge *bridge);
static void start_over(Partition *partition, Bridge *bridge);
static void take_anchor(Partition *partition, Bridge *bridge, const BridgeRecord *record);
static PartitionNews take_record(Partition *partition, const BridgeRecord *record);
static void take_caught_up(Partition *partition, Bridge *bridge, int64 offset);
static PartitionNews take_error(Partition *partition, Bridge *bridge,
								const BridgeEvent *event);
static PartitionNews take_unreadable(Partition *partition, Bridge *bridge,
									 const BridgeEvent *event);
static TimestampTz not_before(const Partition *partition);

/* ---------------------------------------------------------------------
 * Life
 * --------------------------------------------------------------------- */

Partition *
partition_make(const char *topic, int32 number, ReadKind kind)
{
	Partition  *partition = MemoryContextAllocZero(TopMemoryContext, sizeof(Partition));

	partition->state = PARTITION_UNLOADED;
	partition->row.topic = MemoryContextStrdup(TopMemoryContext, topic);
	partition->row.partition = number;
	partition->row.kind = kind;
	return partition;
}

void
partition_free(Partition *partition)
{
	reading_tag_drop(&partition->tag);
	reading_tag_drop(&partition->watch_tag);
	pfree(unconstify(char *, partition->row.topic));
	pfree(partition);
}

static TimestampTz
in_ms(int ms)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
}

void
partition_loaded(Partition *partition)
{
	memset(&partition->now, 0, sizeof(Progress));
	if (partition->row.exists)
		partition->now.state = partition->row.state;
	else
		partition->now.state.next = partition->now.state.end = -1;
	partition->read = partition->now.state.next;
	partition->gap_to = partition->seen_end = 0;
	partition->generation++;
	partition->state = partition->now.state.paused[0] ? PARTITION_PAUSED : PARTITION_WAITING;
	partition->due = not_before(partition);
}

/* A record that failed has to wait for its time */
static TimestampTz
not_before(const Partition *partition)
{
	TimestampTz now = GetCurrentTimestamp();

	return partition->now.state.retry_attempts > 0 ?
		Max(now, partition->now.state.retry_at) : now;
}

void
partition_unload(Partition *partition, Bridge *bridge)
{
	partition_stop(partition, bridge, DT_NOEND);
	partition->now.dirty = false;
	partition->generation++;
	partition->state = PARTITION_UNLOADED;
}

void
partition_stop(Partition *partition, Bridge *bridge, TimestampTz due)
{
	if (partition->tag != 0 && bridge != NULL)
		bridge_unconsume(bridge, partition->tag);
	partition_forget_bridge(partition);
	if (partition->state > PARTITION_PAUSED)
		partition->state = PARTITION_WAITING;
	partition->due = due;
}

void
partition_forget_bridge(Partition *partition)
{
	reading_tag_drop(&partition->tag);
	reading_tag_drop(&partition->watch_tag);
}

/* ---------------------------------------------------------------------
 * Doing
 * --------------------------------------------------------------------- */

void
partition_verify_soon(Partition *partition)
{
	if (partition->state == PARTITION_WAITING ||
		(partition->state == PARTITION_READING && partition->watch_tag == 0))
		partition->due = not_before(partition);
}

void
partition_serve(Partition *partition, Bridge *bridge, TimestampTz now, TimestampTz *wake)
{
	if (partition->state <= PARTITION_PAUSED)
		return;
	if (partition->due <= now)
	{
		/* in time, or because no answer came */
		if (partition->state != PARTITION_READING || partition->watch_tag != 0)
		{
			partition_stop(partition, bridge, now);
			partition->state = PARTITION_CHECKING;
		}
		watch(partition, bridge);
	}
	*wake = Min(*wake, partition->due);
}

/* Begins a verification; a reading goes on meanwhile */
static void
watch(Partition *partition, Bridge *bridge)
{
	partition->candidate = partition->now.last;
	partition->watch_next = partition->now.state.next;
	partition->watch_tag = reading_tag_new(partition);
	partition->due = in_ms(WATCH_TIMEOUT);
	bridge_watch(bridge, partition->watch_tag, partition->row.topic,
				 partition->row.partition,
				 partition->now.state.next < 0 && partition->start.kind == START_TIME ?
				 partition->start.time : -1);
}

static void
read_from(Partition *partition, Bridge *bridge, PartitionState state, int64 offset)
{
	if (partition->tag != 0)
		bridge_unconsume(bridge, partition->tag);
	reading_tag_drop(&partition->tag);
	partition->tag = reading_tag_new(partition);
	partition->state = state;
	if (state == PARTITION_ANCHOR)
		partition->due = in_ms(ANCHOR_TIMEOUT);
	bridge_consume(bridge, partition->tag, partition->row.topic,
				   partition->row.partition, offset);
}

PartitionNews
partition_event(Partition *partition, Bridge *bridge, const BridgeEvent *event)
{
	switch (event->type)
	{
		case BRIDGE_WATERMARKS:
			reading_tag_drop(&partition->watch_tag);
			take_watermarks(partition, bridge, event);
			break;
		case BRIDGE_RECORD:
			if (partition->state == PARTITION_READING)
				return take_record(partition, &event->record);
			take_anchor(partition, bridge, &event->record);
			break;
		case BRIDGE_CAUGHT_UP:
			take_caught_up(partition, bridge, event->offset);
			break;
		case BRIDGE_PARTITION_ERROR:
			return take_error(partition, bridge, event);
		default:
			break;
	}
	return PARTITION_NO_NEWS;
}

/* ---------------------------------------------------------------------
 * Verification
 * --------------------------------------------------------------------- */

/*
 * The log's low end, and its high end as it was when the brokers were asked,
 * or later.  What was read since then may lie above it.
 */
static void
take_watermarks(Partition *partition, Bridge *bridge, const BridgeEvent *event)
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
		read_from(partition, bridge, PARTITION_ANCHOR, anchor->offset);
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

/* The log is the one it was: the candidate is of it, too */
static void
verified(Partition *partition, Bridge *bridge)
{
	if (partition->candidate.kind == ANCHOR_RECORD)
	{
		partition->now.state.anchor = partition->candidate;
		partition->now.dirty = true;
	}
	partition->unclear = 0;
	if (partition->state != PARTITION_READING)
		read_from(partition, bridge, PARTITION_READING, partition->read);

	partition->interval = partition->now.active ? VERIFY_INTERVAL :
		Min(partition->interval * 2, VERIFY_INTERVAL_MAX);
	partition->interval = Max(partition->interval, VERIFY_INTERVAL);
	partition->now.active = false;

	/* spread, so that not all partitions are asked for at once */
	partition->due = in_ms(backoff_delay(1, partition->interval, partition->interval));
}

/* Nothing came where the anchor was; that may pass, but not for ever */
static void
unclear(Partition *partition, Bridge *bridge, const char *why)
{
	if (++partition->unclear < TRIES)
		partition_stop(partition, bridge, in_ms(TRY_DELAY));
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

static void
gone(Partition *partition, Bridge *bridge)
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

/* The first record at or after the anchor */
static void
take_anchor(Partition *partition, Bridge *bridge, const BridgeRecord *record)
{
	LogAnchor	found = partition_place(record);
	const LogAnchor *anchor = &partition->now.state.anchor;

	if (found.offset < anchor->offset)
		return;
	if (found.offset > anchor->offset)
		gone(partition, bridge);
	else if (found.timestamp != anchor->timestamp || found.checksum != anchor->checksum)
		lost(partition, bridge,
			 "A record that was applied is another one now: the topic was made anew.");
	else
		verified(partition, bridge);
}

/* ---------------------------------------------------------------------
 * Reading
 * --------------------------------------------------------------------- */

static PartitionNews
take_record(Partition *partition, const BridgeRecord *record)
{
	if (record->offset < partition->read)
		return PARTITION_NO_NEWS;
	partition->read = record->offset + 1;
	partition->seen_end = Max(Max(partition->seen_end, record->end), partition->read);
	partition->failures = 0;
	return PARTITION_NEW_RECORD;
}

/*
 * The offset is that of the next record to come.  Between the last one and it
 * there may be some that we don't get to see: marks of transactions, records
 * that were aborted.
 */
static void
take_caught_up(Partition *partition, Bridge *bridge, int64 offset)
{
	if (partition->state == PARTITION_READING)
	{
		partition->failures = 0;
		if (offset > partition->read)
		{
			partition->gap_from = partition->read;
			partition->gap_to = partition->read = offset;
			partition_pass_gap(partition);
		}
	}
	else if (offset > partition->now.state.anchor.offset)
		gone(partition, bridge);
	else
		unclear(partition, bridge, "The log ends before the record last applied.");
}

static PartitionNews
take_error(Partition *partition, Bridge *bridge, const BridgeEvent *event)
{
	int			delay;

	if (event->error_class == PARTITION_UNREADABLE)
	{
		if (partition->state == PARTITION_READING)
			return take_unreadable(partition, bridge, event);
		unclear(partition, bridge, "The record last applied can't be read any more.");
		return PARTITION_NO_NEWS;
	}

	/* what passes by itself needs nothing, unless it was an answer */
	if (event->error_class == PARTITION_RETRYING && event->tag != partition->watch_tag)
		return PARTITION_NO_NEWS;
	delay = backoff_delay(++partition->failures, FAILURE_DELAY_MIN, FAILURE_DELAY_MAX);
	if (event->error_class == PARTITION_RETRYING && partition->state == PARTITION_READING)
	{
		reading_tag_drop(&partition->watch_tag);
		partition->due = in_ms(delay);
	}
	else
		partition_stop(partition, bridge, in_ms(delay));
	return PARTITION_NO_NEWS;
}

/*
 * Tried again a few times.  Then a result counts as bad, and reading goes on
 * after it; a subscription is paused there.
 */
static PartitionNews
take_unreadable(Partition *partition, Bridge *bridge, const BridgeEvent *event)
{
	int64		offset = Max(event->offset, partition->read);

	if (partition->unreadable_tries == 0 || partition->unreadable != offset)
	{
		partition->unreadable = offset;
		partition->unreadable_tries = 0;
	}
	if (++partition->unreadable_tries < TRIES)
	{
		partition_stop(partition, bridge, in_ms(TRY_DELAY));
		return PARTITION_NO_NEWS;
	}
	partition->unreadable_tries = 0;
	if (partition->row.kind == READ_SUBSCRIPTION)
	{
		partition_pause(partition, bridge, offset,
						"the record at offset " INT64_FORMAT " can't be read: %s",
						offset, event->text);
		return PARTITION_NO_NEWS;
	}
	ereport(WARNING,
			(errmsg("could not read the record at offset " INT64_FORMAT
					" of result topic \"%s\" partition %d: %s",
					offset, partition->row.topic, partition->row.partition, event->text),
			 errdetail("It is counted as bad and passed over.")));
	partition->read = offset + 1;
	read_from(partition, bridge, PARTITION_READING, partition->read);
	return PARTITION_UNREADABLE_RECORD;
}

/*-------------------------------------------------------------------------
 *
 * partition.c
 *	  One partition that the consumer reads.
 *
 * Besides its position a partition has an anchor, by which it looks again and
 * again whether the log is the one it was: see partition_verify.c.
 *
 * Reading runs ahead of what is applied.  The position that is saved is that
 * of the latter.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "partition_private.h"
#include "reading_tag.h"
#include "worker.h"

/* An anchor that takes longer is asked for again (ms) */
#define ANCHOR_TIMEOUT		30000

#define FAILURE_DELAY_MIN	100
#define FAILURE_DELAY_MAX	10000

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

TimestampTz
partition_in_ms(int ms)
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

bool
partition_serve(Partition *partition, Bridge *bridge, TimestampTz now)
{
	if (partition->state <= PARTITION_PAUSED || partition->due > now)
		return false;

	/* in time, or because no answer came */
	if (partition->state != PARTITION_READING || partition->watch_tag != 0)
	{
		partition_stop(partition, bridge, now);
		partition->state = PARTITION_CHECKING;
	}
	partition_watch(partition, bridge);
	return true;
}

TimestampTz
partition_due(const Partition *partition)
{
	return partition->state > PARTITION_PAUSED ? partition->due : DT_NOEND;
}

void
partition_read_from(Partition *partition, Bridge *bridge, PartitionState state, int64 offset)
{
	if (partition->tag != 0)
		bridge_unconsume(bridge, partition->tag);
	reading_tag_drop(&partition->tag);
	partition->tag = reading_tag_new(partition);
	partition->state = state;
	partition->first_only = state == PARTITION_ANCHOR &&
		!partition_was_read_last(partition, offset);
	if (state == PARTITION_ANCHOR)
		partition->due = partition_in_ms(ANCHOR_TIMEOUT);
	bridge_consume(bridge, partition->tag, partition->row.topic,
				   partition->row.partition, offset, partition->first_only);
}

PartitionNews
partition_event(Partition *partition, Bridge *bridge, const BridgeEvent *event)
{
	switch (event->type)
	{
		case BRIDGE_WATERMARKS:
			reading_tag_drop(&partition->watch_tag);
			partition_take_watermarks(partition, bridge, event);
			break;
		case BRIDGE_RECORD:
			if (partition->state == PARTITION_READING)
				return take_record(partition, &event->record);
			partition_take_anchor(partition, bridge, &event->record);
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
		partition_anchor_gone(partition, bridge);
	else
		partition_unclear(partition, bridge, "The log ends before the record last applied.");
}

static PartitionNews
take_error(Partition *partition, Bridge *bridge, const BridgeEvent *event)
{
	int			delay;

	if (event->error_class == PARTITION_UNREADABLE)
	{
		if (partition->state == PARTITION_READING)
			return take_unreadable(partition, bridge, event);
		partition_unclear(partition, bridge, "The record last applied can't be read any more.");
		return PARTITION_NO_NEWS;
	}

	/* what passes by itself needs nothing, unless it was an answer */
	if (event->error_class == PARTITION_RETRYING && event->tag != partition->watch_tag)
		return PARTITION_NO_NEWS;
	delay = backoff_delay(++partition->failures, FAILURE_DELAY_MIN, FAILURE_DELAY_MAX);
	if (event->error_class == PARTITION_RETRYING && partition->state == PARTITION_READING)
	{
		reading_tag_drop(&partition->watch_tag);
		partition->due = partition_in_ms(delay);
	}
	else
		partition_stop(partition, bridge, partition_in_ms(delay));
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
	if (++partition->unreadable_tries < PARTITION_TRIES)
	{
		partition_stop(partition, bridge, partition_in_ms(PARTITION_TRY_DELAY));
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
	partition_read_from(partition, bridge, PARTITION_READING, partition->read);
	return PARTITION_UNREADABLE_RECORD;
}

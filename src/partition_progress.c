/*-------------------------------------------------------------------------
 *
 * partition_progress.c
 *	  How far the records of a partition have been applied.
 *
 * Kept in memory until the transaction that applied them saves it, and taken
 * back if that one fails.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_crc32c.h"

#include "handler.h"
#include "partition.h"
#include "safe_text.h"

/* Before a row is tried again that somebody else has locked (ms) */
#define BUSY_DELAY	1000

LogAnchor
partition_place(const BridgeRecord *record)
{
	LogAnchor	anchor = {ANCHOR_RECORD, record->offset, record->timestamp};
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, &record->key_len, sizeof(record->key_len));
	COMP_CRC32C(crc, record->key, record->key ? record->key_len : 0);
	COMP_CRC32C(crc, &record->value_len, sizeof(record->value_len));
	COMP_CRC32C(crc, record->value, record->value ? record->value_len : 0);
	for (int i = 0; i < record->nheaders; i++)
	{
		const BridgeHeader *header = &record->headers[i];

		COMP_CRC32C(crc, header->name, strlen(header->name) + 1);
		COMP_CRC32C(crc, header->value, header->value ? header->len : 0);
	}
	FIN_CRC32C(crc);
	anchor.checksum = crc;
	return anchor;
}

void
partition_saved(Partition *partition)
{
	partition->now.dirty = false;
	memset(&partition->now.counts, 0, sizeof(partition->now.counts));
}

void
partition_remember(Partition *partition)
{
	partition->remembered = partition->now;
	partition->remembered_row = partition->row;
	partition->remembered_read = partition->read;
	partition->remembered_generation = partition->generation;
}

/* Also after partition_retry: what was received is good again */
void
partition_restore(Partition *partition)
{
	partition->now = partition->remembered;
	partition->row = partition->remembered_row;
	partition->read = partition->remembered_read;
	partition->generation = partition->remembered_generation;
}

void
partition_applied(Partition *partition, const LogAnchor *place)
{
	OffsetState *state = &partition->now.state;

	/*
	 * Read from offset 0 on nothing can have been missed, whatever the log
	 * was before, so the first record may be the anchor at once.
	 */
	if (state->next == 0 && state->anchor.kind == ANCHOR_LOG_START &&
		place->kind == ANCHOR_RECORD)
		state->anchor = *place;
	if (place->kind == ANCHOR_RECORD)
		partition->now.last = *place;
	state->next = place->offset + 1;
	state->end = Max(partition->seen_end, state->next);
	state->retry_attempts = 0;
	state->retry_error[0] = '\0';
	partition->now.active = true;
	partition->now.dirty = true;
	partition_pass_gap(partition);
}

void
partition_pass_gap(Partition *partition)
{
	OffsetState *state = &partition->now.state;

	if (partition->gap_to <= state->next || state->next != partition->gap_from)
		return;
	state->next = partition->gap_to;
	state->end = Max(state->end, state->next);
	state->retry_attempts = 0;
	partition->now.dirty = true;
}

void
partition_put_off(Partition *partition, Bridge *bridge)
{
	partition->now.state = partition->row.state;
	memset(&partition->now.counts, 0, sizeof(partition->now.counts));
	partition->now.dirty = false;
	partition->read = partition->now.state.next;
	partition->generation++;
	partition_stop(partition, bridge,
				   TimestampTzPlusMilliseconds(GetCurrentTimestamp(), BUSY_DELAY));
}

void
partition_retry(Partition *partition, Bridge *bridge, int64 offset, int attempts,
				const char *error)
{
	OffsetState *state = &partition->now.state;

	state->next = partition->read = offset;
	state->paused[0] = '\0';	/* further on: it will be met again */
	state->retry_attempts = attempts;
	state->retry_at = handler_retry_at(attempts);
	safe_text_copy(state->retry_error, error, sizeof(state->retry_error));
	partition->generation++;
	partition->now.dirty = true;
	partition->state = PARTITION_WAITING;
	partition_stop(partition, bridge, state->retry_at);
}

void
partition_pause(Partition *partition, Bridge *bridge, int64 skip, const char *why,...)
{
	OffsetState *state = &partition->now.state;
	va_list		args;

	va_start(args, why);
	vsnprintf(state->paused, sizeof(state->paused), why, args);
	va_end(args);
	safe_text(state->paused);
	partition_stop(partition, bridge, DT_NOEND);
	partition->state = PARTITION_PAUSED;
	partition->now.dirty = true;
	ereport(WARNING,
			(errmsg("the subscription to topic \"%s\" is paused in partition %d: %s",
					partition->row.topic, partition->row.partition, state->paused),
			 errhint("To go on behind an offset: SELECT outbox.skip('%s', %d, " INT64_FORMAT ").",
					 partition->row.topic, partition->row.partition, skip)));
}

void
partition_see_end(Partition *partition, int64 end)
{
	OffsetState *state = &partition->now.state;

	partition->seen_end = state->end = Max(end, partition->read);

	/* people want to see it if we are behind */
	if (state->end > state->next && state->end != partition->row.state.end)
		partition->now.dirty = true;
}

void
partition_begin_at(Partition *partition, int64 offset)
{
	partition->now.state.next = partition->read = offset;
	partition->seen_end = 0;
	partition->gap_from = partition->gap_to = 0;
	partition->now.state.anchor.kind = ANCHOR_LOG_START;
	partition->now.state.anchor.offset = partition->low;
	partition->now.dirty = true;
}

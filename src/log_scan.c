/*-------------------------------------------------------------------------
 *
 * log_scan.c
 *	  Reading the log in the order of ids, across its segments.
 *
 * Only the primary keys are used, and directly: the planner is asked for
 * nothing.  The segments are merged, since two of them overlap for a moment
 * when capture moves on to the next.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "compat.h"
#include "log_scan.h"
#include "relation.h"
#include "ring.h"

typedef struct SegmentScan
{
	OpenTable	open;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	bool		kept;			/* segment -1 */
	pg_uuid_t	id;				/* of the row in the slot */
	bool		at_end;
} SegmentScan;

struct LogScan
{
	MemoryContext row_context;
	pg_uuid_t	bound;			/* the scan keys point to it */
	int			nsegments;
	SegmentScan *current;		/* whose row was handed out last */
	SegmentScan segments[OUTBOX_SEGMENTS + 1];
};

static void
segment_advance(SegmentScan *segment)
{
	bool		isnull;

	if (!index_getnext_slot(segment->scan, ForwardScanDirection, segment->slot))
	{
		segment->at_end = true;
		return;
	}
	segment->id = *DatumGetUUIDP(slot_getattr(segment->slot, Anum_log_id, &isnull));
}

static void
segment_begin(LogScan *log, int number, StrategyNumber strategy, RegProcedure compare,
			  Snapshot snapshot)
{
	SegmentScan *segment = &log->segments[log->nsegments++];
	ScanKeyData key;

	log_segment_open(number, AccessShareLock, &segment->open);
	segment->slot = table_slot_create(segment->open.table, NULL);
	segment->kept = number == OUTBOX_SEGMENT_KEPT;
	segment->scan = index_scan_begin(segment->open.table, segment->open.pkey, snapshot, 1);
	ScanKeyInit(&key, 1, strategy, compare, UUIDPGetDatum(&log->bound));
	index_rescan(segment->scan, &key, 1, NULL, 0);
	segment->at_end = false;
	segment_advance(segment);
}

static LogScan *
scan_make(void)
{
	LogScan    *scan = palloc0(sizeof(LogScan));

	scan->row_context = AllocSetContextCreate(CurrentMemoryContext, "outbox log row",
											  ALLOCSET_SMALL_SIZES);
	return scan;
}

/*
 * Is there anything to read from that clock on?  A segment's bit and end are
 * looked at after the snapshot was taken: what it shows was put there under them.
 */
static bool
segment_has(DatabaseSlot *slot, int segment, MessageClock from)
{
	return (pg_atomic_read_u32(&slot->segments_used) & segment_bit(segment)) != 0 &&
		ring_end(slot, segment) >= from;
}

LogScan *
log_scan_begin(MessageClock from, Snapshot snapshot)
{
	DatabaseSlot *slot = outbox_my_database();
	LogScan    *scan = scan_make();

	message_id_lowest(from, &scan->bound);
	for (int i = OUTBOX_SEGMENT_KEPT; i < OUTBOX_SEGMENTS; i++)
	{
		if (segment_has(slot, i, from))
			segment_begin(scan, i, BTGreaterEqualStrategyNumber, F_UUID_GE, snapshot);
	}
	return scan;
}

/* Reads the columns that every reader of the log looks at */
static void
read_row(LogScan *scan, SegmentScan *segment, LogRow *row)
{
	TupleTableSlot *slot = segment->slot;
	MemoryContext old;

	slot_getsomeattrs(slot, Anum_log_topic);
	row->id = segment->id;
	if (segment->kept)
		ItemPointerSetInvalid(&row->place);
	else
		row->place = slot->tts_tid;
	row->clock = message_id_clock(&row->id);
	row->updated_at = DatumGetTimestampTz(slot->tts_values[Anum_log_updated_at - 1]);
	row->attempts = DatumGetInt16(slot->tts_values[Anum_log_attempts - 1]);
	row->lane = DatumGetInt16(slot->tts_values[Anum_log_lane - 1]);
	row->status = DatumGetChar(slot->tts_values[Anum_log_status - 1]);
	row->slot = slot;

	MemoryContextReset(scan->row_context);
	old = MemoryContextSwitchTo(scan->row_context);
	row->topic = TextDatumGetCString(slot->tts_values[Anum_log_topic - 1]);
	MemoryContextSwitchTo(old);
}

bool
log_scan_next(LogScan *scan, LogRow *row)
{
	SegmentScan *first = NULL;

	if (scan->current != NULL)
		segment_advance(scan->current);
	for (int i = 0; i < scan->nsegments; i++)
	{
		SegmentScan *segment = &scan->segments[i];

		if (!segment->at_end &&
			(first == NULL || memcmp(&segment->id, &first->id, UUID_LEN) < 0))
			first = segment;
	}
	scan->current = first;
	if (first == NULL)
		return false;
	read_row(scan, first, row);
	return true;
}

void
log_scan_end(LogScan *scan)
{
	for (int i = 0; i < scan->nsegments; i++)
	{
		index_endscan(scan->segments[i].scan);
		ExecDropSingleTupleTableSlot(scan->segments[i].slot);
		open_table_close(&scan->segments[i].open);
	}
	MemoryContextDelete(scan->row_context);
	pfree(scan);
}

LogScan *
log_fetch(const pg_uuid_t *id, Snapshot snapshot, LogRow *row)
{
	int			homes[2] = {message_id_segment(id), OUTBOX_SEGMENT_KEPT};

	for (int i = 0; i < lengthof(homes); i++)
	{
		LogScan    *scan = scan_make();

		scan->bound = *id;
		segment_begin(scan, homes[i], BTEqualStrategyNumber, F_UUID_EQ, snapshot);
		if (log_scan_next(scan, row))
			return scan;
		log_scan_end(scan);
	}
	return NULL;
}

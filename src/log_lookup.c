/*-------------------------------------------------------------------------
 *
 * log_lookup.c
 *	  Where messages are in the log, and in which state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/itup.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "log_lookup.h"
#include "relation.h"

/* Entries of the index to pass by before it is searched anew */
#define STEPS_MAX	8

typedef struct Lookup
{
	IndexScanDesc scan;
	bool		at_entry;		/* of the index: scan->xs_itup */
	TupleTableSlot *slot;
} Lookup;

static void
read_state(TupleTableSlot *slot, int segment, MessageState *state)
{
	slot_getsomeattrs(slot, Anum_log_topic);
	state->found = true;
	state->status = DatumGetChar(slot->tts_values[Anum_log_status - 1]);
	state->attempts = DatumGetInt16(slot->tts_values[Anum_log_attempts - 1]);
	state->updated_at = DatumGetTimestampTz(slot->tts_values[Anum_log_updated_at - 1]);
	state->topic = TextDatumGetCString(slot->tts_values[Anum_log_topic - 1]);
	if (segment == OUTBOX_SEGMENT_KEPT)
		ItemPointerSetInvalid(&state->place);
	else
		state->place = slot->tts_tid;
}

/* The index's entry and an id, as memcmp does */
static int
compare_entry(IndexScanDesc scan, const pg_uuid_t *id)
{
	bool		isnull;
	Datum		value = index_getattr(scan->xs_itup, 1, scan->xs_itupdesc, &isnull);

	return memcmp(DatumGetUUIDP(value), id, UUID_LEN);
}

/*
 * Goes on to the first entry of the index at or after an id, and returns how
 * it compares: 0 if it is the id's own.  What is asked for together mostly lies
 * together, so a few entries are tried before the index is searched anew.
 */
static int
seek(Lookup *lookup, const pg_uuid_t *id)
{
	IndexScanDesc scan = lookup->scan;
	ScanKeyData key;

	for (int steps = 0; lookup->at_entry && steps < STEPS_MAX; steps++)
	{
		int			order = compare_entry(scan, id);

		if (order >= 0)
			return order;
		lookup->at_entry = index_getnext_tid(scan, ForwardScanDirection) != NULL;
	}
	ScanKeyInit(&key, 1, BTGreaterEqualStrategyNumber, F_UUID_GE, UUIDPGetDatum(id));
	index_rescan(scan, &key, 1, NULL, 0);
	lookup->at_entry = index_getnext_tid(scan, ForwardScanDirection) != NULL;
	return lookup->at_entry ? compare_entry(scan, id) : 1;
}

/* The visible version of a message; an id may have several entries in the index */
static bool
fetch(Lookup *lookup, const pg_uuid_t *id)
{
	int			order = seek(lookup, id);

	while (order == 0)
	{
		if (index_fetch_heap(lookup->scan, lookup->slot))
			return true;
		lookup->at_entry = index_getnext_tid(lookup->scan, ForwardScanDirection) != NULL;
		order = lookup->at_entry ? compare_entry(lookup->scan, id) : 1;
	}
	return false;
}

int
log_lookup(int segment, const pg_uuid_t *ids, int n, MessageState *states)
{
	Lookup		lookup = {0};
	OpenTable	open;
	Snapshot	snapshot;
	int			found = 0;

	log_segment_open(segment, AccessShareLock, &open);
	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	lookup.slot = table_slot_create(open.table, NULL);
	lookup.scan = index_scan_begin(open.table, open.pkey, snapshot, 1);
	lookup.scan->xs_want_itup = true;
	for (int i = 0; i < n; i++)
	{
		if (!fetch(&lookup, &ids[i]))
			continue;
		read_state(lookup.slot, segment, &states[i]);
		found++;
	}
	index_endscan(lookup.scan);
	ExecDropSingleTupleTableSlot(lookup.slot);
	UnregisterSnapshot(snapshot);
	open_table_close(&open);
	return found;
}

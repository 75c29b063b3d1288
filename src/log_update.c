/*-------------------------------------------------------------------------
 *
 * log_update.c
 *	  Changing the status of messages at the places where they were read.
 *
 * The publisher marks what it has just read, so it needn't look each row up
 * again.  The place is a hint and nothing more: the row there must have the id
 * and one of the states, else nothing happens to it here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "compat.h"
#include "log_update.h"
#include "relation.h"

/* So many rows are changed between two calls of StatusChange.meanwhile */
#define MEANWHILE_ROWS	500

typedef struct StatusUpdate
{
	OpenTable	open;
	BlockNumber nblocks;		/* no place is behind these */
	Snapshot	snapshot;
	TupleTableSlot *row;
	TupleTableSlot *changed;
	const StatusChange *change;
	TimestampTz now;
} StatusUpdate;

/* Does somebody else want to hear of a changed row? */
static bool
has_update_triggers(Relation table)
{
	const TriggerDesc *triggers = table->trigdesc;

	return triggers != NULL &&
		(triggers->trig_update_before_row || triggers->trig_update_after_row ||
		 triggers->trig_update_before_statement || triggers->trig_update_after_statement);
}

/* Is that message there, in a state that the change starts from? */
static bool
fetch_row(StatusUpdate *update, const pg_uuid_t *id, const ItemPointerData *place)
{
	TupleTableSlot *row = update->row;
	ItemPointerData tid = *place;

	if (!ItemPointerIsValid(&tid) || ItemPointerGetBlockNumber(&tid) >= update->nblocks ||
		!table_tuple_fetch_row_version(update->open.table, &tid, update->snapshot, row))
		return false;
	slot_getallattrs(row);
	return memcmp(DatumGetUUIDP(row->tts_values[Anum_log_id - 1]), id, UUID_LEN) == 0 &&
		strchr(update->change->from, DatumGetChar(row->tts_values[Anum_log_status - 1])) != NULL;
}

static void
set_text(TupleTableSlot *slot, AttrNumber column, const char *text)
{
	slot->tts_isnull[column - 1] = false;
	slot->tts_values[column - 1] = CStringGetTextDatum(text != NULL ? text : "");
}

/* The new version of the row that was fetched; its values stay where they are */
static void
fill_changed(StatusUpdate *update, int number)
{
	const char *const *results = update->change->results;
	const char *const *errors = update->change->errors;
	TupleTableSlot *row = update->row;
	TupleTableSlot *changed = update->changed;
	int			natts = row->tts_tupleDescriptor->natts;
	int			attempts = DatumGetInt16(row->tts_values[Anum_log_attempts - 1]) +
		(update->change->count_attempt ? 1 : 0);

	ExecClearTuple(changed);
	memcpy(changed->tts_values, row->tts_values, natts * sizeof(Datum));
	memcpy(changed->tts_isnull, row->tts_isnull, natts * sizeof(bool));
	changed->tts_values[Anum_log_status - 1] = CharGetDatum(update->change->to);
	changed->tts_values[Anum_log_updated_at - 1] = TimestampTzGetDatum(update->now);
	changed->tts_values[Anum_log_attempts - 1] = Int16GetDatum(Min(attempts, OUTBOX_ATTEMPTS_MAX));
	if (results != NULL || errors != NULL)
	{
		set_text(changed, Anum_log_result, results != NULL ? results[number] : NULL);
		set_text(changed, Anum_log_error, errors != NULL ? errors[number] : NULL);
	}
	ExecStoreVirtualTuple(changed);
}

/* False if somebody else changed it first */
static bool
update_row(StatusUpdate *update)
{
	OpenTable  *open = &update->open;
	ItemPointerData tid = update->row->tts_tid;
	TM_FailureData failure;
	LockTupleMode lock;
	OutboxUpdateIndexes indexes;

	if (table_tuple_update(open->table, &tid, update->changed, GetCurrentCommandId(true),
						   update->snapshot, InvalidSnapshot, true, &failure, &lock,
						   &indexes) != TM_Ok)
		return false;
	if (outbox_indexes_need_update(indexes))
		open_table_index(open, BuildIndexInfo(open->pkey), update->changed);
	return true;
}

int
log_update_status(int segment, const pg_uuid_t *ids, const ItemPointerData *places, int n,
				  const StatusChange *change, TimestampTz now, bool *hit)
{
	StatusUpdate update = {.change = change, .now = now};
	int			changed = 0;

	Assert(change->to != STATUS_NEW);
	log_segment_open(segment, RowExclusiveLock, &update.open);
	if (update.open.other_indexes || has_update_triggers(update.open.table))
	{
		open_table_close(&update.open);
		return 0;
	}

	/* the lock keeps it from becoming less, and the snapshot must be younger */
	update.nblocks = RelationGetNumberOfBlocks(update.open.table);
	update.snapshot = RegisterSnapshot(GetLatestSnapshot());
	update.row = table_slot_create(update.open.table, NULL);
	update.changed = MakeSingleTupleTableSlot(RelationGetDescr(update.open.table),
											  &TTSOpsVirtual);
	for (int i = 0; i < n; i++)
	{
		hit[i] = fetch_row(&update, &ids[i], &places[i]);
		if (hit[i])
		{
			fill_changed(&update, i);
			hit[i] = update_row(&update);
		}
		changed += hit[i];
		if (change->meanwhile != NULL && i % MEANWHILE_ROWS == 0)
			change->meanwhile(change->meanwhile_arg);
	}
	ExecDropSingleTupleTableSlot(update.changed);
	ExecDropSingleTupleTableSlot(update.row);
	UnregisterSnapshot(update.snapshot);
	open_table_close(&update.open);
	CommandCounterIncrement();
	return changed;
}

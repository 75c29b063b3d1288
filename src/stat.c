/*-------------------------------------------------------------------------
 *
 * stat.c
 *	  What the views show of shared memory.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "announce.h"
#include "outbox.h"

PG_FUNCTION_INFO_V1(outbox_worker_status);
PG_FUNCTION_INFO_V1(outbox_counters);

static const char *
kind_name(WorkerKind kind)
{
	switch (kind)
	{
		case WORKER_LAUNCHER:
			return "launcher";
		case WORKER_PUBLISHER:
			return "publisher";
		case WORKER_CONSUMER:
			return "consumer";
		case WORKER_PROBE:
		case WORKER_NONE:
			break;
	}
	return "";
}

static void
put_text(Datum *values, bool *nulls, int i, const char *text)
{
	nulls[i] = text[0] == '\0';
	if (!nulls[i])
		values[i] = CStringGetTextDatum(text);
}

static void
put_worker(ReturnSetInfo *rsinfo, Oid database, const WorkerSlot *slot)
{
	Datum		values[13] = {0};
	bool		nulls[13] = {0};

	if (slot->kind == WORKER_NONE)
		return;
	values[0] = ObjectIdGetDatum(database);
	values[1] = Int32GetDatum(slot->pid);
	nulls[1] = slot->pid == 0;
	values[2] = CStringGetTextDatum(kind_name(slot->kind));
	values[3] = Int32GetDatum(slot->number);
	put_text(values, nulls, 4, slot->state);
	values[5] = TimestampTzGetDatum(slot->since);
	nulls[5] = slot->since == 0;
	values[6] = Int64GetDatum(slot->restarts);
	put_text(values, nulls, 7, slot->last_error);
	values[8] = TimestampTzGetDatum(slot->last_error_at);
	nulls[8] = slot->last_error_at == 0;
	values[9] = Int32GetDatum(slot->bridge_pid);
	nulls[9] = slot->bridge_pid == 0;
	values[10] = Int64GetDatum(slot->bridge_restarts);
	put_text(values, nulls, 11, slot->bridge_last_exit);
	put_text(values, nulls, 12, slot->librdkafka_version);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* outbox.worker_status(): a row a worker of the instance */
Datum
outbox_worker_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	outbox_require_preloaded();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = -1; i < OUTBOX_MAX_DATABASES; i++)
	{
		WorkerSlot	copy[OUTBOX_WORKERS_PER_DATABASE];
		Oid			database;
		int			n = i < 0 ? 1 : OUTBOX_WORKERS_PER_DATABASE;

		LWLockAcquire(outbox_shared->lock, LW_SHARED);
		database = i < 0 || !outbox_shared->databases[i].has_extension ? InvalidOid :
			outbox_shared->databases[i].oid;
		if (i < 0 || OidIsValid(database))
			memcpy(copy, i < 0 ? &outbox_shared->launcher_slot :
				   outbox_shared->databases[i].workers, n * sizeof(WorkerSlot));
		LWLockRelease(outbox_shared->lock);
		if (i >= 0 && !OidIsValid(database))
			continue;
		for (int j = 0; j < n; j++)
			put_worker(rsinfo, database, &copy[j]);
	}
	return (Datum) 0;
}

/* The last error of the database's workers */
static const WorkerSlot *
last_failed(const DatabaseSlot *db)
{
	const WorkerSlot *last = NULL;

	for (int i = 0; i < OUTBOX_WORKERS_PER_DATABASE; i++)
	{
		if (db->workers[i].last_error_at != 0 &&
			(last == NULL || db->workers[i].last_error_at > last->last_error_at))
			last = &db->workers[i];
	}
	return last;
}

static void
put_oldest_transaction(Datum *values, bool *nulls, int i)
{
	OpenTransaction *open = palloc(outbox_shared->nannouncements * sizeof(OpenTransaction));
	int			n = announce_read(open);
	OpenTransaction *oldest = NULL;

	for (int j = 0; j < n; j++)
	{
		if (oldest == NULL || open[j].clock < oldest->clock)
			oldest = &open[j];
	}
	nulls[i] = nulls[i + 1] = oldest == NULL;
	if (oldest != NULL)
	{
		values[i] = Int32GetDatum(oldest->pid);
		values[i + 1] = TimestampTzGetDatum(oldest->xact_start);
	}
}

/* outbox.counters(): one row for this database */
Datum
outbox_counters(PG_FUNCTION_ARGS)
{
	DatabaseSlot *db = outbox_my_database();
	const WorkerSlot *failed;
	TupleDesc	desc;
	Datum		values[14] = {0};
	bool		nulls[14] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int64GetDatum(pg_atomic_read_u64(&db->published));
	values[1] = Int64GetDatum(pg_atomic_read_u64(&db->republished));
	values[2] = Int64GetDatum(pg_atomic_read_u64(&db->confirmed));
	values[3] = Int64GetDatum(pg_atomic_read_u64(&db->failed));
	values[4] = Int64GetDatum(pg_atomic_read_u64(&db->dead));

	LWLockAcquire(outbox_shared->lock, LW_SHARED);
	failed = last_failed(db);
	put_text(values, nulls, 5, failed ? failed->last_error : "");
	nulls[6] = failed == NULL;
	values[6] = TimestampTzGetDatum(failed ? failed->last_error_at : 0);
	values[7] = BoolGetDatum(db->brokers_up);
	nulls[7] = !db->brokers_known;
	put_text(values, nulls, 8, db->brokers_reason);
	LWLockRelease(outbox_shared->lock);

	put_oldest_transaction(values, nulls, 9);
	values[11] = TimestampTzGetDatum(outbox_shared->started_at);
	values[12] = Int64GetDatum((int64) GetSystemIdentifier());
	values[13] = ObjectIdGetDatum(MyDatabaseId);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

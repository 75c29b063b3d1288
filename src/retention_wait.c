/*-------------------------------------------------------------------------
 *
 * retention_wait.c
 *	  Says who is in the way of retention, for outbox.stat.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "retention.h"
#include "safe_text.h"
#include "store.h"

PG_FUNCTION_INFO_V1(outbox_retention_status);

void
retention_waits(RetentionRing ring, const char *why)
{
	RetentionWait *wait = &outbox_my_database()->retention_wait[ring];

	/* only this process writes it, so it may compare without the lock */
	if (strncmp(wait->why, why, sizeof(wait->why) - 1) == 0)
		return;
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	safe_text_copy(wait->why, why, sizeof(wait->why));
	wait->since = GetCurrentTimestamp();
	LWLockRelease(outbox_shared->lock);
}

/* The text that the query returns, or what there is to say without it */
static char *
fetch_text(const char *sql, int nargs, const Oid *types, const Datum *values,
		   const char *otherwise)
{
	Datum		value;
	bool		isnull;

	if (store_fetch_one(sql, nargs, types, values, NULL, &isnull, &value) && !isnull)
		return TextDatumGetCString(value);
	return pstrdup(otherwise);
}

char *
retention_lock_holder(const char *table, bool of_writers)
{
	static const Oid types[] = {TEXTOID, BOOLOID};
	Datum		values[2] = {CStringGetTextDatum(table), BoolGetDatum(of_writers)};

	return fetch_text("SELECT CASE WHEN l.pid IS NULL THEN pg_catalog.format("
					  "  'prepared transaction \"%s\"', p.gid)"
					  " ELSE pg_catalog.format('a lock of process %s, in its transaction"
					  " since %s', l.pid, a.xact_start) END"
					  " FROM pg_catalog.pg_class AS c"
					  "  JOIN pg_catalog.pg_locks AS l ON l.relation IN (c.oid, c.reltoastrelid)"
					  "  LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid"
					  "  LEFT JOIN (pg_catalog.pg_locks AS x JOIN pg_catalog.pg_prepared_xacts AS p"
					  "   ON x.locktype = 'transactionid' AND x.transactionid = p.transaction)"
					  "   ON l.pid IS NULL AND x.virtualtransaction = l.virtualtransaction"
					  " WHERE c.oid = $1::pg_catalog.regclass AND l.granted"
					  "  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d"
					  "   WHERE d.datname = pg_catalog.current_database())"
					  "  AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()"
					  "  AND NOT ($2 AND l.mode IN ('AccessShareLock', 'ShareLock'))"
					  " ORDER BY l.pid IS NOT NULL, a.xact_start LIMIT 1",
					  2, types, values, "a lock");
}

char *
retention_snapshot_holder(void)
{
	return fetch_text("SELECT s.holder FROM"
					  " (SELECT pg_catalog.format('a snapshot of process %s, in its transaction"
					  " since %s', a.pid, a.xact_start) AS holder, a.backend_xmin AS xmin"
					  "   FROM pg_catalog.pg_stat_activity AS a"
					  "   WHERE a.pid <> pg_catalog.pg_backend_pid() AND (a.datid IS NULL"
					  "    OR a.datname = pg_catalog.current_database())"
					  "  UNION ALL"
					  "  SELECT pg_catalog.format('prepared transaction \"%s\"', p.gid), p.transaction"
					  "   FROM pg_catalog.pg_prepared_xacts AS p"
					  "   WHERE p.database = pg_catalog.current_database()"
					  "  UNION ALL"
					  "  SELECT pg_catalog.format('replication slot \"%s\"', r.slot_name), r.xmin"
					  "   FROM pg_catalog.pg_replication_slots AS r) AS s"
					  " WHERE s.xmin IS NOT NULL"
					  " ORDER BY pg_catalog.age(s.xmin) DESC LIMIT 1",
					  0, NULL, NULL, "a snapshot");
}

/* outbox.retention_status(): one row for this database */
Datum
outbox_retention_status(PG_FUNCTION_ARGS)
{
	DatabaseSlot *db = outbox_my_database();
	const RetentionWait *wait = db->retention_wait;
	bool		known = pg_atomic_read_u32(&db->floor_known) != 0;
	TupleDesc	desc;
	Datum		values[5] = {0};
	bool		nulls[5] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int32GetDatum((int32) pg_atomic_read_u32(&db->segment));
	nulls[0] = !known;

	LWLockAcquire(outbox_shared->lock, LW_SHARED);
	for (int ring = 0; ring < RETENTION_RINGS; ring++)
	{
		values[1 + 2 * ring] = CStringGetTextDatum(wait[ring].why);
		values[2 + 2 * ring] = TimestampTzGetDatum(wait[ring].since);
		nulls[1 + 2 * ring] = nulls[2 + 2 * ring] = wait[ring].why[0] == '\0';
	}
	LWLockRelease(outbox_shared->lock);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

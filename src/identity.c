/*-------------------------------------------------------------------------
 *
 * identity.c
 *	  Knows a log from its copies.
 *
 * A clone, a restored dump or a base backup started elsewhere holds messages
 * that the original publishes too.  So a log belongs to the database it was
 * written in, known by system identifier and OID, and the workers of any
 * other rest until an operator calls outbox.adopt().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"

#include "announce.h"
#include "compat.h"
#include "identity.h"
#include "inbox_ring.h"
#include "store.h"
#include "worker.h"

PG_FUNCTION_INFO_V1(outbox_log_guard);
PG_FUNCTION_INFO_V1(outbox_adopt);

static const Oid identity_types[] = {INT8OID, OIDOID, TEXTOID};

static void
identity_values(Datum *values)
{
	values[0] = Int64GetDatum((int64) GetSystemIdentifier());
	values[1] = ObjectIdGetDatum(MyDatabaseId);
}

/* Makes every worker read the table again once this transaction committed */
static void
identity_changed(void)
{
	Oid			relid = get_relname_relid("identity",
										  get_namespace_oid(OUTBOX_SCHEMA, false));

	CacheInvalidateRelcacheByRelid(relid);
	announce_wake_at_commit();
}

/* Writes this database as one the log belongs to; parked NULL: and may be used */
static void
identity_write(const char *why)
{
	Datum		values[3];

	identity_values(values);
	values[2] = why ? CStringGetTextDatum(why) : (Datum) 0;
	store_execute("INSERT INTO outbox.identity AS i VALUES ($1, $2, $3)"
				  " ON CONFLICT ON CONSTRAINT identity_pkey"
				  " DO UPDATE SET parked = excluded.parked,"
				  "  since = pg_catalog.clock_timestamp()"
				  " WHERE i.parked IS DISTINCT FROM excluded.parked",
				  3, identity_types, values, why ? NULL : "  n");
}

const char *
identity_check(void)
{
	Datum		values[2];
	Datum		result;
	bool		isnull;

	identity_values(values);
	if (store_fetch_one("SELECT parked FROM outbox.identity"
						" WHERE system_identifier = $1 AND database = $2",
						2, identity_types, values, NULL, &isnull, &result))
	{
		if (isnull)
			return NULL;
		ereport(WARNING,
				(errmsg("outbox is parked in database \"%s\": %s",
						get_database_name(MyDatabaseId), TextDatumGetCString(result)),
				 errhint("Call outbox.adopt() there to let its messages be carried from now on.")));
		return psprintf("parked: %s", TextDatumGetCString(result));
	}

	/* with an empty log, and no subscription that was read, it is nobody's copy */
	if (store_fetch_one("SELECT 1 FROM outbox.log UNION ALL"
						" SELECT 1 FROM outbox.consumer_offset WHERE kind = 's' LIMIT 1",
						0, NULL, NULL, NULL, &isnull, &result))
	{
		identity_write("its messages or positions are those of another database");
		return identity_check();
	}
	identity_write(NULL);
	return NULL;
}

/* The transaction whose rows are from this log itself */
static LocalTransactionId moves_rows = InvalidLocalTransactionId;

void
log_guard_expect_own(void)
{
	moves_rows = outbox_local_xid();
}

/*
 * Row trigger of the log: a row that capture didn't write, by COPY of a
 * restore, by a subscriber or by hand, parks the database.
 */
Datum
outbox_log_guard(PG_FUNCTION_ARGS)
{
	static LocalTransactionId parked_in = InvalidLocalTransactionId;
	static SubTransactionId parked_in_sub = InvalidSubTransactionId;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox.log_guard must be called as a trigger")));
	if (outbox_shared != NULL && moves_rows != outbox_local_xid() && (parked_in != outbox_local_xid() ||
								  parked_in_sub != GetCurrentSubTransactionId()))
	{
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "SPI_connect failed");
		identity_write("messages were loaded into its log");
		SPI_finish();
		identity_changed();
		parked_in = outbox_local_xid();
		parked_in_sub = GetCurrentSubTransactionId();
	}
	PG_RETURN_POINTER(NULL);
}

/* outbox.adopt(): see the script */
Datum
outbox_adopt(PG_FUNCTION_ARGS)
{
	outbox_require_preloaded();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	identity_write(NULL);

	/* what was loaded may lie below the cursors, and above the clock */
	store_execute("UPDATE outbox.lane SET cursor = '00000000-0000-0000-0000-000000000000'",
				  0, NULL, NULL, NULL);
	store_execute("DELETE FROM outbox.recovery", 0, NULL, NULL, NULL);
	SPI_finish();
	identity_changed();
	pg_atomic_write_u32(&outbox_my_database()->floor_known, 0);
	inbox_ring_distrust(outbox_my_database());
	PG_RETURN_VOID();
}

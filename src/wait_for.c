/*-------------------------------------------------------------------------
 *
 * wait_for.c
 *	  outbox.wait_for: sleeps until a message has its final status.
 *
 * Each backend has one Waiter in shared memory, which tells the message it
 * waits for.  A transaction that changes statuses remembers the ids, and its
 * commit sets the latches of those who wait for one of them.  wake_waiters has
 * the proof that nobody sleeps through a change.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "message_id.h"
#include "outbox.h"
#include "relation.h"
#include "wait_for.h"

PG_FUNCTION_INFO_V1(outbox_wait_for);

/* A batch of the publisher fits; who changes more wakes everybody */
#define MAX_CHANGED			4096

/* Columns of outbox.topic_config */
enum
{
	Anum_topic_config_topic = 1,
	Anum_topic_config_result_topic
};

typedef struct Waiter
{
	pg_atomic_uint32 database;	/* InvalidOid: waits for nothing */
	pg_uuid_t	id;
	PGPROC	   *proc;			/* whose latch to set */
} Waiter;

typedef struct Waiters
{
	pg_atomic_uint32 count;		/* of those that wait, in all databases */
	int			size;
	Waiter		all[FLEXIBLE_ARRAY_MEMBER]; /* one a backend */
} Waiters;

static Waiters *waiters = NULL;

/* This backend's; NULL before its first use */
static Waiter *mine = NULL;

/* Of the current transaction */
static pg_uuid_t changed[MAX_CHANGED];
static int	nchanged = 0;
static bool too_many_changed = false;

/* A row by the first column of its table's primary key */
typedef struct Lookup
{
	OpenTable	open;
	IndexScanDesc scan;
	TupleTableSlot *slot;
} Lookup;

static void wait_for_xact_callback(XactEvent event, void *arg);
static int	compare_ids(const void *a, const void *b);
static void wake_waiters(bool all);
static void waiter_register(const pg_uuid_t *id);
static void waiter_unregister(void);
static void waiter_exit(int code, Datum arg);
static bool lookup_begin(Lookup *lookup, RegProcedure equal, Datum value);
static void lookup_end(Lookup *lookup);
static void refuse_own(Lookup *lookup, const pg_uuid_t *id);
static bool read_message(const pg_uuid_t *id, MessageStatus *status, Datum *topic);
static bool expects_result(Datum topic);
static MessageStatus look(const pg_uuid_t *id, bool *final);
static MessageStatus wait_until_final(const pg_uuid_t *id, TimestampTz deadline);
static TimestampTz deadline_after(Interval *timeout);
static Datum status_datum(Oid type, MessageStatus status);

/* ---------------------------------------------------------------------
 * Shared memory
 * --------------------------------------------------------------------- */

Size
wait_for_shmem_size(void)
{
	return add_size(offsetof(Waiters, all), mul_size(MaxBackends, sizeof(Waiter)));
}

void
wait_for_shmem_init(void)
{
	bool		found;

	waiters = ShmemInitStruct(OUTBOX_EXTENSION " waiters", wait_for_shmem_size(), &found);
	if (found)
		return;
	memset(waiters, 0, wait_for_shmem_size());
	pg_atomic_init_u32(&waiters->count, 0);
	waiters->size = MaxBackends;
	for (int i = 0; i < MaxBackends; i++)
		pg_atomic_init_u32(&waiters->all[i].database, InvalidOid);
}

/* ---------------------------------------------------------------------
 * Who changes a status
 * --------------------------------------------------------------------- */

void
wait_for_init(void)
{
	RegisterXactCallback(wait_for_xact_callback, NULL);
}

/* What a subtransaction changed is kept if it aborts: one look too many */
void
wait_for_changed(const pg_uuid_t *id)
{
	if (nchanged < MAX_CHANGED)
		changed[nchanged++] = *id;
	else
		too_many_changed = true;
}

void
wait_for_wake_all(void)
{
	wake_waiters(true);
}

/*
 * PostgreSQL calls this for COMMIT after the transaction has left the array of
 * running ones, where an ERROR would be a PANIC.
 */
static void
wait_for_xact_callback(XactEvent event, void *arg)
{
	if (likely(nchanged == 0))
		return;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			wake_waiters(too_many_changed);
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			break;
		default:
			return;
	}
	nchanged = 0;
	too_many_changed = false;
}

static int
compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, UUID_LEN);
}

/*
 * Sets the latches of those in this database who wait for a message of the
 * transaction that has committed, or of all.
 *
 * Why nobody sleeps through a change.  Say W waits for message m, and C commits
 * a change of m's status, or of the configuration of its topic.
 *
 *	W:		S  store its Waiter: id, proc, database; count it
 *			   barrier (waiter_register)
 *		loop:
 *			Z  reset its latch
 *			L  take a snapshot, read status and configuration
 *			   wait for the latch
 *
 *	C:		E  leave the array of running transactions
 *			   barrier (below)
 *			R  read the count, then W's Waiter
 *			   set W's latch
 *
 * Suppose that R misses W: one of the words it read, be it the count, the
 * database or a part of the id, was older than S.  Then R read it before S's
 * barrier was passed, and E comes before R, so L, which takes ProcArrayLock
 * after E released it, sees what C did, the first time already.  It makes no
 * difference that the words are read without a lock: if all are W's, it is
 * woken, and if some belong to what the backend waited for before, or to a
 * former owner of the place, a latch may be set that nobody asked for.
 *
 * Suppose that R finds W, and W's latch is set.  If that is before Z, then E
 * comes before L, which sees the change.  If it is after Z, the wait ends at
 * once, and the next L sees it.  QED.
 */
static void
wake_waiters(bool all)
{
	Assert(OidIsValid(MyDatabaseId));
	pg_memory_barrier();
	if (likely(pg_atomic_read_u32(&waiters->count) == 0))
		return;

	if (!all)
		qsort(changed, nchanged, sizeof(pg_uuid_t), compare_ids);
	for (int i = 0; i < waiters->size; i++)
	{
		Waiter	   *waiter = &waiters->all[i];
		pg_uuid_t	id;

		if (pg_atomic_read_u32(&waiter->database) != MyDatabaseId)
			continue;
		pg_read_barrier();
		id = waiter->id;
		if (all || bsearch(&id, changed, nchanged, sizeof(pg_uuid_t), compare_ids) != NULL)
			SetLatch(&waiter->proc->procLatch);
	}
}

/* ---------------------------------------------------------------------
 * Who waits
 * --------------------------------------------------------------------- */

static void
waiter_register(const pg_uuid_t *id)
{
	if (mine == NULL)
	{
		Assert(outbox_backend_number() >= 0 && outbox_backend_number() < waiters->size);
		before_shmem_exit(waiter_exit, (Datum) 0);
		mine = &waiters->all[outbox_backend_number()];
	}
	mine->id = *id;
	mine->proc = MyProc;
	pg_write_barrier();
	pg_atomic_write_u32(&mine->database, MyDatabaseId);
	pg_atomic_fetch_add_u32(&waiters->count, 1);
	pg_memory_barrier();
}

static void
waiter_unregister(void)
{
	if (pg_atomic_read_u32(&mine->database) == InvalidOid)
		return;
	pg_atomic_write_u32(&mine->database, InvalidOid);
	pg_atomic_fetch_sub_u32(&waiters->count, 1);
}

/* A FATAL error, such as being terminated, passes by PG_FINALLY */
static void
waiter_exit(int code, Datum arg)
{
	waiter_unregister();
}

/*
 * Finds a row by a snapshot of this moment, whatever the transaction's is.
 * What this transaction did is seen to the last command, be it the one that
 * runs.  The table is locked before the snapshot is taken: who empties a
 * segment after having moved what it keeps has then committed, or has yet to
 * begin.
 */
static bool
lookup_begin(Lookup *lookup, RegProcedure equal, Datum value)
{
	ScanKeyData key;

	PushCopiedSnapshot(GetLatestSnapshot());
	GetActiveSnapshot()->curcid = InvalidCommandId;
	lookup->slot = table_slot_create(lookup->open.table, NULL);
	lookup->scan = index_scan_begin(lookup->open.table, lookup->open.pkey,
									GetActiveSnapshot(), 1);
	ScanKeyEntryInitialize(&key, 0, 1, BTEqualStrategyNumber, InvalidOid,
						   lookup->open.pkey->rd_indcollation[0], equal, value);
	index_rescan(lookup->scan, &key, 1, NULL, 0);
	return index_getnext_slot(lookup->scan, ForwardScanDirection, lookup->slot);
}

/* Holds neither lock nor snapshot any more: who waits must be in nobody's way */
static void
lookup_end(Lookup *lookup)
{
	index_endscan(lookup->scan);
	ExecDropSingleTupleTableSlot(lookup->slot);
	PopActiveSnapshot();
	index_close(lookup->open.pkey, AccessShareLock);
	table_close(lookup->open.table, AccessShareLock);
}

/* Waiting for what can't happen before the wait ends */
static void
refuse_own(Lookup *lookup, const pg_uuid_t *id)
{
	bool		isnull;
	Datum		xmin = slot_getsysattr(lookup->slot, MinTransactionIdAttributeNumber, &isnull);

	if (TransactionIdIsCurrentTransactionId(DatumGetTransactionId(xmin)))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("message %s was written or changed by this transaction",
						DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)))),
				 errdetail("Nobody else sees it before the transaction has committed."),
				 errhint("Commit first, then call outbox.wait_for.")));
}

/*
 * In the segment that the id names, or where what outlives it is kept.  Each
 * is read by a snapshot of its own: what has left the one when it is read is
 * seen in the other.  The topic is palloc'd.
 */
static bool
read_message(const pg_uuid_t *id, MessageStatus *status, Datum *topic)
{
	int			homes[2] = {message_id_segment(id), OUTBOX_SEGMENT_KEPT};
	bool		found = false;

	for (int i = 0; i < lengthof(homes) && !found; i++)
	{
		Lookup		lookup;
		bool		isnull;

		/* not an id of ours */
		if (homes[i] >= OUTBOX_SEGMENTS)
			continue;
		log_segment_open(homes[i], AccessShareLock, &lookup.open);
		found = lookup_begin(&lookup, F_UUID_EQ, UUIDPGetDatum(id));
		if (found)
		{
			refuse_own(&lookup, id);
			*status = DatumGetChar(slot_getattr(lookup.slot, Anum_log_status, &isnull));
			*topic = PointerGetDatum(PG_DETOAST_DATUM_COPY(slot_getattr(lookup.slot,
																		Anum_log_topic,
																		&isnull)));
		}
		lookup_end(&lookup);
	}
	return found;
}

static bool
expects_result(Datum topic)
{
	Lookup		lookup;
	bool		expects;

	open_table_by_name("topic_config", AccessShareLock, &lookup.open);
	expects = lookup_begin(&lookup, F_TEXTEQ, topic) &&
		!slot_attisnull(lookup.slot, Anum_topic_config_result_topic);
	lookup_end(&lookup);
	return expects;
}

static MessageStatus
look(const pg_uuid_t *id, bool *final)
{
	MessageStatus status = STATUS_NEW;
	Datum		topic = (Datum) 0;

	if (!read_message(id, &status, &topic))
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("there is no message %s",
						DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)))),
				 errhint("Another session may not have committed it yet, or it was removed from the log.")));
	*final = status == STATUS_CONFIRMED || status == STATUS_FAILED ||
		status == STATUS_DEAD || (status == STATUS_SENT && !expects_result(topic));
	pfree(DatumGetPointer(topic));
	return status;
}

/* At the deadline the last look has been after it */
static MessageStatus
wait_until_final(const pg_uuid_t *id, TimestampTz deadline)
{
	bool		limited = !TIMESTAMP_IS_NOEND(deadline);

	for (;;)
	{
		MessageStatus status;
		bool		expired;
		bool		final;
		long		left = -1;

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();

		if (limited)
			left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		expired = left == 0;
		status = look(id, &final);
		if (final || expired)
			return status;

		/* what the catalogs were read with */
		InvalidateCatalogSnapshot();
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (limited ? WL_TIMEOUT : 0),
						 left, outbox_wait_event("OutboxWaitFor"));
	}
}

static TimestampTz
deadline_after(Interval *timeout)
{
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(GetCurrentTimestamp()),
												   IntervalPGetDatum(timeout)));
}

/* As a value of the enum type outbox.message_status */
static Datum
status_datum(Oid type, MessageStatus status)
{
	const char *label = NULL;
	Oid			input;
	Oid			param;

	switch (status)
	{
		case STATUS_NEW:
			label = "NEW";
			break;
		case STATUS_SENT:
			label = "SENT";
			break;
		case STATUS_CONFIRMED:
			label = "CONFIRMED";
			break;
		case STATUS_FAILED:
			label = "FAILED";
			break;
		case STATUS_DEAD:
			label = "DEAD";
			break;
	}
	if (label == NULL)
		elog(ERROR, "unknown status \"%c\" in the log", (char) status);
	getTypeInputInfo(type, &input, &param);
	return OidInputFunctionCall(input, unconstify(char *, label), param, -1);
}

/* outbox.wait_for(id, timeout): see the script */
Datum
outbox_wait_for(PG_FUNCTION_ARGS)
{
	TimestampTz deadline;
	pg_uuid_t  *id;
	MessageStatus status;

	outbox_require_preloaded();
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the message id must not be null")));
	PreventCommandIfParallelMode("outbox.wait_for()");

	/* nothing there sets a latch when a status arrives */
	PreventCommandDuringRecovery("outbox.wait_for()");

	id = PG_GETARG_UUID_P(0);
	deadline = PG_ARGISNULL(1) ? DT_NOEND : deadline_after(PG_GETARG_INTERVAL_P(1));
	waiter_register(id);
	PG_TRY();
	{
		status = wait_until_final(id, deadline);
	}
	PG_FINALLY();
	{
		waiter_unregister();
	}
	PG_END_TRY();
	return status_datum(get_func_rettype(fcinfo->flinfo->fn_oid), status);
}

/*-------------------------------------------------------------------------
 *
 * announce.c
 *	  Tells the publish sweep which transactions may still commit messages
 *	  below its position, and wakes it when they end.
 *
 * Each backend has one Announcement in shared memory.  It is set before the
 * transaction takes its first message id and cleared when the transaction's
 * end is visible to everybody.  announce_read has the proof that a sweep which
 * reads clock, announcements and snapshot in this order misses nobody.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

#include "announce.h"
#include "compat.h"
#include "outbox.h"
#include "relation.h"
#include "wait_for.h"

/* This backend's announcement; NULL before its first transaction that has one */
static Announcement *mine = NULL;

/* Of the current transaction */
static DatabaseSlot *database = NULL;	/* NULL: neither announced nor to wake */
static MessageClock announced = 0;	/* 0: not announced */
static bool wake_all = false;
static bool id_taken = false;
static uint32 lanes_written = 0;	/* a bit each */
static pg_uuid_t first_id;
static pg_uuid_t last_id;

/* Columns of outbox.prepared */
enum
{
	Anum_prepared_first_id = 1,
	Anum_prepared_last_id,
	Anum_prepared_lanes
};

#define ALL_LANES	((1U << OUTBOX_SWEPT_LANES) - 1)

static void announce_xact_callback(XactEvent event, void *arg);
static void announce_exit(int code, Datum arg);
static void transaction_ended(bool committed);
static void remember_prepared(void);
static uint32 raise_generations(DatabaseSlot *slot, uint32 lanes);
static void wake(DatabaseSlot *slot, WorkerKind kind, uint32 numbers);
static void wake_workers(DatabaseSlot *slot);

void
announce_init(void)
{
	RegisterXactCallback(announce_xact_callback, NULL);
}

MessageClock
announce_transaction(void)
{
	if (likely(announced != 0))
		return announced;

	database = outbox_my_database();
	if (mine == NULL)
	{
		Assert(outbox_backend_number() >= 0 &&
			   outbox_backend_number() < outbox_shared->nannouncements);
		on_shmem_exit(announce_exit, (Datum) 0);
		mine = &outbox_shared->announcements[outbox_backend_number()];
	}

	mine->database = MyDatabaseId;
	mine->xid = GetTopTransactionId();
	mine->pid = MyProcPid;
	mine->xact_start = GetCurrentTransactionStartTimestamp();
	announced = message_clock_read();	/* a barrier, too */
	pg_atomic_write_u64(&mine->clock, announced);
	pg_memory_barrier();
	return announced;
}

void
announce_id(const pg_uuid_t *id, int lane)
{
	lanes_written |= 1U << (lane < 0 ? OUTBOX_LANE_LATE : lane);
	if (!id_taken)
		first_id = *id;
	last_id = *id;
	id_taken = true;
}

void
announce_wake_at_commit(void)
{
	database = outbox_my_database();
	wake_all = true;
}

void
announce_wake_now(void)
{
	DatabaseSlot *slot = outbox_my_database();

	raise_generations(slot, ALL_LANES);
	wake_workers(slot);
}

/* Which publishers have one of these lanes, a bit each */
static uint32
publishers_of(const DatabaseSlot *slot, uint32 lanes)
{
	int			n = Max(*(volatile const int *) &slot->count[WORKER_PUBLISHER], 1);
	uint32		publishers = 0;

	for (int lane = 0; lane < OUTBOX_SWEPT_LANES; lane++)
	{
		if (lanes & (1U << lane))
			publishers |= 1U << outbox_lane_publisher(lane, n);
	}
	return publishers;
}

/*
 * Tells the publishers of these lanes that there may be something to read;
 * returns which they are.  If their number changes meanwhile, they are all
 * started anew, and read everything.
 */
static uint32
raise_generations(DatabaseSlot *slot, uint32 lanes)
{
	uint32		publishers = publishers_of(slot, lanes);

	for (int i = 0; i < OUTBOX_MAX_PUBLISHERS; i++)
	{
		if (publishers & (1U << i))
			pg_atomic_fetch_add_u32(&slot->generation[i], 1);
	}
	return publishers;
}

/* A worker that is gone leaves its latch to somebody who stands it */
static void
wake(DatabaseSlot *slot, WorkerKind kind, uint32 numbers)
{
	WorkerSlot *workers = &slot->workers[outbox_first_worker(kind)];

	for (int i = 0; i < outbox_max_workers(kind); i++)
	{
		PGPROC	   *proc = *(PGPROC *volatile *) &workers[i].proc;

		if (proc != NULL && (numbers & (1U << i)))
			SetLatch(&proc->procLatch);
	}
}

void
announce_wake_first_publisher(DatabaseSlot *slot)
{
	if (slot->workers[outbox_first_worker(WORKER_PUBLISHER)].proc != MyProc)
		wake(slot, WORKER_PUBLISHER, 1);
}

/*
 * The generation tells the workers what to look at: the invalidation messages
 * of this transaction are sent after the callbacks, when they may be awake.
 */
static void
wake_workers(DatabaseSlot *slot)
{
	pg_atomic_fetch_add_u32(&slot->settings_generation, 1);
	wake(slot, WORKER_PUBLISHER, PG_UINT32_MAX);
	wake(slot, WORKER_CONSUMER, PG_UINT32_MAX);
}

/*
 * PostgreSQL calls this for COMMIT, ABORT and PREPARE after the transaction
 * has left the array of running ones, where an ERROR would be a PANIC.
 */
static void
announce_xact_callback(XactEvent event, void *arg)
{
	if (likely(database == NULL))
		return;

	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			if (announced != 0)
				remember_prepared();
			break;
		case XACT_EVENT_COMMIT:
			transaction_ended(true);
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			transaction_ended(false);
			break;
		default:
			break;
	}
}

/*
 * A publisher says that it sleeps, looks at its generation again, and only
 * then waits; we raise the generation and look whether it sleeps.  Whoever
 * comes second sees what the other did, for there is a barrier between.
 */
static void
transaction_ended(bool committed)
{
	DatabaseSlot *slot = database;
	uint32		publishers;

	if (announced != 0)
	{
		pg_memory_barrier();
		pg_atomic_write_u64(&mine->clock, 0);
	}
	pg_memory_barrier();
	publishers = raise_generations(slot, wake_all || lanes_written == 0 ? ALL_LANES :
								   lanes_written);

	if (committed && wake_all)
	{
		wake_workers(slot);
		wait_for_wake_all();
	}
	else if (committed)
	{
		publishers &= pg_atomic_read_u32(&slot->publishers_asleep);
		if (publishers != 0)
			wake(slot, WORKER_PUBLISHER, publishers);
	}

	database = NULL;
	announced = 0;
	wake_all = false;
	id_taken = false;
	lanes_written = 0;
}

/*
 * A process can't exit between a transaction's commit and its end in the array
 * of running ones: interrupts are held there, and an ERROR is a PANIC.  So what
 * is still announced here was aborted, by ShutdownPostgres, which has run
 * before as one of before_shmem_exit's callbacks, and the callback above has
 * cleared it.  This is for the case that the abort itself failed.
 */
static void
announce_exit(int code, Datum arg)
{
	pg_atomic_write_u64(&mine->clock, 0);
}

/*
 * The transaction will have no announcement from its PREPARE on.  The row says
 * at COMMIT PREPARED, when it becomes visible together with the messages,
 * which part of the log to sweep again.  The range begins at the announced
 * clock: the caller of outbox.announce() may have changed something since.
 */
static void
remember_prepared(void)
{
	OpenTable	open;
	TupleTableSlot *slot;
	pg_uuid_t	from;

	message_id_at_clock(&from, announced,
						id_taken ? message_id_segment(&first_id) :
						(int) pg_atomic_read_u32(&database->segment));
	if (!id_taken)
		last_id = from;

	open_table_by_name("prepared", RowExclusiveLock, &open);
	slot = MakeSingleTupleTableSlot(RelationGetDescr(open.table), &TTSOpsVirtual);
	memset(slot->tts_isnull, true, RelationGetNumberOfAttributes(open.table));
	slot->tts_values[Anum_prepared_first_id - 1] = UUIDPGetDatum(&from);
	slot->tts_isnull[Anum_prepared_first_id - 1] = false;
	slot->tts_values[Anum_prepared_last_id - 1] = UUIDPGetDatum(&last_id);
	slot->tts_isnull[Anum_prepared_last_id - 1] = false;
	slot->tts_values[Anum_prepared_lanes - 1] =
		Int32GetDatum(lanes_written != 0 ? lanes_written : ALL_LANES);
	slot->tts_isnull[Anum_prepared_lanes - 1] = false;
	ExecStoreVirtualTuple(slot);
	open_table_insert(&open, BuildIndexInfo(open.pkey), slot);
	ExecDropSingleTupleTableSlot(slot);
	open_table_close(&open);
}

/*
 * Why the sweep misses no message.  Say a transaction T takes the id of tick t,
 * and a sweep reads the clock as c, then the announcements, then takes its
 * snapshot s.  We show: if t <= c, then T's rows are visible under s if ever,
 * or T is among the announcements read, or T was prepared and is listed in
 * outbox.prepared.
 *
 *	T:		A  store its announcement, a < t
 *			   barrier (announce_transaction)
 *			K  take t from the clock: compare and exchange
 *			   insert, commit
 *			E  leave the array of running transactions
 *			   barrier (transaction_ended)
 *			Z  clear its announcement
 *
 *	sweep:	C  read the clock, after raising it to the time: c
 *			   barrier (message_clock_read)
 *			R  read the announcement of T's backend
 *			   barrier (below)
 *			S  take the snapshot s
 *
 * The clock has one order of changes and its values rise strictly.  C read c,
 * so all ticks up to c were taken before, or never will be: message_clock_read
 * raised the clock to c itself, or found it there.  From t <= c follows that K
 * comes before C in that order.  K is a full barrier after A, and there is one
 * between C and R, so R sees A or what later replaced it in the same place.
 *
 * If R sees A, T is among the announcements read.  What replaces it is Z, or
 * after Z something of the backend's next transactions or of the place's next
 * owner.  Then R comes after Z, and Z after E; S, which takes ProcArrayLock
 * after E released it, sees T as ended: s shows its rows if T committed.  If T
 * was prepared, E made its dummy entry the running one, and its rows become
 * visible together with its row in outbox.prepared, which a later sweep finds.
 * If it aborted there is nothing to see.  QED.
 *
 * The converse needs no proof: an announcement too many, or too low a clock in
 * one, only makes a sweep go back further than it had to.  That is also why
 * the other fields may be read without a lock: they are written before the
 * clock, and belong to it or to a later owner, whose predecessor has ended.
 * With the xid it matters which: if the clock is still the same afterwards it
 * is T's, or that of a successor which announced the same tick, because T took
 * no id, has no message, and owes no order.
 */
int
announce_read(OpenTransaction *open)
{
	int			count = 0;

	pg_memory_barrier();
	for (int i = 0; i < outbox_shared->nannouncements; i++)
	{
		Announcement *announcement = &outbox_shared->announcements[i];
		MessageClock clock = pg_atomic_read_u64(&announcement->clock);

		if (clock == 0)
			continue;
		pg_read_barrier();
		if (announcement->database != MyDatabaseId)
			continue;
		open[count].slot = i;
		open[count].clock = clock;
		open[count].xid = announcement->xid;
		open[count].pid = announcement->pid;
		open[count].xact_start = announcement->xact_start;

		/* the snapshot will show what ended, so the xid must be of no other */
		pg_read_barrier();
		if (pg_atomic_read_u64(&announcement->clock) != clock)
			open[count].xid = InvalidTransactionId;
		count++;
	}
	pg_memory_barrier();
	return count;
}

PG_FUNCTION_INFO_V1(outbox_announce_sql);

/*
 * Announces this transaction as if it captured, for a change that is made
 * below the cursors.  Returns a time after the announced clock, to enter the
 * change under.
 */
Datum
outbox_announce_sql(PG_FUNCTION_ARGS)
{
	TimestampTz floor;

	PreventCommandIfReadOnly("outbox.announce()");
	message_floor_ensure();
	floor = message_clock_timestamp(announce_transaction()) + 1;
	lanes_written |= 1U << OUTBOX_LANE_LATE;
	PG_RETURN_TIMESTAMPTZ(Max(GetCurrentTimestamp(), floor));
}

PG_FUNCTION_INFO_V1(outbox_notify_workers);

/* Wakes the workers of this database when this transaction commits */
Datum
outbox_notify_workers(PG_FUNCTION_ARGS)
{
	announce_wake_at_commit();
	PG_RETURN_VOID();
}

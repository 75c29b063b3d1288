/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The session of a publisher or consumer: start, transactions, bridge,
 *	  sleep, end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "identity.h"
#include "result_route.h"
#include "safe_text.h"
#include "store.h"
#include "topic_config.h"
#include "worker.h"

/* Nobody wakes us when a command on the extension is rolled back (ms) */
#define LOCKED_OUT_INTERVAL	500

static Worker *this_worker = NULL;

/* outbox.identity changed, or was never looked at */
static bool identity_stale = true;
static Oid	identity_relid = InvalidOid;
static char *parked = NULL;

void
worker_set_state(Worker *worker, const char *state)
{
	WorkerSlot *slot = worker->slot;

	/* only this process writes it, so it may compare without the lock */
	if (strncmp(slot->state, state, sizeof(slot->state) - 1) == 0)
		return;
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	strlcpy(slot->state, state, sizeof(slot->state));
	slot->since = GetCurrentTimestamp();
	LWLockRelease(outbox_shared->lock);
	pgstat_report_activity(strcmp(state, "publishing") == 0 ? STATE_RUNNING : STATE_IDLE,
						   slot->state);
}

void
worker_set_error(Worker *worker, const char *error)
{
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	safe_text_copy(worker->slot->last_error, error, WORKER_TEXT_LEN);
	worker->slot->last_error_at = GetCurrentTimestamp();
	LWLockRelease(outbox_shared->lock);
}

long
backoff_delay(int failures, long base, long max)
{
	long		delay = base;

	for (int i = 1; i < failures && delay < max; i++)
		delay *= 2;
	delay = Min(delay, max);
	return delay / 2 + (long) (pg_prng_double(&pg_global_prng_state) * (delay / 2 + 1));
}

bool
worker_owns(const Worker *worker, const char *topic, int32 partition)
{
	uint32		first = hash_bytes((const unsigned char *) topic, strlen(topic)) %
		worker->count;

	return (first + partition) % worker->count == worker->number;
}

/* ---------------------------------------------------------------------
 * Sleep
 * --------------------------------------------------------------------- */

static void
answer_interrupts(Worker *worker)
{
	if (ProcDiePending)
		proc_exit(0);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		worker->config_changed = true;
		worker->bridge_not_before = 0;
	}
}

/*
 * What to wait for.  The set is made anew for each bridge: the number of its
 * socket may be that of the last one's, which is in the old set no more.
 */
static WaitEventSet *
wait_event_set(const Worker *worker)
{
	static WaitEventSet *set = NULL;
	static TimestampTz bridge = 0;	/* start of the one in the set; 0: none */
	static int	position = 0;
	pgsocket	sock = worker->bridge ? bridge_socket(worker->bridge) : PGINVALID_SOCKET;
	TimestampTz wanted = sock != PGINVALID_SOCKET ? worker->bridge_started_at : 0;

	if (set != NULL && wanted != bridge)
	{
		FreeWaitEventSet(set);
		set = NULL;
	}
	if (set == NULL)
	{
		set = outbox_create_wait_event_set(TopMemoryContext, 3);
		AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
		if (wanted != 0)
			position = AddWaitEventToSet(set, WL_SOCKET_READABLE, sock, NULL, NULL);
		bridge = wanted;
	}
	if (wanted != 0)
		ModifyWaitEvent(set, position, WL_SOCKET_READABLE |
						(bridge_wants_write(worker->bridge) ? WL_SOCKET_WRITEABLE : 0), NULL);
	return set;
}

void
worker_wait(Worker *worker, long timeout, bool busy)
{
	WaitEvent	event;

	if (worker->bridge != NULL)
	{
		timeout = Min(timeout, bridge_watchdog(worker->bridge, busy));
		bridge_pump(worker->bridge);
		if (bridge_has_input(worker->bridge))
			timeout = 0;
	}
	if (worker->locked_out)
		timeout = Min(timeout, LOCKED_OUT_INTERVAL);
	if (ConfigReloadPending)
		timeout = 0;			/* a wait for a lock may have taken its latch */

	(void) WaitEventSetWait(wait_event_set(worker), Max(timeout, 0), &event, 1,
							busy ? outbox_wait_event("OutboxBridge") :
							worker->kind == WORKER_PUBLISHER ?
							outbox_wait_event("OutboxPublisherMain") :
							outbox_wait_event("OutboxConsumerMain"));
	ResetLatch(MyLatch);

	answer_interrupts(worker);
	if (worker->bridge != NULL)
		bridge_pump(worker->bridge);
}

/* ---------------------------------------------------------------------
 * Transactions
 * --------------------------------------------------------------------- */

static void
identity_inval(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == identity_relid)
		identity_stale = true;
}

/* Why the database rests, looked up again only when it may have changed */
static const char *
check_parked(void)
{
	if (identity_stale)
	{
		const char *why;

		identity_stale = false;
		why = identity_check();
		identity_relid = get_relname_relid("identity",
										   get_namespace_oid(OUTBOX_SCHEMA, false));
		if (parked != NULL)
			pfree(parked);
		parked = why ? MemoryContextStrdup(TopMemoryContext, why) : NULL;
	}
	return parked;
}

/* The extension's version as the catalog has it, palloc'd */
static char *
extension_version(Oid extension)
{
	Datum		values[1];
	bool		isnull;
	char	   *version = NULL;

	values[0] = ObjectIdGetDatum(extension);
	if (store_fetch_one("SELECT extversion FROM pg_catalog.pg_extension WHERE oid = $1",
						1, (Oid[]) {OIDOID}, values, NULL, &isnull, &values[0]))
		version = TextDatumGetCString(values[0]);
	return version;
}

/*
 * The extension this worker served is gone.  If there is no other, nobody makes
 * the workers come back but a new CREATE EXTENSION.
 */
static void
extension_gone(Worker *worker, uint32 epoch, bool another)
{
	AbortCurrentTransaction();
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	if (!another && worker->db->extension_epoch == epoch)
		worker->db->has_extension = false;
	LWLockRelease(outbox_shared->lock);
	launcher_look();
	proc_exit(0);
}

/* Somebody changed what the workers go by: it is read again when needed */
static void
notice_settings(Worker *worker)
{
	uint32		generation = pg_atomic_read_u32(&worker->db->settings_generation);

	if (generation == worker->settings_generation)
		return;
	worker->settings_generation = generation;
	identity_stale = true;
	if (worker->kind == WORKER_PUBLISHER)
		topic_config_distrust();
	else
		routes_distrust();
}

bool
worker_begin(Worker *worker)
{
	uint32		epoch = worker->db->extension_epoch;
	Oid			extension;
	const char *why = NULL;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	notice_settings(worker);
	extension = worker->extension;
	if (!OidIsValid(extension))
		extension = get_extension_oid(OUTBOX_EXTENSION, true);

	/* DROP and ALTER EXTENSION must not wait for us, nor we for them */
	worker->locked_out = OidIsValid(extension) &&
		!outbox_conditional_lock_object(ExtensionRelationId, extension, 0, AccessShareLock);
	if (worker->locked_out)
		why = "waiting for a command on the extension";
	else
	{
		Oid			current = get_extension_oid(OUTBOX_EXTENSION, true);

		if (!OidIsValid(extension) || current != extension)
			extension_gone(worker, epoch, OidIsValid(current));
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "SPI_connect failed");
		if (!OidIsValid(worker->extension))
		{
			char	   *version = extension_version(extension);

			if (version == NULL)
				extension_gone(worker, epoch, false);
			if (strcmp(version, OUTBOX_VERSION) != 0)
				why = "parked: run ALTER EXTENSION outbox UPDATE";
			else
				worker->extension = extension;
		}
		if (why == NULL)
			why = check_parked();
		if (why != NULL)
			SPI_finish();
	}

	if (why != NULL)
	{
		CommitTransactionCommand();
		worker_bridge_drop(worker, why);
		worker_set_state(worker, why);
		return false;
	}
	return true;
}

void
worker_commit(Worker *worker)
{
	SPI_finish();
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

/* ---------------------------------------------------------------------
 * May it work?
 * --------------------------------------------------------------------- */

/* NULL, or why the settings want the worker to rest */
static const char *
settings_say_rest(void)
{
	if (!outbox_enabled)
		return "resting: outbox.enabled is off";
	if (outbox_bootstrap_servers == NULL || outbox_bootstrap_servers[0] == '\0')
		return "resting: outbox.bootstrap_servers is not set";
	return NULL;
}

bool
worker_is_enabled(void)
{
	return settings_say_rest() == NULL;
}

bool
worker_may_work(Worker *worker)
{
	const char *why = settings_say_rest();

	if (why == NULL && worker->config_changed && worker->bridge != NULL)
		worker_bridge_compare(worker);
	if (why == NULL && worker->bridge != NULL && worker->bridge_ready && worker->brokers_up)
		return true;

	/* also at rest, the worker ends with the extension */
	if (!worker_begin(worker))
		return false;
	worker_commit(worker);

	if (why != NULL)
		worker_bridge_drop(worker, why);
	else if (worker->bridge != NULL)
		why = worker->bridge_ready ? "waiting for the Kafka brokers" : "connecting to Kafka";
	else if (worker->bridge_not_before > GetCurrentTimestamp())
		why = worker_bridge_waiting(worker);
	else
	{
		worker_bridge_start(worker);
		why = "connecting to Kafka";
	}
	worker_set_state(worker, why);
	return false;
}

/* ---------------------------------------------------------------------
 * Start and end
 * --------------------------------------------------------------------- */

static void
worker_exit(int code, Datum arg)
{
	Worker	   *worker = this_worker;

	bridge_stop(worker->bridge);
	worker->bridge = NULL;
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	worker->slot->proc = NULL;
	worker->slot->pid = 0;
	worker->slot->bridge_pid = 0;
	strlcpy(worker->slot->state, "not running", sizeof(worker->slot->state));
	worker->slot->since = GetCurrentTimestamp();
	LWLockRelease(outbox_shared->lock);
}

/*
 * Enters the worker into shared memory; false if it isn't wanted any more, or
 * an earlier launcher's is in its place still.
 */
static bool
worker_enter(Worker *worker, const WorkerArgs *args)
{
	WorkerSlot *slot;
	bool		wanted;

	worker->kind = args->kind;
	worker->number = args->number;
	worker->count = args->count;
	worker->db = outbox_find_database(args->database);
	if (worker->db == NULL)
		return false;
	slot = &worker->db->workers[outbox_first_worker(args->kind) + args->number];

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	wanted = worker->db->hold_off == 0 && worker->db->oid == args->database &&
		worker->db->count[args->kind] == args->count && slot->pid == 0;
	if (wanted)
	{
		slot->kind = args->kind;
		slot->number = args->number;
		slot->pid = MyProcPid;
		slot->proc = MyProc;
		slot->since = GetCurrentTimestamp();
		strlcpy(slot->state, "starting", sizeof(slot->state));
	}
	LWLockRelease(outbox_shared->lock);

	if (wanted)
	{
		worker->slot = slot;
		this_worker = worker;
		before_shmem_exit(worker_exit, (Datum) 0);
	}
	return wanted;
}

/* Looks whether a database has the extension, and tells the launcher */
static void
probe_database(Oid database)
{
	bool		found;

	StartTransactionCommand();
	found = OidIsValid(get_extension_oid(OUTBOX_EXTENSION, true));
	CommitTransactionCommand();
	if (found)
		launcher_extension_made(database);
	outbox_shared->probed = database;
	proc_exit(0);
}

void
outbox_worker_main(Datum arg)
{
	WorkerArgs	args;
	Worker	   *worker = MemoryContextAllocZero(TopMemoryContext, sizeof(Worker));

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	if (args.kind != WORKER_PROBE && !worker_enter(worker, &args))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(args.database, InvalidOid, 0);
	if (args.kind == WORKER_PROBE)
		probe_database(args.database);

	/* a reload while this process was being made went unheard */
	ProcessConfigFile(PGC_SIGHUP);
	pgstat_report_appname(MyBgworkerEntry->bgw_type);
	worker_settings_init();
	CacheRegisterRelcacheCallback(identity_inval, (Datum) 0);

	PG_TRY();
	{
		if (args.kind == WORKER_PUBLISHER)
			publisher_main(worker);
		else
			consumer_main(worker);
	}
	PG_CATCH();
	{
		ErrorData  *error;
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		error = CopyErrorData();
		worker_set_error(worker, error->message);
		MemoryContextSwitchTo(old);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

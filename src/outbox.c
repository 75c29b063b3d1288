/*-------------------------------------------------------------------------
 *
 * outbox.c
 *	  Initialisation of the library: settings and shared memory.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/varlena.h"

#include "announce.h"
#include "capture.h"
#include "hooks.h"
#include "kafka_config.h"
#include "launcher.h"
#include "outbox.h"
#include "wait_for.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

bool		outbox_enabled = true;
char	   *outbox_databases = NULL;
char	   *outbox_bootstrap_servers = NULL;
char	   *outbox_kafka_config = NULL;
char	   *outbox_kafka_secrets_file = NULL;
int			outbox_ack_timeout = 10000;
int			outbox_max_message_bytes = 1000000;
int			outbox_poison_attempts = 3;
int			outbox_consumers = 1;
int			outbox_publishers = 1;
int			outbox_retention = 7 * SECS_PER_DAY;
int			outbox_inbox_retention = 30 * SECS_PER_DAY;

OutboxShared *outbox_shared = NULL;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static Size
outbox_shmem_size(void)
{
	return add_size(offsetof(OutboxShared, announcements),
					mul_size(MaxBackends, sizeof(Announcement)));
}

static void
outbox_shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(outbox_shmem_size());
	RequestAddinShmemSpace(wait_for_shmem_size());
	RequestNamedLWLockTranche(OUTBOX_EXTENSION, 1);
}

static void
database_slot_clear(DatabaseSlot *slot, Oid database)
{
	memset(slot, 0, sizeof(DatabaseSlot));
	pg_atomic_init_u32(&slot->floor_known, 0);
	pg_atomic_init_u32(&slot->segment, 0);
	pg_atomic_init_u64(&slot->segment_since, 0);
	pg_atomic_init_u64(&slot->segment_due, 0);
	pg_atomic_init_u32(&slot->segments_used, 0);
	for (int i = 0; i < OUTBOX_SEGMENTS; i++)
		pg_atomic_init_u32(&slot->reopened[i], 0);
	for (int i = 0; i <= OUTBOX_SEGMENTS; i++)
		pg_atomic_init_u64(&slot->segment_end[i], PG_UINT64_MAX);
	pg_atomic_init_u32(&slot->inbox_used, 0);
	pg_atomic_init_u32(&slot->inbox_segment, 0);
	for (int i = 0; i < OUTBOX_MAX_PUBLISHERS; i++)
		pg_atomic_init_u32(&slot->generation[i], 0);
	pg_atomic_init_u32(&slot->publishers_asleep, 0);
	pg_atomic_init_u32(&slot->settings_generation, 0);
	pg_atomic_init_u64(&slot->recovery_due, 0);
	pg_atomic_init_u64(&slot->recovery_limit, 0);
	pg_atomic_init_u64(&slot->acknowledged, 0);
	pg_atomic_init_u64(&slot->published, 0);
	pg_atomic_init_u64(&slot->republished, 0);
	pg_atomic_init_u64(&slot->confirmed, 0);
	pg_atomic_init_u64(&slot->failed, 0);
	pg_atomic_init_u64(&slot->dead, 0);
	slot->oid = database;
}

static void
outbox_shmem_startup(void)
{
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	outbox_shared = ShmemInitStruct(OUTBOX_EXTENSION, outbox_shmem_size(), &found);
	if (!found)
	{
		memset(outbox_shared, 0, outbox_shmem_size());
		outbox_shared->lock = &GetNamedLWLockTranche(OUTBOX_EXTENSION)->lock;
		outbox_shared->started_at = GetCurrentTimestamp();
		pg_atomic_init_u64(&outbox_shared->clock, 0);
		pg_atomic_init_u32(&outbox_shared->version_warned, 0);
		for (int i = 0; i < OUTBOX_MAX_DATABASES; i++)
			database_slot_clear(&outbox_shared->databases[i], InvalidOid);
		outbox_shared->nannouncements = MaxBackends;
		for (int i = 0; i < MaxBackends; i++)
			pg_atomic_init_u64(&outbox_shared->announcements[i].clock, 0);
	}
	wait_for_shmem_init();
	LWLockRelease(AddinShmemInitLock);
}

DatabaseSlot *
outbox_find_database(Oid database)
{
	DatabaseSlot *found = NULL;
	bool		held = LWLockHeldByMe(outbox_shared->lock);

	if (!held)
		LWLockAcquire(outbox_shared->lock, LW_SHARED);
	for (int i = 0; i < OUTBOX_MAX_DATABASES && found == NULL; i++)
	{
		if (outbox_shared->databases[i].oid == database)
			found = &outbox_shared->databases[i];
	}
	if (!held)
		LWLockRelease(outbox_shared->lock);
	return found;
}

DatabaseSlot *
outbox_make_database(Oid database)
{
	DatabaseSlot *slot;

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot = outbox_find_database(database);
	if (slot == NULL)
	{
		slot = outbox_find_database(InvalidOid);
		if (slot != NULL)
			database_slot_clear(slot, database);
	}
	LWLockRelease(outbox_shared->lock);
	return slot;
}

DatabaseSlot *
outbox_my_database(void)
{
	static DatabaseSlot *mine = NULL;

	if (likely(mine != NULL && mine->oid == MyDatabaseId))
		return mine;

	outbox_require_preloaded();
	mine = outbox_make_database(MyDatabaseId);
	if (mine == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases with the extension \"%s\"", OUTBOX_EXTENSION),
				 errdetail("An instance may have up to %d of them.", OUTBOX_MAX_DATABASES)));
	return mine;
}

void
outbox_forget_database(Oid database)
{
	DatabaseSlot *slot;

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot = outbox_find_database(database);
	if (slot != NULL)
		database_slot_clear(slot, InvalidOid);
	LWLockRelease(outbox_shared->lock);
}

void
outbox_require_preloaded(void)
{
	if (outbox_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the library \"%s\" was not loaded when the server started",
						OUTBOX_EXTENSION),
				 errhint("Add this line to postgresql.conf and restart the server: "
						 "shared_preload_libraries = '%s%s%s'",
						 shared_preload_libraries_string ? shared_preload_libraries_string : "",
						 shared_preload_libraries_string && *shared_preload_libraries_string ? "," : "",
						 OUTBOX_EXTENSION)));
}

static bool
check_databases(char **newval, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*newval);
	List	   *names;
	bool		ok = SplitIdentifierString(copy, ',', &names);

	if (!ok)
		GUC_check_errdetail("List syntax is invalid.");
	list_free(names);
	pfree(copy);
	return ok;
}

static void
define_settings(void)
{
	DefineCustomBoolVariable("outbox.enabled",
							 "Lets the workers publish and consume; capture goes on without them.",
							 NULL, &outbox_enabled, true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("outbox.databases",
							   "The databases whose messages are carried, all if empty.",
							   NULL, &outbox_databases, "",
							   PGC_SIGHUP, GUC_LIST_INPUT, check_databases, NULL, NULL);
	DefineCustomStringVariable("outbox.bootstrap_servers",
							   "The Kafka brokers to start from, as host:port, separated by commas.",
							   NULL, &outbox_bootstrap_servers, "",
							   PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("outbox.kafka_config",
							   "Properties of the Kafka client, as name=value, separated by semicolons.",
							   NULL, &outbox_kafka_config, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY, kafka_config_check, NULL, NULL);
	DefineCustomStringVariable("outbox.kafka_secrets_file",
							   "File with the secret properties of the Kafka client, a name=value a line.",
							   NULL, &outbox_kafka_secrets_file, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY, kafka_secrets_file_check, NULL, NULL);
	DefineCustomIntVariable("outbox.ack_timeout",
							"How long a message may wait for its acknowledgement before its topic is held.",
							NULL, &outbox_ack_timeout, 10000, 100, 3600000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.max_message_bytes",
							"The largest message: payload, key and headers, and 200.",
							NULL, &outbox_max_message_bytes, 1000000, 1000, 100 * 1024 * 1024,
							PGC_SIGHUP, GUC_UNIT_BYTE, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.poison_attempts",
							"How often a message may kill the bridge before it is DEAD.",
							NULL, &outbox_poison_attempts, 3, 1, 100,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.publishers",
							"How many publishers of a database share its keys.",
							NULL, &outbox_publishers, 1, 1, OUTBOX_MAX_PUBLISHERS,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.consumers",
							"How many consumers of a database share the partitions it reads.",
							NULL, &outbox_consumers, 1, 1, OUTBOX_MAX_CONSUMERS,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.retention",
							"How long a message that is done with stays in the log.",
							NULL, &outbox_retention, 7 * SECS_PER_DAY, 60, 365 * SECS_PER_DAY,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("outbox.inbox_retention",
							"How long it is known which records were handled.",
							NULL, &outbox_inbox_retention, 30 * SECS_PER_DAY, 60, 365 * SECS_PER_DAY,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	MarkGUCPrefixReserved(OUTBOX_EXTENSION);
}

/*
 * Not preloaded, or loaded by pg_upgrade, the library does nothing, and its
 * functions say so: it must be possible to load it.
 */
void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;

	define_settings();

	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = outbox_shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = outbox_shmem_startup;

	announce_init();
	wait_for_init();
	log_append_init();
	topic_grants_init();
	hooks_init();
	launcher_register();
}

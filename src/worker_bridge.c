/*-------------------------------------------------------------------------
 *
 * worker_bridge.c
 *	  A worker's bridge: its start, its end, and what both say of it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

#include "safe_text.h"
#include "worker.h"

#define BRIDGE_DELAY_MIN	100
#define BRIDGE_DELAY_MAX	30000
/* One that ran for so long (ms) did its work well, whether there was any or not */
#define BRIDGE_PROVED_AFTER	60000

static void
note_bridge(Worker *worker, pid_t pid, const char *exit)
{
	WorkerSlot *slot = worker->slot;

	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	slot->bridge_pid = pid;
	if (exit != NULL)
	{
		safe_text_copy(slot->bridge_last_exit, exit, WORKER_TEXT_LEN);
		slot->bridge_restarts++;
	}
	LWLockRelease(outbox_shared->lock);
}

static void
note_brokers(Worker *worker, bool up, const char *reason)
{
	DatabaseSlot *db = worker->db;

	worker->brokers_up = up;
	if (worker->kind == WORKER_PUBLISHER && worker->number == 0)
	{
		LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
		db->brokers_known = true;
		db->brokers_up = up;
		safe_text_copy(db->brokers_reason, up ? "" : reason, WORKER_TEXT_LEN);
		LWLockRelease(outbox_shared->lock);
	}
	if (up)
		ereport(LOG, (errmsg("connected to Kafka")));
	else
	{
		worker_set_error(worker, reason);
		ereport(LOG, (errmsg("the Kafka brokers can't be reached: %s", reason)));
	}
}

static uint32
hash_properties(const KafkaProperty *properties, int n)
{
	uint32		hash = 0;

	for (int i = 0; i < n; i++)
	{
		hash = hash_combine(hash, hash_bytes((const unsigned char *) properties[i].name,
											 strlen(properties[i].name)));
		hash = hash_combine(hash, hash_bytes((const unsigned char *) properties[i].value,
											 strlen(properties[i].value)));
	}
	return hash;
}

/* Outside of a transaction nobody else frees what this leaves behind */
static MemoryContext
properties_context(void)
{
	return AllocSetContextCreate(TopMemoryContext, "outbox Kafka properties",
								 ALLOCSET_SMALL_SIZES);
}

void
worker_bridge_start(Worker *worker)
{
	int			n;
	MemoryContext context = properties_context();
	MemoryContext old = MemoryContextSwitchTo(context);
	KafkaProperty *properties = kafka_config_load(&n);

	worker->bridge_config = hash_properties(properties, n);
	worker->config_changed = false;
	worker->bridge = bridge_start(worker->kind == WORKER_PUBLISHER ?
								  BRIDGE_PRODUCER : BRIDGE_CONSUMER, properties, n);
	kafka_config_forget(properties, n);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	worker->bridge_ready = false;
	worker->brokers_up = false;
	worker->bridge_crashed = false;
	worker->bridge_started_at = GetCurrentTimestamp();
	note_bridge(worker, bridge_pid(worker->bridge), NULL);
}

void
worker_bridge_compare(Worker *worker)
{
	int			n;
	MemoryContext context = properties_context();
	MemoryContext old = MemoryContextSwitchTo(context);
	KafkaProperty *properties = kafka_config_load(&n);
	uint32		hash = hash_properties(properties, n);

	kafka_config_forget(properties, n);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	worker->config_changed = false;
	if (hash != worker->bridge_config)
		worker_bridge_drop(worker, "stopped to apply changed settings");
}

void
worker_bridge_drop(Worker *worker, const char *why)
{
	if (worker->bridge == NULL)
		return;
	bridge_stop(worker->bridge);
	worker->bridge = NULL;
	worker->bridge_ready = false;
	worker->brokers_up = false;
	note_bridge(worker, 0, why);
	if (worker->kind == WORKER_PUBLISHER && worker->number == 0)
		worker->db->brokers_known = false;
}

void
worker_bridge_proved(Worker *worker)
{
	worker->bridge_failures = 0;
}

/* One failure is nothing special, several in a row are */
const char *
worker_bridge_waiting(const Worker *worker)
{
	static char text[sizeof(worker->slot->state)];

	if (worker->bridge_failures < 2)
		return "waiting to start a new bridge";
	snprintf(text, sizeof(text), "waiting to start a new bridge after %d failures in a row",
			 worker->bridge_failures);
	return text;
}

long
worker_bridge_time_to_start(const Worker *worker, long most)
{
	TimestampTz now = GetCurrentTimestamp();

	if (worker->bridge != NULL || worker->bridge_not_before <= now)
		return most;
	return TimestampDifferenceMilliseconds(now, worker->bridge_not_before);
}

long
worker_bridge_back_off(Worker *worker, long base, long max)
{
	TimestampTz now = GetCurrentTimestamp();
	long		delay;

	if (worker->bridge_ready &&
		TimestampDifferenceExceeds(worker->bridge_started_at, now, BRIDGE_PROVED_AFTER))
		worker_bridge_proved(worker);
	if (!worker->bridge_at_risk)
		worker->bridge_failures++;
	delay = backoff_delay(Max(worker->bridge_failures, 1), base, max);
	worker->bridge_not_before = TimestampTzPlusMilliseconds(now, delay);
	worker_set_state(worker, worker_bridge_waiting(worker));
	return delay;
}

void
worker_bridge_failed(Worker *worker, const char *how)
{
	Bridge	   *bridge = worker->bridge;
	long		delay = worker_bridge_back_off(worker, BRIDGE_DELAY_MIN, BRIDGE_DELAY_MAX);

	worker->bridge = NULL;
	worker->bridge_ready = false;
	worker->brokers_up = false;
	note_bridge(worker, 0, how);
	worker_set_error(worker, how);
	ereport(LOG,
			(errmsg("the bridge to Kafka ended: %s", how),
			 errdetail("A new one is started in %ld ms; no message is lost.", delay)));

	/* last, since it may be the bridge that says how */
	bridge_stop(bridge);
}

/* The bridge's log lines go to the server's log under the worker's name */
static void
forward_log(const BridgeEvent *event)
{
	int			level = DEBUG1;

	if (event->level <= 3)
		level = WARNING;
	else if (event->level <= 5)
		level = LOG;
	ereport(level, (errmsg("Kafka client: %s", event->text)));
}

/* Once a server start and version, though each of many bridges says so */
static void
warn_of_version(const Bridge *bridge)
{
	const char *version = bridge_librdkafka_version(bridge);
	const char *faults = bridge_librdkafka_faults(bridge);
	uint32		hash = hash_bytes((const unsigned char *) version, strlen(version)) | 1;

	if (faults[0] == '\0' ||
		pg_atomic_exchange_u32(&outbox_shared->version_warned, hash) == hash)
		return;
	ereport(WARNING,
			(errmsg("librdkafka %s has known faults: %s", version, faults),
			 errdetail("They can cost a restart of the bridge, or a while without Kafka; no message is lost."),
			 errhint("Install a version of librdkafka that has them mended.")));
}

static void
note_ready(Worker *worker)
{
	worker->bridge_ready = true;
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	strlcpy(worker->slot->librdkafka_version, bridge_librdkafka_version(worker->bridge),
			sizeof(worker->slot->librdkafka_version));
	LWLockRelease(outbox_shared->lock);
	warn_of_version(worker->bridge);
}

bool
worker_next_event(Worker *worker, BridgeEvent *event)
{
	while (worker->bridge != NULL && bridge_next_event(worker->bridge, event))
	{
		switch (event->type)
		{
			case BRIDGE_READY:
				note_ready(worker);
				break;
			case BRIDGE_LOG:
				forward_log(event);
				break;
			case BRIDGE_BROKERS:
				note_brokers(worker, event->up, event->text);
				return true;
			case BRIDGE_DIED:
				worker->bridge_crashed = event->crashed;
				worker->bridge_was_connected = worker->brokers_up;
				worker_bridge_failed(worker, event->text);
				return true;
			default:
				return true;
		}
	}
	return false;
}

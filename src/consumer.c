/*-------------------------------------------------------------------------
 *
 * consumer.c
 *	  The consumer: reads the result topics and applies what they say.
 *
 * A batch is what the bridge delivered since the last one.  Its effects, its
 * counts and the positions it was read up to are one transaction; what isn't
 * committed is read again, so that each result takes effect exactly once.
 * While Kafka is waited for no transaction is open.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "storage/proc.h"
#include "utils/memutils.h"

#include "reading_tag.h"
#include "result_apply.h"
#include "result_route.h"
#include "result_topic.h"
#include "worker.h"

/* A batch takes no further record once it has so many, or so many bytes */
#define BATCH_RECORDS	1000
#define BATCH_BYTES		(1024 * 1024)

/* Without any other reason to wake up, the consumer looks around this often (ms) */
#define LOOK_INTERVAL	10000

/* Bad results of a topic are logged this often (ms) */
#define BAD_LOG_INTERVAL 60000

#define FINISHED_DELAY_MIN	100
#define FINISHED_DELAY_MAX	30000

/* What was read and isn't applied yet */
typedef struct Batch
{
	MemoryContext context;
	ReceivedResult results[BATCH_RECORDS];
	int			nresults;
	int			nrecords;		/* bad ones, too */
	Size		bytes;
} Batch;

static Batch batch;

/* The routes were loaded, and the topics to read are not adapted to them yet */
static bool routes_changed = false;

static bool look_at_database(Worker *worker);
static void load_routes(void);
static bool work(Worker *worker, TimestampTz *wake);
static void notice_bridge(Worker *worker);
static bool take_events(Worker *worker);
static void take_partition_event(Worker *worker, const BridgeEvent *event);
static void take_record(Partition *partition, const BridgeRecord *record);
static void log_bad(Partition *partition, int64 offset, const char *problem);
static void client_finished(Worker *worker, const char *text);
static void apply_batch(Worker *worker);
static bool anything_to_save(void);
static bool lock_positions(void);
static void save_positions(void);
static void positions_saved(void);
static bool anything_to_load(void);

/*
 * The main loop: look, work, sleep.  Whatever wakes it, it looks at the
 * database first, for that may be why; looking costs microseconds.
 */
void
consumer_main(Worker *worker)
{
	batch.context = AllocSetContextCreate(TopMemoryContext, "outbox batch",
										  ALLOCSET_DEFAULT_SIZES);
	routes_init();
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	worker->db->consumer = MyProc;
	LWLockRelease(outbox_shared->lock);

	for (;;)
	{
		TimestampTz wake = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   LOOK_INTERVAL);
		bool		more = false;

		if (!look_at_database(worker))
			notice_bridge(worker);
		else if (nresult_topics > 0)
			more = work(worker, &wake);
		else
		{
			worker_bridge_drop(worker, "stopped: there is no result topic to read");
			worker_set_state(worker, "no result topics");
		}
		worker_wait(worker, more ? 0 :
					TimestampDifferenceMilliseconds(GetCurrentTimestamp(), wake), false);
	}
}

/* False if the worker has to rest: worker_begin has said why */
static bool
look_at_database(Worker *worker)
{
	if (!worker_begin(worker))
	{
		/* after a rest nothing is as it was */
		result_topics_unload(worker->bridge);
		routes_distrust();
		return false;
	}
	load_routes();
	if (routes_changed)
		result_topics_sync(worker->bridge);
	routes_changed = false;
	result_topics_load();
	worker_commit(worker);
	return true;
}

static void
load_routes(void)
{
	if (!routes_stale())
		return;
	routes_load();
	routes_changed = true;
}

/* One turn; true if there is more to do at once */
static bool
work(Worker *worker, TimestampTz *wake)
{
	bool		may_work = worker_may_work(worker);
	bool		more;

	notice_bridge(worker);
	more = take_events(worker);
	apply_batch(worker);

	if (may_work && worker->bridge != NULL)
	{
		result_topics_serve(worker->bridge, GetCurrentTimestamp(), wake);
		result_topics_show(worker);
	}
	else if (worker->brokers_up)
		return true;			/* they came up just now */
	else if (worker->bridge_not_before > GetCurrentTimestamp())
		*wake = Min(*wake, worker->bridge_not_before);
	return more || anything_to_load();
}

/* True if the next turn's look at the database is waited for */
static bool
anything_to_load(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = result_topics_scan(&scan)) != NULL)
	{
		if (partition->state == PARTITION_UNLOADED)
			return true;
	}
	return false;
}

/* With another bridge, or none, everything is asked for anew */
static void
notice_bridge(Worker *worker)
{
	static TimestampTz noticed = 0;
	TimestampTz started = worker->bridge ? worker->bridge_started_at : 0;

	if (started != noticed)
		result_topics_forget_bridge();
	noticed = started;
}

/* ---------------------------------------------------------------------
 * What the bridge says
 * --------------------------------------------------------------------- */

/* Takes events until there are none, or the batch is full: true */
static bool
take_events(Worker *worker)
{
	BridgeEvent event;

	while (batch.nrecords < BATCH_RECORDS && batch.bytes < BATCH_BYTES)
	{
		if (!worker_next_event(worker, &event))
			return false;
		switch (event.type)
		{
			case BRIDGE_BROKERS:
				if (event.up)
					result_topics_verify_soon();
				break;
			case BRIDGE_TOPIC:
				/* it may make partitions go that the batch points to */
				apply_batch(worker);
				if (worker->bridge == NULL)
					return false;
				result_topic_answer(worker, &event);
				break;
			case BRIDGE_RECORD:
			case BRIDGE_CAUGHT_UP:
			case BRIDGE_PARTITION_ERROR:
			case BRIDGE_WATERMARKS:
				take_partition_event(worker, &event);
				break;
			default:
				break;
		}
	}
	return true;
}

static void
take_partition_event(Worker *worker, const BridgeEvent *event)
{
	Partition  *partition = reading_tag_owner(event->tag);

	/* what an ended reading had still under way */
	if (partition == NULL)
		return;
	if (event->type == BRIDGE_PARTITION_ERROR)
	{
		if (event->error_class == PARTITION_CLIENT_FINISHED)
		{
			client_finished(worker, event->text);
			return;
		}
		if (event->error_class == PARTITION_TOPIC_MISSING ||
			event->error_class == PARTITION_TOPIC_DENIED)
		{
			result_topic_refused(worker, partition, event);
			return;
		}
	}
	else if (event->type != BRIDGE_WATERMARKS)
		result_topic_proved(partition);

	if (partition_event(partition, worker->bridge, event))
		take_record(partition, &event->record);
}

/* Puts a record into the batch, or only counts it if it is no result */
static void
take_record(Partition *partition, const BridgeRecord *record)
{
	ReceivedResult *received = &batch.results[batch.nresults];
	MemoryContext old = MemoryContextSwitchTo(batch.context);
	const char *problem = result_parse(record, &received->result);

	MemoryContextSwitchTo(old);
	batch.nrecords++;
	batch.bytes += record->key_len + record->value_len;
	if (problem == NULL)
	{
		received->topic = partition->row.topic;
		received->counts = &partition->counts;
		batch.nresults++;
	}
	else
	{
		partition->counts.bad++;
		log_bad(partition, record->offset, problem);
	}
}

static void
log_bad(Partition *partition, int64 offset, const char *problem)
{
	ResultTopic *topic = result_topic_of(partition);
	TimestampTz now = GetCurrentTimestamp();

	if (topic->bad_logged_at != 0 &&
		!TimestampDifferenceExceeds(topic->bad_logged_at, now, BAD_LOG_INTERVAL))
		return;
	topic->bad_logged_at = now;
	ereport(WARNING,
			(errmsg("bad result in topic \"%s\" partition %d at offset " INT64_FORMAT ": %s",
					topic->name, partition->row.partition, offset, problem),
			 errdetail("It is counted and passed over; others within a minute are not logged.")));
}

/* librdkafka's client is of no more use */
static void
client_finished(Worker *worker, const char *text)
{
	long		delay = backoff_delay(++worker->bridge_failures, FINISHED_DELAY_MIN,
									  FINISHED_DELAY_MAX);
	char		why[WORKER_TEXT_LEN];

	snprintf(why, sizeof(why), "the Kafka client has failed: %s", text);
	worker_set_error(worker, why);
	ereport(LOG, (errmsg_internal("%s", why)));
	worker_bridge_drop(worker, why);
	worker->bridge_not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay);
}

/* ---------------------------------------------------------------------
 * The batch
 * --------------------------------------------------------------------- */

/* Applies the batch and saves the positions, in one transaction */
static void
apply_batch(Worker *worker)
{
	int			confirmed = 0;
	int			failed = 0;

	if (!anything_to_save())
		return;
	if (!worker_begin(worker))
		result_topics_unload(worker->bridge);
	else if (!lock_positions())
	{
		SPI_finish();
		AbortCurrentTransaction();
		ereport(LOG,
				(errmsg("the positions in the result topics were changed by somebody else"),
				 errdetail("Reading goes on from there.")));
		result_topics_unload(worker->bridge);
	}
	else
	{
		load_routes();
		results_apply(batch.results, batch.nresults, &confirmed, &failed);
		save_positions();
		worker_commit(worker);

		positions_saved();
		pg_atomic_fetch_add_u64(&worker->db->confirmed, confirmed);
		pg_atomic_fetch_add_u64(&worker->db->failed, failed);
		if (batch.nrecords > 0)
			worker_bridge_proved(worker);
	}
	batch.nresults = batch.nrecords = 0;
	batch.bytes = 0;
	MemoryContextReset(batch.context);
}

static bool
anything_to_save(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = result_topics_scan(&scan)) != NULL)
	{
		if (partition->dirty)
			return true;
	}
	return false;
}

/*
 * Locks the rows of all partitions that the batch is about.  False if one of
 * them isn't as we left it.
 */
static bool
lock_positions(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = result_topics_scan(&scan)) != NULL)
	{
		if (partition->dirty &&
			!store_offset_lock(&partition->row, partition->next, &partition->anchor))
			return false;
	}
	return true;
}

static void
save_positions(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = result_topics_scan(&scan)) != NULL)
	{
		if (partition->dirty)
			store_offset_save(&partition->row, partition->next, &partition->anchor,
							  &partition->counts);
	}
}

static void
positions_saved(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = result_topics_scan(&scan)) != NULL)
	{
		if (partition->dirty)
			partition_saved(partition);
	}
}

/*-------------------------------------------------------------------------
 *
 * consumer.c
 *	  The consumer: reads the result topics and the subscribed ones, and
 *	  applies what they say.
 *
 * A batch is what the bridge delivered since the last one: results, or records
 * whose handlers are of one role.  Its effects, its counts and the positions
 * it was read up to are one transaction; what isn't committed is read again,
 * so that each record takes effect exactly once.  While Kafka is waited for no
 * transaction is open.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "utils/memutils.h"

#include "dead_replay.h"
#include "outcome_handler.h"
#include "owed_call.h"
#include "read_topic.h"
#include "reading_tag.h"
#include "result_apply.h"
#include "result_route.h"
#include "safe_text.h"
#include "subscribed.h"
#include "subscription.h"
#include "worker.h"

/* A batch takes no further record once it has so many, or so many bytes */
#define BATCH_RECORDS	1000
#define BATCH_BYTES		(1024 * 1024)

/* Without any other reason to wake up, the consumer looks around this often (ms) */
#define LOOK_INTERVAL	10000

/* ... and where a subscription waits for somebody to repair it (ms) */
#define REPAIR_INTERVAL	1000

/* Bad results of a topic are logged this often (ms) */
#define BAD_LOG_INTERVAL 60000

#define FINISHED_DELAY_MIN	100
#define FINISHED_DELAY_MAX	30000

/* What was read and isn't applied yet */
typedef struct Batch
{
	MemoryContext context;
	Received	received[BATCH_RECORDS];
	int			n;
	Size		bytes;
	ReadKind	kind;
	const char *role;			/* whose handlers it calls; NULL: none */
	int			limit;
} Batch;

static Batch batch;

/* The routes were loaded, and the topics to read are not adapted to them yet */
static bool routes_changed = false;

static bool look_at_database(Worker *worker);
static void load_routes(void);
static void pay_debts(Worker *worker, TimestampTz *wake);
static bool work(Worker *worker, TimestampTz *wake);
static void notice_bridge(Worker *worker);
static bool take_events(Worker *worker);
static void take_partition_event(Worker *worker, const BridgeEvent *event);
static bool make_room(Worker *worker, const BridgeEvent *event);
static void take_record(Partition *partition, const BridgeEvent *event, PartitionNews news);
static void take_result(Received *received, const BridgeEvent *event);
static BridgeRecord copy_record(const BridgeRecord *record);
static void log_bad(Partition *partition, int64 offset, const char *problem);
static void client_finished(Worker *worker, const char *text);
static void apply_batch(Worker *worker);
static bool apply_some(Worker *worker, Received *received, int n, bool alone);
static void apply_in_transaction(Worker *worker, Received *received, int n, bool alone);
static bool anything_to_save(void);
static bool lock_positions(void);
static void save_positions(void);
static void for_dirty(void (*what) (Partition *));
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
	subscriptions_init();

	for (;;)
	{
		TimestampTz wake = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   LOOK_INTERVAL);
		bool		more = false;

		if (!look_at_database(worker))
			notice_bridge(worker);
		else if (nread_topics > 0)
			more = work(worker, &wake);
		else
		{
			worker_bridge_drop(worker, "stopped: there is no topic to read");
			worker_set_state(worker, "no topics to read");
		}
		pay_debts(worker, &wake);
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
		read_topics_unload(worker->bridge);
		routes_distrust();
		return false;
	}
	load_routes();
	subscriptions_check();
	if (routes_changed)
	{
		read_topics_sync(worker->bridge);
		read_topics_compare(worker->bridge);
	}
	routes_changed = false;
	read_topics_block(worker->bridge);
	read_topics_load();
	worker_commit(worker);
	return true;
}

static void
load_routes(void)
{
	if (!routes_stale())
		return;
	routes_load();
	subscriptions_load();
	outcome_handlers_load();
	owed_calls_distrust();
	dead_replays_distrust();
	routes_changed = true;
}

/*
 * Calls that are owed, and dead records to be handled again: one at a time,
 * that records don't wait for them.  One consumer does it for all.
 */
static void
pay_debts(Worker *worker, TimestampTz *wake)
{
	TimestampTz now = GetCurrentTimestamp();

	if (worker->number != 0 || !outbox_enabled)
		return;
	if (owed_calls_due() <= now)
		owed_calls_step(worker);
	if (dead_replays_due() <= now)
		dead_replays_step(worker);
	*wake = Min(*wake, Min(owed_calls_due(), dead_replays_due()));
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

	if (subscriptions_troubled())
		*wake = Min(*wake, TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   REPAIR_INTERVAL));
	if (may_work && worker->bridge != NULL)
	{
		read_topics_serve(worker->bridge, GetCurrentTimestamp(), wake);
		read_topics_show(worker);
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

	while ((partition = read_topics_scan(&scan)) != NULL)
	{
		if (partition->state == PARTITION_UNLOADED && !read_topic_of(partition)->blocked)
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
		read_topics_forget_bridge();
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

	while (batch.n == 0 || (batch.n < batch.limit && batch.bytes < BATCH_BYTES))
	{
		if (!worker_next_event(worker, &event))
			return false;
		switch (event.type)
		{
			case BRIDGE_BROKERS:
				if (event.up)
					read_topics_verify_soon();
				break;
			case BRIDGE_TOPIC:
				/* it may make partitions go that the batch points to */
				apply_batch(worker);
				if (worker->bridge == NULL)
					return false;
				read_topic_answer(worker, &event);
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
	Partition  *partition;
	PartitionNews news;

	if (!make_room(worker, event))
		return;

	/* there may be something under way from a reading that has ended */
	partition = reading_tag_owner(event->tag);
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
			read_topic_refused(worker, partition, event);
			return;
		}
	}
	else if (event->type != BRIDGE_WATERMARKS)
		read_topic_proved(partition);

	news = partition_event(partition, worker->bridge, event);
	if (news != PARTITION_NO_NEWS)
		take_record(partition, event, news);
}

/* Whose handlers the records of a partition call; NULL: nobody's */
static const char *
role_of(const Partition *partition)
{
	const Subscription *subscription;

	if (partition->row.kind == READ_RESULTS)
		return outcome_handlers_role(partition->row.topic);
	subscription = subscription_find(partition->row.topic);
	return subscription ? subscription->handler.role_name : NULL;
}

/*
 * Applies the batch if the event's record doesn't belong into it.  False if
 * the bridge, and the event with it, is gone then.
 */
static bool
make_room(Worker *worker, const BridgeEvent *event)
{
	Partition  *partition = reading_tag_owner(event->tag);
	const char *role;

	if (partition == NULL || event->type == BRIDGE_WATERMARKS)
		return true;
	role = role_of(partition);
	if (batch.n > 0 &&
		(batch.kind != partition->row.kind || (batch.role == NULL) != (role == NULL) ||
		 (role != NULL && strcmp(role, batch.role) != 0)))
	{
		apply_batch(worker);
		if (worker->bridge == NULL)
			return false;
	}
	if (batch.n == 0)
	{
		batch.kind = partition->row.kind;
		batch.role = role ? MemoryContextStrdup(batch.context, role) : NULL;
		batch.limit = role == NULL ? BATCH_RECORDS : role[0] ? HANDLER_CALLS_MAX : 1;
	}
	return true;
}

/* Puts a record into the batch */
static void
take_record(Partition *partition, const BridgeEvent *event, PartitionNews news)
{
	Received   *received = &batch.received[batch.n++];
	MemoryContext old = MemoryContextSwitchTo(batch.context);

	memset(received, 0, sizeof(Received));
	received->partition = partition;
	received->generation = partition->generation;
	if (news == PARTITION_UNREADABLE_RECORD)
	{
		received->place.offset = partition->read - 1;
		received->problem = "it can't be read";
	}
	else
	{
		received->place = partition_place(&event->record);
		batch.bytes += event->record.key_len + event->record.value_len;
		if (partition->row.kind == READ_RESULTS)
			take_result(received, event);
		else
			received->record = copy_record(&event->record);
	}
	MemoryContextSwitchTo(old);
}

static void
take_result(Received *received, const BridgeEvent *event)
{
	received->problem = result_parse(&event->record, &received->result);
	if (received->problem != NULL)
		log_bad(received->partition, event->record.offset, received->problem);
}

static char *
copy_bytes(const char *bytes, int len)
{
	char	   *copy;

	if (bytes == NULL)
		return NULL;
	copy = palloc(len + 1);
	memcpy(copy, bytes, len);
	copy[len] = '\0';
	return copy;
}

static BridgeRecord
copy_record(const BridgeRecord *record)
{
	BridgeRecord copy = *record;

	copy.key = copy_bytes(record->key, record->key_len);
	copy.value = copy_bytes(record->value, record->value_len);
	copy.headers = palloc(Max(record->nheaders, 1) * sizeof(BridgeHeader));
	for (int i = 0; i < record->nheaders; i++)
	{
		copy.headers[i] = record->headers[i];
		copy.headers[i].name = pstrdup(record->headers[i].name);
		copy.headers[i].value = copy_bytes(record->headers[i].value,
										   record->headers[i].len);
	}
	return copy;
}

static void
log_bad(Partition *partition, int64 offset, const char *problem)
{
	ReadTopic  *topic = read_topic_of(partition);
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

	safe_text_printf(why, sizeof(why), "the Kafka client has failed: %s", text);
	worker_set_error(worker, why);
	ereport(LOG, (errmsg_internal("%s", why)));
	worker_bridge_drop(worker, why);
	worker->bridge_not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay);
}

/* ---------------------------------------------------------------------
 * The batch
 * --------------------------------------------------------------------- */

/*
 * Applies the batch and saves the positions, in one transaction; where that
 * fails because of what handlers left to its end, in one a record.
 */
static void
apply_batch(Worker *worker)
{
	int			n = batch.n;

	if (n == 0 && !anything_to_save())
		return;

	/* read_topics_unload and the like find the batch empty */
	batch.n = 0;
	if (!apply_some(worker, batch.received, n, n == 1))
	{
		for (int i = 0; i < n; i++)
			(void) apply_some(worker, &batch.received[i], 1, true);
	}
	batch.bytes = 0;
	MemoryContextReset(batch.context);
}

/* True unless the records have to be applied again, each alone */
static bool
apply_some(Worker *worker, Received *received, int n, bool alone)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool done = true;

	for (int i = 0; i < n; i++)
	{
		if (!received_is_void(&received[i]))
			received[i].partition->now.dirty = true;
	}
	if (!worker_begin(worker))
	{
		read_topics_unload(worker->bridge);
		return true;
	}
	for_dirty(partition_remember);
	if (!lock_positions())
	{
		SPI_finish();
		AbortCurrentTransaction();
		ereport(LOG,
				(errmsg("the positions in the topics were changed by somebody else"),
				 errdetail("Reading goes on from there.")));
		read_topics_unload(worker->bridge);
		return true;
	}
	PG_TRY();
	{
		apply_in_transaction(worker, received, n, alone);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		if (alone || batch.role == NULL)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		ereport(LOG,
				(errmsg("a batch of %d records is handled again, each alone: %s",
						n, error->message)));
		FreeErrorData(error);
		for_dirty(partition_restore);
		done = false;
	}
	PG_END_TRY();
	handler_tidy_session();
	if (done)
		for_dirty(partition_saved);
	return done;
}

static void
apply_in_transaction(Worker *worker, Received *received, int n, bool alone)
{
	int			confirmed = 0;
	int			failed = 0;

	load_routes();
	if (batch.kind == READ_RESULTS)
		results_apply(received, n, alone, &confirmed, &failed);
	else
		subscribed_handle(worker, received, n, alone);
	save_positions();
	worker_commit(worker);

	pg_atomic_fetch_add_u64(&worker->db->confirmed, confirmed);
	pg_atomic_fetch_add_u64(&worker->db->failed, failed);
	if (n > 0)
		worker_bridge_proved(worker);
}

static void
for_dirty(void (*what) (Partition *))
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = read_topics_scan(&scan)) != NULL)
	{
		if (partition->now.dirty)
			what(partition);
	}
}

static bool
anything_to_save(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = read_topics_scan(&scan)) != NULL)
	{
		if (partition->now.dirty)
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

	while ((partition = read_topics_scan(&scan)) != NULL)
	{
		if (partition->now.dirty &&
			!store_offset_lock(&partition->row, &partition->now.state))
			return false;
	}
	return true;
}

static void
save_positions(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = read_topics_scan(&scan)) != NULL)
	{
		if (partition->now.dirty)
			store_offset_save(&partition->row, &partition->now.state,
							  &partition->now.counts);
	}
}
